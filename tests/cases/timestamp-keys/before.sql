CREATE TABLE notes (at timestamptz PRIMARY KEY, body text);
ALTER DATABASE {{database}} SET timezone = 'Asia/Kolkata';
ALTER DATABASE {{database}} SET datestyle = 'German, DMY';
INSERT INTO notes VALUES ('-infinity', '{{box v1 "before all time"}}'), ('4713-01-01 00:00 BC', '{{box v1 "long ago"}}'), ('2024-03-31 02:30:00.000001+02', '{{box v1 "an hour twice"}}'), ('2024-03-31 02:30:00.000002+02', NULL), ('infinity', '{{box v1 "after all time"}}');
