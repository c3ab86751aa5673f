CREATE TABLE of_fernet (id bigint PRIMARY KEY, body text);
INSERT INTO of_fernet VALUES (1, '{{fernet v1 marker="" time=1700000000 "a token"}}');
CREATE TABLE of_sentry (id bigint PRIMARY KEY, body text);
INSERT INTO of_sentry VALUES (1, '{{fernet v1 as=base64 marker="enc:fernet:{version}:" time=1700000000 "a token"}}');
