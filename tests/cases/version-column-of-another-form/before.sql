CREATE TABLE notes (id bigint PRIMARY KEY, title text, body text, key_version text);
INSERT INTO notes VALUES (1, NULL, '{{box v1 marker="" "a note to keep"}}', 'v1'), (4, NULL, '{{box v1 marker="" "fourth of them"}}', ' v1'), (5, NULL, '{{box v1 marker="" "fifth of them"}}', 'prod-key-3');
