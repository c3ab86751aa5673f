CREATE TABLE notes (id bigint PRIMARY KEY, owner text, body text);
INSERT INTO notes VALUES
(1, NULL, '{{aead v1 marker="enc|" "behind a constant"}}'),
(2, NULL, '{{aead v2 marker="enc|" "already there"}}'),
(3, NULL, '{{aead v1 marker="" "without the mark"}}'),
(4, NULL, 'enc');
