CREATE TABLE notes (tenant int, body text, other text DEFAULT 'same', PRIMARY KEY (tenant, body));
INSERT INTO notes VALUES (1, '{{box v1 "a note to keep"}}');
