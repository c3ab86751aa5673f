CREATE TABLE notes (id bigint PRIMARY KEY, body text, frozen bool DEFAULT false, CONSTRAINT frozen_stays CHECK (NOT frozen OR starts_with(body, 'v1:')));
INSERT INTO notes SELECT i, '{{box v1 "a note to keep"}}', i = 7 FROM generate_series(1, 50) i;
