CREATE TABLE notes (id bigint PRIMARY KEY, body text, "Body" text);
CREATE TABLE "Notes" (id bigint PRIMARY KEY, body text, "Body" text);
INSERT INTO notes VALUES (1, '{{box v1 "small in small"}}', '{{box v1 "capital in small"}}');
INSERT INTO "Notes" VALUES (1, '{{box v1 "small in capital"}}', '{{box v1 "both capital"}}');
