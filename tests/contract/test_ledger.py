"""One suite over both ledgers: the SQLite file and the Postgres database."""

from __future__ import annotations

import asyncio
import dataclasses
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from rewrap.errors import LedgerError
from rewrap.fingerprint import Fingerprint
from rewrap.learned import RUNS, Figure
from rewrap.ledgers.control import CANCEL, NOTHING_ASKED, PAUSE, RUN
from rewrap.ledgers.sql import Ledger, RunRecord, TableProgress, now
from rewrap.ledgers.tables import fingerprint_rows, fingerprints
from rewrap.model import Fault, Reason, RunState
from rewrap.untouched import Witnessed
from tests.support.values import box
from tests.support.workbench import Workbench

T = TypeVar("T")

TABLE = '"public"."notes"'


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, bench: Workbench) -> Workbench:
    """A workbench whose ledger is a file, or the database named by REWRAP_LEDGER_URL."""
    if request.param == "postgres":
        bench.environ["REWRAP_LEDGER_URL"] = bench.dsn
    return bench


def with_ledger(bench: Workbench, work: Callable[[Ledger], Awaitable[T]], job: str = "test") -> T:
    async def main() -> T:
        ledger = await Ledger.open(job, bench.folder / "rewrap.toml", bench.environ)
        assert ledger is not None
        try:
            return await work(ledger)
        finally:
            await ledger.close()

    return asyncio.run(main())


def record(run_id: str, job: str = "test") -> RunRecord:
    return RunRecord(
        run_id, job, "digest", ("v1", "v3"), "v2", RunState.RUNNING, "me@here", "sys/1/db",
        {"v1": "aa", "v2": "bb"}, now(), now(),
    )  # fmt: skip


def fault(row: str, digest: str = "d1", reason: Reason = Reason.UNOPENABLE) -> Fault:
    return Fault(row, "body", reason, digest, "v1")


def test_latest_run_is_the_last_one_begun(place: Workbench) -> None:
    """Runs come back as they were written, the newest first, with who changed their state."""

    async def work(ledger: Ledger) -> None:
        assert await ledger.latest() is None
        await ledger.begin(record("one"))
        await ledger.begin(record("two"))
        await ledger.set_state("two", RunState.INTERRUPTED, origin="sys/2/db")
        found = await ledger.latest()
        assert found is not None
        assert (found.run_id, found.state, found.origin) == ("two", RunState.INTERRUPTED, "sys/2/db")
        assert found.from_versions == ("v1", "v3")
        assert found.commitments == {"v1": "aa", "v2": "bb"}
        assert "@" in found.state_by

    with_ledger(place, work)


def test_what_was_written_is_there_after_closing(place: Workbench) -> None:
    """A ledger opened again has it all."""
    with_ledger(place, lambda ledger: ledger.begin(record("one")))
    found = with_ledger(place, lambda ledger: ledger.latest())
    assert found is not None
    assert found.run_id == "one"


def test_progress_is_kept_by_table_and_sweep(place: Workbench) -> None:
    """Saving again replaces; a forgotten run's progress is gone."""

    async def work(ledger: Ledger) -> None:
        first = TableProgress(TABLE, 1, 10, rows_done=5, tally={"body": {"resealed": 5}})
        await ledger.save_progress("one", [first, TableProgress(TABLE, 2, 10)])
        await ledger.save_progress("one", [dataclasses.replace(first, rows_done=10, done=True)])
        entries = await ledger.progress("one")
        assert [(e.sweep, e.rows_done, e.done) for e in entries] == [(1, 10, True), (2, 0, False)]
        assert entries[0].tally == {"body": {"resealed": 5}}
        await ledger.forget_progress("one")
        assert await ledger.progress("one") == []

    with_ledger(place, work)


