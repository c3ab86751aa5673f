CREATE TABLE notes (id bigint PRIMARY KEY, body text) PARTITION BY RANGE (id);
CREATE TABLE notes_all PARTITION OF notes DEFAULT;
INSERT INTO notes VALUES (1, '{{box v1 "a note to keep"}}');
GRANT SELECT, UPDATE ON notes TO {{role app}};
GRANT CREATE ON DATABASE {{database}} TO {{role app}};
