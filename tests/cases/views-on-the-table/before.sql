CREATE TABLE notes (id bigint PRIMARY KEY, body text);
INSERT INTO notes VALUES (1, '{{box v1 "a note to keep"}}');
CREATE VIEW readable AS SELECT id, left(body, 2) AS version FROM notes;
CREATE MATERIALIZED VIEW kept AS SELECT * FROM notes;
