CREATE TABLE notes (id bigint PRIMARY KEY, owner text, body text);
INSERT INTO notes VALUES
(1, 'ada', '{{xchacha v1 aad="ada" as=base64url "a note of ada"}}'),
(2, NULL, '{{xchacha v1 aad="" as=base64url "nobody owns it"}}');
