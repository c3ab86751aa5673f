CREATE TABLE notes (id bigint PRIMARY KEY, body varchar(71));
INSERT INTO notes VALUES (1, '{{box v1 "ten letters"}}'), (2, '{{box v1 "eleven char"}}');
