CREATE TABLE t (k int PRIMARY KEY, x text, f0 text, a0 text, t text, d text, page text DEFAULT 'p', old0 text, new0 text);
INSERT INTO t SELECT i, '{{aead v1 aad="ab" "sealed in x"}}', '{{box v1 "sealed in f0"}}', 'a', 'b' FROM generate_series(-3, 3) i;
