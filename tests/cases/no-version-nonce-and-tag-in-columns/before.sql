CREATE TABLE notes (id bigint PRIMARY KEY, body text, iv text, tag text);
INSERT INTO notes VALUES
  (1, '{{aead v1 of="ciphertext" as=hex "first of them"}}', '{{aead v1 of="nonce" as=hex "first of them"}}', '{{aead v1 of="tag" as=hex "first of them"}}'),
  (2, '{{aead v2 of="ciphertext" as=hex "second of them"}}', '{{aead v2 of="nonce" as=hex "second of them"}}', '{{aead v2 of="tag" as=hex "second of them"}}'),
  (3, NULL, NULL, NULL), (4, '', '{{aead v1 of="nonce" as=hex ""}}', '{{aead v1 of="tag" as=hex ""}}');
