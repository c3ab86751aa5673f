CREATE SCHEMA "Clinic";
CREATE TABLE "Clinic".notes (id bigint PRIMARY KEY, body text);
CREATE TABLE notes (id bigint PRIMARY KEY, body text);
INSERT INTO "Clinic".notes VALUES (1, '{{box v1 "the clinic has it"}}');
INSERT INTO notes VALUES (1, '{{box v1 "not in the job"}}');
