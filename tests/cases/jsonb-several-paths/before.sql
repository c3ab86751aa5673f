CREATE TABLE patients (id bigint PRIMARY KEY, doc jsonb, title text);
INSERT INTO patients VALUES
  (1, '{"person": {"ssn": "{{box v1 "078-05-1120"}}"}, "notes": ["one", "{{box v1 "second note"}}"], "a.b": {"its [0]": "{{aead v1 marker="enc:{version}:" aad="1" "an odd key"}}"}}', '{{box v1 "Doctor Who"}}'),
  (2, '{"person": {"ssn": "{{box v2 "already there"}}"}, "notes": ["one"], "a.b": {"its [0]": "{{aead v1 marker="enc:{version}:" aad="2" "another key"}}"}}', NULL),
  (3, NULL, '{{box v2 "up to date"}}');
