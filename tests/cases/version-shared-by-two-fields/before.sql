CREATE TABLE notes (id bigint PRIMARY KEY, title text, body text, key_version text);
INSERT INTO notes VALUES (1, '{{box v1 marker="" "title of one"}}', '{{box v1 marker="" "body of one"}}', 'v1'), (2, NULL, '{{box v1 marker="" "body of two"}}', 'v1'), (3, '{{box v2 marker="" "title of three"}}', '{{box v2 marker="" "body of three"}}', 'v2');
