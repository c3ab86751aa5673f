"""What others do to the tables while rewrap is at work: migrations that rewrite, rename, and add triggers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from rewrap import plan, verify
from rewrap.errors import StoreError
from rewrap.events import Event, Notice
from rewrap.stores.postgres import census
from rewrap.stores.postgres.census import PostgresCensus
from rewrap.stores.postgres.reader import PostgresReader
from rewrap.stores.postgres.store import PostgresStore
from tests.integration.test_safety import QUICK, Holder, disturb
from tests.support.inprocess import load, run_here
from tests.support.values import box
from tests.support.workbench import NOTES, TIMEOUT_S, Workbench

TWO = """
[[targets]]
table = "first"
fields = [{ column = "body", layout = "libsodium-token" }]
[[targets]]
table = "second"
fields = [{ column = "body", layout = "libsodium-token" }]
"""

REWRITES = {
    "type": "ALTER TABLE second ALTER COLUMN other TYPE bigint",
    "renamed": """
        CREATE TABLE fresh (LIKE second INCLUDING ALL); INSERT INTO fresh SELECT * FROM second;
        ALTER TABLE second RENAME TO gone; ALTER TABLE fresh RENAME TO second""",
    "column": """
        ALTER TABLE second ADD COLUMN fresh text; UPDATE second SET fresh = body;
        ALTER TABLE second DROP COLUMN body; ALTER TABLE second RENAME fresh TO body""",
    "schema": """
        CREATE SCHEMA fresh; CREATE TABLE fresh.second (LIKE second INCLUDING ALL);
        INSERT INTO fresh.second SELECT * FROM second; DROP TABLE second;
        ALTER TABLE fresh.second SET SCHEMA public""",
}
"""Migrations after which the rows are where an older snapshot sees none."""


def two_tables(bench: Workbench) -> None:
    """A table at v2, and one of which nothing is."""
    bench.job(TWO)
    for name, version in (("first", "v2"), ("second", "v1")):
        bench.sql(f"CREATE TABLE {name} (id bigint PRIMARY KEY, body text, other int DEFAULT 1)")
        bench.insert(name, ["id", "body"], [(i, box(f"{name} {i}", version)) for i in range(50)])


def migrate(
    monkeypatch: pytest.MonkeyPatch, bench: Workbench, statements: Callable[[int], str | None]
) -> list[int]:
    """Runs statements in one transaction right after each snapshot is taken; the snapshots so far."""
    taken: list[int] = []

    async def after(*_args: Any) -> None:
        taken.append(len(taken) + 1)
        if statement := statements(len(taken)):
            connection = await asyncpg.connect(bench.dsn)
            try:
                async with connection.transaction():
                    await connection.execute(statement)
            finally:
                await connection.close()

    disturb(monkeypatch, PostgresCensus, "_begin", after=after)
    return taken


@pytest.mark.parametrize("how", REWRITES)
def test_a_table_rewritten_after_the_snapshot_is_counted_in_a_new_one(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Its rows are in no older snapshot: verify would count none, and say complete over 50 old values."""
    two_tables(bench)
    taken = migrate(monkeypatch, bench, lambda count: REWRITES[how] if count == 1 else None)
    found = asyncio.run(verify(load(bench), to_version="v2", environ=bench.environ))
    assert (found.exit_code, found.verdict.stale) == (3, 50)
    assert len(taken) == 2


