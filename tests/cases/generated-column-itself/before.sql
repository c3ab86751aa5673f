CREATE TABLE notes (id bigint PRIMARY KEY, body text, copy text GENERATED ALWAYS AS (body) STORED);
INSERT INTO notes VALUES (1, '{{box v1 "a note to keep"}}');
