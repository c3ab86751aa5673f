CREATE TABLE people (id bigint PRIMARY KEY, owner int NOT NULL, name text, phone text, mail text, seen timestamptz DEFAULT now());
INSERT INTO people VALUES
  (1, 7, '{{aead v1 aad="7" "Ada Lovelace"}}', '{{aead v1 aad="7" "+44 1234"}}', '{{box v1 "ada@example.org"}}'),
  (2, 8, '{{aead v2 aad="8" "Grace Hopper"}}', '{{aead v1 aad="8" "+1 555 01"}}', NULL),
  (3, 9, NULL, NULL, NULL),
  (4, 9, '{{aead v2 aad="9" "Mary Kenneth"}}', NULL, '{{box v2 "mary@example.org"}}');
