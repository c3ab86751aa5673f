CREATE TABLE notes (id bigint PRIMARY KEY, body text);
ALTER TABLE notes ALTER body SET STORAGE EXTERNAL;
INSERT INTO notes VALUES (1, '{{box v1 size=2000000 "two million bytes "}}'), (2, '{{box v1 "a short one"}}'), (3, '{{box v1 size=400000 "four hundred KB "}}'), (4, '{{box v1 size=2400000 "too large for it "}}');
INSERT INTO notes SELECT i, '{{box v1 size=9000 "in toast "}}' FROM generate_series(11, 60) i;
