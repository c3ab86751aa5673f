"""Tables of every shape: keys of any type and width, names that need quoting, partitions that come and go."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from rewrap.interfaces import Scope
from rewrap.model import ShardRange, key_parts, key_text
from rewrap.stores.postgres.connection import connect
from rewrap.stores.postgres.reader import _READER_FULL
from rewrap.stores.postgres.statements import Statements
from rewrap.stores.postgres.store import PostgresStore
from rewrap.stores.postgres.writer import _WRITER_FULL
from tests.support.inprocess import load
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
    "timestamptz": ("at timestamptz PRIMARY KEY", "at", "'2024-03-31'::timestamptz + {n} * '6.1s'::interval"),
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


def test_named_key_of_one_or_several_columns(bench: Workbench) -> None:
    """A table without a primary key is rotated by the unique index that the job names."""
    bench.job(target(key='["org", "no"]'), SMALL)
    bench.sql(
        "CREATE TABLE notes (id bigint, org int NOT NULL, no uuid NOT NULL, body text, UNIQUE (org, no))"
    )
    rows = [(1, n % 3, f"00000000-0000-0000-0000-{n:012}", box(f"note {n}")) for n in range(50)]
    bench.insert("notes", ["id", "org", "no", "body"], rows)
    ran = bench.run()
    assert ran.code == 0, ran.err
    assert all(row["body"].startswith("v2:") for row in bench.sql("SELECT body FROM notes"))


ODD_KEYS = [
    "", " ", "'", '"', "a,b", "{x}", "\\", "line\nline", "\t", "\x1f", "\x1e", "\x01N", "\x01", "NULL",
    "null", "é", "e\u0301", "ß", "日本", "😀", "a b", "a  b", "a\u00a0b", "$1", "%_", "--", "/*", "x" * 2_000,
    "[]", '["a"]',
]  # fmt: skip


@pytest.mark.parametrize("width", [1, 2])
def test_keys_of_any_characters_travel_through_the_cursor(bench: Workbench, width: int) -> None:
    """One row a page: each key is a cursor once, in the checkpoint and back, and none is skipped."""
    bench.job(target(), "[pace]\nbatch_size = 1\nshards = 1\n")
    columns = "id text PRIMARY KEY" if width == 1 else "org text, id text, PRIMARY KEY (org, id)"
    bench.sql(f"CREATE TABLE notes ({columns}, body text)")
    names = ["id"] if width == 1 else ["org", "id"]
    bench.insert("notes", [*names, "body"], [(*([key] * width), box(key)) for key in ODD_KEYS])
    assert bench.run("--sample", "11").code == 4
    ran = bench.rewrap("resume", "--json")
    assert ran.code == 0, ran.err
    assert ran.event("run_ended")["outcomes"]["notes"]["body"] == {"resealed": len(ODD_KEYS)}
    found = {
        row["id"]: unbox(row["body"], {"v2": KEY_V2}).decode() for row in bench.sql("SELECT * FROM notes")
    }
    assert found == {key: key for key in ODD_KEYS}


def test_a_key_and_its_text_are_two_forms_of_one_thing() -> None:
    """One column's text is the value's; several columns' is an array, and tells them apart."""
    assert key_text(7) == "7"
    assert [key_text(("a", 1)), key_text(("a,1", ""))] == ['["a","1"]', '["a,1",""]']
    for key in [("a", "1"), ("", '"'), ("\n", "]")]:
        assert tuple(key_parts(key_text(key), 2)) == key
    assert key_parts('["a","1"]', 1) == ['["a","1"]']
    for other in ("7", '["a"]', '["a",1]', "", '{"a":"b"}'):
        with pytest.raises(ValueError, match=r"not a key|Expecting"):
            key_parts(other, 2)


# what is refused

