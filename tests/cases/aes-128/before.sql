CREATE TABLE notes (id bigint PRIMARY KEY, owner text, body text);
INSERT INTO notes VALUES (1, 'ada', '{{aead v1 aad="note 1 of ada" "a note to keep"}}'), (2, NULL, '{{aead v1 aad="note 2 of " "nobody owns it"}}'), (3, 'ÿ "quoted"', '{{aead v1 aad="note 3 of ÿ \"quoted\"" "odd owner"}}');
