CREATE TABLE notes (id bigint PRIMARY KEY, body text);
INSERT INTO notes VALUES (1, '{{aead v1 as=base64 of="nonce tag ciphertext" "text number one"}}'), (2, '{{aead v1 as=base64 of="nonce tag ciphertext" "the second text, longer"}}'), (3, '{{aead v2 as=base64 of="nonce tag ciphertext" "third text"}}'), (4, NULL), (5, '{{aead v1 as=base64 of="nonce tag ciphertext" ""}}');
