CREATE TABLE notes (id text, number bigint PRIMARY KEY, body text);
INSERT INTO notes VALUES (NULL, 1, '{{box v1 "the first note"}}'), ('same', 2, '{{box v1 "second note"}}'), ('same', 3, '{{box v1 "third note"}}');
