CREATE TABLE notes (id bigint NOT NULL, body text, UNIQUE (id) DEFERRABLE);
INSERT INTO notes VALUES (1, '{{box v1 "a note to keep"}}');
