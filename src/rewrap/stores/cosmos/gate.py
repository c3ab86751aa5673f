"""The gate: every request to an account passes it, whoever sends it, and so none of them can outrun the pace.

It bounds how many requests are on their way at once, stops all of them when the account throttles one, and
adds up what they cost. It always knows why it waits.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio

DEFAULT_PAUSE_S = 0.5
"""Seconds to wait after a 429 that names no time; doubled with each further one in a row."""

MAX_PAUSE_S = 30.0
"""Longest pause of one 429, in seconds, whatever it asks for."""

THROTTLED = "throttling by the account"
"""What is said while the gate is shut."""


class Gate:
    """Lets at most `in_flight` requests through at once, and none while the account wants none."""

    def __init__(
        self,
        in_flight: int,
        *,
        clock: Callable[[], float] = anyio.current_time,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._slots = anyio.Semaphore(in_flight)
        self._clock = clock
        self._sleep = sleep
        self._chance = chance
        self._opens_at = 0.0
        self._in_a_row = 0
        self._throttled_since: float | None = None
        self.request_units = 0.0
        self.requests = 0

    @asynccontextmanager
    async def passed(self) -> AsyncIterator[None]:
        """Held while one request is on its way."""
        async with self._slots:
            while (left := self._opens_at - self._clock()) > 0:
                # not all in the same moment: what was throttled together would be throttled again
                await self._sleep(left + self._chance() * min(left, 0.1))
            self.requests += 1
            yield

    def throttled(self, retry_after_s: float | None) -> None:
        """Shuts the gate for a while: one request was answered with 429."""
        now = self._clock()
        if self._throttled_since is None:
            self._throttled_since = now
        if retry_after_s is None:
            retry_after_s = DEFAULT_PAUSE_S * 2 ** min(self._in_a_row, 5)
        if now >= self._opens_at:
            # those that were on their way together count as one
            self._in_a_row += 1
        pause = min(retry_after_s, MAX_PAUSE_S) * (1 + self._chance() / 4)
        self._opens_at = max(self._opens_at, now + pause)

    def answered(self, request_units: float) -> None:
        """Notes a request that was not throttled, and what it cost."""
        self._throttled_since = None
        self._in_a_row = 0
        self.request_units += request_units

    def charged(self, request_units: float) -> None:
        """Adds the cost of a request that came to nothing."""
        self.request_units += request_units

    @property
    def waiting_for(self) -> str:
        """What the gate waits for; empty when it is open."""
        return THROTTLED if self._throttled_since is not None else ""
