"""How many rows a batch has: by how long batches take, and no more than the job says."""

from __future__ import annotations

import anyio
import pytest

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
