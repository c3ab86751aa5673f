CREATE TABLE notes (id bigint UNIQUE, body text);
INSERT INTO notes VALUES (NULL, '{{box v1 "a note to keep"}}');
