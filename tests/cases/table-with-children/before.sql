CREATE TABLE notes (id bigint PRIMARY KEY, body text);
CREATE TABLE old_notes (PRIMARY KEY (id)) INHERITS (notes);
INSERT INTO notes VALUES (1, '{{box v1 "a note to keep"}}');
INSERT INTO old_notes VALUES (1, '{{box v1 "an inherited one"}}');
