CREATE TABLE notes (id bigint PRIMARY KEY, body text, other text DEFAULT 'same');
INSERT INTO notes VALUES (1, '{{box v1 "a note to keep"}}'), (2, '{{box v1 "another note"}}');

ALTER TABLE notes ENABLE ROW LEVEL SECURITY;
CREATE POLICY odd_only ON notes USING (id % 2 = 1);
GRANT SELECT, UPDATE ON notes TO {{role app}};
GRANT CREATE ON DATABASE {{database}} TO {{role app}};
