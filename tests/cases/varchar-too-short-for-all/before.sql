CREATE TABLE notes (id bigint PRIMARY KEY, body varchar(71));
INSERT INTO notes SELECT i, '{{box v1 "eleven char"}}' FROM generate_series(1, 40) i;
