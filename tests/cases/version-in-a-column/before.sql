CREATE TABLE notes (id bigint PRIMARY KEY, body text, key_version text, other text DEFAULT 'v1');
INSERT INTO notes VALUES (1, '{{aead v1 marker="" aad="1" "first of them"}}', 'v1'), (2, '{{aead v2 marker="" aad="2" "second of them"}}', 'v2'), (3, NULL, NULL), (4, NULL, 'v1'), (5, '{{aead v1 marker="" aad="5" "fifth of them"}}', 'v1');
