"""Hands on a run from another terminal: paused, let go, tuned and cancelled, each by a process of its own."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_vault import Deks, deks
from tests.support.cosmos import CosmosDatabase
from tests.support.cosmosbench import CosmosBench
from tests.support.proxy import FaultProxy, slowed_down
from tests.support.values import box, unbox
from tests.support.vault import VaultEmulator
from tests.support.workbench import Workbench, wait_for

RUN = ("run", "--from", "v1", "--to", "v2", "--allow-unseen-target")

__all__ = ["deks"]

ROWS = 3_000

PACE = "[pace]\nmax_rate = 20\nshards = 2\n{more}"
"""Minutes of work, so that it is met at work on any machine; who wants its end lifts the rate."""

FAST = ("--max-rate", "1000000")

"""Seconds in which a process is given the chance to do what it must not: nothing is waited for longer."""


@pytest.fixture
def notes(bench: Workbench) -> Workbench:
    """A slow job over notes; every statement that writes them leaves its time."""
    prepare(bench)
    return bench


def prepare(bench: Workbench, more: str = "", rows: int = ROWS) -> None:
    bench.job(more=PACE.format(more=more))
    bench.notes([box(f"note {i}") for i in range(rows)])
    bench.sql(
        """CREATE TABLE written (at timestamptz DEFAULT clock_timestamp());
           CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN INSERT INTO written DEFAULT VALUES; RETURN NULL; END';
           CREATE TRIGGER logging AFTER UPDATE ON notes FOR EACH STATEMENT EXECUTE FUNCTION log();"""
    )


def status(bench: Workbench) -> dict[str, Any]:
    found: dict[str, Any] = bench.rewrap("status", "--json").event("status")
    return found


def read(bench: Workbench, table: str) -> dict[str, Any]:
    """The newest row of one of the ledger's tables, read as another program would."""
    if not bench.ledger.exists():
        return {}
    with closing(sqlite3.connect(bench.ledger, timeout=30)) as ledger:
        ledger.row_factory = sqlite3.Row
        try:
            found = ledger.execute(f"SELECT * FROM {table} ORDER BY number DESC LIMIT 1").fetchone()
        except sqlite3.OperationalError:
            # it is being made
            return {}
    return dict(found) if found else {}


def is_now(bench: Workbench, state: str) -> None:
    """Waits until the run is in a state, by its own account."""
    wait_for(lambda: read(bench, "rewrap_run").get("state") == state, 60)


def budget(bench: Workbench) -> dict[str, Any]:
    """What the process says that it keeps to; nothing before it has said anything."""
    found: list[dict[str, Any]] = json.loads(read(bench, "rewrap_control").get("budgets") or "[]")
    return found[0] if found else {}


def resealed(bench: Workbench) -> int:
    return int(bench.value("SELECT count(*) FROM notes WHERE body LIKE 'v2:%'"))


def at_work(bench: Workbench, rows: int = 20) -> None:
    wait_for(lambda: resealed(bench) >= rows, 60)


def stands_still(bench: Workbench) -> int:
    """How many rows are resealed, once it is seen that no more are."""
    before = resealed(bench)
    time.sleep(1.2)
    assert resealed(bench) == before
    assert bench.value(BUSY) == 0
    return before


BUSY = """
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state <> 'idle'
   AND application_name IN ('rewrap reader', 'rewrap writer', 'rewrap verify')
"""


