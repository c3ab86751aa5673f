CREATE TABLE notes (id bigint NOT NULL, number bigint PRIMARY KEY, body text);
INSERT INTO notes VALUES (7, 1, '{{box v1 "the first note"}}'), (7, 2, '{{box v1 "second note"}}');
