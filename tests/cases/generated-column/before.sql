CREATE TABLE notes (id bigint PRIMARY KEY, body text, head text GENERATED ALWAYS AS (left(body, 3)) STORED, size int GENERATED ALWAYS AS (length(body)) STORED);
INSERT INTO notes VALUES (1, '{{box v1 "a note to keep"}}'), (2, NULL);
