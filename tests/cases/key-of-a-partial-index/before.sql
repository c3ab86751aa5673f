CREATE TABLE notes (id bigint NOT NULL, body text, deleted bool DEFAULT false);
CREATE UNIQUE INDEX ON notes (id) WHERE NOT deleted;
CREATE UNIQUE INDEX ON notes ((id + 0));
INSERT INTO notes VALUES (1, '{{box v1 "a note to keep"}}');