REFUSED = {
    "nothing unique": (
        "CREATE TABLE notes (id bigint NOT NULL, body text)", "",
        'key column "id" has no unique index of its own', "CREATE UNIQUE INDEX CONCURRENTLY",
    ),
    "no key at all": (
        "CREATE TABLE notes (no bigint, body text)", "",
        "has no primary key, and the job names no other", "name them in targets.key",
    ),
    "no key named, and a unique index there": (
        "CREATE TABLE notes (no bigint NOT NULL UNIQUE, body text)", "",
        "has no primary key", 'set key = "no", a unique index',
    ),
    "nullable part": (
        "CREATE TABLE notes (org int, id int, body text, UNIQUE (org, id))", '["org", "id"]',
        'key column "org" may be NULL', "NOT NULL",
    ),
    "part of the primary key": (
        "CREATE TABLE notes (org int, id int, body text, PRIMARY KEY (org, id))", '"id"',
        'key column "id" has no unique index of its own', 'set key = ["org", "id"], the primary key',
    ),
    "more than the primary key": (
        "CREATE TABLE notes (org int NOT NULL, id int PRIMARY KEY, body text)", '["org", "id"]',
        'key columns "org", "id" have no unique index of exactly these', 'set key = "id", the primary key',
    ),
    "the other order": (
        "CREATE TABLE notes (org int, id int, body text, PRIMARY KEY (org, id))", '["id", "org"]',
        "in this order", 'set key = ["org", "id"]',
    ),
    "one up, one down": (
        "CREATE TABLE notes (org int NOT NULL, id int NOT NULL, body text); "
        "CREATE UNIQUE INDEX ON notes (org, id DESC)", '["org", "id"]',
        "in another order than the column's own", "CREATE UNIQUE INDEX",
    ),
    "an order of bytes only": (
        "CREATE TABLE notes (id text NOT NULL, body text); "
        "CREATE UNIQUE INDEX ON notes (id text_pattern_ops)",
        '"id"', "in another order than the column's own", "CREATE UNIQUE INDEX",
    ),
    "another collation": (
        'CREATE TABLE notes (id text NOT NULL, body text); CREATE UNIQUE INDEX ON notes (id COLLATE "POSIX")',
        '"id"', "in another order than the column's own", "CREATE UNIQUE INDEX",
    ),
    "deferrable": (
        "CREATE TABLE notes (id int PRIMARY KEY DEFERRABLE, body text)", "",
        "the one there is deferrable", "CREATE UNIQUE INDEX",
    ),
    "partial": (
        "CREATE TABLE notes (id int NOT NULL, body text); CREATE UNIQUE INDEX ON notes (id) WHERE id > 9", "",
        "the one there is partial", "CREATE UNIQUE INDEX",
    ),
    "on an expression": (
        "CREATE TABLE notes (id text NOT NULL, body text); CREATE UNIQUE INDEX ON notes (lower(id))", "",
        "no unique index of its own", "CREATE UNIQUE INDEX",
    ),
    "float": (
        "CREATE TABLE notes (x float8 PRIMARY KEY, no int NOT NULL UNIQUE, body text)", "",
        "is double precision, whose values are not exact", 'set key = "no"',
    ),
    "real, in a domain": (
        "CREATE DOMAIN metres AS real; CREATE TABLE notes (id metres PRIMARY KEY, body text)", "",
        "is metres, whose values are not exact", "CREATE UNIQUE INDEX",
    ),
    "json": (
        "CREATE TABLE notes (id int PRIMARY KEY, doc json NOT NULL, body text)", '"doc"',
        'key column "doc" is json, a type without an order', 'set key = "id"',
    ),
    "point": (
        "CREATE TABLE notes (id int PRIMARY KEY, at point NOT NULL, body text)", '["id", "at"]',
        "is point, a type without an order", 'set key = "id"',
    ),
    "xid": (
        "CREATE TABLE notes (id int PRIMARY KEY, x xid NOT NULL, body text)", '"x"',
        "is xid, a type without an order", 'set key = "id"',
    ),
    "no such column": (
        "CREATE TABLE notes (id int PRIMARY KEY, body text)", '["id", "nr"]',
        'has no column "nr"', "correct targets.key",
    ),
    "the encrypted column is in the primary key": (
        "CREATE TABLE notes (id int, body text, PRIMARY KEY (id, body))", "",
        'encrypted column "body" is part of the key', "CREATE UNIQUE INDEX",
    ),
    "a view": (
        "CREATE TABLE n (id int PRIMARY KEY, body text); CREATE VIEW notes AS TABLE n", "", "is a view",
        "name the table that stores the rows",
    ),
    "a foreign partition": (
        "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; "
        "CREATE TABLE notes (id int, body text) PARTITION BY LIST (id); "
        "CREATE FOREIGN TABLE far PARTITION OF notes DEFAULT SERVER s", "",
        'partition "far" of table "notes" is a foreign table', "detach it",
    ),
    "an unsafe partition": (
        "CREATE TABLE notes (id int NOT NULL, body text) PARTITION BY LIST (id); "
        "CREATE TABLE bare PARTITION OF notes DEFAULT", "",
        'partition "bare" of table "notes": key column "id" has no unique index', "CREATE UNIQUE INDEX",
    ),
    "partitioned by the encrypted column": (
        "CREATE TABLE notes (id int NOT NULL, body text) PARTITION BY HASH (body); "
        "CREATE TABLE one PARTITION OF notes FOR VALUES WITH (MODULUS 1, REMAINDER 0); "
        "CREATE UNIQUE INDEX ON one (id)", "",
        'encrypted column "body" decides in which partition a row is', "not encrypted",
    ),
    "an inheritance child": (
        "CREATE TABLE notes (id int PRIMARY KEY, body text); CREATE TABLE more () INHERITS (notes)", "",
        "has child tables that inherit from it", "name the child tables themselves",
    ),
}  # fmt: skip


