CREATE TABLE notes (id bigint PRIMARY KEY, body text, other text DEFAULT 'same');
INSERT INTO notes VALUES (1, '{{aead v1 aad="same" "a note to keep"}}');
GRANT SELECT (id, body), UPDATE (body) ON notes TO {{role app}};
