CREATE TABLE notes (id bigint PRIMARY KEY, body text, CONSTRAINT sealed CHECK (body ~ '^v[0-9]+:[A-Za-z0-9+/]{54,}=*$'), CONSTRAINT "not too long" CHECK (octet_length(body) < 200));
INSERT INTO notes VALUES (1, '{{box v1 "a note to keep"}}'), (2, NULL);
