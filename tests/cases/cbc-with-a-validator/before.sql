CREATE TABLE notes (id bigint PRIMARY KEY, owner text, body text);
INSERT INTO notes VALUES
(1, NULL, '{{cbc v1 "078-05-1120"}}'),
(2, NULL, '{{cbc v1 "219-09-9999"}}'),
(3, NULL, '{{cbc v1 "no such number"}}'),
(4, NULL, '{{cbc v2 "457-55-5462"}}');
