CREATE TABLE notes (id text PRIMARY KEY, body text);
INSERT INTO notes SELECT CASE i % 3 WHEN 0 THEN upper(u) WHEN 1 THEN u ELSE replace(u, '-', '') END, '{{box v1 "a note to keep"}}'
  FROM (SELECT i, md5(i::text)::uuid::text AS u FROM generate_series(1, 500) i) AS x;
INSERT INTO notes VALUES ('', '{{box v1 "the empty key"}}'), (' ', '{{box v1 "a space as key"}}'), (E'\n', NULL), ('O''Brien "quoted"', '{{box v1 "quotes as key"}}'), ('ÿžä😀', '{{box v1 "other scripts"}}');
