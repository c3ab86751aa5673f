CREATE TABLE notes (id bigint PRIMARY KEY, body text);
INSERT INTO notes VALUES (1, '{{aead v1 as=hex of="ciphertext tag nonce" "text number one"}}'), (2, '{{aead v1 as=hex of="ciphertext tag nonce" "the second text, longer"}}'), (3, '{{aead v2 as=hex of="ciphertext tag nonce" "third text"}}'), (4, NULL), (5, '{{aead v1 as=hex of="ciphertext tag nonce" ""}}');
