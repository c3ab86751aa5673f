CREATE TABLE notes (id bigint PRIMARY KEY, body text);
CREATE FUNCTION guard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.id = 7 THEN RAISE 'number seven stays'; END IF; RETURN NULL; END $$;
CREATE TRIGGER guard AFTER UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION guard();
INSERT INTO notes SELECT i, '{{box v1 "a note to keep"}}' FROM generate_series(1, 20) i;
