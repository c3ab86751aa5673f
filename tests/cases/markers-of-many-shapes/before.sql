CREATE TABLE notes (id bigint PRIMARY KEY, c0 text, c1 text, c2 text, c3 text, c4 text, c5 text, c6 text, c7 text, c8 text, c9 text);
INSERT INTO notes VALUES (1,
  '{{box v1 marker="enc:{version}:" "text of marker 0"}}',
  '{{box v1 marker="a1.k{version}." "text of marker 1"}}',
  '{{box v1 marker="#{version}#" "text of marker 2"}}',
  '{{box v1 marker="[{version}]" "text of marker 3"}}',
  '{{box v1 marker="({version})+" "text of marker 4"}}',
  '{{box v1 marker="$aes$v={version}$" "text of marker 5"}}',
  '{{box v1 marker="{version}|" "text of marker 6"}}',
  '{{box v1 marker="^{version}.*" "text of marker 7"}}',
  '{{box v1 marker="{version}::" "text of marker 8"}}',
  '{{box v1 marker="ключ {version}: " "text of marker 9"}}'
);
INSERT INTO notes SELECT 2, c1, c2, c3, c4, c5, c6, c7, c8, c9, c0 FROM notes;
