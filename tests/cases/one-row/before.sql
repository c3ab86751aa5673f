CREATE TABLE notes (id bigint PRIMARY KEY, body text);
INSERT INTO notes VALUES (-9223372036854775808, '{{box v1 "the only one"}}');
