CREATE TABLE notes (tenant text COLLATE "C", day date, number smallint, body text, other text DEFAULT 'same', PRIMARY KEY (tenant, day, number));
INSERT INTO notes SELECT 't' || i % 3, date '2024-01-01' + i % 5, i, '{{box v1 "a note to keep"}}' FROM generate_series(1, 200) i;
INSERT INTO notes VALUES ('', 'infinity', 0, '{{box v1 "in no tenant"}}'), ('T1', '2024-01-01', 1, NULL);
