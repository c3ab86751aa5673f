"""How many rows a batch has: by how long batches take, and no more than the job says."""

from __future__ import annotations

import anyio
import pytest
from benchmarks.simulated import run

from rewrap.pace.gate import Cap, Gate
from rewrap.pace.pacer import Pacer
from rewrap.pace.section import Pace


def never() -> bool:
    return False


def sizes(pacer: Pacer, row_s: float, batches: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of each batch, where a row takes so long."""
    now = [0.0]
    monkeypatch.setattr("rewrap.pace.pacer.time.monotonic", lambda: now[0])

    async def work() -> list[int]:
        found = []
        for _ in range(batches):
            rows = pacer.batch_size
            found.append(rows)
            async with pacer.writing(rows, again=False):
                now[0] += rows * row_s
        return found

    return anyio.run(work)


def test_batches_that_take_too_long_get_smaller_and_grow_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of a second is the aim: within a factor of two and a half of it, and never over batch_size."""
    pacer = Pacer("db", Pace(batch_size=1_000), 4, never)
    assert set(sizes(pacer, 2e-5, 10, monkeypatch)) == {1_000}
    slow = sizes(pacer, 1e-3, 30, monkeypatch)
    assert slow[0] == 1_000
    assert 50 <= slow[-1] <= 150
    assert sizes(pacer, 2e-5, 40, monkeypatch)[-1] == 1_000


def test_a_batch_has_fifty_rows_at_the_least(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a row takes; and fewer only where the job says so."""
    assert sizes(Pacer("db", Pace(batch_size=1_000), 4, never), 1.0, 20, monkeypatch)[-1] == 50
    assert sizes(Pacer("db", Pace(batch_size=10), 4, never), 1.0, 20, monkeypatch)[-1] == 10


def test_documents_are_written_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a whole batch of them: its size stays."""
    pacer = Pacer("account", Pace(batch_size=1_000), 4, never, locks=False)
    assert set(sizes(pacer, 1.0, 20, monkeypatch)) == {1_000}


@pytest.mark.parametrize("rows", [1, 100, 1_000])
def test_a_rate_is_kept_by_several_that_wait_while_others_look_after_it(rows: int) -> None:
    """Four shards wait all the time, and what watches a server sets and lifts caps of its own beside them."""

    async def work() -> int:
        gate = Gate("db", "rows", 4, clock=anyio.current_time)
        gate.cap("job", Cap(200.0, "max_rate"))
        passed = [0]

        async def shard() -> None:
            while True:
                await gate.wait(rows)
                passed[0] += rows

        async def watch() -> None:
            while True:
                await anyio.sleep(0.25)
                gate.cap("health", None)
                gate.cap("others", Cap(5_000.0, "others"))
                gate.hold("others", "a look")
                gate.let_go("others")

        with anyio.move_on_after(100):
            async with anyio.create_task_group() as group:
                for _ in range(4):
                    group.start_soon(shard)
                group.start_soon(watch)
        return passed[0]

    found: int = run(work)
    assert 20_000 * 0.95 <= found <= 20_000 + 200 + 2 * rows


def test_a_rate_that_falls_does_not_make_wait_for_what_another_had_room_for() -> None:
    """Four thousand rows were asked for at 4,000 a second: at 10 they are not waited for 400 s."""

    async def work() -> float:
        gate = Gate("db", "rows", 4, clock=anyio.current_time)
        gate.cap("job", Cap(4_000.0, "max_rate"))
        passed: list[float] = []

        async def shard() -> None:
            for _ in range(2):
                await gate.wait(1_000)
                passed.append(anyio.current_time())

        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(shard)
            await anyio.sleep(0.01)
            gate.cap("job", Cap(10.0, "max_rate"))
            await anyio.sleep(20)
            group.cancel_scope.cancel()
        return len(passed)

    assert run(work) >= 4
