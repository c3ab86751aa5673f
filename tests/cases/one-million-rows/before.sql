CREATE TABLE notes (id int PRIMARY KEY, body text, other int);
INSERT INTO notes SELECT i, CASE i % 4 WHEN 0 THEN '{{box v1 "first of four"}}' WHEN 1 THEN '{{box v1 "second of four"}}' WHEN 2 THEN '{{box v2 "third of four"}}' END, i
  FROM generate_series(1, 1000000) i;
ANALYZE notes;
