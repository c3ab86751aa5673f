"""What a role, a database or a server is set to, and what sessions are called: none of it may mislead."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from rewrap.stores.postgres.store import PostgresStore
from tests.integration.test_safety import QUICK, Holder
from tests.support.inprocess import load
from tests.support.values import box
from tests.support.workbench import NOTES, Workbench

Role = Callable[..., str]


@pytest.fixture
def role(bench: Workbench) -> Iterator[Role]:
    """Makes a role with these settings, lets it rotate the tables that are there, and has commands use it."""
    name = f"r{os.urandom(4).hex()}"

    def make(*settings: str) -> str:
        bench.sql(
            f"CREATE ROLE {name} LOGIN PASSWORD 'p'; CREATE SCHEMA rewrap AUTHORIZATION {name}; "
            f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}"
        )
        for setting in settings:
            bench.sql(f"ALTER ROLE {name} SET {setting}")
        parts = urlsplit(bench.dsn)
        place = f"{name}:p@{parts.hostname}:{parts.port}"
        bench.environ["DATABASE_URL"] = urlunsplit(parts._replace(netloc=place))
        return name

    yield make
    if bench.value("SELECT count(*) FROM pg_roles WHERE rolname = $1", name):
        bench.sql(f"DROP OWNED BY {name} CASCADE")
        bench.sql(f"DROP ROLE {name}")


@pytest.fixture
def unchecked(server_dsn: str, tmp_path: Path) -> Iterator[Workbench]:
    """A database whose encoding is SQL_ASCII: it checks no text that is put in."""
    name = f"ascii_{os.getpid()}_{os.urandom(3).hex()}"
    admin = Workbench(server_dsn, tmp_path)
    # from Postgres 15 another provider of locales may be the server's, and know no encoding but UTF-8
    newer = admin.value("SELECT current_setting('server_version_num')::int") >= 150_000
    admin.sql(
        f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'"
        + (" LOCALE_PROVIDER libc" if newer else "")
    )
    try:
        yield Workbench(urlunsplit(urlsplit(server_dsn)._replace(path=f"/{name}")), tmp_path)
    finally:
        admin.sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("name", ["rewrap", "rewrap writer", "rewrap guard", "rewrap ledger"])
def test_an_open_writer_is_waited_for_whatever_it_calls_itself(bench: Workbench, name: str) -> None:
    """An application may be called like a session of rewrap's, and commit an old value all the same."""
    bench.job(more=QUICK)
    bench.notes([box("one", "v2")])
    with Holder(bench, f"INSERT INTO notes (id, body) VALUES (9, '{box('late')}')", name=name):
        found = bench.rewrap("verify", "--to", "v2", "--json")
    assert found.code == 3
    assert any(f"({name})" in reason for reason in found.event("verdict")["reasons"])


def test_writers_that_come_and_go_are_not_waited_for_one_after_the_other(bench: Workbench) -> None:
    """Other runs, and the lease's sign of life, write all the time: each transaction is waited for once."""
    bench.notes([box("one")])

    async def work() -> list[str]:
        store = PostgresStore(load(bench))
        writers = [
            await asyncpg.connect(bench.dsn, server_settings={"application_name": "rewrap writer"})
            for _ in range(3)
        ]
        written = 0

        async def write(connection: asyncpg.Connection) -> None:
            nonlocal written
            while True:
                await connection.execute("UPDATE notes SET other = other || pg_sleep(0.02)::text")
                written += 1

        busy = [asyncio.create_task(write(connection)) for connection in writers]
        try:
            await store.identity()
            while not written:
                await asyncio.sleep(0.01)
            # who waited for each that comes meanwhile would wait for as long as it may
            return await store.drain(30)
        finally:
            for task in busy:
                task.cancel()
            await asyncio.gather(*busy, return_exceptions=True)
            for connection in writers:
                await connection.close()
            await store.close()

    assert asyncio.run(work()) == []


