"""What means something else in this database: functions, operators, collations, strings, types of keys."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from rewrap.demo.postgres import EmbeddedPostgres
from tests.conftest import require
from tests.support.values import KEY_V2, KEY_V3, box, opened_bytes, sealed_bytes, unbox
from tests.support.workbench import NOTES, Workbench

BYTES = (
    '[[targets]]\ntable = "notes"\nfields = [{ column = "body", layout = "bytes" }]\n',
    '[layouts.bytes]\nmarker = "{version}:"\nversion = "v[0-9]+"\nencoding = "raw"\ncipher = "aes-256-gcm"\n',
)

_NUMBERS = itertools.count(1)


@pytest.fixture
def shadowing_role(bench: Workbench) -> Iterator[None]:
    """Commands run as a role of their own whose search path has the built-in names last."""
    role = f"r{os.getpid()}_{next(_NUMBERS)}"
    bench.sql(f"CREATE ROLE {role} LOGIN PASSWORD 'p'; CREATE SCHEMA rewrap AUTHORIZATION {role}")
    bench.sql(f"ALTER ROLE {role} SET search_path = public, pg_catalog")
    bench.sql(f"ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO {role}")
    parts = urlsplit(bench.dsn)
    bench.environ["DATABASE_URL"] = urlunsplit(
        parts._replace(netloc=f"{role}:p@{parts.hostname}:{parts.port}")
    )
    yield
    bench.sql(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


# names in the search path

SHADOWS = {
    "a function": "CREATE FUNCTION starts_with(text, text) RETURNS bool LANGUAGE sql AS 'SELECT true'",
    "an operator for equality": (
        "CREATE FUNCTION folded(text, text) RETURNS bool LANGUAGE sql IMMUTABLE "
        "AS 'SELECT lower($1) OPERATOR(pg_catalog.=) lower($2)'; "
        "CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = text, FUNCTION = folded)"
    ),
    "an operator for order": (
        "CREATE FUNCTION never(text, text) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT false'; "
        "CREATE OPERATOR public.> (LEFTARG = text, RIGHTARG = text, FUNCTION = never)"
    ),
    "a view of the catalog": "CREATE VIEW pg_locks AS SELECT * FROM pg_catalog.pg_locks WHERE false",
}


def test_a_function_for_the_exact_type_does_not_count(bench: Workbench) -> None:
    """It fits a varchar better than the built-in one for text: verify sees the old values all the same."""
    bench.sql("CREATE TABLE notes (id bigint PRIMARY KEY, body varchar(500))")
    bench.insert("notes", ["id", "body"], [(i, box(f"note {i}")) for i in range(50)])
    bench.sql("CREATE FUNCTION starts_with(varchar, text) RETURNS bool LANGUAGE sql AS 'SELECT true'")
    found = bench.rewrap("verify", "--to", "v2", "--json")
    assert found.code == 3, found.err
    assert found.event("verdict")["stale"] == 50
    ran = bench.run()
    assert ran.code == 0, ran.err
    assert ran.event("run_ended")["outcomes"] == {"notes": {"body": {"resealed": 50}}}


@pytest.mark.parametrize("shadow", SHADOWS)
def test_names_ahead_of_the_built_in_ones_are_refused(
    bench: Workbench, shadowing_role: None, shadow: str
) -> None:
    """What stands in public could skip rows, or call old values new: nothing is counted or written by it."""
    bench.sql("CREATE TABLE notes (id text PRIMARY KEY, body text)")
    bench.insert("notes", ["id", "body"], [(f"{k}{i}", box(f"{k}{i}")) for i in range(25) for k in "kK"])
    bench.sql(SHADOWS[shadow])
    for command in (("verify", "--to", "v2"), ("run", "--from", "v1", "--to", "v2", "--allow-unseen-target")):
        found = bench.rewrap(*command)
        assert found.code == 2, found.err
        assert "search_path has public before pg_catalog" in found.err
        assert "hint: " in found.err
    assert all(row["body"].startswith("v1:") for row in bench.sql("SELECT body FROM notes"))


# strings


def strings_with_escapes(bench: Workbench) -> None:
    """Backslashes in plain literals are escapes in this database."""
    name = urlsplit(bench.dsn).path[1:]
    bench.sql(f"ALTER DATABASE {name} SET standard_conforming_strings = off")
    bench.sql(f"ALTER DATABASE {name} SET escape_string_warning = off")


def test_bytes_are_rotated_where_backslashes_escape(bench: Workbench) -> None:
    """A marker in bytes is compared as bytes: everything is resealed, and the fence holds."""
    bench.job(*BYTES)
    bench.sql("CREATE TABLE notes (id bigint PRIMARY KEY, body bytea)")
    bench.insert("notes", ["id", "body"], [(i, sealed_bytes(f"note {i}")) for i in range(7)])
    strings_with_escapes(bench)
    ran = bench.run()
    assert ran.code == 0, ran.err
    rows = bench.sql("SELECT id, body FROM notes")
    assert [opened_bytes(row["body"], {"v2": KEY_V2}) for row in rows] == [
        f"note {row['id']}".encode() for row in rows
    ]
    fenced = bench.rewrap("verify", "--fence", "--deep")
    assert fenced.code == 0, fenced.err
    with pytest.raises(asyncpg.CheckViolationError):
        bench.sql("UPDATE notes SET body = $1", sealed_bytes("old"))
    bench.sql("UPDATE notes SET body = $1", sealed_bytes("new", "v2"))


@pytest.mark.parametrize("wrong", ["the old key", "the new key"])
def test_a_wrong_key_is_noticed_where_backslashes_escape(bench: Workbench, wrong: str) -> None:
    """Stored values that prove a key wrong are found by their markers all the same: nothing is written."""
    bench.job(*BYTES)
    bench.sql("CREATE TABLE notes (id bigint PRIMARY KEY, body bytea)")
    key = KEY_V3 if wrong == "the old key" else None
    rows = [(i, sealed_bytes(f"note {i}", key=key)) for i in range(30)]
    if wrong == "the new key":
        rows.append((99, sealed_bytes("x", "v2", key=KEY_V3)))
    bench.insert("notes", ["id", "body"], rows)
    strings_with_escapes(bench)
    assert bench.run().code == 10
    assert dict(map(tuple, bench.sql("SELECT id, body FROM notes"))) == dict(rows)


# keys


def test_a_key_that_may_hold_null_after_all_is_refused(bench: Workbench) -> None:
    """NOT NULL that was never checked (Postgres 18): rows without a key would be passed over."""
    bench.sql("CREATE TABLE notes (id bigint, body text); CREATE UNIQUE INDEX ON notes (id)")
    rows = [*((i, box(f"note {i}")) for i in range(30)), (None, box("lost")), (None, box("lost"))]
    bench.insert("notes", ["id", "body"], rows)
    if bench.value("SELECT current_setting('server_version_num')::int") < 180_000:
        pytest.skip("this server has no NOT NULL … NOT VALID; Postgres 18 does")
    bench.sql("ALTER TABLE notes ADD CONSTRAINT filled NOT NULL id NOT VALID")
    bench.job(NOTES.replace('table = "notes"', 'table = "notes"\nkey = "id"'))
    assert bench.rewrap("check", "--from", "v1", "--to", "v2").code != 0
    ran = bench.run()
    assert ran.code == 2
    assert 'key column "id" may be NULL' in ran.err
    assert bench.value("SELECT count(*) FROM notes WHERE starts_with(body, 'v1:')") == len(rows)


def refused(bench: Workbench, keys: list[str]) -> None:
    """Rows of these keys are left as they are, by `check` and `run` alike, with a reason."""
    for key in keys:
        bench.sql(f"INSERT INTO notes VALUES ('{key}', $1) RETURNING 1", box(key))
    assert bench.rewrap("check", "--from", "v1", "--to", "v2").code != 0
    ran = bench.run()
    assert ran.code == 2, ran.err
    assert 'key column "id" is ' in ran.err
    assert "hint: " in ran.err
    assert all(row["body"].startswith("v1:") for row in bench.sql("SELECT body FROM notes"))


KEYS = {
    "a domain over an enum": (
        "CREATE TYPE mood AS ENUM ('a', 'b', 'c'); CREATE DOMAIN nature AS mood",
        "nature",
        ["a", "b", "c"],
    ),
    "a domain over a range": ("CREATE DOMAIN span AS int4range", "span", ["[1,2)", "[2,3)", "[3,9)"]),
}


@pytest.mark.parametrize("kind", KEYS)
def test_a_key_that_cannot_be_compared_is_refused(bench: Workbench, kind: str) -> None:
    """A check says so as a run does, before a statement fails on it in the middle of a table."""
    ddl, declared, keys = KEYS[kind]
    bench.sql(f"{ddl}; CREATE TABLE notes (id {declared} PRIMARY KEY, body text)")
    refused(bench, keys)


# collations and types that only another server has

DEBIAN = Path("/usr/lib/postgresql/15/bin")


@pytest.fixture(scope="module")
def with_icu() -> Iterator[EmbeddedPostgres]:
    """A server that knows the collations of languages and hstore; the wheel's was built without them."""
    require("Postgres 15 with ICU", str(DEBIAN / "postgres"))
    with EmbeddedPostgres(programs=DEBIAN) as server:
        yield server


