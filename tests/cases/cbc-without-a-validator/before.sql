CREATE TABLE notes (id bigint PRIMARY KEY, owner text, body text);
INSERT INTO notes VALUES
(1, NULL, '{{cbc v1 "078-05-1120"}}');
