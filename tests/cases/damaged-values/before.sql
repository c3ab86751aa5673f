CREATE TABLE notes (id bigint PRIMARY KEY, body text);
INSERT INTO notes SELECT i, '{{box v1 "many good ones"}}' FROM generate_series(1, 30) i;
INSERT INTO notes VALUES
  (101, '{{box v1 damage=bit "one bit is off"}}'), (102, '{{box v1 damage=cut "cut off short"}}'), (103, 'v1:'), (104, 'v1:not base64 at all'),
  (105, '{{box v1 key=v3 "another key made it"}}'), (106, '{{box v1 as=base64url "with another alphabet, and ÿþý"}}'),
  (107, '{{box v1 "ends in a space"}} '), (108, '{{box v1 key=v2 "the new key, the old marker"}}');
