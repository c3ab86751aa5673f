"""The forecast learns: what a run measured is what the next one is forecast from, and that holds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import time
from typing import Any

import pytest

from rewrap import RunOptions, StopFlag, run
from rewrap.engine import measuring
from rewrap.events import Event, Progress
from tests.support.inprocess import load
from tests.support.values import box
from tests.support.workbench import NOTES, Workbench, wait_for

ROWS = 3_000
FURTHER = ("--from", "v2", "--to", "v3")


def planned(bench: Workbench, *arguments: str) -> dict[str, Any]:
    """The forecast of a rotation from v2 to v3."""
    ran = bench.rewrap("plan", *(arguments or FURTHER), "--json")
    assert ran.code == 0, ran.err
    forecast: dict[str, Any] = ran.event("plan")["forecast"]
    return forecast


def within(found: float, said: dict[str, Any]) -> bool:
    return bool(said["low"] <= found <= said["high"])


def position(bench: Workbench) -> int:
    return int(bench.value("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::int8"))


def further(bench: Workbench) -> Any:
    done = bench.rewrap("run", *FURTHER, "--allow-unseen-target", "--json")
    assert done.code == 0, done.err
    return done.event("run_ended")


def test_second_run_lies_in_what_the_first_measured(bench: Workbench) -> None:
    """Log and time of the next rotation: the ranges say which run they are from, and hold."""
    bench.notes([box(f"note {at}" * 5) for at in range(ROWS)])
    bench.sql("ANALYZE notes")
    first = planned(bench, "--from", "v1", "--to", "v2")
    assert first["measured_by"] == {}
    assert first["basis"]["seconds"] == ["measured", "assumed"]
    assert bench.run().code == 0
    run_id = json.loads(bench.rewrap("status", "--json").out)["run"]["run_id"]
    second = planned(bench)
    assert second["measured_by"] == {"seconds": [run_id], "wal_bytes": [run_id]}
    assert run_id in second["derived_from"]["seconds"]
    assert "assumed" not in second["basis"]["seconds"]
    ledger = bench.ledger.rename(bench.folder / "away")
    assumed = planned(bench)
    ledger.rename(bench.ledger)
    assert assumed["measured_by"] == {}
    assert second["wal_bytes"]["high"] < assumed["wal_bytes"]["high"]
    before = position(bench)
    further(bench)
    assert within(position(bench) - before, second["wal_bytes"]), second["wal_bytes"]


def test_a_cap_of_the_job_bounds_the_time(bench: Workbench) -> None:
    """At 500 rows a second 1,500 rows take that long, whatever the machine could do."""
    bench.notes([box(f"note {at}") for at in range(1_500)])
    bench.sql("ANALYZE notes")
    assert bench.run().code == 0
    bench.job(more="[pace]\nmax_rate = 500")
    said = planned(bench)
    assert said["basis"]["seconds"][0] == "quota"
    assert "max_rate of 500 rows/s" in said["derived_from"]["seconds"]
    assert said["seconds"]["low"] >= 2
    bench.job(more="[pace.shared.db]\nrate = 250\n[pace.health]\nwal_bytes_per_s = { pause = 1000 }")
    others = planned(bench)["derived_from"]["seconds"]
    assert "shared budget db of 250 rows/s" in others
    assert "wal_bytes_per_s of 0.000954 MiB/s" in others
    bench.job(more="[pace]\nmax_rate = 500")
    seconds = further(bench)["seconds"]
    assert within(seconds, said["seconds"]), (seconds, said["seconds"])


def test_a_run_that_was_kept_slow_says_nothing_of_the_pace(bench: Workbench) -> None:
    """What it cost is learned, and how fast it was is not: that was the cap's pace."""
    bench.notes([box(f"note {at}") for at in range(1_000)])
    bench.sql("ANALYZE notes")
    assert bench.run("--max-rate", "500").code == 0
    said = planned(bench)
    assert list(said["measured_by"]) == ["wal_bytes"]
    assert "assumed" in said["basis"]["seconds"]


