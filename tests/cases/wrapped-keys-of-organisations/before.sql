CREATE TABLE org_deks (org_id uuid PRIMARY KEY, wrapped_dek text NOT NULL, wrap_iv text NOT NULL, wrap_tag text NOT NULL, mek_version text NOT NULL, created_at timestamptz DEFAULT now());
CREATE TABLE records (id bigint PRIMARY KEY, org_id uuid REFERENCES org_deks, ciphertext text, iv text, auth_tag text, aad text);
INSERT INTO org_deks VALUES
  ('00000000-0000-0000-0000-00000000000a', '{{aead v1 aad="dek-wrap" of="ciphertext" "data key of organisation a, 32 b"}}', '{{aead v1 aad="dek-wrap" of="nonce" "data key of organisation a, 32 b"}}', '{{aead v1 aad="dek-wrap" of="tag" "data key of organisation a, 32 b"}}', 'v1'),
  ('00000000-0000-0000-0000-00000000000b', '{{aead v1 aad="dek-wrap" of="ciphertext" "data key of organisation b, 32 b"}}', '{{aead v1 aad="dek-wrap" of="nonce" "data key of organisation b, 32 b"}}', '{{aead v1 aad="dek-wrap" of="tag" "data key of organisation b, 32 b"}}', 'v1');
INSERT INTO records VALUES (1, '00000000-0000-0000-0000-00000000000a', '{{aead v9 of="ciphertext" "sealed with a data key"}}', '{{aead v9 of="nonce" "sealed with a data key"}}', '{{aead v9 of="tag" "sealed with a data key"}}', 'record-1');
