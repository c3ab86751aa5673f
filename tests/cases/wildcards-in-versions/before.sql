CREATE TABLE notes (id bigint PRIMARY KEY, body text);
INSERT INTO notes VALUES (1, '{{box 2024_% "in scope of it"}}'), (2, '{{box 2024_abc "alike to LIKE"}}'), (3, '{{box 2025_% "already there"}}'), (4, '2024xyz:plain, though alike');
