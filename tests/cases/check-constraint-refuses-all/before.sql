CREATE TABLE notes (id bigint PRIMARY KEY, body text, CONSTRAINT only_v1 CHECK (starts_with(body, 'v1:')));
INSERT INTO notes SELECT i, '{{box v1 "a note to keep"}}' FROM generate_series(1, 50) i;
