CREATE TABLE notes (id bigint PRIMARY KEY, body text);
INSERT INTO notes VALUES (1, '{{aead v1 as=hex "text number one"}}'), (2, '{{aead v1 as=hex "the second text, longer"}}'), (3, '{{aead v2 as=hex "third text"}}'), (4, NULL), (5, '{{aead v1 as=hex ""}}');
