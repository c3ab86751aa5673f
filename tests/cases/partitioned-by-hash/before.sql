CREATE TABLE notes (id uuid PRIMARY KEY, number int, body text) PARTITION BY HASH (id);
CREATE TABLE notes_0 PARTITION OF notes FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE notes_1 PARTITION OF notes FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO notes SELECT md5(i::text)::uuid, i, '{{box v1 "a note to keep"}}' FROM generate_series(1, 30) i;
