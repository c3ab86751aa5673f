CREATE TABLE notes (id bigint PRIMARY KEY, owner text, body text);
INSERT INTO notes VALUES
(1, NULL, '{{aead v1 marker="{version}." of="ciphertext | nonce | tag" separator="--" "first of them"}}'),
(2, NULL, '{{aead v1 marker="{version}." of="ciphertext | nonce | tag" separator="--" "second of them"}}');
