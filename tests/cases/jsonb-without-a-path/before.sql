CREATE TABLE patients (id bigint PRIMARY KEY, doc jsonb);
INSERT INTO patients VALUES (1, '"{{box v1 "078-05-1120"}}"');
