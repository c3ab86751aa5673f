CREATE TABLE notes (id double precision PRIMARY KEY, body text);
INSERT INTO notes VALUES ('NaN', '{{box v1 "a note to keep"}}');
