CREATE TABLE notes (id bigint PRIMARY KEY, body text, key_version smallint NOT NULL DEFAULT 7);
INSERT INTO notes VALUES (1, '{{box 7 marker="" "first of them"}}', 7), (2, '{{box 8 marker="" "second of them"}}', 8), (3, '{{box 70 marker="" "nobody knows it"}}', 70);
