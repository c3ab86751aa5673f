CREATE TABLE notes (id bigint PRIMARY KEY, body text);
INSERT INTO notes VALUES (1, '{{aead v1 as=base64url "text number one"}}'), (2, '{{aead v1 as=base64url "the second text, longer"}}'), (3, '{{aead v2 as=base64url "third text"}}'), (4, NULL), (5, '{{aead v1 as=base64url ""}}');
