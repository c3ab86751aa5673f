CREATE TABLE notes (id bigint PRIMARY KEY, body text);
INSERT INTO notes VALUES (1, '{{box v1 "in scope of it"}}'), (2, '{{box v2 "already there"}}'), (3, '{{box v3 "in the job only"}}'), (4, '{{box v10 "nobody knows it"}}'), (5, '{{box v11 "nor this one"}}');
