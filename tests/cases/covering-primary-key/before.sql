CREATE TABLE notes (body text, gone int, title text, id bigint, PRIMARY KEY (id) INCLUDE (title));
ALTER TABLE notes DROP COLUMN gone;
ALTER TABLE notes ADD COLUMN late text DEFAULT 'fast default';
INSERT INTO notes (id, body) VALUES (3, '{{box v1 "third of them"}}'), (1, '{{box v1 "first of them"}}');
