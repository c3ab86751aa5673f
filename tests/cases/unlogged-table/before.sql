CREATE UNLOGGED TABLE notes (id smallint PRIMARY KEY, body text) WITH (fillfactor = 70);
INSERT INTO notes VALUES (-32768, '{{box v1 "lowest key"}}'), (0, '{{box v1 "middle key"}}'), (32767, '{{box v1 "highest key"}}');
