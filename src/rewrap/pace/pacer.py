"""The pace of one store's work: the gate that pages and batches pass, and how many rows a batch has."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from rewrap.pace.gate import Cap, Gate, GivenUp
from rewrap.pace.section import Pace

__all__ = ["GivenUp", "Pacer"]


STEP_S = 0.5
"""Seconds of work that a batch is at most, at the rate that is kept."""

SMALLEST_AIMED = 50
"""Rows that a batch has at the least for the sake of its duration: each has a cost of its own."""

SMOOTHING = 0.3
"""Weight of the newest batch in what a row takes on average."""

_FORGETS = 1.02
"""Factor by which what a row takes at the least grows with each batch: what was so once may not be so now."""


class Pacer:
    """What a store's shards ask before they read and before they write. The unit is a row."""

    def __init__(
        self, store: str, pace: Pace, shards: int, stopping: Callable[[], bool], *, locks: bool = True
    ) -> None:
        """`locks`: whether others wait for a whole batch, since its rows are written in one transaction."""
        self.store = store
        self.gate = Gate(store, "rows", pace.in_flight or shards)
        self._shards = shards
        self._batch_size = pace.batch_size
        self._eased: int | None = None
        self._in_flight = self.gate.in_flight
        self._stopping = stopping
        self.rows = self.statements = 0
        self.row_s: float | None = None
        """Seconds that a row takes to be written where nothing is waited for: the least of late."""
        self._reads = 0
        self._locks = locks
        self._mean_s: float | None = None
        self._aimed = pace.batch_size
        self.keep(pace)

    def keep(self, pace: Pace, by: str = "") -> None:
        """Keeps to a pace from now on; `by` is who set its rate, where it is not the job's."""
        self._batch_size = self._aimed = pace.batch_size
        self._target_s = pace.target_s if self._locks else None
        self._in_flight = pace.in_flight or self._shards
        self.gate.set_in_flight(self._in_flight if self._eased is None else 1)
        cap = None
        if pace.max_rate is not None:
            cap = Cap(pace.max_rate, f"max_rate of {pace.max_rate:,g} rows/s{by and f', set by {by}'}")
        self.gate.cap("job", cap)

    @property
    def idle(self) -> bool:
        """Whether nothing is being read or written."""
        return not self._reads and self.gate.idle

    @property
    def budget(self) -> dict[str, Any]:
        """What it keeps to now, and what it waits for: names, numbers and words."""
        limit = self.gate.limit
        return {
            "name": self.gate.name,
            "unit": self.gate.unit,
            "rate": None if limit is None else limit.rate,
            "why": "" if limit is None else limit.why,
            "in_flight": self.gate.in_flight,
            "batch_size": self.batch_size,
            "waiting_for": self.gate.reason,
        }

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Held while a page is read."""
        self._reads += 1
        try:
            yield
        finally:
            self._reads -= 1

    @property
    def batch_size(self) -> int:
        """Rows to read with the next page."""
        rate, share = self.gate.rate, self.gate.share
        size = self._aimed if self._eased is None else min(self._aimed, self._eased)
        # a slow pace in small steps: a page is read, and paid for, all at once
        rows = size if rate is None else min(size, int(rate * STEP_S))
        return max(1, rows if share is None else min(rows, int(share.piece)))

    def ease(self, batch_size: int | None) -> None:
        """So many rows a batch at most, and one batch at a time; None ends that."""
        if (batch_size is None) != (self._eased is None):
            # what a row takes in a batch of another size says little
            self.row_s = self._mean_s = None
            self.gate.set_in_flight(self._in_flight if batch_size is None else 1)
        self._eased = batch_size

    async def before_reading(self, rows: int) -> None:
        """Waits until so many rows may be read, and then written. Raises GivenUp on a stop."""
        await self.gate.wait(rows, giving_up=self._stopping)
        self.statements += 1

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
            began = time.monotonic()
            yield
            passage.accepted()
            self.rows += rows
            self.statements += 1
            if rows:
                self._took(rows, time.monotonic() - began)

    def _took(self, rows: int, seconds: float) -> None:
        """Learns from a batch what a row takes, and how many of them a batch may have."""
        row_s = seconds / rows
        self.row_s = row_s if self.row_s is None else min(row_s, self.row_s * _FORGETS)
        self._mean_s = row_s if self._mean_s is None else self._mean_s + SMOOTHING * (row_s - self._mean_s)
        if self._target_s is None or self._eased is not None:
            return
        wanted = self._target_s / max(self._mean_s, 1e-9)
        # by halves, so that there are few sizes: each is a statement of its own to a server
        if wanted < self._aimed / 1.5:
            self._aimed = max(min(SMALLEST_AIMED, self._batch_size), self._aimed // 2)
        elif wanted > self._aimed * 2.5:
            self._aimed = min(self._batch_size, self._aimed * 2)
