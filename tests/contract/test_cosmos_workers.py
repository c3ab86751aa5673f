"""Worker processes send what the run alone would send, under the same gate and the same lease."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from rewrap.errors import LeaseLost, StoreError, StoreUnavailable
from rewrap.interfaces import Page, SwapBatch
from rewrap.stores.cosmos import workers as module
from rewrap.stores.cosmos.guard import CosmosGuard
from rewrap.stores.cosmos.holder import elapsed_s
from rewrap.stores.cosmos.workers import MOST_ENDED, Workers
from tests.contract.test_cosmos_store import Run, bodies, renewed, renewed_as
from tests.contract.test_cosmos_store import running as claimed
from tests.support.children import is_worker
from tests.support.cosmos import CosmosDatabase
from tests.support.proxy import Answer, Delay, Drop, FaultProxy, Meanwhile, throttled

# a lease that outlasts any test, on however slow a machine
running = functools.partial(claimed, lease_s=600.0)

TWO = "processes = 2"

COUNT = 12
"""Documents in the container."""

WARM = 4
"""The first ones of them: enough for each worker to have some."""


@pytest.fixture
def notes(cosmos: CosmosDatabase) -> CosmosDatabase:
    """Twelve documents in a container partitioned by id."""
    cosmos.container("notes")
    cosmos.upsert("notes", *({"id": f"n{at:02}", "body": f"v1:{at}", "n": at} for at in range(COUNT)))
    return cosmos


def workers_of(run: Run) -> Workers:
    assert run.store.workers is not None
    return run.store.workers


async def warmed(run: Run, batch: SwapBatch) -> list[int]:
    """The workers, once each of them has written something."""
    assert await run.swap(batch.part(list(range(WARM)))) == WARM
    return workers_of(run).pids


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(60):
        while not condition():
            await anyio.sleep(0.01)


def test_workers_send_what_is_written_and_end_with_the_store(notes: CosmosDatabase) -> None:
    """Two of them, started by the first document and not before; none is left.

    The account's key goes over the line, and stands in nothing that others can look at.
    """
    pids: list[int] = []

    async def work(run: Run) -> None:
        batch = renewed(await run.page())
        assert workers_of(run).pids == []
        assert await run.swap(batch) == COUNT
        pids.extend(workers_of(run).pids)
        assert all(is_worker(pid) for pid in pids)
        for pid in pids:
            for name in ("cmdline", "environ"):
                told = Path(f"/proc/{pid}/{name}").read_bytes()
                assert told
                assert notes.key.encode() not in told

    running(notes, work, store=TWO)
    assert set(bodies(notes).values()) == {f"new v1:{at}" for at in range(COUNT)}
    assert len(pids) == 2
    assert not any(is_worker(pid) for pid in pids)


def test_a_store_that_writes_nothing_has_no_workers(notes: CosmosDatabase) -> None:
    """Pages are read by the run itself; and with one process it writes by itself too."""

    async def read(run: Run) -> None:
        assert len(await run.page()) == COUNT
        assert workers_of(run).pids == []

    async def write(run: Run) -> None:
        assert run.store.workers is None
        assert await run.swap(renewed(await run.page())) == COUNT

    running(notes, read, store=TWO)
    running(notes, write)


def test_a_document_that_is_replaced_goes_by_workers_too(
    cosmos: CosmosDatabase, cosmos_proxy: FaultProxy
) -> None:
    """Eleven elements are more than a patch can change."""
    cosmos.container("notes")
    cards = [{"n": f"v1:{at}"} for at in range(11)]
    cosmos.upsert("notes", {"id": "a", "body": cards, "x": {"y": [1.5, None, "ü"]}})

    async def work(run: Run) -> None:
        page = await run.page()
        batch = renewed_as(run.table, page, lambda old: old.replace("v1", "v2"))
        assert await run.swap(batch) == 1
        assert len(workers_of(run).pids) == 2

    fields = '{ column = "body", path = "[*].n", layout = "libsodium-token" }'
    running(cosmos, work, fields, endpoint=cosmos_proxy.endpoint, store=TWO)
    after = cosmos.document("notes", "a")
    assert after["body"] == [{"n": f"v2:{at}"} for at in range(11)]
    assert after["x"] == {"y": [1.5, None, "ü"]}


def test_throttling_of_one_worker_holds_them_all(notes: CosmosDatabase, cosmos_proxy: FaultProxy) -> None:
    """429 with a time: none sends anything meanwhile. What was throttled, or answered 503, is sent again."""

    async def work(run: Run) -> None:
        batch = renewed(await run.page())
        assert await run.swap(batch.part([0, 1])) == 2
        cosmos_proxy.add(throttled(2_000), "patch", times=1)
        cosmos_proxy.add(Answer(503), "patch", every=3)
        assert await run.swap(batch.part(list(range(2, COUNT)))) == COUNT - 2
        # what they were charged is what the run has spent
        assert run.store.spent() == {"request_units": pytest.approx(cosmos_proxy.charged, abs=0.02)}

    cosmos_proxy.charges = {"patch": 10.29, "query": 3.5}
    running(notes, work, endpoint=cosmos_proxy.endpoint, store=f"{TWO}\nin_flight = 2")
    patches = [seen for seen in cosmos_proxy.seen if seen.kind == "patch"]
    assert {seen.status for seen in patches} == {200, 429, 503}
    (told,) = [seen.at for seen in patches if seen.status == 429]
    # what was on its way already does come in, and what was sent before the run had heard of it
    assert [seen for seen in patches if told + 1 < seen.at < told + 1.95] == []
    assert any(seen.at >= told + 2 for seen in patches)


def test_the_gate_bounds_all_workers_together(notes: CosmosDatabase, cosmos_proxy: FaultProxy) -> None:
    """`in_flight` is how many are on their way at once, whoever sends them."""
    notes.upsert("notes", *({"id": f"m{at}", "body": f"v1:{at}"} for at in range(60)))
    cosmos_proxy.add(Delay(0.02), "patch")

    async def work(run: Run) -> None:
        assert await run.swap(renewed(await run.page())) == COUNT + 60

    running(notes, work, endpoint=cosmos_proxy.endpoint, store=f"{TWO}\nin_flight = 4")
    assert cosmos_proxy.most_at_once["patch"] == 4


def test_a_lost_answer_is_told_from_a_lost_race(notes: CosmosDatabase, cosmos_proxy: FaultProxy) -> None:
    """The write had landed, and is refused when it is sent again: reading finds it to be our own."""

    async def work(run: Run) -> None:
        batch = renewed(await run.page())
        cosmos_proxy.add(Drop(applied=True), "patch", path="/n0[2-5]$", times=4)
        # what is sent again may be lost again
        assert COUNT - 4 <= await run.swap(batch) < COUNT
        assert await run.store.writer(run.table).unsettled(batch) == []

    running(notes, work, endpoint=cosmos_proxy.endpoint, store=TWO)
    assert set(bodies(notes).values()) == {f"new v1:{at}" for at in range(COUNT)}


def test_a_live_writer_is_never_overwritten(notes: CosmosDatabase, cosmos_proxy: FaultProxy) -> None:
    """It writes each fourth document right before a worker's patch arrives."""

    def meanwhile(path: str) -> None:
        beside = notes.beside()
        beside.upsert("notes", {"id": path.rsplit("/", 1)[1], "body": "v2:theirs"})
        beside.account.close()

    async def work(run: Run) -> None:
        batch = renewed(await run.page())
        cosmos_proxy.add(Meanwhile(meanwhile), "patch", every=4)
        assert await run.swap(batch) == COUNT - 3
        left = await run.store.writer(run.table).unsettled(batch)
        assert [row[1] for _, row in left if row is not None] == ["v2:theirs"] * 3

    running(notes, work, endpoint=cosmos_proxy.endpoint, store=TWO)
    assert sorted(bodies(notes).values()).count("v2:theirs") == 3


