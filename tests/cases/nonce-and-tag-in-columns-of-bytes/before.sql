CREATE TABLE notes (id bigint PRIMARY KEY, body bytea, iv bytea CHECK (octet_length(iv) = 12), auth_tag bytea CHECK (octet_length(auth_tag) = 16), v text);
INSERT INTO notes VALUES
  (1, '{{aead v1 aad="note-1" of="ciphertext" as=bytea "first of them"}}', '{{aead v1 aad="note-1" of="nonce" as=bytea "first of them"}}', '{{aead v1 aad="note-1" of="tag" as=bytea "first of them"}}', 'v1'),
  (2, '\x', '{{aead v1 aad="note-2" of="nonce" as=bytea ""}}', '{{aead v1 aad="note-2" of="tag" as=bytea ""}}', 'v1');
