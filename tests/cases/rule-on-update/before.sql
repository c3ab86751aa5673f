CREATE TABLE notes (id bigint PRIMARY KEY, body text);
INSERT INTO notes VALUES (1, '{{box v1 "a note to keep"}}');
CREATE RULE keep AS ON UPDATE TO notes DO INSTEAD NOTHING;
