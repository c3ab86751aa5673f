CREATE TABLE made (at timestamptz DEFAULT now());
CREATE FUNCTION made() RETURNS text LANGUAGE plpgsql AS $$ BEGIN INSERT INTO made DEFAULT VALUES; RETURN 'made'; END $$;
CREATE TABLE notes (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text DEFAULT made(), number serial, maker text DEFAULT current_user || made());
INSERT INTO notes (body) VALUES ('{{box v1 "a note to keep"}}'), ('{{box v1 "another note"}}'), (NULL);
