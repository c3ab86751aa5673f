"""Whole runs whose patches are sent by worker processes: the line, the workers or the run itself may fail."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.test_cosmos_faults import COUNT, PAGES, RUN, assert_complete, outcomes, proxied
from tests.support.children import is_worker, workers_of
from tests.support.cosmos import CosmosDatabase
from tests.support.cosmosbench import LIMITS, CosmosBench, expected
from tests.support.proxy import Answer, Drop, FaultProxy, Meanwhile, throttled
from tests.support.workbench import Result, wait_for

TWO = "processes = 2"


@pytest.fixture
def notes(cosmos: CosmosDatabase, cosmos_proxy: FaultProxy, tmp_path: Path) -> CosmosBench:
    """A container of notes at v1, and a job over it through the proxy, with two workers."""
    bench = CosmosBench(tmp_path, cosmos, cosmos_proxy)
    bench.job(store=TWO, more=PAGES + LIMITS)
    bench.fill(COUNT)
    return bench


@pytest.fixture
def beside(cosmos: CosmosDatabase) -> Iterator[CosmosDatabase]:
    """The application: a connection of its own, past the proxy."""
    database = cosmos.beside()
    yield database
    database.account.close()


class Held:
    """Patches wait at the proxy, each from the so-many-th on, until they are let go."""

    def __init__(self, proxy: FaultProxy, after: int) -> None:
        self._go = threading.Event()
        self._rule = proxy.add(Meanwhile(self._wait), "patch", skip=after)

    def _wait(self, _: str) -> None:
        self._go.wait(120)

    @property
    def some(self) -> bool:
        """Whether any waits there: the run is in the middle of a batch."""
        return self._rule.befallen > 0

    def let_go(self) -> None:
        self._go.set()


def test_a_live_writer_and_a_bad_line_lose_nothing(notes: CosmosBench, beside: CosmosDatabase) -> None:
    """A writer before each tenth patch, lost answers, 503, throttling: complete, with both writes there."""
    written: dict[str, int] = {}

    def write(path: str) -> None:
        name = path.rpartition("/")[2]
        document = beside.document("notes", name)
        written[name] = written.get(name, 0) + 1
        beside.upsert("notes", {**document, "title": f"live {written[name]}"})

    rest = notes.rest()
    proxied(notes).add(Meanwhile(write), "patch", every=10)
    proxied(notes).add(Drop(applied=True), "patch", every=17)
    proxied(notes).add(Drop(), "patch", every=19)
    proxied(notes).add(Answer(503), "patch", every=23)
    proxied(notes).add(throttled(40), "patch", every=29)
    ran = notes.run()
    assert_complete(notes, ran)
    assert outcomes(ran) == {"resealed": COUNT}
    assert len(written) > COUNT // 20
    told = {name: f"live {times}" for name, times in written.items()}
    assert notes.rest() == {
        name: {**one, "title": told.get(name, one["title"])} for name, one in rest.items()
    }


def test_a_killed_worker_is_replaced_in_mid_run(notes: CosmosBench) -> None:
    """SIGKILL while its patches are on their way: the run completes, and leaves none behind."""
    held = Held(proxied(notes), COUNT // 3)
    with notes.started(*RUN) as running:
        wait_for(lambda: held.some, 60)
        before = workers_of(running.pid)
        os.kill(before[0], signal.SIGKILL)
        wait_for(lambda: not is_worker(before[0]))
        held.let_go()
        wait_for(lambda: len(workers_of(running.pid)) == 2 or running.poll() is not None, 60)
        out, err = running.communicate(timeout=120)
    ran = Result(running.returncode, out, err)
    assert len(before) == 2
    assert_complete(notes, ran)
    assert outcomes(ran) == {"resealed": COUNT}
    assert not any(is_worker(pid) for pid in before)


def test_workers_end_with_a_killed_run(notes: CosmosBench) -> None:
    """SIGKILL of the run: its workers are gone too, one that is stopped as well, and resume completes."""
    held = Held(proxied(notes), COUNT // 3)
    with notes.started(*RUN) as running:
        wait_for(lambda: held.some, 60)
        workers = workers_of(running.pid)
        os.kill(workers[0], signal.SIGSTOP)
        running.send_signal(signal.SIGKILL)
        running.wait(20)
        wait_for(lambda: not any(is_worker(pid) for pid in workers))
    assert len(workers) == 2
    proxied(notes).clear()
    held.let_go()
    done = sum(body.startswith("v2:") for body in notes.bodies_of().values())
    assert 0 < done < COUNT
    # the guard's clock is not waited for: the holder's process is gone, and so are those it had started
    assert_complete(notes, notes.rewrap("resume", "--json"))
    assert notes.opened() == expected(COUNT)


def test_a_stopped_run_takes_its_workers_along(notes: CosmosBench) -> None:
    """All of them are told to end, as a service manager does: the batch is written first."""
    held = Held(proxied(notes), COUNT // 3)
    with notes.started(*RUN) as running:
        wait_for(lambda: held.some, 60)
        workers = workers_of(running.pid)
        for pid in (*workers, running.pid):
            os.kill(pid, signal.SIGTERM)
        held.let_go()
        _, err = running.communicate(timeout=120)
    assert running.returncode == 4, err
    assert len(workers) == 2
    assert not any(is_worker(pid) for pid in workers)
    proxied(notes).clear()
    assert_complete(notes, notes.rewrap("resume", "--json"))


def test_a_dry_run_starts_no_workers_and_writes_nothing(notes: CosmosBench, cosmos: CosmosDatabase) -> None:
    """Every etag is as it was, and nobody but the run itself has asked for the account."""
    before = cosmos.etags("notes")
    asked = {}
    for store in ("", TWO):
        notes.job(store=store, more=PAGES + LIMITS)
        proxied(notes).reset()
        assert notes.run("--dry-run").code == 0
        asked[store] = proxied(notes).counts()["account"]
    assert asked[TWO] == asked[""]
    assert cosmos.etags("notes") == before
