"""Partitioned tables: each partition is rotated and counted, whatever comes and goes meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from rewrap.stores.postgres.store import PostgresStore
from tests.integration.test_safety import disturb
from tests.support.inprocess import run_here
from tests.support.values import KEY_V2, box, unbox
from tests.support.workbench import NOTES, Workbench

SMALL = "[pace]\nbatch_size = 5\nshards = 2\n"

SCHEMA = """
CREATE TABLE notes (day int, id int, region text, body text, PRIMARY KEY (day, id, region))
  PARTITION BY RANGE (day);
CREATE TABLE early PARTITION OF notes FOR VALUES FROM (0) TO (10);
CREATE TABLE late PARTITION OF notes FOR VALUES FROM (10) TO (20) PARTITION BY LIST (region);
CREATE TABLE late_eu (body text, region text NOT NULL, id int NOT NULL, junk int, day int NOT NULL);
ALTER TABLE late_eu DROP COLUMN junk;
ALTER TABLE late ATTACH PARTITION late_eu FOR VALUES IN ('eu');
CREATE SCHEMA cold;
CREATE TABLE cold.others PARTITION OF late DEFAULT;
CREATE TABLE rest PARTITION OF notes DEFAULT;
"""

LEAVES = ("early", "late_eu", "cold.others", "rest")


def partitioned(bench: Workbench, rows: int = 60) -> dict[tuple[int, int, str], str]:
    """Table notes in four leaves at two depths, with rows in each; their plaintexts by key."""
    bench.job(NOTES, SMALL)
    bench.sql(SCHEMA)
    plains = {(n % 30, n, ("eu", "us", "asia")[n % 3]): f"note {n}" for n in range(rows)}
    bench.insert("notes", ["day", "id", "region", "body"], [(*key, box(v)) for key, v in plains.items()])
    return plains


def opened(bench: Workbench, table: str = "notes") -> dict[tuple[int, int, str], str]:
    rows = bench.sql(f"SELECT day, id, region, body FROM {table}")
    return {(r["day"], r["id"], r["region"]): unbox(r["body"], {"v2": KEY_V2}).decode() for r in rows}


def test_every_leaf_of_a_partitioned_table_is_rotated(bench: Workbench) -> None:
    """At any depth, in another schema, with its columns in another order: each by its own name, and whole."""
    plains = partitioned(bench)
    dry = bench.run("--dry-run")
    assert dry.code == 0, dry.err
    ran = bench.run()
    assert ran.code == 0, ran.err
    assert opened(bench) == plains
    outcomes = ran.event("run_ended")["outcomes"]
    assert set(outcomes) == set(LEAVES)
    assert sum(fields["body"]["resealed"] for fields in outcomes.values()) == 60
    assert ran.event("run_started")["targets"] == sorted(LEAVES)
    assert {e["target"] for e in ran.events if e["type"] == "field_verdict"} == set(LEAVES)
    assert bench.rewrap("verify", "--deep").code == 0
    printed = bench.rewrap("verify", "--print-queries").out
    assert [f"-- {leaf}.body" in printed for leaf in LEAVES] == [True] * 4
    assert bench.rewrap("plan", "--from", "v1", "--to", "v2").code == 0
    assert len(bench.sql("SELECT DISTINCT relation FROM rewrap.shard")) == 4


def test_one_partition_may_be_named_alone(bench: Workbench) -> None:
    """Then it is a table like any other, and the rest is left; with the whole it would be there twice."""
    partitioned(bench)
    bench.job(NOTES.replace('"notes"', '"early"'), SMALL)
    ran = bench.run()
    assert ran.code == 0, ran.err
    versions = {
        r["v"]: r["n"] for r in bench.sql("SELECT left(body, 2) AS v, count(*) AS n FROM notes GROUP BY 1")
    }
    assert versions == {"v2": 20, "v1": 40}
    bench.job(NOTES + NOTES.replace('"notes"', '"early"'))
    refused = bench.run()
    assert refused.code == 2
    assert "the same table" in refused.err


def test_a_partitioned_table_without_partitions_holds_nothing(bench: Workbench) -> None:
    """There is no row, so there is nothing to do and nothing left."""
    bench.job(NOTES)
    bench.sql("CREATE TABLE notes (id int PRIMARY KEY, body text) PARTITION BY RANGE (id)")
    ran = bench.run()
    assert ran.code == 0, ran.err
    assert ran.event("verdict")["values"] == 0


def test_a_killed_run_over_partitions_is_resumed(bench: Workbench) -> None:
    """Each leaf has its own cursor; what one process left is taken up by the next."""
    plains = partitioned(bench, 300)
    assert bench.run("--sample", "20").code == 4
    ran = bench.rewrap("resume", "--json")
    assert ran.code == 0, ran.err
    assert opened(bench) == plains
    outcomes = ran.event("run_ended")["outcomes"]
    assert sum(fields["body"]["resealed"] for fields in outcomes.values()) == 300


def once(monkeypatch: pytest.MonkeyPatch, bench: Workbench, *statements: str) -> list[int]:
    """Runs statements when the first sweep is over and writers are waited for; once."""
    done: list[int] = []

    async def act(*_args: Any, **_kwargs: Any) -> None:
        if not done:
            done.append(1)
            connection = await asyncpg.connect(bench.dsn)
            for statement in statements:
                await connection.execute(statement)
            await connection.close()

    disturb(monkeypatch, PostgresStore, "drain", before=act)
    return done


def test_a_partition_that_comes_during_a_run_is_seen_by_verify(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attached with old values after the sweep: not complete, and the next run rotates it."""
    partitioned(bench)
    bench.sql("CREATE TABLE newer (LIKE notes INCLUDING ALL)")
    bench.insert("newer", ["day", "id", "region", "body"], [(40, n, "eu", box("late")) for n in range(3)])
    done = once(monkeypatch, bench, "ALTER TABLE notes ATTACH PARTITION newer FOR VALUES FROM (40) TO (50)")
    ended = run_here(bench)
    assert done
    assert ended.exit_code == 3
    assert any("newer.body: 3 still under an old version" in reason for reason in ended.reasons)
    assert bench.run().code == 0
    assert len(opened(bench)) == 63


