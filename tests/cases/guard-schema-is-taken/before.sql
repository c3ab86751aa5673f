CREATE SCHEMA rewrap;
CREATE TABLE rewrap.shard (mine int);
CREATE TABLE notes (id bigint PRIMARY KEY, body text);
INSERT INTO notes VALUES (1, '{{box v1 "a note to keep"}}');
