CREATE TABLE patients (id bigint PRIMARY KEY, doc jsonb NOT NULL DEFAULT '{}', seen timestamptz DEFAULT now());

INSERT INTO patients (id, doc) VALUES
  (1, '{"person": {"ssn": "{{box v1 "078-05-1120"}}", "name": "Ann"}, "n": 1e400, "list": [1, 2]}'),
  (2, '{"person": {"ssn": null, "name": "Bob"}}'), (3, '{"person": {}}'), (4, '{"person": "no object"}'), (5, '[]'), (6, 'null'),
  (7, '{"person": {"ssn": "{{box v2 "already there"}}"}}'), (8, '{"person": {"ssn": "plain words"}}'), (9, '{"ssn": "{{box v1 "elsewhere in it"}}"}');