@pytest.mark.parametrize("why", REFUSED)
def test_rows_that_cannot_be_found_again_are_refused(bench: Workbench, why: str) -> None:
    """Before anything is read or written, with the reason, and a key that would do if there is one."""
    ddl, key, message, hint = REFUSED[why]
    bench.job(target(key=key))
    bench.sql(ddl)
    ran = bench.run()
    assert ran.code == 2, ran.err
    last = ran.err.splitlines()
    assert message in next(line for line in last if line.startswith("error: "))
    assert hint in next(line for line in last if line.startswith("hint: "))
    assert not bench.ledger.exists()


@pytest.mark.parametrize(
    ("key", "message"),
    [("[]", "is empty"), ('["a", "a"]', "names a column twice"), ("7", "list"), ('["body"]', "is the key")],
)
def test_a_key_that_says_nothing_is_refused(bench: Workbench, key: str, message: str) -> None:
    """A job's key is a name or several different ones, and none of an encrypted column."""
    bench.job(target(key=key))
    ran = bench.run()
    assert ran.code == 2
    assert message in ran.err


def test_naming_the_key_makes_no_other_job_of_an_old_file(bench: Workbench) -> None:
    """`key = "id"` was the default: with it, without it and in brackets a file is the same job."""
    digests = set()
    for key in ("", '"id"', '["id"]'):
        bench.job(target(key=key))
        digests.add(load(bench).digest)
    bench.job(target(key='["org", "id"]'))
    assert len(digests) == 1
    assert load(bench).digest not in digests


# pages and plans

WIDE = {
    "composite": ("org int, id bigint, PRIMARY KEY (org, id)", "n % 50, n"),
    "text": ('id text COLLATE "C" PRIMARY KEY', "md5(n::text)"),
    "native": ("id bigint PRIMARY KEY", "n"),
}


@pytest.mark.parametrize("kind", WIDE)
def test_pages_and_batches_walk_the_index(bench: Workbench, kind: str) -> None:
    """At 50,000 rows no page, no swap and no look at what was lost sorts the table or reads all of it."""
    columns, expression = WIDE[kind]
    bench.job(target())
    bench.sql(f"CREATE TABLE notes ({columns}, body text)")
    bench.sql(f"INSERT INTO notes SELECT {expression}, 'v1:x' FROM generate_series(1, 50000) n")
    bench.sql("ANALYZE notes")

    async def work() -> list[tuple[str, str]]:
        store = PostgresStore(load(bench))
        (table,) = await store.tables()
        shards = await store.split(table, 2)
        assert len(shards) == 2
        assert shards[0].upper is not None
        statements = Statements(table, "guard")
        reader, writer = store.reader(table), store.writer(table)
        page = await reader.fetch(shards[1], None, 1000, Scope())
        cursor = key_parts(page.last or "", len(table.key))
        await reader.close()
        await writer.close()
        connection = await connect(store.address, **_READER_FULL)
        plans = []
        for shard in (ShardRange(0, None, shards[0].upper), ShardRange(1, shards[0].upper, None)):
            lower, upper = (key_parts(b, len(table.key)) if b else [] for b in (shard.lower, shard.upper))
            for first, start in ((True, lower), (False, cursor)):
                query = statements.fetch(shard, first=first, limit=1000, scope=Scope())
                plans.append(("page", await explained(connection, query, [100, *start, *upper])))
        await connection.close()
        await connection_plans(store, statements, table, page, plans)
        await store.close()
        return plans

    async def connection_plans(store: Any, statements: Any, table: Any, page: Any, plans: list[Any]) -> None:
        keys = page.keys if len(table.key) == 1 else [list(part) for part in zip(*page.keys, strict=True)]
        batch = [keys] if len(table.key) == 1 else keys
        news = "\x1f".join(["v2:y"] * len(page))
        connection = await connect(store.address, plan_cache_mode="force_generic_plan", **_WRITER_FULL)
        await connection.execute(
            "CREATE TEMP TABLE guard (cursor_key text, row_count bigint, tally text, seq bigint, "
            "updated_at timestamptz, lease_until timestamptz, relation text, shard int, fence bigint)"
        )
        place = [None, 0, "", "r", 0, 0, 1.0]
        swap = statements.swap(consecutive=True, stamped=True)
        plans.append(("swap", await explained(connection, swap, [*place, *batch, page.stamps, news])))
        freely = statements.swap(consecutive=True, skip_locked=True)
        plans.append(("skip", await explained(connection, freely, [*place, *batch, news, news])))
        lost = statements.unsettled(consecutive=True)
        plans.append(("lost", await explained(connection, lost, [100, *batch, news])))
        await connection.close()

    for what, plan in asyncio.run(work()):
        walked = [line for line in plan.splitlines() if "notes" in line]
        assert walked, plan
        assert all("Index" in line or "Update on" in line for line in walked), f"{what}:\n{plan}"
        if what == "page":
            assert "Sort" not in plan, plan


async def explained(connection: Any, statement: str, arguments: list[Any]) -> str:
    """The plan of a statement as the driver would run it."""
    prepared = await connection.prepare(f"EXPLAIN {statement}")
    return "\n".join(row[0] for row in await prepared.fetch(*arguments))
