CREATE TABLE notes (id bigint PRIMARY KEY, body bytea);
INSERT INTO notes VALUES (1, '{{aead v1 as=bytea marker="" aad="1" "first of them"}}'), (2, '{{aead v2 as=bytea marker="" aad="2" "second of them"}}'), (3, '\x'), (4, '{{aead v1 as=bytea marker="" aad="4" ""}}');
