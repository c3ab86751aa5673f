CREATE TABLE notes (id bigint PRIMARY KEY, title text, body text);
INSERT INTO notes VALUES (1, '{{box v1 kdf="sha256" "title of one"}}', '{{aead v1 kdf="pbkdf2:sha256:salt of the app:2000" "body of one"}}');
