CREATE TABLE "Größe ""A"" 'b'" ("Schlüssel (neu)" uuid PRIMARY KEY, "Geheim%s $1" text, """" text, "Straße; -- " text);
INSERT INTO "Größe ""A"" 'b'" VALUES
  ('00000000-0000-0000-0000-000000000001', '{{aead v1 aad="Weg 1" "im ersten Haus"}}', '{{box v1 "beside the first"}}', 'Weg 1'),
  ('ffffffff-ffff-ffff-ffff-ffffffffffff', '{{aead v1 aad="" "im letzten Haus"}}', '{{box v1 "beside the last"}}', NULL);
