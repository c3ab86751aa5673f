CREATE TABLE notes (id bigint PRIMARY KEY, body text);
CREATE TABLE audit (at bigserial PRIMARY KEY, note bigint, what text);
CREATE FUNCTION record() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO audit (note, what) VALUES (NEW.id, left(OLD.body, 3) || left(NEW.body, 3)); RETURN NULL; END $$;
CREATE TRIGGER record AFTER UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION record();
INSERT INTO notes VALUES (1, '{{box v1 "a note to keep"}}'), (2, '{{box v2 "already there"}}'), (3, '{{box v1 "another note"}}');
