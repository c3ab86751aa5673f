CREATE TABLE notes (id bigint PRIMARY KEY, owner text, body text);
INSERT INTO notes VALUES
(1, NULL, '{{aead v1 marker="" "first of them"}}'),
(2, NULL, '{{xchacha v2 aad="2" as=hex "already there"}}'),
(3, NULL, '{{aead v1 marker="" "third of them"}}');
