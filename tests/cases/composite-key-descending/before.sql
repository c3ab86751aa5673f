CREATE TABLE notes (id bigint PRIMARY KEY, a int NOT NULL, b text COLLATE "POSIX" NOT NULL, body text);
CREATE UNIQUE INDEX ON notes (b DESC, a DESC);
INSERT INTO notes SELECT i, i % 7, 'b' || i, '{{box v1 "a note to keep"}}' FROM generate_series(1, 60) i;
