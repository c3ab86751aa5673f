CREATE TABLE "select" ("order" int PRIMARY KEY, "user" text, "from" text, "group" text, "where" text DEFAULT 'null');
INSERT INTO "select" VALUES
  (1, '{{aead v1 aad="all" "first user"}}', '{{box v1 "first from"}}', 'all'),
  (2, '{{aead v1 aad="any" "second user"}}', NULL, 'any');