def test_faults_are_counted_again_not_twice(place: Workbench) -> None:
    """The same value put aside again has one entry and one attempt more."""

    async def work(ledger: Ledger) -> None:
        await ledger.record("one", "v2", TABLE, [fault("1"), fault("2")])
        await ledger.record("one", "v2", TABLE, [fault("1")])
        entries = await ledger.exceptions("v2")
        assert [(e.row_id, e.attempts, e.state) for e in entries] == [("1", 2, "open"), ("2", 1, "open")]
        assert await ledger.exceptions("v3") == []

    with_ledger(place, work)


def test_a_waiver_survives_equal_bytes_only(place: Workbench) -> None:
    """Put aside again with another digest, a waived value is open again."""

    async def work(ledger: Ledger) -> None:
        await ledger.record("one", "v2", TABLE, [fault("1"), fault("2")])
        await ledger.mark("v2", await ledger.exceptions("v2"), "waived", "lost")
        await ledger.record("two", "v2", TABLE, [fault("1"), fault("2", "d2")])
        entries = await ledger.exceptions("v2")
        assert [(e.row_id, e.state, e.note) for e in entries] == [("1", "waived", "lost"), ("2", "open", "")]

    with_ledger(place, work)


def test_a_mark_misses_when_the_bytes_changed_meanwhile(place: Workbench) -> None:
    """Waiving what one saw does not waive what came after."""

    async def work(ledger: Ledger) -> None:
        await ledger.record("one", "v2", TABLE, [fault("1")])
        seen = await ledger.exceptions("v2")
        await ledger.record("one", "v2", TABLE, [fault("1", "d2")])
        await ledger.mark("v2", seen, "waived", "lost")
        assert [e.state for e in await ledger.exceptions("v2")] == ["open"]

    with_ledger(place, work)


def test_withdrawing_takes_back_what_one_run_put_aside(place: Workbench) -> None:
    """Only that run's open entries go."""

    async def work(ledger: Ledger) -> None:
        await ledger.record("one", "v2", TABLE, [fault("1")])
        await ledger.record("two", "v2", TABLE, [fault("2"), fault("3")])
        assert await ledger.withdraw("two") == 2
        assert [e.row_id for e in await ledger.exceptions("v2")] == ["1"]

    with_ledger(place, work)


def test_seals_and_proofs_are_remembered_by_key(place: Workbench) -> None:
    """Counts add up for a key, and a key that opened stored values is known again."""

    async def work(ledger: Ledger) -> None:
        assert await ledger.sealed("fp") == 0
        await ledger.add_sealed("fp", 2**31)
        await ledger.add_sealed("fp", 2**31)
        assert await ledger.sealed("fp") == 2**32
        assert await ledger.proof("c") == 0
        await ledger.add_proof({"c": 20})
        assert await ledger.proof("c") == 20

    with_ledger(place, work)


def test_a_run_uses_the_ledger_it_is_given(place: Workbench) -> None:
    """A whole run, a quarantined value and a verdict over either ledger."""
    place.notes([box(f"note {i}") for i in range(50)] + ["v1:AAAA"])
    assert place.run().code == 3
    assert place.ledger.exists() == ("REWRAP_LEDGER_URL" not in place.environ)
    assert [e["row_id"] for e in place.rewrap("quarantine", "list", "--json").events] == ["51"]
    assert place.rewrap("status", "--json").event("status")["run"]["state"] == "incomplete"
    place.sql("DELETE FROM notes WHERE id = 51")
    assert place.run().code == 0


def test_a_shared_ledger_keeps_jobs_apart(bench: Workbench) -> None:
    """Several jobs may share a Postgres ledger; each sees its own runs and entries."""
    bench.environ["REWRAP_LEDGER_URL"] = bench.dsn

    async def first(ledger: Ledger) -> None:
        await ledger.begin(record("one"))
        await ledger.record("one", "v2", TABLE, [fault("1")])

    async def second(ledger: Ledger) -> None:
        assert await ledger.latest() is None
        assert await ledger.exceptions("v2") == []

    with_ledger(bench, first)
    with_ledger(bench, second, job="other")