def database(server: EmbeddedPostgres, folder: Path, name: str) -> Workbench:
    server.create_database(name)
    return Workbench(server.dsn(name), folder)


def test_a_column_whose_collation_folds_capitals_is_rotated(
    with_icu: EmbeddedPostgres, tmp_path: Path
) -> None:
    """Postgres refuses searches of a text in such a collation; every command finds the markers anyway."""
    bench = database(with_icu, tmp_path, "folded")
    bench.sql(
        "CREATE COLLATION folded (provider = icu, locale = 'und-u-ks-level2', deterministic = false); "
        "CREATE TABLE notes (id int PRIMARY KEY, body text COLLATE folded)"
    )
    rows = [
        *((i, box(f"note {i}")) for i in range(60)),
        (60, box("note 60", "v2")),
        (61, None),
        (62, "plain text, long enough to be looked at as if it were a payload without marker"),
    ]
    bench.insert("notes", ["id", "body"], rows)
    for command in ("check", "plan"):
        found = bench.rewrap(command, "--from", "v1", "--to", "v2")
        assert found.code == 0, found.err + found.out
    rehearsed, ran = bench.run("--dry-run"), bench.run()
    assert (rehearsed.code, ran.code) == (0, 0), rehearsed.err + ran.err
    counts = {"notes": {"body": {"resealed": 60, "current": 1, "null": 1, "plaintext": 1}}}
    assert ran.event("run_ended")["outcomes"] == counts
    after = bench.bodies()
    assert after.pop(61) is None
    assert str(after.pop(62)).startswith("plain text")
    opened = {i: unbox(str(body), {"v2": KEY_V2}).decode() for i, body in after.items()}
    assert opened == {i: f"note {i}" for i in range(61)}
    assert bench.rewrap("discover").code == 0
    assert bench.rewrap("verify").code == 0
    bench.sql("DELETE FROM notes WHERE id = 62")
    fenced = bench.rewrap("verify", "--to", "v2", "--fence", "--deep")
    assert fenced.code == 0, fenced.err
    with pytest.raises(asyncpg.CheckViolationError):
        bench.sql("UPDATE notes SET body = $1", box("old"))


def test_a_key_of_hstore_is_refused(with_icu: EmbeddedPostgres, tmp_path: Path) -> None:
    """Its order is kept by operators of other names than = and >."""
    bench = database(with_icu, tmp_path, "hstores")
    bench.sql("CREATE EXTENSION hstore; CREATE TABLE notes (id hstore PRIMARY KEY, body text)")
    refused(bench, ["a=>1", "b=>1", "c=>1"])
