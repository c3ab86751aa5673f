CREATE TABLE files (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), owner text, body bytea, thumb bytea DEFAULT '\x00ff');
INSERT INTO files (owner, body) VALUES
  ('ada', '{{aead v1 aad="ada" as=bytea "bytes of ada"}}'), ('bob', NULL), ('cyd', '\x'), ('dan', '\x00ff01'),
  ('eve', '{{aead v2 aad="eve" as=bytea "bytes of eve"}}');
