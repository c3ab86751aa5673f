CREATE TABLE notes (id bigint PRIMARY KEY, body text);
INSERT INTO notes VALUES (1, '{{box v1 ""}}'), (2, '{{box v1 "žluťoučký kůň 🐎 مرحبا"}}'), (3, '{{box v1 x"000102ff1e1f0a0d"}}'), (4, '{{box v1 "v1:looks like a marker itself"}}');
