CREATE TABLE notes (id bigint PRIMARY KEY, body text);
INSERT INTO notes VALUES (1, '{{box v1 "a note to keep"}}');
CREATE MATERIALIZED VIEW readable AS SELECT * FROM notes;
CREATE UNIQUE INDEX ON readable (id);