def test_jobs_that_share_a_ledger_and_a_key_count_together(bench: Workbench) -> None:
    """Two of them that seal and prove under one key at the same moment: neither is in the other's way."""
    bench.environ["REWRAP_LEDGER_URL"] = bench.dsn

    async def work(ledger: Ledger) -> None:
        await ledger.begin(record("one"))
        for key in range(20):
            await asyncio.gather(
                *(ledger.add_sealed(f"fp{key}", 1) for _ in range(4)),
                *(ledger.add_proof({f"c{key}": 20, f"d{key}": 20}) for _ in range(2)),
                *(ledger.add_proof({f"d{key}": 20, f"c{key}": 20}) for _ in range(2)),
            )
            assert await ledger.sealed(f"fp{key}") == 4
            assert await ledger.proof(f"c{key}") == 20

    with_ledger(bench, work)


def test_progress_may_be_saved_twice_at_once(bench: Workbench) -> None:
    """A sweep saves when it begins, and so does what watches it: in no order."""
    bench.environ["REWRAP_LEDGER_URL"] = bench.dsn

    async def work(ledger: Ledger) -> None:
        await ledger.begin(record("one"))
        for sweep in range(1, 20):
            tables = [TableProgress(name, sweep, 10) for name in (TABLE, '"public"."more"')]
            await asyncio.gather(
                *(ledger.save_progress("one", tables) for _ in range(2)),
                *(ledger.save_progress("one", tables[::-1]) for _ in range(2)),
            )
        assert len(await ledger.progress("one")) == 2 * 19

    with_ledger(bench, work)


def test_a_file_belongs_to_one_job_and_one_user(bench: Workbench) -> None:
    """A SQLite ledger renamed to another job's is refused; its mode is 0600."""
    with_ledger(bench, lambda ledger: ledger.begin(record("one")))
    assert stat.S_IMODE(bench.ledger.stat().st_mode) == 0o600
    bench.ledger.rename(bench.folder / "other.rewrap-ledger.sqlite")
    with pytest.raises(LedgerError, match='belongs to job "test"'):
        with_ledger(bench, lambda ledger: ledger.latest(), job="other")


def test_what_is_no_ledger_is_refused(bench: Workbench) -> None:
    """Another file in its place is a clear error, and stays as it is."""
    bench.ledger.write_text("not a database, and long enough to be taken for one" * 100)
    before = bench.ledger.read_bytes()
    with pytest.raises(LedgerError, match="cannot be used"):
        with_ledger(bench, lambda ledger: ledger.latest())
    assert bench.ledger.read_bytes() == before


def test_tables_of_a_run_are_remembered_by_their_oid(place: Workbench) -> None:
    """For every run to a version, with the database it was in; a resumed run's are not there twice."""

    async def work(ledger: Ledger) -> None:
        assert await ledger.relations("v2") == []
        await ledger.begin(record("one"))
        await ledger.add_relations("one", [(7, TABLE, "notes"), (8, '"public"."p"', "notes")])
        await ledger.add_relations("one", [(7, TABLE, "notes")])
        await ledger.begin(record("two"))
        await ledger.add_relations("two", [(9, TABLE, "notes")])
        found = [(r.oid, r.relation, r.target, r.origin) for r in await ledger.relations("v2")]
        assert sorted(found) == [
            (7, TABLE, "notes", "sys/1/db"),
            (8, '"public"."p"', "notes", "sys/1/db"),
            (9, TABLE, "notes", "sys/1/db"),
        ]
        assert await ledger.relations("v1") == []

    with_ledger(place, work)


