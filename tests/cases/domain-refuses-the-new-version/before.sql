CREATE DOMAIN sealed AS text CHECK (VALUE !~ '^v[2-9]:');
CREATE TABLE notes (id bigint PRIMARY KEY, body sealed);
INSERT INTO notes SELECT i, '{{box v1 "a note to keep"}}' FROM generate_series(1, 9) i;
