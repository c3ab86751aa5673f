CREATE TABLE notes (id bigint PRIMARY KEY, body text);
INSERT INTO notes VALUES (1, '{{box v1 "from version one"}}'), (2, '{{box v2 "already there"}}'), (3, '{{box v3 "from version three"}}');
