CREATE TABLE notes (id bigint PRIMARY KEY, owner text, body text);
INSERT INTO notes VALUES
(1, 'ada', '{{aead v1 marker="" aad="ada" "a note of ada"}}'),
(2, 'bob', '{{aead v2 marker="" aad="bob" "a note of bob"}}'),
(3, 'cyd', NULL),
(4, NULL, '{{aead v1 marker="" aad="" "nobody owns it"}}'),
(5, 'eve', 'plain words');