def test_an_older_ledger_is_brought_up_to_date(place: Workbench) -> None:
    """One of schema number 1, as the first version made it: what it holds stays, and new things fit."""
    import sqlalchemy as sa

    from rewrap.ledgers.tables import exceptions, relations

    async def older(ledger: Ledger) -> None:
        await ledger.begin(record("one"))
        await ledger.record("one", "v2", TABLE, [fault("4")])
        async with ledger.writing() as connection:
            await connection.run_sync(relations.drop)
            await connection.execute(sa.text(f"ALTER TABLE {exceptions.name} DROP COLUMN row_key"))
            await connection.execute(sa.text("UPDATE rewrap_meta SET value = '1' WHERE name = 'schema'"))

    async def newer(ledger: Ledger) -> None:
        assert [entry.row_id for entry in await ledger.exceptions("v2")] == ["4"]
        await ledger.record("one", "v2", TABLE, [fault("k" * 5_000)])
        assert {entry.row_id for entry in await ledger.exceptions("v2")} == {"4", "k" * 5_000}
        await ledger.add_relations("one", [(7, TABLE, "notes")])
        assert len(await ledger.relations("v2")) == 1

    with_ledger(place, older)

    async def once_more(ledger: Ledger) -> None:
        assert {entry.row_id for entry in await ledger.exceptions("v2")} == {"4", "k" * 5_000}

    with_ledger(place, newer)
    with_ledger(place, once_more)


def test_ledger_without_fingerprints_is_brought_up_to_date(place: Workbench) -> None:
    """One of schema number 2: it has a run, and no tables for fingerprints yet."""
    import sqlalchemy as sa

    async def older(ledger: Ledger) -> None:
        await ledger.begin(record("one"))
        async with ledger.writing() as connection:
            await connection.run_sync(fingerprints.drop)
            await connection.run_sync(fingerprint_rows.drop)
            await connection.execute(sa.text("UPDATE rewrap_meta SET value = '2' WHERE name = 'schema'"))

    async def newer(ledger: Ledger) -> None:
        assert await ledger.fingerprints.of("one") == []
        await keep(ledger, "one", WHAT)
        assert [kept.fingerprint for kept in await ledger.fingerprints.of("one")] == [FOUND]

    with_ledger(place, older)
    with_ledger(place, newer)
    assert with_ledger(place, lambda ledger: ledger.latest()) is not None


def test_a_long_reason_to_wait_fits_an_older_ledger(place: Workbench) -> None:
    """One of schema number 3 had 64 characters for it."""
    import sqlalchemy as sa

    reason = "replication lag of 12.3 s on a replica, which is more than the limit of 5 s " * 2

    async def older(ledger: Ledger) -> None:
        await ledger.begin(record("one"))
        async with ledger.writing() as connection:
            if connection.dialect.name == "postgresql":
                await connection.execute(
                    sa.text("ALTER TABLE rewrap_progress ALTER COLUMN waiting_for TYPE varchar(64)")
                )
            await connection.execute(sa.text("UPDATE rewrap_meta SET value = '3' WHERE name = 'schema'"))

    async def newer(ledger: Ledger) -> None:
        await ledger.save_progress("one", [TableProgress(TABLE, 1, 10, waiting_for=reason)])
        assert [entry.waiting_for for entry in await ledger.progress("one")] == [reason]

    with_ledger(place, older)
    with_ledger(place, newer)


def test_a_stopped_run_of_an_older_ledger_is_interrupted(place: Workbench) -> None:
    """Before schema number 4 a run without a process was called paused, and nobody could ask."""
    import sqlalchemy as sa

    from rewrap.ledgers.tables import control

    async def older(ledger: Ledger) -> None:
        await ledger.begin(record("one"))
        await ledger.begin(record("two"))
        await ledger.set_state("two", RunState.PAUSED)
        async with ledger.writing() as connection:
            await connection.run_sync(control.drop)
            await connection.execute(sa.text("UPDATE rewrap_meta SET value = '3' WHERE name = 'schema'"))

    async def newer(ledger: Ledger) -> None:
        found = await ledger.latest()
        assert found is not None
        assert found.state is RunState.INTERRUPTED
        assert await ledger.control.ask(PAUSE, "me@here") == 1

    with_ledger(place, older)
    with_ledger(place, newer)


