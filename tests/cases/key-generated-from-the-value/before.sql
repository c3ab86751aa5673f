CREATE TABLE notes (id text GENERATED ALWAYS AS (md5(body)) STORED PRIMARY KEY, body text);
INSERT INTO notes (body) VALUES ('{{box v1 "a note to keep"}}'), ('{{box v1 "another note"}}');
