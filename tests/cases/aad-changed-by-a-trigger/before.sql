CREATE TABLE notes (id bigint PRIMARY KEY, body text, changes int DEFAULT 0);
CREATE FUNCTION count_up() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.changes := OLD.changes + 1; RETURN NEW; END $$;
CREATE TRIGGER count_up BEFORE UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION count_up();
INSERT INTO notes VALUES (1, '{{aead v1 aad="0" "a note to keep"}}');
