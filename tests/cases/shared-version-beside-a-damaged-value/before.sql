CREATE TABLE notes (id bigint PRIMARY KEY, title text, body text, key_version text);
INSERT INTO notes VALUES (1, '{{box v1 marker="" "title of one"}}', '{{box v1 marker="" damage=bit "body of one"}}', 'v1'), (2, '{{box v1 marker="" "title of two"}}', '{{box v1 marker="" "body of two"}}', 'v1');
