CREATE TABLE notes (id bigint PRIMARY KEY, body text);
INSERT INTO notes SELECT i * 1000003, '{{box v1 "the very same"}}' FROM generate_series(-1500, 1500) i;
