"""One suite over both guards: one holder, a fence that only rises, cursors that are the run's own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from rewrap.errors import LeaseHeld, LeaseLost, UsageError
from rewrap.interfaces import Checkpoint
from tests.support.cosmos import CosmosDatabase
from tests.support.guards import Opened, opened
from tests.support.values import KEYS
from tests.support.workbench import TIMEOUT_S, Workbench

T = TypeVar("T")

COSMOS_JOB = """
name = "test"
[stores.main]
kind = "cosmos"
endpoint = "${COSMOS_ENDPOINT}"
key = "env:COSMOS_KEY"
database = "${COSMOS_DATABASE}"
[keys.versions.v1]
material = "env:KEY_V1"
[keys.versions.v2]
material = "env:KEY_V2"
[[targets]]
container = "notes"
fields = [{ column = "body", layout = "libsodium-token" }]
"""


class Place:
    """A store with a table of notes, and its job."""

    def __init__(self, path: Path, environ: dict[str, str]) -> None:
        self.path = path
        self.environ = environ

    def with_guards(self, work: Callable[[Opened, Opened], Awaitable[T]]) -> T:
        """Runs `work` with two guards, each as a process of its own would have it."""

        async def main() -> T:
            async with opened(self.path, self.environ) as one, opened(self.path, self.environ) as two:
                return await work(one, two)

        return asyncio.run(main())

    @contextlib.contextmanager
    def held(self, ttl_s: float) -> Iterator[subprocess.Popen[str]]:
        """Another process that has claimed the table, and beats."""
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.guards", str(self.path), str(ttl_s)],
            env=self.environ,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("held")
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.communicate(timeout=TIMEOUT_S)


@pytest.fixture(params=["postgres", "cosmos"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    environ = {**os.environ, **{f"KEY_{version.upper()}": key.hex() for version, key in KEYS.items()}}
    if request.param == "postgres":
        bench: Workbench = request.getfixturevalue("bench")
        bench.job(more="[limits]\nlease_s = 2\n")
        bench.notes([])
        return Place(bench.folder / "rewrap.toml", {**environ, **bench.environ})
    cosmos: CosmosDatabase = request.getfixturevalue("cosmos")
    cosmos.container("notes")
    path = tmp_path / "rewrap.toml"
    path.write_text(COSMOS_JOB)
    return Place(path, {**environ, **cosmos.environ})


def test_of_two_claimants_one_wins(place: Place) -> None:
    """Both ask at once: one has the table, the other is told who has it."""

    async def work(one: Opened, two: Opened) -> None:
        answers = await asyncio.gather(
            one.claim("run1", "anna"), two.claim("run2", "ben"), return_exceptions=True
        )
        refused = [answer for answer in answers if isinstance(answer, LeaseHeld)]
        assert len(refused) == 1, answers
        assert len([answer for answer in answers if isinstance(answer, list)]) == 1
        assert any(owner in refused[0].message for owner in ("anna", "ben", "at this moment"))

    place.with_guards(work)


def test_a_run_goes_on_from_its_checkpoints(place: Place) -> None:
    """What was saved and given back is what the run's next process finds, under a higher fence."""

    async def work(one: Opened, two: Opened) -> None:
        first, second = await one.claim("run1", "anna")
        assert (first.cursor, first.rows, first.sweep, first.done) == (None, 0, 1, False)
        assert (second.range.lower, second.range.upper) == ("5", None)
        tally = {"body": Counter({"resealed": 3})}
        await one.save(first, Checkpoint("3", 3, tally))
        await one.save(second, Checkpoint("9", 4, {}, done=True))
        await one.guard.release(finished=False)
        again, ended = await two.claim("run1", "ben")
        assert (again.cursor, again.rows, again.tally, again.done) == ("3", 3, tally, False)
        assert (ended.cursor, ended.rows, ended.done) == ("9", 4, True)
        assert again.fence > first.fence

    place.with_guards(work)


def test_another_run_starts_over(place: Place) -> None:
    """A finished run's cursors are nothing to the next one; its fence is."""

    async def work(one: Opened, two: Opened) -> None:
        first, _ = await one.claim("run1", "anna")
        await one.save(first, Checkpoint("3", 3, {}))
        await one.guard.release(finished=True)
        again, _ = await two.claim("run2", "ben", to_version="v1", from_versions=("v2",))
        assert (again.cursor, again.rows) == (None, 0)
        assert again.fence > first.fence

    place.with_guards(work)


def test_voiding_forgets_the_cursors(place: Place) -> None:
    """A run that had the wrong key starts from the beginning when it comes again."""

    async def work(one: Opened, two: Opened) -> None:
        first, _ = await one.claim("run1", "anna")
        await one.save(first, Checkpoint("3", 3, {}))
        await one.guard.release(finished=False, void=True)
        again, _ = await two.claim("run1", "ben")
        assert (again.cursor, again.rows) == (None, 0)

    place.with_guards(work)


