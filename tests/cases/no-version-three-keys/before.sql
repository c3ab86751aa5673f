CREATE TABLE notes (id bigint PRIMARY KEY, owner text, body text);
INSERT INTO notes VALUES
(1, NULL, '{{box v1 marker="" as=hex "from version one"}}'),
(2, NULL, '{{box v3 marker="" as=hex "from version three"}}'),
(3, NULL, '{{box v2 marker="" as=hex "already there"}}'),
(4, NULL, '{{box v9 marker="" as=hex "nobody has its key"}}');
