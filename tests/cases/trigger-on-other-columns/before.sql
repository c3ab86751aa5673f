CREATE TABLE notes (id bigint PRIMARY KEY, body text, title text);
CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'must not fire'; END $$;
CREATE TRIGGER shout BEFORE UPDATE OF title ON notes FOR EACH ROW EXECUTE FUNCTION shout();
CREATE TRIGGER deaf BEFORE UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION shout();
ALTER TABLE notes DISABLE TRIGGER deaf;
INSERT INTO notes VALUES (1, '{{box v1 "a note to keep"}}');
