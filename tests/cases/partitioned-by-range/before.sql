CREATE TABLE notes (id bigint, body text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
CREATE TABLE notes_low PARTITION OF notes FOR VALUES FROM (MINVALUE) TO (11);
CREATE TABLE notes_rest PARTITION OF notes DEFAULT;
INSERT INTO notes (id, body) SELECT i, '{{box v1 "a note to keep"}}' FROM generate_series(1, 30) i;
