CREATE TABLE patients (id bigint PRIMARY KEY, doc json);
INSERT INTO patients VALUES (1, '{"ssn": "{{box v1 "078-05-1120"}}"}');
