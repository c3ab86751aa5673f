CREATE TABLE notes (id bigint PRIMARY KEY, body text);
INSERT INTO notes SELECT i, '{{box v1 "a note to keep"}}' FROM generate_series(1, 30) i;
