"""The pace of one store's work: the gate that pages and batches pass, and how many rows a batch has."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from rewrap.pace.gate import Cap, Gate, GivenUp
from rewrap.pace.section import Pace

__all__ = ["GivenUp", "Pacer"]


STEP_S = 0.5
"""Seconds of work that a batch is at most, at the rate that is kept."""


class Pacer:
    """What a store's shards ask before they read and before they write. The unit is a row."""

    def __init__(self, store: str, pace: Pace, shards: int, stopping: Callable[[], bool]) -> None:
        self.store = store
        self.gate = Gate(store, "rows", pace.in_flight or shards)
        self._batch_size = pace.batch_size
        self._stopping = stopping
        if pace.max_rate is not None:
            self.gate.cap("job", Cap(pace.max_rate, f"max_rate of {pace.max_rate:,.0f} rows/s"))

    @property
    def batch_size(self) -> int:
        """Rows to read with the next page."""
        rate, share = self.gate.rate, self.gate.share
        # a slow pace in small steps: a page is read, and paid for, all at once
        rows = self._batch_size if rate is None else min(self._batch_size, int(rate * STEP_S))
        return max(1, rows if share is None else min(rows, int(share.piece)))

    async def before_reading(self, rows: int) -> None:
        """Waits until so many rows may be read, and then written. Raises GivenUp on a stop."""
        await self.gate.wait(rows, giving_up=self._stopping)

    def unread(self, rows: int) -> None:
        """So many rows of those asked for were not there."""
        self.gate.give_back(rows)

    @asynccontextmanager
    async def writing(self, rows: int, *, again: bool) -> AsyncIterator[None]:
        """Held while a batch is written; `again`, when an earlier attempt at it came to nothing.

        Raises GivenUp on a stop.
        """
        # a row paid for both when it was read
        async with self.gate.passed(rows if again else 0, giving_up=self._stopping) as passage:
            yield
            passage.accepted()
