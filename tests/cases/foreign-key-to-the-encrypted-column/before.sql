CREATE TABLE notes (id bigint PRIMARY KEY, body text UNIQUE);
CREATE TABLE copies (id bigint PRIMARY KEY, body text REFERENCES notes (body) ON UPDATE CASCADE);
INSERT INTO notes VALUES (1, '{{box v1 "a note to keep"}}');
INSERT INTO copies VALUES (1, '{{box v1 "a note to keep"}}');
