CREATE TABLE wallets (id bigint PRIMARY KEY, doc jsonb);
INSERT INTO wallets VALUES
  (1, '{"cards": [{"number": "{{box v1 "4111 1111"}}", "kind": "visa"}, {"kind": "lost"}, {"number": "{{box v1 "5500 0000"}}"}], "owner": "Ann"}'),
  (2, '{"cards": []}'), (3, '{"cards": {"number": "no array"}}'), (4, NULL), (5, '{"cards": [{"number": "{{box v2 "3400 0000"}}"}]}');