def test_a_partition_attached_while_verify_waits_is_counted(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verify lists the partitions in its snapshot: one that came after it first looked is no blind spot."""
    from rewrap import verify
    from rewrap.stores.postgres.census import PostgresCensus
    from tests.support.inprocess import load

    partitioned(bench)
    assert bench.run().code == 0
    bench.sql("CREATE TABLE newer (LIKE notes INCLUDING ALL)")
    bench.insert("newer", ["day", "id", "region", "body"], [(40, 1, "eu", box("late"))])

    async def attach(*_args: Any, **_kwargs: Any) -> None:
        await asyncio.to_thread(
            bench.sql, "ALTER TABLE notes ATTACH PARTITION newer FOR VALUES FROM (40) TO (50)"
        )

    disturb(monkeypatch, PostgresCensus, "drain", before=attach)
    found = asyncio.run(verify(load(bench), environ=bench.environ))
    assert (found.exit_code, found.verdict.stale) == (3, 1)


@pytest.mark.parametrize(
    "moved", ["", "; ALTER TABLE early RENAME TO archive; ALTER TABLE archive SET SCHEMA cold"]
)
def test_a_detached_partition_does_not_vanish(bench: Workbench, moved: str) -> None:
    """Detached half rotated, renamed or not: verify says what it holds, until it is gone or back."""
    partitioned(bench)
    assert bench.run("--sample", "5").code == 4
    stale = bench.value("SELECT count(*) FROM early WHERE body LIKE 'v1:%'")
    assert stale > 0
    bench.sql(f"ALTER TABLE notes DETACH PARTITION early{moved}")
    ran = bench.rewrap("resume", "--json")
    assert ran.code == 3, ran.err
    name = '"cold"."archive"' if moved else '"public"."early"'
    (reason,) = ran.event("run_ended")["reasons"]
    assert reason.startswith(f'{name}.body: {stale} not at v2; the table was part of "notes"')
    assert bench.rewrap("verify").code == 3
    assert bench.run().code == 3, "a new run does not forget it"
    table = "cold.archive" if moved else "early"
    bench.job(NOTES + NOTES.replace('"notes"', f'"{table}"'), SMALL)
    assert bench.run().code == 0
    bench.job(NOTES, SMALL)
    assert bench.rewrap("verify").code == 0
    bench.sql(f"INSERT INTO {table} (day, id, region, body) VALUES (1, 999, 'x', '{box('y')}')")
    assert bench.rewrap("verify").code == 3
    bench.sql(f"DROP TABLE {table}")
    assert bench.rewrap("verify").code == 0


def test_a_partition_detached_in_mid_run_is_finished_and_told(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that holds its lease has rotated it: nothing is left in it, and its account stays open."""
    partitioned(bench)
    once(monkeypatch, bench, "ALTER TABLE notes DETACH PARTITION rest")
    events: list[Any] = []
    ended = run_here(bench, events=events)
    assert ended.exit_code == 0
    assert any("partition rest is not part of notes any more" in getattr(e, "message", "") for e in events)


def test_a_partition_dropped_between_two_processes_is_no_matter(bench: Workbench) -> None:
    """What it held is gone with it; the rest is finished."""
    plains = partitioned(bench)
    assert bench.run("--sample", "5").code == 4
    bench.sql("DROP TABLE early")
    ran = bench.rewrap("resume", "--json")
    assert ran.code == 0, ran.err
    assert opened(bench) == {key: value for key, value in plains.items() if not 0 <= key[0] < 10}


def test_a_row_that_moves_to_another_partition_is_not_lost(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a leaf not yet read to one already done: the sweep after it finds the old value there."""
    plains = partitioned(bench)
    from rewrap.stores.postgres.reader import PostgresReader

    moved: list[int] = []

    async def move(reader: Any, result: Any, *_args: Any, **_kwargs: Any) -> None:
        # the leaf was just read to its end, and a row of another leaf comes into it
        if reader._table.name == "early" and result.last is None and not moved:
            moved.append(1)
            await asyncio.to_thread(
                bench.sql,
                "UPDATE notes SET day = 0, id = -1 WHERE id = (SELECT min(id) FROM notes "
                "WHERE day >= 10 AND body LIKE 'v1:%')",
            )

    disturb(monkeypatch, PostgresReader, "fetch", after=move)
    bench.job(NOTES, "[pace]\nbatch_size = 5\nshards = 1\n")
    ended = run_here(bench)
    assert moved
    assert ended.exit_code == 0
    assert ended.sweeps == 2
    assert sorted(opened(bench).values()) == sorted(plains.values())


def test_the_fence_of_a_partitioned_table_is_of_every_partition_to_come(bench: Workbench) -> None:
    """On the whole and each leaf, validated; a new partition has it, and one with old values cannot come."""
    partitioned(bench)
    assert bench.run().code == 0
    for word in ("added and validated", "was there already"):
        fenced = bench.rewrap("verify", "--fence", "--json")
        assert fenced.code == 0, fenced.err
        notices = [e["message"] for e in fenced.events if "fence on" in e.get("message", "")]
        assert [word in notice for notice in notices] == [True] * 4
    states = bench.sql(
        "SELECT conrelid::regclass::text AS t, convalidated FROM pg_constraint "
        "WHERE conname = 'rewrap_fence_body'"
    )
    assert {row["t"] for row in states} == {"notes", "late", *LEAVES}
    assert all(row["convalidated"] for row in states)
    bench.sql("CREATE TABLE newer PARTITION OF notes FOR VALUES FROM (40) TO (50)")
    with pytest.raises(asyncpg.CheckViolationError):
        bench.sql("INSERT INTO notes VALUES (41, 1, 'eu', $1) RETURNING 1", box("old"))
    bench.sql("CREATE TABLE older (LIKE notes INCLUDING INDEXES)")
    bench.insert("older", ["day", "id", "region", "body"], [(51, 1, "eu", box("old"))])
    with pytest.raises(asyncpg.PostgresError, match="rewrap_fence_body"):
        bench.sql("ALTER TABLE notes ATTACH PARTITION older FOR VALUES FROM (50) TO (60)")
    back = bench.rewrap("run", "--from", "v2", "--to", "v1", "--allow-unseen-target")
    assert back.code == 2
    statement = 'ALTER TABLE "public"."notes" DROP CONSTRAINT "rewrap_fence_body"'
    assert statement in back.err
    bench.sql(statement)
    assert bench.rewrap("run", "--from", "v2", "--to", "v1").code == 0


def test_a_fence_that_one_partition_does_not_bear_is_taken_away(bench: Workbench) -> None:
    """A row without the marker in one leaf: no leaf keeps the fence."""
    partitioned(bench)
    assert bench.run().code == 0
    from rewrap.errors import FenceError
    from rewrap.stores.postgres.census import PostgresCensus
    from tests.support.inprocess import load

    async def work() -> None:
        store = PostgresStore(load(bench))
        census = PostgresCensus(load(bench), store.address)
        tables = await census.tables()
        await asyncio.to_thread(bench.sql, f"UPDATE notes SET body = '{box('old')}' WHERE id = 3")
        try:
            for table in tables:
                await census.add_fence(table, "body", "v2:")
        finally:
            await census.close()
            await store.close()

    with pytest.raises(FenceError, match="does not have the new marker"):
        asyncio.run(work())
    assert bench.value("SELECT count(*) FROM pg_constraint WHERE conname = 'rewrap_fence_body'") == 0
