CREATE TABLE notes (id bigint PRIMARY KEY, body text UNIQUE);
CREATE TABLE copies (id bigint PRIMARY KEY, body text REFERENCES notes (body));
INSERT INTO notes VALUES (1, '{{box v1 "a note to keep"}}'), (2, '{{box v1 "another note"}}');
INSERT INTO copies VALUES (1, '{{box v1 "a note to keep"}}');