def test_a_right_that_is_lacking_is_named(notes: CosmosDatabase, cosmos_proxy: FaultProxy) -> None:
    """With what to grant, and as no worker's fault."""

    async def work(run: Run) -> None:
        batch = renewed(await run.page())
        cosmos_proxy.add(Answer(403), "patch")
        with pytest.raises(StoreError) as raised:
            await run.swap(batch)
        assert not isinstance(raised.value, StoreUnavailable)
        assert "Cosmos DB Built-in Data Contributor" in f"{raised.value} {raised.value.hint}"

    running(notes, work, endpoint=cosmos_proxy.endpoint, store=TWO)


# the lease


def test_nothing_is_handed_over_once_the_lease_is_lost(
    notes: CosmosDatabase, cosmos_proxy: FaultProxy
) -> None:
    """It is asked after the gate, before each document."""
    asked = 0

    async def work(run: Run) -> None:
        nonlocal asked
        batch = renewed(await run.page())
        held = run.guard.still_held

        def lose() -> None:
            nonlocal asked
            asked += 1
            if asked > 5:
                raise LeaseLost("another run took over")
            held()

        run.guard.still_held = lose  # type: ignore[method-assign]  # stands in for a lease lost
        with pytest.raises(LeaseLost):
            await run.swap(batch)

    running(notes, work, endpoint=cosmos_proxy.endpoint, store=f"{TWO}\nin_flight = 1")
    sent = sum(body.startswith("new") for body in bodies(notes).values())
    assert sent < 6
    assert cosmos_proxy.counts()["patch"] == sent


