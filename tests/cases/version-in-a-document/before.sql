CREATE TABLE deks (id text PRIMARY KEY, doc jsonb);
INSERT INTO deks VALUES
  ('a', '{"wrappedDek": "{{box v1 marker="" "key of tenant a"}}", "meta": {"mekVersion": "v1", "made": "2024"}}'),
  ('b', '{"wrappedDek": "{{box v2 marker="" "key of tenant b"}}", "meta": {"mekVersion": "v2", "made": "2025"}}'),
  ('c', '{"meta": {"mekVersion": "v1"}}');
