CREATE TABLE notes (id bigint PRIMARY KEY, a int NOT NULL, b text NOT NULL, body text);
CREATE UNIQUE INDEX ON notes (b DESC, a);
INSERT INTO notes VALUES (1, 1, 'b', '{{box v1 "a note to keep"}}');
