CREATE TABLE notes (id bigint PRIMARY KEY, body text, other text DEFAULT 'same');
INSERT INTO notes VALUES (1, '{{box v1 "a note to keep"}}'), (2, '{{box v1 "another note"}}');

CREATE SCHEMA rewrap AUTHORIZATION {{role app}};
GRANT SELECT (id, body), UPDATE (body) ON notes TO {{role app}};
