CREATE TABLE secrets (id uuid PRIMARY KEY, payload text, master_key_id text);
INSERT INTO secrets VALUES
  ('00000000-0000-0000-0000-000000000001', '{{box v1 marker="" "first of them"}}', 'local/app-secrets:v1'),
  ('00000000-0000-0000-0000-000000000002', '{{box v1 marker="" "second of them"}}', 'local/app-secrets:v1');
