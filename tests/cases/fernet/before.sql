CREATE TABLE notes (id bigint PRIMARY KEY, owner text, body text);
INSERT INTO notes VALUES
(1, NULL, '{{fernet v1 marker="" time=1700000000 "made in 2023"}}'),
(2, NULL, '{{fernet v2 marker="" time=1700000000 "already there"}}'),
(3, NULL, NULL),
(4, NULL, '{{fernet v1 marker="" time=1700000000 "made in that second too"}}');
