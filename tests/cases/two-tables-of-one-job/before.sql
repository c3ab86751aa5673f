CREATE TABLE notes (id bigint PRIMARY KEY, body text);
CREATE TABLE secrets (id uuid PRIMARY KEY, org int, value text);
INSERT INTO notes VALUES (1, '{{box v1 "a note to keep"}}'), (2, NULL);
INSERT INTO secrets VALUES ('6ba7b810-9dad-11d1-80b4-00c04fd430c8', 5, '{{aead v1 marker="" aad="5:6ba7b810-9dad-11d1-80b4-00c04fd430c8" "no marker yet"}}');
