"""How fast a remote key is called: one gate for a service, which always knows why it makes callers wait.

A call waits for its turn in three ways: for a free place (calls under way), for its slot (calls a second),
and for the end of a pause that the service asked for. A pause is everybody's: the service counts all callers
as one.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio

BACKOFF_S = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds to pause where a service does not say how long: the steps that Key Vault's own guide names."""

_BURST_S = 0.25
"""Seconds of slots that may be taken at once: a gate that was idle does not owe its callers an hour."""

_FALL, _HOLD_S, _STEP = 0.98, 4.0, 0.02
"""After a throttled call the rate is what the service just accepted, less 2 %; it holds for 4 s, then grows
by 2, 4, 8 … 50 % a second."""

_WINDOW_S = 2.0
"""Seconds over which accepted calls are counted for that."""

_LEAST_PER_S = 1.0


class Gate:
    """The way to one service: at most `calls_per_s` and `in_flight`, and no call while it asks for a pause.

    `clock` is in seconds and never goes back; `sleep` waits that many.
    """

    def __init__(
        self,
        calls_per_s: float,
        in_flight: int,
        budget: str = "",
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self._budget = calls_per_s
        self._of = budget
        self._clock, self._sleep = clock, sleep
        self._places = anyio.CapacityLimiter(in_flight)
        self._rate = calls_per_s
        self._slot = 0.0
        self._paused_until = 0.0
        self._why = ""
        self._troubled_since: float | None = None
        self._troubles = 0
        self._accepted: list[float] = []
        self._grown_at = 0.0
        self._growth = _STEP
        self._waiting = 0

    @property
    def budget(self) -> float:
        """Calls a second that it may make at most."""
        return self._budget

    @property
    def named(self) -> str:
        """The budget in words, with where it comes from."""
        return f"{self._budget:,.0f} calls/s: {self._of}"

    def set_budget(self, calls_per_s: float, budget: str) -> None:
        """Another budget, once it is known what kind of key is called."""
        self._budget, self._of = calls_per_s, budget
        self._rate = min(self._rate, calls_per_s) if self._troubled_since is not None else calls_per_s

    @property
    def reason(self) -> str:
        """What callers wait for now, as what they are held back by; empty when none waits."""
        if not self._waiting:
            return ""
        now = self._clock()
        if now < self._paused_until:
            return f"{self._why}, for {self._paused_until - now:.0f} s more"
        if self._places.available_tokens < 1 and self._slot <= now:
            return f"{self._places.total_tokens:.0f} calls under way"
        slower = " after it was throttled" if self._rate < self._budget else ""
        return f"the pace of {self._rate:,.0f} calls/s{slower or (self._of and f' ({self._of})')}"

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Waits until a call may be made, and holds its place while it is under way."""
        self._waiting += 1
        try:
            await self._places.acquire_on_behalf_of(here := object())
            try:
                await self._wait_for_slot()
            except BaseException:
                self._places.release_on_behalf_of(here)
                raise
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._places.release_on_behalf_of(here)

    async def _wait_for_slot(self) -> None:
        while True:
            now = self._clock()
            if now < self._paused_until:
                await self._sleep(self._paused_until - now)
                continue
            self._grow(now)
            self._slot = max(self._slot, now - _BURST_S)
            wait = self._slot - now
            self._slot += 1 / self._rate
            if wait > 0:
                await self._sleep(wait)
            # a pause may have begun meanwhile, and is kept; the slot is lost, which only slows
            if self._clock() >= self._paused_until:
                return

    def accepted(self) -> None:
        """The service did what it was asked."""
        now = self._clock()
        self._troubled_since, self._troubles = None, 0
        self._accepted.append(now)
        if len(self._accepted) > 4 * self._budget * _WINDOW_S + 16:
            self._accepted = self._recent(now)

    def throttled(self, retry_after_s: float | None) -> float:
        """The service said that it is too much: all pause, and go on more slowly.

        The result is how many seconds will have passed by then since it last accepted anything.
        """
        now = self._clock()
        if now >= self._paused_until:
            # calls that were under way together are one event, however many of them come back
            recent = len(self._recent(now)) / _WINDOW_S
            self._rate = max(_LEAST_PER_S, min(self._rate, recent or self._rate / 2) * _FALL)
            self._grown_at, self._growth = now + _HOLD_S, _STEP
        return self.failed("the vault's throttling", retry_after_s)

    def failed(self, why: str, retry_after_s: float | None = None) -> float:
        """The service did not do it, and may later: all pause. The result is as of `throttled`."""
        now = self._clock()
        if self._troubled_since is None:
            self._troubled_since = now
        if retry_after_s is not None:
            self.pause(retry_after_s, why)
            self._troubles += 1
        elif now >= self._paused_until:
            self.pause(BACKOFF_S[min(self._troubles, len(BACKOFF_S) - 1)], why)
            self._troubles += 1
        return self._paused_until - self._troubled_since

    def pause(self, seconds: float, why: str) -> None:
        """No call for some seconds, for a reason."""
        until = self._clock() + seconds
        if until > self._paused_until:
            self._paused_until, self._why = until, why

    def _recent(self, now: float) -> list[float]:
        return [at for at in self._accepted if at > now - _WINDOW_S]

    def _grow(self, now: float) -> None:
        if self._rate >= self._budget or now < self._grown_at + 1:
            return
        self._rate = min(self._budget, self._rate * (1 + self._growth))
        self._growth, self._grown_at = min(0.5, 2 * self._growth), now
