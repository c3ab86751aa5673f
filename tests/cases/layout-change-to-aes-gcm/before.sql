CREATE TABLE notes (id bigint PRIMARY KEY, owner text, body text);
INSERT INTO notes VALUES
(1, 'ada', '{{box v1 "a note of ada"}}'),
(2, 'bob', '{{aead v2 marker="enc:{version}:" aad="bob" "already there"}}'),
(3, 'cyd', NULL),
(4, NULL, '{{box v1 "nobody owns it"}}'),
(5, 'eve', 'plain words');