def test_a_roles_lock_timeout_does_not_end_a_run(bench: Workbench, role: Role) -> None:
    """Sessions of a run wait as long as they are meant to: its lease may wait behind a swap."""
    bench.job(NOTES, "[pace]\nbatch_size = 10\nshards = 1\n[limits]\nlease_s = 2\ndrain_s = 1\n")
    bench.notes([box(f"note {i}") for i in range(45)])
    role("lock_timeout = '20ms'")
    with Holder(bench, "SELECT FROM notes WHERE id % 3 = 0 FOR UPDATE"):
        ran = bench.run()
    assert ran.code == 3, ran.err
    assert ran.event("run_ended")["outcomes"]["notes"]["body"]["resealed"] == 30


def test_a_fence_is_recognised_where_every_name_is_quoted(bench: Workbench, role: Role) -> None:
    """A constraint's text depends on the role's quote_all_identifiers; its fence is one all the same."""
    bench.job()
    bench.notes([box("one", "v2")])
    name = role("quote_all_identifiers = on")
    bench.sql(f"ALTER TABLE notes OWNER TO {name}")
    assert bench.rewrap("verify", "--to", "v2", "--fence").code == 0
    again = bench.rewrap("verify", "--to", "v2", "--fence")
    assert (again.code, "was there already" in again.out) == (0, True)
    refused = bench.rewrap("plan", "--from", "v2", "--to", "v3")
    assert refused.code == 2
    assert "the fence of an earlier rotation" in refused.err


@pytest.mark.parametrize(
    ("setting", "since"), [("idle_session_timeout", 140_000), ("transaction_timeout", 170_000)]
)
def test_a_role_whose_sessions_the_server_ends_is_refused(
    bench: Workbench, role: Role, setting: str, since: int
) -> None:
    """A run whose lease loses its session admits a second run; a long count never ends."""
    if bench.value("SELECT current_setting('server_version_num')::int") < since:
        pytest.skip(f"this server has no {setting}")
    bench.job()
    bench.notes([box("one")])
    name = role(f"{setting} = '5min'")
    for command in (
        ("run", "--from", "v1", "--to", "v2", "--allow-unseen-target"),
        ("verify", "--to", "v2"),
    ):
        refused = bench.rewrap(*command)
        assert refused.code == 2
        assert f"{setting} = 5min" in refused.err
        assert f"ALTER ROLE … SET {setting} = 0" in refused.err
    checked = bench.rewrap("check", "--json")
    assert checked.code == 1
    (found,) = [one for one in checked.events if one.get("code") == "unfit-server"]
    assert setting in found["reason"]
    bench.sql(f"ALTER ROLE {name} SET {setting} = 0")
    assert bench.run().code == 0


def test_text_in_no_encoding_is_named_beforehand_and_explained(unchecked: Workbench) -> None:
    """In SQL_ASCII a value may be text in any encoding; where one is not UTF-8, the error says what to do."""
    unchecked.notes([box("one")])
    checked = unchecked.rewrap("check", "--json")
    (found,) = [one for one in checked.events if one.get("code") == "sql-ascii"]
    assert (found["severity"], checked.code) == ("warning", 0)
    unchecked.sql("INSERT INTO notes (id, body) SELECT 9, convert_from('\\x636166e9', 'SQL_ASCII')")
    ran = unchecked.run()
    assert ran.code == 1
    assert "[22021]" in ran.err
    assert "hint: a text there is not UTF-8" in ran.err


def test_a_search_path_with_the_catalog_behind_others_is_refused(bench: Workbench) -> None:
    """What stands before pg_catalog could be taken for it: said so, and nothing is written."""
    bench.notes([box("a")])
    database = bench.value("SELECT current_database()")
    bench.sql(f"ALTER DATABASE {database} SET search_path = public, pg_catalog")
    for command in (("run", "--from", "v1", "--to", "v2"), ("verify", "--to", "v2")):
        refused = bench.rewrap(*command)
        assert refused.code == 2
        assert "search_path has public before pg_catalog" in refused.err
        assert "ALTER ROLE" in refused.err
    bench.sql(f"ALTER DATABASE {database} SET search_path = pg_catalog, public")
    assert bench.run().code == 0
