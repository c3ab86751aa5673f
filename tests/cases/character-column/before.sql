CREATE TABLE notes (id bigint PRIMARY KEY, body character(200));
