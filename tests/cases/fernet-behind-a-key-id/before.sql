CREATE TABLE notes (id bigint PRIMARY KEY, owner text, body text);
INSERT INTO notes VALUES
(1, NULL, '{{fernet v1 marker="enc:fernet:{version}:" time=1 "made in 1970"}}'),
(2, NULL, '{{fernet v2 marker="enc:fernet:{version}:" time=1 "already there"}}');
