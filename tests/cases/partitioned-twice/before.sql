CREATE TABLE notes (id bigint, year int, region text, body text, PRIMARY KEY (year, region, id)) PARTITION BY RANGE (year);
CREATE TABLE notes_2023 PARTITION OF notes FOR VALUES FROM (2023) TO (2024) PARTITION BY LIST (region);
CREATE TABLE notes_2023_eu PARTITION OF notes_2023 FOR VALUES IN ('eu');
CREATE TABLE notes_2023_us PARTITION OF notes_2023 FOR VALUES IN ('us');
CREATE TABLE late (body text, gone int, region text NOT NULL, id bigint NOT NULL, year int NOT NULL, PRIMARY KEY (year, region, id));
ALTER TABLE late DROP COLUMN gone;
ALTER TABLE notes ATTACH PARTITION late FOR VALUES FROM (2024) TO (2025);
CREATE TABLE empty PARTITION OF notes FOR VALUES FROM (2025) TO (2026);
INSERT INTO notes SELECT i, 2023 + i % 2, (ARRAY['eu', 'us'])[1 + i % 4 / 2], '{{box v1 "a note to keep"}}' FROM generate_series(1, 40) i;
