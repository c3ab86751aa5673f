CREATE TABLE notes (id bigint PRIMARY KEY, body text);
INSERT INTO notes VALUES
  (1, '{{box v1 marker="" "has no marker"}}'), (2, '{{box v1 "has a marker"}}'), (3, '{{box v2 marker="" "new key, no marker"}}'),
  (4, 'plain words'), (5, '{{box v9 marker="" "a key unknown here"}}');
