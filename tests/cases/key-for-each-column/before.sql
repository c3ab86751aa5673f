CREATE TABLE notes (id bigint PRIMARY KEY, title text, body text);
INSERT INTO notes VALUES (1, '{{aead v1 kdf="hkdf:sha256:notes:field/title" "title of one"}}', '{{aead v1 kdf="hkdf:sha256:notes:field/body" "body of one"}}'), (2, NULL, '{{aead v1 kdf="hkdf:sha256:notes:field/body" "body of two"}}');