def whole(bench: Workbench, rows: int = ROWS) -> None:
    bodies = bench.bodies()
    assert {unbox(body or "").decode() for body in bodies.values()} == {f"note {i}" for i in range(rows)}
    assert all(body and body.startswith("v2:") for body in bodies.values())


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def events(out: str, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return [one for one in found if one["type"] == kind]


@contextmanager
def holding(bench: Workbench, statement: str) -> Iterator[None]:
    """A transaction of somebody else's, open with this statement done in it."""
    code = (
        "import asyncio, asyncpg, sys\n"
        "async def main():\n"
        "    c = await asyncpg.connect(sys.argv[1])\n"
        "    async with c.transaction():\n"
        "        await c.execute(sys.argv[2])\n"
        "        print('held', flush=True)\n"
        "        await asyncio.to_thread(sys.stdin.readline)\n"
        "asyncio.run(main())\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, bench.dsn, statement], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield
    finally:
        process.communicate("\n", timeout=30)


def test_a_pause_ends_all_work_within_a_batch_and_resume_goes_on(notes: Workbench) -> None:
    """After the run says that it is pausing, no more than the statements under way reach the database."""
    with notes.started(*RUN, "--json") as running:
        at_work(notes)
        paused = notes.rewrap("pause")
        assert (paused.code, paused.err) == (0, "")
        assert ": paused — it goes on with rewrap resume" in paused.out
        done = stands_still(notes)
        assert done < ROWS
        shown = status(notes)
        assert (shown["run"]["state"], shown["control"]["state"]) == ("paused", "pause")
        assert shown["run"]["state_by"] == shown["control"]["state_by"] != ""
        assert notes.value("SELECT bool_and(lease_until > now()) FROM rewrap.shard")
        assert running.poll() is None
        let_go = notes.rewrap("resume")
        assert (let_go.code, let_go.err) == (0, "")
        assert "running — it goes on in its process" in let_go.out
        notes.rewrap("tune", "--max-rate", "none")
        code, out, _ = ended(running)
    assert code == 0
    whole(notes)
    said = [(one["asked"], one["state"]) for one in events(out, "steered")]
    assert said == [("pause", "pausing"), ("pause", "paused"), ("resume", "running"), ("tune", "running")]


def test_what_is_under_way_is_all_that_follows_a_pause(notes: Workbench) -> None:
    """Counted by the database: each shard has a statement held up there, and no other one comes after."""
    notes.sql("CREATE TABLE shut (at int)")
    slow = "BEGIN WHILE EXISTS (SELECT FROM shut) LOOP PERFORM pg_sleep(0.05); END LOOP; RETURN NULL; END"
    notes.sql(f"CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS '{slow}'")
    notes.sql("CREATE TRIGGER waiting AFTER UPDATE ON notes FOR EACH STATEMENT EXECUTE FUNCTION wait()")
    with notes.started(*RUN) as running:
        at_work(notes)
        notes.sql("INSERT INTO shut VALUES (1)")
        shards = notes.value("SELECT count(*) FROM rewrap.shard")
        wait_for(lambda: notes.value(UNDER_WAY) == shards, 60)
        before = notes.value("SELECT count(*) FROM written")
        with notes.started("pause") as pausing:
            is_now(notes, "pausing")
            assert "the batch in hand is being finished" in next(iter(pausing.stderr or ()))
            assert read(notes, "rewrap_run")["state"] == "pausing"
            notes.sql("DELETE FROM shut")
            assert ended(pausing)[0] == 0
        stands_still(notes)
        assert notes.value("SELECT count(*) FROM written") - before == shards
        running.kill()


UNDER_WAY = """
SELECT count(*) FROM pg_stat_activity WHERE application_name = 'rewrap writer'
   AND datname = current_database() AND wait_event = 'PgSleep'
"""


def test_a_paused_process_that_was_killed_is_gone_on_with(notes: Workbench) -> None:
    """Its pause stands for `run`, which waits; `resume` lifts it, and goes on itself where nobody answers."""
    with notes.started(*RUN) as running:
        at_work(notes)
        assert notes.rewrap("pause").code == 0
        running.kill()
        running.wait()
    done, beat = stands_still(notes), read(notes, "rewrap_control")["beat"]
    with notes.started(*RUN, "--json") as again:
        wait_for(lambda: read(notes, "rewrap_control")["beat"] > beat, 60)
        is_now(notes, "paused")
        assert stands_still(notes) == done
        again.kill()
        again.wait()
    resumed = notes.rewrap("resume", *FAST)
    assert resumed.code == 0, resumed.err
    assert "any more: going on here" in resumed.err
    whole(notes)


def test_a_cancelled_run_is_finished(notes: Workbench) -> None:
    """Its own state and exit code, both keys still needed, and nothing in the way of another run."""
    with notes.started(*RUN, "--json") as running:
        at_work(notes)
        cancelled = notes.rewrap("cancel")
        assert cancelled.code == 0, cancelled.err
        assert ": cancelled — values are under v1 and v2: keep both keys" in cancelled.out
        code, out, _ = ended(running)
    assert code == 5
    (end,) = events(out, "run_ended")
    assert (end["state"], end["exit_code"]) == ("cancelled", 5)
    run = status(notes)["run"]
    assert end["reasons"] == [
        f"cancelled by {run['state_by']}: values are under old versions and the new one"
    ]
    assert run["state"] == "cancelled"
    assert 0 < resealed(notes) < ROWS
    assert notes.value("SELECT bool_and(finished AND lease_until <= now()) FROM rewrap.shard")
    assert notes.rewrap("resume").code == 2
    assert notes.rewrap("cancel").code == 2
    assert notes.rewrap("tune", "--in-flight", "1").code == 2
    back = notes.rewrap("run", "--from", "v2", "--to", "v1", *FAST)
    assert back.code == 0, back.err
    assert resealed(notes) == 0


def test_a_dead_run_is_cancelled_without_its_process(notes: Workbench) -> None:
    """Its leases are taken and given back, and the record that it could not write is written."""
    notes.job(more=PACE.format(more='[audit]\nfile = "audit.jsonl"'))
    with notes.started(*RUN) as running:
        at_work(notes)
        running.kill()
        running.wait()
    cancelled = notes.rewrap("cancel", "--json")
    assert cancelled.code == 0, cancelled.err
    answer = cancelled.event("control")
    assert (answer["answered"], answer["run"]["state"]) == (False, "cancelled")
    assert notes.value("SELECT bool_and(finished) FROM rewrap.shard")
    (line,) = (notes.folder / "audit.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert (record["outcome"], record["exit_code"]) == ("cancelled", 5)
    assert record["run_id"] == answer["run"]["run_id"]


def test_pause_before_the_tables_are_claimed(notes: Workbench) -> None:
    """The run takes its tables and waits: nothing is written, and status knows who wants it so."""
    first = notes.rewrap("pause")
    assert first.code == 0
    assert "is at work, says" in first.out
    with notes.started(*RUN, "--json") as running:
        is_now(notes, "paused")
        assert stands_still(notes) == 0
        assert notes.rewrap("pause").code == 0
        assert notes.rewrap("resume", *FAST).code == 0
        assert ended(running)[0] == 0
    whole(notes)


def test_pause_while_the_tables_are_being_claimed(notes: Workbench) -> None:
    """A run that waits for the guard has no record yet: the pause is there when it has."""
    assert notes.rewrap(*RUN, "--sample", "1").code == 4
    assert notes.rewrap("cancel").code == 0
    done = resealed(notes)
    with holding(notes, "LOCK TABLE rewrap.shard IN ACCESS EXCLUSIVE MODE"):
        running = notes.started(*RUN)
        process = running.__enter__()
        wait_for(lambda: notes.value(WAITS_FOR_LOCK), 60)
        asked = notes.rewrap("pause")
        assert asked.code == 0
        assert "the next one waits until rewrap resume" in asked.out
    try:
        is_now(notes, "paused")
        assert stands_still(notes) == done
        process.kill()
    finally:
        running.__exit__(None, None, None)


def test_a_process_on_its_way_does_not_undo_a_cancel(notes: Workbench) -> None:
    """Cancelled between the look at the ledger and the claim: nothing is written, and nothing is held."""
    assert notes.rewrap(*RUN, "--sample", "1").code == 4
    done = resealed(notes)
    with notes.started("resume") as late:
        with holding(notes, "LOCK TABLE rewrap.shard IN ACCESS EXCLUSIVE MODE"):
            wait_for(lambda: notes.value(WAITS_FOR_LOCK), 60)
            with closing(sqlite3.connect(notes.ledger, timeout=30)) as ledger:
                ledger.execute("UPDATE rewrap_run SET state = 'cancelled', state_by = 'ann@there'")
                ledger.commit()
        code, _, err = ended(late)
    assert (code, "was cancelled by ann@there before it went on" in err) == (2, True)
    assert resealed(notes) == done
    assert notes.value("SELECT bool_and(finished AND lease_until <= now()) FROM rewrap.shard")
    assert read(notes, "rewrap_run")["state"] == "cancelled"


WAITS_FOR_LOCK = """
SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'
                  AND datname = current_database() AND application_name LIKE 'rewrap%')
"""


def test_pause_during_the_final_verification(bench: Workbench) -> None:
    """Both while open writers are waited for and in the count itself: neither holds a snapshot meanwhile."""
    prepare(bench, "batch_size = 10", rows=30)
    bench.sql("CREATE TABLE other (id int)")
    with bench.started(*RUN, "--json") as running:
        with holding(bench, "INSERT INTO other VALUES (1)"):
            wait_for(lambda: resealed(bench) == 30, 60)
            wait_for(lambda: bench.value("SELECT bool_and(done) FROM rewrap.shard"), 60)
            assert bench.rewrap("pause").code == 0
            assert read(bench, "rewrap_run")["state"] == "paused"
            with holding(bench, "LOCK TABLE notes IN ACCESS EXCLUSIVE MODE"):
                assert bench.rewrap("resume").code == 0
                is_now(bench, "running")
                # nobody knows how far the count gets; that it stands still is all that is asked
                assert bench.rewrap("pause").code == 0
                assert running.poll() is None
        stands_still(bench)
        assert bench.rewrap("resume").code == 0
        code, out, err = ended(running)
    assert code == 0, err
    assert len(events(out, "verdict")) == 1
    whole(bench, 30)


def test_two_operators_at_once(notes: Workbench) -> None:
    """Each wish is taken up; of two that contradict, the later one is heeded, by everybody's account."""
    with notes.started(*RUN) as running:
        at_work(notes)
        tuning = ("tune", "--in-flight", "1")
        with notes.started("pause") as one, notes.started("pause") as two, notes.started(*tuning) as three:
            assert [ended(each)[0] for each in (one, two, three)] == [0, 0, 0]
        shown = status(notes)
        assert shown["run"]["state"] == "paused"
        assert shown["control"]["in_flight"] == 1
        assert shown["control"]["number"] == shown["control"]["seen"] == 3
        with notes.started("resume") as one, notes.started("cancel") as two:
            ended(one)
            code, _, err = ended(two)
            if code == 0:
                assert ended(running)[0] == 5
                return
        # resume was the later one
        assert "goes on" in err
        assert status(notes)["run"]["state"] == "running"


def test_a_cancel_that_was_overruled_says_so(notes: Workbench) -> None:
    """Resumed before the process had read of it: the run goes on, and whoever cancelled it is told."""
    with notes.started(*RUN) as running:
        at_work(notes)
        running.send_signal(signal.SIGSTOP)
        try:
            with notes.started("cancel") as cancelling:
                wait_for(lambda: read(notes, "rewrap_control")["state"] == "cancel", 60)
                with closing(sqlite3.connect(notes.ledger, timeout=30)) as ledger, ledger:
                    ledger.execute("UPDATE rewrap_control SET state = 'run', number = number + 1")
                running.send_signal(signal.SIGCONT)
                code, _, err = ended(cancelling)
        finally:
            running.send_signal(signal.SIGCONT)
        assert (code, "goes on" in err) == (1, True)
        assert status(notes)["run"]["state"] == "running"


def test_what_was_cancelled_ends_whatever_is_asked_later(notes: Workbench) -> None:
    """A process that has read of it takes nothing else up: nobody is told that the run goes on."""
    with notes.started(*RUN) as running:
        at_work(notes)
        with notes.started("cancel") as cancelling:
            with closing(sqlite3.connect(notes.ledger, timeout=30)) as ledger:
                while running.poll() is None:
                    with ledger:
                        ledger.execute(
                            "UPDATE rewrap_control SET state = 'run', number = number + 1"
                            " WHERE state = 'cancel' AND seen = number"
                        )
            assert ended(cancelling)[0] == 0
        assert ended(running)[0] == 5


def test_a_pause_file_holds_the_run_while_it_is_there(bench: Workbench) -> None:
    """Whoever may make a file may pause; resume cannot let go what the file holds, and says so."""
    prepare(bench, 'pause_file = "hold"')
    (bench.folder / "hold").touch()
    with bench.started(*RUN) as running:
        is_now(bench, "paused")
        assert stands_still(bench) == 0
        assert read(bench, "rewrap_run")["state_by"] == "pause file hold"
        refused = bench.rewrap("resume")
        assert (refused.code, "still paused, by pause file hold" in refused.err) == (1, True)
        (bench.folder / "hold").unlink()
        at_work(bench)
        assert read(bench, "rewrap_run")["state_by"] == "pause file hold, taken away"
        (bench.folder / "hold").touch()
        is_now(bench, "paused")
        (bench.folder / "hold").unlink()
        bench.rewrap("tune", "--max-rate", "none")
        assert ended(running)[0] == 0
    whole(bench)


def test_a_tuned_pace_is_kept_by_whoever_goes_on(notes: Workbench) -> None:
    """Rate, batch and places, by the process at once and by its successor; a command line says otherwise."""
    with notes.started(*RUN) as running:
        at_work(notes)
        tuned = notes.rewrap("tune", "--max-rate", "40", "--batch-size", "7", "--in-flight", "1")
        assert (tuned.code, tuned.err) == (0, "")
        assert "max_rate 40, batch_size 7, in_flight 1" in tuned.out
        kept = budget(notes)
        assert (kept["rate"], kept["in_flight"], kept["batch_size"]) == (40, 1, 7)
        assert kept["why"].startswith("max_rate of 40 rows/s, set by ")
        wait_for(lambda: "max_rate of 40 rows/s" in json.dumps(status(notes)["left"]), 60)
        running.kill()
        running.wait()
    with notes.started("resume", "--batch-size", "3") as again:
        wait_for(lambda: budget(notes).get("batch_size") == 3, 60)
        assert (budget(notes)["rate"], budget(notes)["in_flight"]) == (40, 1)
        assert notes.rewrap("tune", "--max-rate", "none").code == 0
        assert ended(again)[0] == 0
    whole(notes)


def test_a_pause_over_containers_keeps_the_lease(
    cosmos: CosmosDatabase, cosmos_proxy: FaultProxy, tmp_path: Path
) -> None:
    """No document is read or written any more, and beats keep the lease, for longer than one lasts."""
    bench = CosmosBench(tmp_path, cosmos, cosmos_proxy)
    limits = "\n[limits]\ndrain_s = 0.3\nlease_s = 2\n"
    bench.job(more=PACE.format(more="batch_size = 10") + limits)
    bench.fill(500)

    def notes_asked() -> int:
        return sum("/colls/notes/docs" in one.path for one in cosmos_proxy.seen)

    def patched() -> int:
        return sum(one.kind == "patch" and "/colls/notes/" in one.path for one in cosmos_proxy.seen)

    with bench.started(*RUN) as running:
        wait_for(lambda: patched() >= 10, 60)
        assert bench.rewrap("pause").code == 0
        asked, beats = notes_asked(), len(cosmos_proxy.seen)
        # a beat comes each two thirds of a second, and a lease without one would have run out
        wait_for(lambda: len(cosmos_proxy.seen) >= beats + 5, 60)
        assert notes_asked() == asked
        assert read(bench, "rewrap_run")["state"] == "paused"
        assert bench.rewrap("resume", *FAST).code == 0
        code, _, err = ended(running)
    assert code == 0, err
    assert patched() >= 500


def test_a_run_that_waits_for_its_vault_is_paused_and_cancelled(
    deks: Deks, vault_emulator: VaultEmulator
) -> None:
    """Throttled for most of a minute, it does not wait for that to end."""
    versions = ("--from", deks.old, "--to", deks.new, "--allow-unseen-target", "--max-rate", "0.5")
    with deks.bench.started("run", *versions, **deks.vault.environ) as running:
        is_now(deks.bench, "running")
        rule = vault_emulator.proxy.add(slowed_down(50), "unwrapkey")
        wait_for(lambda: rule.befallen > 0, 60)
        assert deks.rewrap("pause").code == 0
        assert read(deks.bench, "rewrap_run")["state"] == "paused"
        assert deks.rewrap("cancel").code == 0
        assert ended(running)[0] == 5
    vault_emulator.proxy.clear()
    assert deks.under[deks.old] > 0
    deks.opens()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("tune",), "error: nothing to change\nhint: name --max-rate, --batch-size or --in-flight"),
        (("tune", "--max-rate", "fast"), 'error: "fast" is no rate'),
        (("tune", "--max-rate", "0"), 'error: "0" is no rate'),
        (("tune", "--max-rate", "nan"), 'error: "nan" is no rate'),
        (("tune", "--in-flight", "0"), "error: invalid value for '--in-flight'"),
        (("tune", "--in-flight", "1"), 'error: job "test" has no unfinished run'),
        (("cancel",), 'error: job "test" has no unfinished run'),
        (("resume",), 'error: job "test" has no unfinished run'),
    ],
)
def test_what_cannot_be_asked(bench: Workbench, arguments: tuple[str, ...], said: str) -> None:
    """Exit code 2, and no ledger where there was none."""
    refused = bench.rewrap(*arguments)
    assert refused.code == 2
    assert said in refused.err
    assert not bench.ledger.exists()