def test_a_table_that_no_run_has_seen_is_still_assumed(bench: Workbench) -> None:
    """The derivation says of how many tables it is so."""
    bench.notes([box(f"note {at}") for at in range(500)])
    assert bench.run().code == 0
    bench.sql("CREATE TABLE more (id bigint PRIMARY KEY, body text)")
    bench.insert("more", ["id", "body"], [(at, box("more", "v2")) for at in range(500)])
    bench.sql("ANALYZE more")
    bench.job(NOTES + NOTES.replace("notes", "more"))
    said = planned(bench)
    assert set(said["basis"]["seconds"]) == {"measured", "assumed"}
    assert "of 1 tables: " in said["derived_from"]["seconds"]


def test_what_a_run_measures_is_kept_while_it_is_at_work(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed leaves its figures, as they were some seconds before."""
    monkeypatch.setattr(measuring, "TICK_S", 0.05)
    monkeypatch.setattr(measuring, "KEEP_S", 0.05)
    bench.notes([box(f"note {at}") for at in range(3_000)])
    bench.sql(
        """CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN PERFORM pg_sleep(0.002); RETURN NULL; END';
           CREATE TRIGGER dawdling AFTER UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION dawdle();"""
    )
    bench.job(more="[pace]\nbatch_size = 20")
    stop, kept = StopFlag(), set[str]()

    def look(event: Event) -> None:
        if isinstance(event, Progress) and not stop.requested:
            with contextlib.closing(sqlite3.connect(bench.ledger)) as ledger:
                kept.update(name for (name,) in ledger.execute("SELECT name FROM rewrap_measured"))
            if kept:
                stop.set("the test")

    ended = asyncio.run(
        run(
            load(bench), from_versions="v1", to_version="v2", options=RunOptions(allow_unseen_target=True),
            sink=look, stop=stop, environ=bench.environ,
        )
    )  # fmt: skip
    assert ended.exit_code == 4
    assert {"read_row_s", "seal_value_s", "wait_row_s", "sweep_s"} <= kept


def test_status_tells_waived_values_apart(bench: Workbench) -> None:
    """Of three that were put aside one is accepted: it is not what somebody has to look at."""
    bench.notes([box("one"), "v1:AAAA", "v1:AAAA", "v1:AAAA"])
    assert bench.run().code == 3
    assert "put aside: 3 (rewrap quarantine list)" in bench.rewrap("status").out
    assert bench.rewrap("quarantine", "waive", "--row", "3", "--reason", "lost").code == 0
    assert "put aside: 2, and 1 waived (rewrap quarantine list)" in bench.rewrap("status").out
    said = _status(bench)
    assert (said["quarantined"], said["waived"], said["left"]) == (3, 1, None)


def test_status_says_what_is_left_and_that_holds(bench: Workbench) -> None:
    """In the middle of a capped run its time lies in the range, which says what it is from."""
    bench.notes([box(f"note {at}") for at in range(1_500)])
    bench.sql("ANALYZE notes")
    assert bench.run("--sample", "300").code == 4
    stopped = _status(bench)
    # the log that 1,200 values take, by what the first 300 took
    assert stopped["left"]["measured_by"]["wal_bytes"] == [stopped["run"]["run_id"]]
    assert stopped["left"]["wal_bytes"]["high"] > 1_200 * 100
    bench.job(more="[pace]\nmax_rate = 100")
    with bench.started("resume") as running:
        asked, found = wait_for(lambda: _in_the_middle(bench))
        running.communicate(timeout=120)
        took = time.monotonic() - asked
        assert running.returncode == 0
    assert within(took, found["seconds"]), (took, found["seconds"])
    assert "kept to: max_rate of 100 rows/s" in found["derived_from"]["seconds"]
    assert _status(bench)["left"] is None


def _status(bench: Workbench) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(bench.rewrap("status", "--json").out)
    return said


def _in_the_middle(bench: Workbench) -> tuple[float, dict[str, Any]] | None:
    """When somebody asked what is left, and the answer, once the run is at work."""
    asked, said = time.monotonic(), _status(bench)
    at_work = said["run"]["state"] == "running" and said["progress"][0]["rows_per_s"] > 0
    return (asked, said["left"]) if at_work else None
