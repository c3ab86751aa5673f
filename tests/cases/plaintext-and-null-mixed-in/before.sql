CREATE TABLE notes (id bigint PRIMARY KEY, body text);
INSERT INTO notes VALUES
  (1, '{{box v1 "sealed text"}}'), (2, NULL), (3, ''), (4, 'a plain note'), (5, 'v1'), (6, 'v:1'),
  (7, ' {{box v1 "after a space"}}'), (8, 'V1:looks alike'), (9, E'line\nv1:second line'), (10, repeat('A', 200)), (11, E'\x1e\x1f');
