CREATE TABLE notes (id bigint PRIMARY KEY, owner text, body text);
INSERT INTO notes VALUES
(1, NULL, '{{fernet v1 marker="" time=1700000000 "first of them"}}'),
(2, NULL, '{{box v2 "already there"}}');