def test_an_expired_lease_is_taken_over_and_its_checkpoints_refused(place: Place) -> None:
    """A holder that does not beat loses the table to the next run, and what it still saves is refused."""

    async def work(one: Opened, two: Opened) -> None:
        stale, _ = await one.claim("run1", "anna", ttl_s=4.0)
        await one.save(stale, Checkpoint("3", 3, {}))
        with pytest.raises(LeaseHeld, match="run1"):
            await two.claim("run1", "ben", ttl_s=30.0)
        fresh, _ = await two.claim_in_time("run1", "ben", ttl_s=30.0)
        assert fresh.fence > stale.fence
        assert (fresh.cursor, fresh.rows) == ("3", 3)
        with pytest.raises(LeaseLost):
            await one.guard.beat()
        with pytest.raises(LeaseLost):
            await one.save(stale, Checkpoint("4", 4, {}))
        await two.save(fresh, Checkpoint("5", 5, {}))
        assert (await two.guard.lease(two.relation, 0)).cursor == "5"
        with pytest.raises(LeaseLost):
            await one.guard.lease(one.relation, 0)

    place.with_guards(work)


def test_a_beating_holder_keeps_the_table(place: Place) -> None:
    """Beats make a lease last, past its own length."""

    async def work(one: Opened, two: Opened) -> None:
        lease, _ = await one.claim("run1", "anna", ttl_s=4.0)
        deadline = time.monotonic() + 6
        while time.monotonic() < deadline:
            await asyncio.sleep(0.4)
            await one.guard.beat()
        with pytest.raises(LeaseHeld):
            await two.claim("run2", "ben")
        await one.save(lease, Checkpoint("3", 3, {}))

    place.with_guards(work)


def test_an_unfinished_run_to_another_version_is_not_overrun(place: Place) -> None:
    """It is named, and how to finish it or to give it up; given up, it is."""

    async def work(one: Opened, two: Opened) -> None:
        await one.claim("run1", "anna")
        await one.guard.release(finished=False)
        with pytest.raises(UsageError, match="unfinished run run1 from v1 to v2"):
            await two.claim("run2", "ben", to_version="v3")
        again, _ = await two.claim("run2", "ben", to_version="v3", abandon="run1")
        assert again.cursor is None

    place.with_guards(work)


def test_a_sweep_sets_every_shard_to_its_start(place: Place) -> None:
    """The next sweep has its number, no cursor and no counts."""

    async def work(one: Opened, _two: Opened) -> None:
        first, second = await one.claim("run1", "anna")
        await one.save(first, Checkpoint("3", 3, {"body": Counter({"resealed": 3})}, done=True))
        await one.save(second, Checkpoint("9", 3, {}, done=True))
        for lease in await one.guard.begin_sweep(one.relation, 2):
            assert (lease.sweep, lease.cursor, lease.rows, lease.done) == (2, None, 0, False)
            assert lease.tally == {}
            assert lease.fence == first.fence

    place.with_guards(work)


def test_cursors_in_another_order_of_keys_mean_nothing(place: Place) -> None:
    """The key's columns changed since: the run starts over, and says so."""

    async def work(one: Opened, two: Opened) -> None:
        first, _ = await one.claim("run1", "anna", orders={one.relation: "by id"})
        await one.save(first, Checkpoint("3", 3, {}))
        await one.guard.release(finished=False)
        again, _ = await two.claim("run1", "ben", orders={one.relation: "by name"})
        assert again.cursor is None
        assert any("its key has changed" in notice for notice in two.guard.notices)

    place.with_guards(work)


def test_a_killed_process_loses_its_lease_at_once(place: Place) -> None:
    """SIGKILL, on this machine: nobody waits for the lease to run out."""
    with place.held(ttl_s=600) as process:

        async def work(one: Opened, two: Opened) -> None:
            with pytest.raises(LeaseHeld):
                await one.claim("held", "anna")
            process.kill()
            process.wait(TIMEOUT_S)
            lease, _ = await two.claim("held", "ben")
            assert lease.cursor == "1"

        place.with_guards(work)


def test_a_frozen_process_writes_nothing_when_it_wakes(place: Place) -> None:
    """SIGSTOP past the lease, another run takes over, SIGCONT: its next checkpoint is not written."""
    with place.held(ttl_s=4) as process:
        process.send_signal(signal.SIGSTOP)

        async def work(one: Opened, _two: Opened) -> None:
            lease, _ = await one.claim_in_time("held", "anna")
            await one.save(lease, Checkpoint("mine", 77, {}))
            process.send_signal(signal.SIGCONT)
            out, _ = process.communicate(timeout=TIMEOUT_S)
            assert out.split()[-1] == "LeaseLost"
            assert (await one.guard.lease(one.relation, 0)).cursor == "mine"

        place.with_guards(work)
