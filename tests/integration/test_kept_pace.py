"""The pace that a run is told to keep, and what a run says and does that is to wait, or cannot be reached."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.integration.test_steering import RUN, at_work, ended, is_now, prepare, read, resealed
from tests.support.values import box
from tests.support.workbench import Workbench, wait_for

RATE = 2_000


@pytest.mark.parametrize("shards", [1, 4])
def test_max_rate_is_kept_by_all_shards_together(bench: Workbench, shards: int) -> None:
    """Over seconds, and not only while one shard is at work. A slow machine does less, never more."""
    bench.job(more=f"[pace]\nmax_rate = {RATE}\nshards = {shards}\n")
    bench.notes([box("a note")] * 90_000)
    with bench.started(*RUN) as running:
        at_work(bench)
        began, before = time.monotonic(), resealed(bench)
        time.sleep(5)
        done = resealed(bench) - before
        seconds = time.monotonic() - began
        assert running.poll() is None
    assert 0 < done <= RATE * (seconds + 0.25) + shards * RATE / 2


def test_a_run_whose_ledger_is_taken_away_stops(bench: Workbench) -> None:
    """Nobody could pause it any more, and all would say that nothing is at work."""
    prepare(bench)
    with bench.started(*RUN) as running:
        at_work(bench)
        bench.ledger.rename(bench.folder / "away.sqlite")
        code, _, err = ended(running)
    assert code == 2, err
    assert "was removed or replaced while it was in use" in err
    (bench.folder / "away.sqlite").rename(bench.ledger)
    again = bench.rewrap("resume", "--max-rate", "1000000")
    assert again.code == 0, again.err


def test_status_tells_of_a_pause_before_the_first_run(bench: Workbench) -> None:
    """The next run will wait, and nothing else says why."""
    assert bench.rewrap("pause").code == 0
    found = bench.rewrap("status")
    assert "has not been run yet" in found.out
    assert "its first run is to be paused, asked by" in found.out


def test_a_process_that_waits_says_where_the_run_stands_and_why(bench: Workbench) -> None:
    """Killed while it was paused, and begun once more: as many rows are done as before, and who holds it."""
    prepare(bench)
    with bench.started(*RUN) as running:
        at_work(bench, 60)
        assert bench.rewrap("pause").code == 0
        running.kill()
        ended(running)
    done = resealed(bench)
    with bench.started(*RUN):
        is_now(bench, "paused")
        # what the process before it had said stands there until it speaks itself
        wait_for(lambda: "a pause by" in progress(bench)["waiting_for"], 60)
        assert done - 20 <= progress(bench)["rows_done"] <= done
        assert read(bench, "rewrap_run")["state"] == "paused"


def progress(bench: Workbench) -> dict[str, Any]:
    (entry,) = bench.rewrap("status", "--json").event("status")["progress"]
    return dict(entry)


def test_a_second_process_is_told_that_the_run_is_at_work(bench: Workbench) -> None:
    """It is no other run that has the table."""
    prepare(bench)
    with bench.started(*RUN):
        at_work(bench)
        found = bench.rewrap("resume")
    assert found.code == 11
    assert "this very run is at work already, in another process" in found.err
