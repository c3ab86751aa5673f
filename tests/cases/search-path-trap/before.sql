CREATE SCHEMA tenant_b;
CREATE SCHEMA tenant_a;
ALTER DATABASE {{database}} SET search_path = tenant_b, tenant_a;
CREATE TABLE tenant_a.notes (id bigint PRIMARY KEY, body text);
CREATE TABLE tenant_b.notes (id bigint PRIMARY KEY, body text);
INSERT INTO tenant_a.notes VALUES (1, '{{box v1 "note of tenant a"}}');
INSERT INTO tenant_b.notes VALUES (1, '{{box v1 "note of tenant b"}}');
