CREATE TABLE notes (id bigint, body text) PARTITION BY HASH (body);
CREATE TABLE notes_0 PARTITION OF notes FOR VALUES WITH (MODULUS 1, REMAINDER 0);
ALTER TABLE notes_0 ADD PRIMARY KEY (id);
INSERT INTO notes VALUES (1, '{{box v1 "a note to keep"}}');
