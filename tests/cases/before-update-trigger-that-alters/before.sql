CREATE TABLE notes (id bigint PRIMARY KEY, body text);
CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.body := upper(NEW.body); RETURN NEW; END $$;
CREATE TRIGGER shout BEFORE UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION shout();
INSERT INTO notes VALUES (1, '{{box v1 "a note to keep"}}');