def test_a_partition_rewritten_after_the_snapshot_is_counted_in_a_new_one(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRUNCATE and a fresh load of one partition, in one transaction: an older snapshot has neither."""
    bench.job()
    bench.sql(
        """CREATE TABLE notes (id bigint PRIMARY KEY, body text) PARTITION BY RANGE (id);
           CREATE TABLE early PARTITION OF notes FOR VALUES FROM (0) TO (100)"""
    )
    bench.insert("notes", ["id", "body"], [(1, box("one", "v2"))])
    load_again = f"TRUNCATE early; INSERT INTO notes VALUES (2, '{box('two')}')"
    migrate(monkeypatch, bench, lambda count: load_again if count == 1 else None)
    found = asyncio.run(verify(load(bench), environ=bench.environ, to_version="v2"))
    assert (found.exit_code, found.verdict.stale) == (3, 1)


def test_a_plan_counts_what_is_there_now(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan counts as verify does, and a rewritten table is not empty to it."""
    two_tables(bench)
    migrate(monkeypatch, bench, lambda count: REWRITES["type"] if count == 1 else None)
    found = asyncio.run(plan(load(bench), from_versions="v1", to_version="v2", environ=bench.environ))
    assert found.in_scope == 50


def test_tables_that_keep_changing_are_an_error(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verify does not guess, and does not try for ever."""
    two_tables(bench)
    types = ("bigint", "int")
    migrate(
        monkeypatch,
        bench,
        lambda count: f"ALTER TABLE second ALTER COLUMN other TYPE {types[(count - 1) % 2]}",
    )
    with pytest.raises(StoreError, match="altered each time") as caught:
        asyncio.run(verify(load(bench), to_version="v2", environ=bench.environ))
    assert caught.value.hint


def test_a_schema_that_is_replaced_while_verify_looks_is_an_error(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No lock on a table keeps its schema's name: what was counted may be another table's rows."""
    bench.job(NOTES.replace('"notes"', '"app.notes"'))
    bench.sql("CREATE SCHEMA app; CREATE TABLE app.notes (id bigint PRIMARY KEY, body text)")
    bench.sql(f"INSERT INTO app.notes VALUES (1, '{box('one')}')")

    async def replace(*_args: Any, **_kwargs: Any) -> None:
        await asyncio.to_thread(
            bench.sql,
            "ALTER SCHEMA app RENAME TO old; CREATE SCHEMA app; CREATE TABLE app.notes (LIKE old.notes)",
        )

    disturb(monkeypatch, PostgresCensus, "count", before=replace)
    with pytest.raises(StoreError, match="altered while verify looked"):
        asyncio.run(verify(load(bench), to_version="v2", environ=bench.environ))


def test_verify_and_plan_do_not_wait_for_ever_behind_a_lock(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody's ACCESS EXCLUSIVE lock: an error that says what to do, after a while."""
    bench.job(more=QUICK)
    bench.notes([box("one")])
    monkeypatch.setattr(census, "LOCK_TIMEOUT_S", 0.3)
    job = load(bench)
    with Holder(bench, "LOCK TABLE notes IN ACCESS EXCLUSIVE MODE"):
        for look in (
            verify(job, to_version="v2", environ=bench.environ),
            plan(job, from_versions="v1", to_version="v2", environ=bench.environ),
        ):
            with pytest.raises(StoreError) as caught:
                asyncio.run(asyncio.wait_for(look, TIMEOUT_S))
            assert caught.value.sqlstate == "55P03"
            assert "lock" in (caught.value.hint or "")


def test_a_run_waits_for_a_table_that_is_locked_when_it_is_verified(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours of work do not fail at their end because somebody runs VACUUM FULL."""
    bench.job(more=QUICK)
    bench.notes([box("one")])
    monkeypatch.setattr(census, "LOCK_TIMEOUT_S", 0.3)
    held: list[asyncio.Task[None]] = []
    events: list[Event] = []
    locked = asyncio.Event()

    def told() -> bool:
        return any(isinstance(event, Notice) and "somebody holds a lock" in event.message for event in events)

    async def hold() -> None:
        connection = await asyncpg.connect(bench.dsn)
        try:
            async with connection.transaction():
                await connection.execute("LOCK TABLE notes IN ACCESS EXCLUSIVE MODE")
                locked.set()
                async with asyncio.timeout(TIMEOUT_S):
                    while not told():
                        await asyncio.sleep(0.05)
        finally:
            await connection.close()

    async def lock(*_args: Any, **_kwargs: Any) -> None:
        if not held:
            held.append(asyncio.create_task(hold()))
            await locked.wait()

    disturb(monkeypatch, PostgresStore, "flush", after=lock)
    ended = run_here(bench, events=events)
    assert ended.exit_code == 0, ended.reasons
    assert told()


def test_discover_does_not_wait_for_each_column_of_a_locked_table(bench: Workbench) -> None:
    """It waits once, says that the table is locked, and looks at the others."""
    bench.notes([box("one")])
    bench.sql("CREATE TABLE open (id int PRIMARY KEY, body text)")
    with Holder(bench, "LOCK TABLE notes IN ACCESS EXCLUSIVE MODE"):
        looked = bench.rewrap("discover", "--json")
    skipped = [event for event in looked.events if event["type"] == "column_skipped"]
    assert [event["column"] for event in skipped] == ["body", "other"]
    assert all("holds a lock" in event["reason"] for event in skipped)
    assert looked.event("discovered")["columns"] == 1


SPOIL = """
CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS
  $$BEGIN NEW.body := left(NEW.body, 40); RETURN NEW; END$$;
CREATE TRIGGER spoil BEFORE UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION spoil()"""

WATCH = """
CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NEW; END$$;
CREATE TRIGGER watch BEFORE UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION watch()"""

MEANWHILE = {
    "trigger": (SPOIL, "has a BEFORE UPDATE trigger (spoil)"),
    "rule": (
        "CREATE RULE keep AS ON UPDATE TO notes WHERE OLD.id < 0 DO INSTEAD NOTHING",
        "a rule on UPDATE",
    ),
}
"""What would have kept a run from beginning, and what is said of it at its end."""


def in_the_middle(monkeypatch: pytest.MonkeyPatch, bench: Workbench, statements: str) -> list[int]:
    """Runs statements once, when some pages were read and written."""
    pages: list[int] = []

    async def act(*_args: Any, **_kwargs: Any) -> None:
        pages.append(1)
        if len(pages) == 4:
            connection = await asyncpg.connect(bench.dsn)
            try:
                await connection.execute(statements)
            finally:
                await connection.close()

    disturb(monkeypatch, PostgresReader, "fetch", before=act)
    return pages


@pytest.mark.parametrize("what", MEANWHILE)
def test_what_is_made_during_a_run_and_may_spoil_it_keeps_it_from_being_complete(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A trigger that cuts values keeps their marker: a count calls them done, and they never open again."""
    statements, said = MEANWHILE[what]
    bench.job(more="[pace]\nbatch_size = 20\nshards = 1\n" + QUICK)
    bench.notes([box(f"note {i}") for i in range(200)])
    pages = in_the_middle(monkeypatch, bench, statements)
    ended = run_here(bench)
    assert len(pages) > 4
    assert (ended.exit_code, ended.state) == (3, "incomplete")
    assert any(said in reason and "verify --deep" in reason for reason in ended.reasons), ended.reasons
    if what == "trigger":
        assert bench.value("SELECT count(*) FROM notes WHERE length(body) = 40") > 0
        assert bench.rewrap("verify", "--deep").code == 3


def test_an_acknowledged_trigger_made_during_a_run_is_no_reason(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner has read what triggers there are to the table: one more does not end a run."""
    bench.job(
        NOTES.replace('table = "notes"', 'table = "notes"\nacknowledge = ["triggers"]'),
        "[pace]\nbatch_size = 20\nshards = 1\n" + QUICK,
    )
    bench.notes([box(f"note {i}") for i in range(200)])
    pages = in_the_middle(monkeypatch, bench, WATCH)
    ended = run_here(bench)
    assert len(pages) > 4
    assert (ended.exit_code, ended.reasons) == (0, [])


def test_a_partition_dropped_during_a_run_is_no_reason(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is gone cannot have spoiled anything that is left."""
    bench.job(more="[pace]\nbatch_size = 20\nshards = 1\n" + QUICK)
    bench.sql(
        """CREATE TABLE notes (id bigint PRIMARY KEY, body text) PARTITION BY RANGE (id);
           CREATE TABLE early PARTITION OF notes FOR VALUES FROM (0) TO (100);
           CREATE TABLE late PARTITION OF notes FOR VALUES FROM (100) TO (200)"""
    )
    bench.insert("notes", ["id", "body"], [(i, box(f"note {i}")) for i in range(100)])

    async def drop(*_args: Any, **_kwargs: Any) -> None:
        await asyncio.to_thread(bench.sql, "DROP TABLE IF EXISTS late")

    disturb(monkeypatch, PostgresCensus, "drain", before=drop)
    ended = run_here(bench)
    assert (ended.exit_code, ended.reasons) == (0, [])
