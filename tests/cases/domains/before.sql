CREATE DOMAIN owner_id AS int CHECK (VALUE > 0);
CREATE DOMAIN sealed AS text CHECK (VALUE IS NULL OR VALUE ~ '^v[0-9]+:');
CREATE DOMAIN short_sealed AS varchar(90);
CREATE DOMAIN "Short & sealed" AS short_sealed CHECK (length(VALUE) > 10);
CREATE DOMAIN picture AS bytea CHECK (octet_length(VALUE) < 1000);
CREATE TABLE people (id owner_id PRIMARY KEY, owner owner_id, name sealed, phone "Short & sealed", photo picture);
INSERT INTO people VALUES
  (1, 7, '{{aead v1 aad="7" "Ada Lovelace"}}', '{{box v1 "+44 1234"}}', '{{aead v1 as=bytea "a picture"}}'),
  (2, NULL, '{{aead v1 aad="" "Grace Hopper"}}', NULL, NULL);
