CREATE TABLE notes (id bigint PRIMARY KEY, body text, updated_by text DEFAULT 'app', visits int DEFAULT 0);
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.updated_by := 'trigger'; RETURN NEW; END $$;
CREATE TRIGGER touch BEFORE UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION touch();
INSERT INTO notes VALUES (1, '{{box v1 "a note to keep"}}'), (2, '{{box v2 "already there"}}');
