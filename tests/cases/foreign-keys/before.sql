CREATE TABLE notes (id bigint PRIMARY KEY, parent bigint REFERENCES notes ON UPDATE CASCADE ON DELETE CASCADE, body text UNIQUE);
CREATE TABLE comments (id bigint PRIMARY KEY, note bigint NOT NULL REFERENCES notes ON UPDATE CASCADE ON DELETE CASCADE, body text);
INSERT INTO notes VALUES (1, NULL, '{{box v1 "a note to keep"}}'), (2, 1, '{{box v1 "note below it"}}');
INSERT INTO comments VALUES (1, 2, '{{box v1 "not in the job"}}');
