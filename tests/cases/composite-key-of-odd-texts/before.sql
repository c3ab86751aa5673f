CREATE TABLE notes (a text, b text, body text, PRIMARY KEY (a, b));
INSERT INTO notes SELECT x, y, '{{box v1 "a note to keep"}}'
  FROM unnest(ARRAY['', 'NULL', ',', '(', ')', '"', '\', '''', '{', E'\n', E'\t', E'\x1d', E'\x1e', E'\x1f', 'a,b', '("a","b")', 'ÿ', '😀', '$1', '%']) x,
       unnest(ARRAY['', 'NULL', ',', '"', '\', '''', E'\x1f', E'\x1e', 'é', 'e']) y;