def test_figures_of_the_last_runs_are_kept(place: Workbench) -> None:
    """Five of each name and table; a run's larger sample replaces its smaller one, and not the reverse."""

    def figure(run_id: str, value: float, samples: int, name: str = "read_row_s") -> Figure:
        return Figure(TABLE, name, run_id, value, samples)

    async def work(ledger: Ledger) -> None:
        assert await ledger.measured.figures() == []
        await ledger.measured.keep([figure("run0", 7.0, 10, "seal_value_s")])
        for number in range(RUNS + 2):
            await asyncio.sleep(0.002)
            await ledger.measured.keep([figure(f"run{number}", 1.0 + number, 100)])
        await ledger.measured.keep([figure("run6", 60.0, 200)])
        await ledger.measured.keep([figure("run6", 61.0, 50)])
        found = await ledger.measured.figures()
        assert [(one.run_id, one.value, one.samples) for one in found if one.name == "read_row_s"] == [
            ("run6", 60.0, 200), ("run5", 6.0, 100), ("run4", 5.0, 100), ("run3", 4.0, 100),
            ("run2", 3.0, 100),
        ]  # fmt: skip
        assert [one.run_id for one in found if one.name == "seal_value_s"] == ["run0"]

    with_ledger(place, work)
    assert with_ledger(place, lambda ledger: ledger.latest()) is None


def test_wishes_are_numbered_and_answered(place: Workbench) -> None:
    """Each changes what it is about and no more; what the process says leaves wishes alone."""

    async def work(ledger: Ledger) -> None:
        asked = ledger.control
        assert await asked.now() == NOTHING_ASKED
        assert await asked.ask(PAUSE, "ann@here") == 1
        assert await asked.tune({"max_rate": None, "in_flight": 2}, "ben@there", "one") == 2
        await asked.answer("one", 2, "run@host", [{"name": "main"}])
        await asked.answer("one", 2, "run@host", [])
        found = await asked.now()
        assert (found.state, found.state_by, found.tuned_by) == (PAUSE, "ann@here", "ben@there")
        assert found.tuned == {"max_rate": None, "in_flight": 2}
        assert (found.number, found.seen, found.process, found.budgets) == (2, 2, "run@host", ())
        assert found.beat == 2

    with_ledger(place, work)


def test_what_was_asked_of_a_run_ends_with_it_but_for_a_pause(place: Workbench) -> None:
    """Another run of the job keeps no pace of the one before and is not cancelled, but waits if it did."""

    async def work(ledger: Ledger) -> None:
        asked = ledger.control
        await asked.tune({"batch_size": 5, "max_rate": 3.0}, "ann@here", "one")
        await asked.adopt("one", ["max_rate"])
        assert (await asked.now()).tuned == {"batch_size": 5}
        await asked.ask(CANCEL, "ann@here", "one")
        await asked.adopt("two")
        found = await asked.now()
        assert (found.state, found.tuned, found.run_id) == (RUN, {}, "two")
        await asked.ask(PAUSE, "ann@here")
        await asked.adopt("three")
        assert (await asked.now()).state == PAUSE
        await asked.forget()
        assert await asked.now() == NOTHING_ASKED

    with_ledger(place, work)


def test_no_wish_of_several_at_once_is_lost(place: Workbench) -> None:
    """Twenty operators who find no row there: each gets a number of his own."""

    async def main() -> list[int]:
        async def one(at: int) -> int:
            ledger = await Ledger.open("test", place.folder / "rewrap.toml", place.environ)
            assert ledger is not None
            try:
                return await ledger.control.ask(PAUSE if at % 2 else RUN, f"{at}@here")
            finally:
                await ledger.close()

        return list(await asyncio.gather(*(one(at) for at in range(20))))

    assert sorted(asyncio.run(main())) == list(range(1, 21))


