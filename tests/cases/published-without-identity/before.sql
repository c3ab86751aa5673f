CREATE TABLE notes (id bigint PRIMARY KEY, body text);
INSERT INTO notes VALUES (1, '{{box v1 "a note to keep"}}');
ALTER TABLE notes REPLICA IDENTITY NOTHING;
CREATE PUBLICATION outwards FOR TABLE notes;
