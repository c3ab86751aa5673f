CREATE TABLE notes (body text, title text);
INSERT INTO notes VALUES ('{{box v1 "a note to keep"}}', 'first');
