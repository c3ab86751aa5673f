"""Tables of every shape: keys of any type and width, names that need quoting, partitions that come and go."""

from __future__ import annotations

import json

import pytest

from tests.support.values import KEY_V2, box, unbox
from tests.support.workbench import Workbench

SMALL = "[pace]\nbatch_size = 7\nshards = 3\n"


def target(table: str = "notes", key: str = "", column: str = "body") -> str:
    named = f"key = {key}\n" if key else ""
    return (
        f"[[targets]]\ntable = {json.dumps(table, ensure_ascii=False)}\n{named}"
        f'fields = [{{ column = {json.dumps(column, ensure_ascii=False)}, layout = "libsodium-token" }}]\n'
    )


KEYS = {
    "text": ("id text PRIMARY KEY", "id", "md5({n}::text)"),
    "text in C": ('id text COLLATE "C" PRIMARY KEY', "id", "chr(64 + {n}) || 'x'"),
    "text in another collation": ('id text COLLATE "pg_unicode_fast" PRIMARY KEY', "id", "chr(64 + {n})"),
    "varchar": ("id varchar(40) PRIMARY KEY", "id", "'a''b\"c' || {n}"),
    "char": ("id char(6) PRIMARY KEY", "id", "'k' || {n}"),
    "timestamptz": ("at timestamptz PRIMARY KEY", "at", "'2024-03-31Z'::timestamptz + {n} * '61.1 s'::interval"),
    "timestamp": ("at timestamp PRIMARY KEY", "at", "'0044-03-15 BC'::timestamp + {n} * '1 day'::interval"),
    "date": ("day date PRIMARY KEY", "day", "'2024-01-01'::date + {n}"),
    "interval": ("span interval PRIMARY KEY", "span", "{n} * '1 day -1 hour'::interval"),
    "numeric": ("no numeric PRIMARY KEY", "no", "{n} * 12345678901234567890.00001"),
    "inet": ("ip inet PRIMARY KEY", "ip", "'10.0.0.0'::inet + {n}"),
    "bytea": ("h bytea PRIMARY KEY", "h", "sha256({n}::text::bytea)"),
    "boolean": ("b boolean, n int, PRIMARY KEY (b, n)", "b, n", "{n} % 2 = 0, {n}"),
    "enum": ("e mood, n int, PRIMARY KEY (n, e)", "n, e", "{n} / 2, (ARRAY['sad', 'ok'])[1 + {n} % 2]::mood"),
    "domain of text": ("id code PRIMARY KEY", "id", "'C' || {n}"),
    "domain of bigint": ("id serial_no PRIMARY KEY", "id", "{n}"),
    "array": ("id int[] PRIMARY KEY", "id", "ARRAY[{n} % 10, {n}]"),
    "range": ("id int4range PRIMARY KEY", "id", "int4range({n}, {n} + 5)"),
    "uuid": ("id uuid PRIMARY KEY", "id", "md5({n}::text)::uuid"),
    "smallint": ("id smallint PRIMARY KEY", "id", "-{n}"),
    "org and id": ("org int, id bigint, PRIMARY KEY (org, id)", "org, id", "{n} % 5, {n}"),
    "tenant, name and day": (
        "tenant uuid, name text, day date, PRIMARY KEY (tenant, name, day)",
        "tenant, name, day",
        "md5(({n} % 3)::text)::uuid, 'n\"' || {n} % 7, '2024-01-01'::date + {n}",
    ),
    "descending": ("org int NOT NULL, id int NOT NULL, x int", "org, id", "{n} % 5, {n}"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KEYS)
def test_a_table_is_rotated_by_a_key_of_any_type(bench: Workbench, kind: str) -> None:
    """Pages of seven rows: every value ends under the new key, and the key need not be named."""
    columns, names, expression = KEYS[kind]
    bench.job(target(key='["org", "id"]' if kind == "descending" else ""), SMALL)
    bench.sql("CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN serial_no AS bigint CHECK (VALUE > 0)")
    bench.sql("CREATE DOMAIN code AS varchar(20) CHECK (VALUE LIKE 'C%')")
    bench.sql(f"CREATE TABLE notes (body text, {columns})")
    if kind == "descending":
        bench.sql("CREATE UNIQUE INDEX ON notes (org DESC, id DESC)")
    values = [box(f"note {n}") for n in range(1, 61)]
    bench.sql(
        f"INSERT INTO notes ({names}, body) SELECT {expression.replace('{n}', 'n')}, v "
        "FROM unnest($1::text[]) WITH ORDINALITY AS u(v, m), LATERAL (SELECT m::int) AS i(n) RETURNING 1",
        values,
    )
    ran = bench.run()
    assert ran.code == 0, ran.err + ran.out
    assert ran.event("run_ended")["outcomes"] == {"notes": {"body": {"resealed": 60}}}
    bodies = bench.sql("SELECT body FROM notes")
    assert {unbox(row["body"], {"v2": KEY_V2}).decode() for row in bodies} == {
        f"note {n}" for n in range(1, 61)
    }
    assert bench.rewrap("verify", "--deep").code == 0
