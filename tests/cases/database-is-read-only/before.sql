CREATE TABLE notes (id bigint PRIMARY KEY, body text);
INSERT INTO notes VALUES (1, '{{box v1 "a note to keep"}}');
ALTER DATABASE {{database}} SET default_transaction_read_only = on;
