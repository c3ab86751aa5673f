CREATE TABLE "NOTES" (id bigint PRIMARY KEY, body text);