WHAT = Witnessed("main", "records", (), ("body", '"odd.name".x'))

FOUND = Fingerprint(3, "ab" * 32)


async def keep(ledger: Ledger, run_id: str, what: Witnessed) -> None:
    number = await ledger.fingerprints.begin(run_id)
    for part in range(3):
        await ledger.fingerprints.add(run_id, number, part, bytes([part]) * 32)
    await ledger.fingerprints.finish(run_id, number, what, dataclasses.replace(what, key=("id",)), FOUND)


async def parts_of(ledger: Ledger, run_id: str) -> list[list[bytes]]:
    found = await ledger.fingerprints.of(run_id)
    return [[part async for part in ledger.fingerprints.entries(kept)] for kept in found]


def test_fingerprints_come_back_as_they_were_kept(place: Workbench) -> None:
    """Entries in order, what was asked for and what it was then; one that was torn is not there."""

    async def work(ledger: Ledger) -> None:
        await ledger.begin(record("one"))
        await keep(ledger, "one", WHAT)
        torn = await ledger.fingerprints.begin("one")
        await ledger.fingerprints.add("one", torn, 0, b"torn" * 8)
        (kept,) = await ledger.fingerprints.of("one")
        assert (kept.declared, kept.witnessed.key, kept.witnessed.places) == (WHAT.text, ("id",), WHAT.places)
        await keep(ledger, "one", dataclasses.replace(WHAT, table="notes"))
        whole = [bytes([part]) * 32 for part in range(3)]
        assert await parts_of(ledger, "one") == [whole, whole]

    with_ledger(place, work)


@pytest.mark.parametrize(
    ("state", "to_version", "kept"),
    [
        (RunState.INCOMPLETE, "v2", True),
        (RunState.ABANDONED, "v2", True),
        (RunState.COMPLETE, "v2", False),
        (RunState.INCOMPLETE, "v3", False),
    ],
)
def test_fingerprints_go_to_the_run_that_goes_on_with_a_rotation(
    place: Workbench, state: RunState, to_version: str, kept: bool
) -> None:
    """What an incomplete run took is the next one's, if it is for the same version; else it is dropped."""

    async def work(ledger: Ledger) -> None:
        await ledger.begin(record("one"))
        await keep(ledger, "one", WHAT)
        await ledger.set_state("one", state)
        await ledger.begin(dataclasses.replace(record("two"), to_version=to_version))
        await ledger.fingerprints.carry("test", "two")
        assert await parts_of(ledger, "one") == []
        assert len(await parts_of(ledger, "two")) == kept
        assert all(len(parts) == 3 for parts in await parts_of(ledger, "two"))

    with_ledger(place, work)


CUT_OFF = """
import anyio, anyio.lowlevel, os, sys
from pathlib import Path
from rewrap.learned import RUNS, Figure
from rewrap.ledgers.control import CANCEL, NOTHING_ASKED, PAUSE, RUN
from rewrap.ledgers.sql import Ledger, TableProgress

async def main() -> None:
    for cut in range(150):
        ledger = await Ledger.open("test", Path(sys.argv[1]), os.environ)
        with anyio.move_on_after(cut / 20_000):
            while True:
                await ledger.save_progress("one", [TableProgress("t", 1, 9, rows_done=cut)])
                await anyio.lowlevel.checkpoint()
        await ledger.close()
    print("ended")

anyio.run(main)
"""


def test_work_that_is_cut_off_in_a_write_ends(place: Workbench) -> None:
    """A run that lost its lease is cancelled wherever it is, and its process must end all the same."""
    ended = subprocess.run(
        [sys.executable, "-c", CUT_OFF, str(place.folder / "rewrap.toml")],
        env=place.environ, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (0, "ended\n"), ended.stderr