def test_a_worker_sends_nothing_after_its_leave(
    notes: CosmosDatabase, cosmos_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was held up, and the lease may be over: it looks at the clock itself, right before it sends."""

    async def work(run: Run) -> None:
        batch = renewed(await run.page())
        monkeypatch.setattr(CosmosGuard, "good_until", property(lambda _: elapsed_s() - 0.001))
        with pytest.raises(StoreUnavailable, match="lease"):
            await run.swap(batch)

    running(notes, work, endpoint=cosmos_proxy.endpoint, store=TWO)
    assert cosmos_proxy.counts()["patch"] == 0


def test_a_stopped_worker_does_not_write_when_it_wakes(
    notes: CosmosDatabase, cosmos_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was handed to it meanwhile is late by then; the run writes it with a new leave."""

    async def work(run: Run) -> None:
        page = await run.page()
        pids = await warmed(run, renewed(page))
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        leave = elapsed_s() + 0.5
        with monkeypatch.context() as patched, anyio.fail_after(60):
            patched.setattr(CosmosGuard, "good_until", property(lambda _: leave))
            async with anyio.create_task_group() as group:
                group.start_soon(_refused, run, page)
                await until(lambda: elapsed_s() > leave + 0.2)
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
        assert cosmos_proxy.counts()["patch"] == WARM
        assert workers_of(run).pids == pids
        assert await run.swap(renewed(page)) == COUNT - WARM

    async def _refused(run: Run, page: Page) -> None:
        with pytest.raises(StoreUnavailable):
            await run.swap(renewed(page).part(list(range(WARM, COUNT))))

    running(notes, work, endpoint=cosmos_proxy.endpoint, store=f"{TWO}\nin_flight = 16")


def test_a_request_takes_no_longer_than_the_lease_allows(
    notes: CosmosDatabase, cosmos_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No answer in that time is a lost answer: what the server then does is found by reading."""

    async def work(run: Run) -> None:
        page = await run.page()
        assert await run.swap(renewed(page).part([0])) == 1
        monkeypatch.setattr(CosmosGuard, "request_timeout_s", property(lambda _: 0.2))
        cosmos_proxy.add(Delay(30.0), "patch", path="/n01$")
        # one alone is left to a later sweep
        assert await run.swap(renewed(page).part([1])) == 0
        monkeypatch.undo()

    running(notes, work, endpoint=cosmos_proxy.endpoint, store=TWO)
    assert bodies(notes)["n01"] == "v1:1"


# what becomes of the processes


def test_what_a_killed_worker_was_sending_is_read_again(
    notes: CosmosDatabase, cosmos_proxy: FaultProxy
) -> None:
    """The server carries its patches out: they are found to be our own. Another takes its place."""
    killed = threading.Event()

    async def work(run: Run) -> None:
        batch = renewed(await run.page())
        before = await warmed(run, batch)
        cosmos_proxy.reset()
        cosmos_proxy.add(Meanwhile(lambda _: bool(killed.wait(60)) and None), "patch", times=COUNT - WARM)

        async def kill() -> None:
            await until(lambda: cosmos_proxy.most_at_once["patch"] == COUNT - WARM)
            os.kill(before[0], signal.SIGKILL)
            await until(lambda: before[0] not in workers_of(run).pids)
            killed.set()

        rest = batch.part(list(range(WARM, COUNT)))
        async with anyio.create_task_group() as group:
            group.start_soon(kill)
            written = await run.swap(rest)
        assert written == (COUNT - WARM) // 2
        assert await run.store.writer(run.table).unsettled(rest) == []
        assert len(workers_of(run).pids) == 2
        assert before[0] not in workers_of(run).pids
        assert before[1] in workers_of(run).pids

    running(notes, work, endpoint=cosmos_proxy.endpoint, store=TWO)
    assert set(bodies(notes).values()) == {f"new v1:{at}" for at in range(COUNT)}


ASKED = """
import ctypes
from rewrap.stores.cosmos import worker
worker._end_with_the_run()
found = ctypes.c_int()
assert ctypes.CDLL(None).prctl(2, ctypes.byref(found), 0, 0, 0) == 0
print(found.value)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_the_kernel_is_asked_to_kill_a_worker_with_its_run() -> None:
    """PR_GET_PDEATHSIG of prctl(2) says so: afterwards nobody could tell it from the end of the line."""
    asked = subprocess.run([sys.executable, "-c", ASKED], capture_output=True, text=True, check=True)
    assert int(asked.stdout) == signal.SIGKILL


def test_workers_that_keep_ending_end_the_run(notes: CosmosDatabase) -> None:
    """Something ends them that will not stop: told, with the signal, after so many."""

    async def work(run: Run) -> None:
        batch = renewed(await run.page())
        ended = 0

        async def swapped() -> None:
            while True:
                try:
                    await run.swap(batch)
                except StoreUnavailable:
                    continue

        async def kill() -> None:
            nonlocal ended
            while True:
                for pid in workers_of(run).pids:
                    ended += 1
                    os.kill(pid, signal.SIGKILL)
                await anyio.sleep(0.01)

        async with anyio.create_task_group() as group:
            group.start_soon(kill)
            with pytest.raises(StoreError, match=r"worker processes have ended, the last by signal 9"):
                await swapped()
            group.cancel_scope.cancel()
        assert ended > MOST_ENDED

    running(notes, work, store=TWO)


def test_a_worker_that_does_not_answer_is_replaced(
    notes: CosmosDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was stopped, and nobody lets it go on."""
    monkeypatch.setattr(module, "SILENT_S", 4.0)

    async def work(run: Run) -> None:
        batch = renewed(await run.page())
        before = await warmed(run, batch)
        os.kill(before[0], signal.SIGSTOP)
        assert await run.swap(batch.part(list(range(WARM, COUNT)))) == COUNT - WARM
        assert before[0] not in workers_of(run).pids

    running(notes, work, store=TWO)
    assert set(bodies(notes).values()) == {f"new v1:{at}" for at in range(COUNT)}


def test_what_is_given_up_is_not_sent_any_more(notes: CosmosDatabase, cosmos_proxy: FaultProxy) -> None:
    """The run is ended in mid-batch: once that is through, nothing of it comes in."""
    counted = 0

    async def work(run: Run) -> None:
        nonlocal counted
        notes.upsert("notes", *({"id": f"m{at:03}", "body": f"v1:{at}"} for at in range(300)))
        batch = renewed(await run.page(400))
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(_cancelled, scope)
                await run.swap(batch)
        counted = cosmos_proxy.counts()["patch"]
        # whatever had left a worker by then has arrived
        await run.page()
        await asyncio.sleep(0.5)

    async def _cancelled(scope: anyio.CancelScope) -> None:
        await until(lambda: cosmos_proxy.counts()["patch"] >= 20)
        scope.cancel()

    running(notes, work, endpoint=cosmos_proxy.endpoint, store=TWO)
    assert cosmos_proxy.counts()["patch"] - counted <= 16
    assert 20 <= counted < 312
