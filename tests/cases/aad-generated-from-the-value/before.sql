CREATE TABLE notes (id bigint PRIMARY KEY, body text, head text GENERATED ALWAYS AS (left(body, 3)) STORED);
INSERT INTO notes (id, body) VALUES (1, '{{aead v1 aad="v1:" "a note to keep"}}');
