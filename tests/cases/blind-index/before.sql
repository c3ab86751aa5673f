CREATE TABLE people (id bigint PRIMARY KEY, mail text, mail_index text UNIQUE);
INSERT INTO people VALUES
  (1, '{{box v1 "ada@example.org"}}', '{{index v1 bits=64 "ada@example.org"}}'),
  (2, '{{box v2 "grace@example.org"}}', '{{index v2 bits=64 "grace@example.org"}}'),
  (3, NULL, NULL), (4, '{{box v1 "no index yet"}}', NULL);
