CREATE TABLE wide (id bigint PRIMARY KEY);
DO $$ BEGIN
  FOR i IN 1..199 LOOP
    EXECUTE format('ALTER TABLE wide ADD COLUMN c%s %s', lpad(i::text, 3, '0'), CASE WHEN i % 3 = 1 THEN 'text' WHEN i % 3 = 2 THEN 'numeric DEFAULT 1.50' ELSE 'timestamptz DEFAULT now()' END);
  END LOOP;
END $$;
INSERT INTO wide (id, c001, c100, c199) SELECT i, '{{box v1 "at the start"}}', '{{box v1 "in the middle"}}', '{{box v1 "near the end"}}' FROM generate_series(1, 30) i;
UPDATE wide SET c100 = NULL WHERE id > 25;
