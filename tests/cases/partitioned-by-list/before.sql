CREATE TABLE notes (id bigint, region text DEFAULT 'eu', body text, PRIMARY KEY (region, id)) PARTITION BY LIST (region);
CREATE TABLE "notes of EU" PARTITION OF notes FOR VALUES IN ('eu', 'ch');
CREATE SCHEMA far;
CREATE TABLE far.notes_us PARTITION OF notes FOR VALUES IN ('us', 'ca');
INSERT INTO notes SELECT i, (ARRAY['eu', 'us', 'ca'])[1 + i % 3], '{{box v1 "a note to keep"}}' FROM generate_series(1, 30) i;
