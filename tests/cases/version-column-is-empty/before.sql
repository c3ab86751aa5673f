CREATE TABLE notes (id bigint PRIMARY KEY, title text, body text, key_version text);
INSERT INTO notes VALUES (1, NULL, '{{box v1 marker="" "a note to keep"}}', 'v1'), (2, NULL, '{{box v1 marker="" "second of them"}}', NULL), (3, NULL, '{{box v1 marker="" "third of them"}}', '');
