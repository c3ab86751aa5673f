CREATE TABLE notes (id bigint PRIMARY KEY, body text);
INSERT INTO notes VALUES (1, '{{box v1 "a note to keep"}}'), (2, '{{box v2 "the new key made it"}}');
