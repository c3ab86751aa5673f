CREATE SCHEMA app;
CREATE TABLE app.notes (id bigint PRIMARY KEY, body text);
CREATE TABLE "app.notes" (id bigint PRIMARY KEY, body text);
INSERT INTO app.notes VALUES (1, '{{box v1 "in schema app"}}');
INSERT INTO "app.notes" VALUES (1, '{{box v1 "a dot in the name"}}');
