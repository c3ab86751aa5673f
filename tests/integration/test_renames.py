"""Names that change their meaning during a run: what the run read is not written under another's name."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from tests.support.values import box, unbox
from tests.support.workbench import NOTES, TIMEOUT_S, UNYIELDING, Result, Workbench, wait_for

ROWS = 4_000
"""Twenty pages, each of which takes a while to write: a migration lands between the first and the last."""

SLOW = """
CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS
  'BEGIN PERFORM pg_sleep(0.2); RETURN NULL; END';
CREATE TRIGGER dawdling AFTER UPDATE ON notes FOR EACH STATEMENT EXECUTE FUNCTION dawdle();
"""
"""While a page is written the next one is in hand: it was read before the migration, and comes after it."""


def during(bench: Workbench, migration: str) -> Result:
    """A run, and a migration in one transaction once the first pages are done."""
    bench.job(NOTES, "[pace]\nbatch_size = 200\nshards = 1\n" + UNYIELDING + "[limits]\ndrain_s = 2\n")
    bench.sql(SLOW)

    async def work() -> Result:
        connection = await asyncpg.connect(bench.dsn)
        run = asyncio.create_task(asyncio.to_thread(bench.run))
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while not await connection.fetchval("SELECT to_regclass('rewrap.shard') IS NOT NULL"):
                    await asyncio.sleep(0.005)
                while not await connection.fetchval("SELECT sum(row_count) >= 200 FROM rewrap.shard"):
                    await asyncio.sleep(0.005)
            async with connection.transaction():
                await connection.execute(migration)
            return await run
        finally:
            await run
            await connection.close()

    return asyncio.run(work())


def load_at_once(bench: Workbench, tables: dict[str, list[tuple[object, ...]]], ddl: str) -> None:
    """All rows come from one transaction, as from a restored dump: they do not differ in their xmin."""

    async def work() -> None:
        connection = await asyncpg.connect(bench.dsn)
        try:
            async with connection.transaction():
                await connection.execute(ddl)
                for table, rows in tables.items():
                    await connection.copy_records_to_table(table, records=rows)
        finally:
            await connection.close()

    asyncio.run(work())


def refused(ran: Result) -> None:
    """The run noticed, and says what happened and what to do."""
    assert ran.code in (1, 2), ran.err
    assert "renamed, dropped or made anew" in ran.err
    assert "hint: " in ran.err


def test_two_columns_that_swap_names_keep_their_values(bench: Workbench) -> None:
    """A new column takes the encrypted one's name; a rename touches no row, so xmin tells nothing."""
    rows: list[tuple[object, ...]] = [(i, box(f"old {i}"), box(f"new {i}")) for i in range(ROWS)]
    load_at_once(
        bench, {"notes": rows}, "CREATE TABLE notes (id bigint PRIMARY KEY, body text, body_new text)"
    )
    refused(
        during(bench, "ALTER TABLE notes RENAME body TO body_old; ALTER TABLE notes RENAME body_new TO body")
    )
    after = bench.sql("SELECT id, body, body_old FROM notes")
    assert {row["id"]: row["body"] for row in after} == {i: new for i, _, new in rows}
    assert all(unbox(row["body_old"]) == f"old {row['id']}".encode() for row in after)


def test_a_column_that_was_made_anew_does_not_get_the_old_values(bench: Workbench) -> None:
    """What the application dropped does not come back."""
    bench.notes([box(f"old {i}") for i in range(ROWS)])
    refused(during(bench, "ALTER TABLE notes DROP COLUMN body; ALTER TABLE notes ADD COLUMN body text"))
    assert bench.value("SELECT count(*) FROM notes WHERE body IS NOT NULL") == 0


def test_key_columns_that_swap_names_do_not_mix_up_rows(bench: Workbench) -> None:
    """The same numbers in two unique columns, in opposite order: no row gets another's value."""
    rows: list[tuple[object, ...]] = [(i, ROWS - 1 - i, box(f"old {i}"), i) for i in range(ROWS)]
    load_at_once(
        bench,
        {"notes": rows},
        "CREATE TABLE notes (id bigint PRIMARY KEY, other bigint NOT NULL UNIQUE, body text, owner bigint)",
    )
    refused(during(bench, "ALTER TABLE notes RENAME id TO old_id; ALTER TABLE notes RENAME other TO id"))
    after = bench.sql("SELECT owner, body FROM notes")
    assert all(unbox(row["body"]) == f"old {row['owner']}".encode() for row in after)


@pytest.mark.parametrize("takes", ["other", "made"])
def test_a_table_that_takes_the_name_is_not_written(bench: Workbench, takes: str) -> None:
    """Two tables swap names, or one is made anew under the name: its rows stay as they are."""
    first: list[tuple[object, ...]] = [(i, box(f"first {i}")) for i in range(ROWS)]
    second: list[tuple[object, ...]] = [(i, box(f"second {i}")) for i in range(ROWS)]
    load_at_once(
        bench,
        {"notes": first, "others": second},
        "CREATE TABLE notes (id bigint PRIMARY KEY, body text); "
        "CREATE TABLE others (LIKE notes INCLUDING ALL)",
    )
    swap = "ALTER TABLE notes RENAME TO notes_old; ALTER TABLE others RENAME TO notes"
    made = (
        "ALTER TABLE notes RENAME TO notes_old; CREATE TABLE notes (LIKE notes_old INCLUDING ALL); "
        "INSERT INTO notes TABLE others"
    )
    refused(during(bench, swap if takes == "other" else made))
    assert bench.bodies() == dict(second)
    kept = {row["id"]: row["body"] for row in bench.sql("SELECT id, body FROM notes_old")}
    assert {i: unbox(body) for i, body in kept.items()} == {i: f"first {i}".encode() for i in range(ROWS)}


def test_a_column_made_anew_while_the_run_is_paused_is_told(bench: Workbench) -> None:
    """No page is in hand, and what is read then under the name is another column: empty, and not done."""
    bench.job(more="[pace]\nmax_rate = 50\n")
    bench.notes([box(f"old {i}") for i in range(ROWS)])
    with bench.started("run", "--from", "v1", "--to", "v2", "--allow-unseen-target") as running:
        wait_for(lambda: bench.value("SELECT count(*) FROM notes WHERE body LIKE 'v2:%'") > 0, 60)
        assert bench.rewrap("pause").code == 0
        bench.sql("ALTER TABLE notes DROP COLUMN body; ALTER TABLE notes ADD COLUMN body text")
        assert bench.rewrap("resume", "--max-rate", "1000000").code == 0
        out, err = running.communicate(timeout=120)
    assert running.returncode in (1, 2, 3), out + err
    assert "made anew" in out + err
    assert bench.value("SELECT count(*) FROM notes WHERE body IS NOT NULL") == 0
