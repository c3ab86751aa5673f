"""The gate: what uses up a budget passes it, attempt by attempt, and it always knows why it makes them wait.

A budget is a database server's, an account's or a vault's. A passage waits in three ways: while somebody
holds the gate, for its turn (so much a second), and for a free place (so many at once).
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import anyio

BACKOFF_S = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds to pause where a service does not say how long."""

BURST_S = 0.25
"""Seconds of turns that may be taken at once: a gate that was idle owes its callers no more."""

STEP_S = 0.25
"""Seconds between two looks at whether a held gate is open again, and its caller still wants to pass."""


class GivenUp(Exception):
    """Who waited does not want to pass any more: the run is to stop."""


def never() -> bool:
    """Waits as long as it takes."""
    return False


@dataclass(frozen=True, slots=True)
class Cap:
    """A rate that is not to be passed, and why, as what callers are held back by."""

    rate: float
    why: str


class Share(Protocol):
    """A part of a budget that other processes use too; see `rewrap.pace.shared`."""

    @property
    def piece(self) -> float:
        """Units that come together."""
        ...

    @property
    def reason(self) -> str:
        """What those who wait for units are held back by; empty when none waits."""
        ...

    async def take(self, cost: float, giving_up: Callable[[], bool]) -> bool:
        """Waits for units and takes them; False when its caller gave up."""
        ...

    def give_back(self, units: float) -> None: ...

    def charged(self, more: float) -> None:
        """An attempt cost so much more than was taken for it."""
        ...


@dataclass(slots=True)
class Passage:
    """One attempt on its way. Tell it what came of the attempt; what was assumed of its cost is corrected."""

    gate: Gate
    cost: float

    def accepted(self, charge: float | None = None) -> None:
        """It was done, at this cost in the gate's unit: as assumed, where nobody says."""
        self.gate.accepted(self.cost, self.cost if charge is None else charge)

    def throttled(self, retry_after_s: float | None, charge: float = 0.0) -> float:
        """It was too much for the service: all pause. Seconds that will have passed without anything done."""
        return self.gate.throttled(retry_after_s, self.cost, charge)


class Gate:
    """The way to one budget. `unit` is what is counted: rows, RU, calls.

    `clock` is in seconds and never goes back; `sleep` waits that many; `chance` gives numbers from 0 to 1.
    """

    def __init__(
        self,
        name: str,
        unit: str,
        in_flight: int,
        *,
        budget: Cap | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self.unit = unit
        self.share: Share | None = None
        self.spent = 0.0
        self.attempts = 0
        self._clock, self._sleep, self._chance = clock, sleep, chance
        self._places = anyio.CapacityLimiter(in_flight)
        self._caps: dict[str, Cap] = {} if budget is None else {"budget": budget}
        self._holds: dict[str, str] = {}
        self._slot = 0.0
        self._paused_until = 0.0
        self._pause_why = ""
        self._troubled_since: float | None = None
        self._troubles = 0
        self._waiting = 0
        self._under_way = 0

    # the way through

    @asynccontextmanager
    async def passed(
        self, cost: float = 1.0, *, giving_up: Callable[[], bool] = never
    ) -> AsyncIterator[Passage]:
        """Held while one attempt is under way. Raises GivenUp when its caller no longer wants to wait."""
        here = object()
        self._waiting += 1
        try:
            # the place first: a pause may begin while it is waited for, and is kept
            await self._places.acquire_on_behalf_of(here)
            try:
                await self._admitted(cost, giving_up)
            except BaseException:
                self._places.release_on_behalf_of(here)
                raise
        finally:
            self._waiting -= 1
        self.attempts += 1
        self._under_way += 1
        try:
            yield Passage(self, cost)
        finally:
            self._under_way -= 1
            self._places.release_on_behalf_of(here)

    @asynccontextmanager
    async def ahead(self) -> AsyncIterator[Passage]:
        """As `passed`, for what keeps a lease alive: only a service's own pause makes it wait.

        What it costs is taken from the turns of the others.
        """
        self._waiting += 1
        try:
            while (left := self._paused_until - self._clock()) > 0:
                await self._sleep(left)
        finally:
            self._waiting -= 1
        self.attempts += 1
        self._under_way += 1
        try:
            yield Passage(self, 0.0)
        finally:
            self._under_way -= 1

    async def wait(self, cost: float, *, giving_up: Callable[[], bool] = never) -> None:
        """Waits for a turn of this cost, without taking a place: for what loads a service little."""
        self._waiting += 1
        try:
            await self._admitted(cost, giving_up)
        finally:
            self._waiting -= 1

    async def _admitted(self, cost: float, giving_up: Callable[[], bool]) -> None:
        await self._turn(cost, giving_up)
        if self.share is not None:
            if not await self.share.take(cost, giving_up):
                raise GivenUp
            # somebody may have shut the gate meanwhile
            await self._open(giving_up)

    async def _open(self, giving_up: Callable[[], bool]) -> None:
        while self._holds or self._clock() < self._paused_until:
            if giving_up():
                raise GivenUp
            await self._sleep(STEP_S)

    def give_back(self, cost: float) -> None:
        """Takes back what a turn was too dear."""
        if self.share is not None:
            self.share.give_back(cost)
        cap = self._lowest()
        if cap is not None:
            self._slot -= cost / cap.rate

    async def _turn(self, cost: float, giving_up: Callable[[], bool]) -> None:
        taken: float | None = None
        while True:
            now = self._clock()
            cap = self._lowest()
            if self._holds:
                wait = STEP_S
            elif now < self._paused_until:
                # not all in the same moment: what was throttled together would be throttled again
                left = self._paused_until - now
                wait = left + self._chance() * min(left, 0.1)
            else:
                if taken is None and cap is not None:
                    taken = max(self._slot, now - BURST_S)
                    self._slot = taken + cost / cap.rate
                wait = (taken or 0.0) - now
                if wait <= 0:
                    return
            if giving_up():
                raise GivenUp
            await self._sleep(min(wait, STEP_S))

    # what comes back

    def accepted(self, cost: float, charge: float) -> None:
        """The service did what it was asked; `cost` was assumed of it."""
        self._troubled_since, self._troubles = None, 0
        self._charged(cost, charge)

    def throttled(self, retry_after_s: float | None, cost: float = 0.0, charge: float = 0.0) -> float:
        """The service said that it is too much: all pause.

        The result is how many seconds will have passed by then since it last did anything.
        """
        self._charged(cost, charge)
        return self.failed(f"throttling by {self.name}", retry_after_s)

    def failed(self, why: str, retry_after_s: float | None = None) -> float:
        """The service did not do it, and may later: all pause. The result is as of `throttled`."""
        now = self._clock()
        if self._troubled_since is None:
            self._troubled_since = now
        if retry_after_s is not None:
            self.pause(retry_after_s, why)
            self._troubles += 1
        elif now >= self._paused_until:
            # attempts that were under way together are one event, however many of them come back
            self.pause(BACKOFF_S[min(self._troubles, len(BACKOFF_S) - 1)], why)
            self._troubles += 1
        return self._paused_until - self._troubled_since

    def _charged(self, cost: float, charge: float) -> None:
        self.spent += charge
        if self.share is not None and charge != cost:
            self.share.charged(charge - cost)
        cap = self._lowest()
        if cap is not None:
            self._slot += (charge - cost) / cap.rate

    # hands on it

    def pause(self, seconds: float, why: str) -> None:
        """Nothing passes for some seconds, for a reason."""
        until = self._clock() + seconds
        if until > self._paused_until:
            self._paused_until, self._pause_why = until, why

    def hold(self, who: str, why: str) -> None:
        """Nothing passes until `who` lets go; `why` is what callers are then held back by."""
        self._holds[who] = why

    def let_go(self, who: str) -> None:
        self._holds.pop(who, None)

    def cap(self, who: str, cap: Cap | None) -> None:
        """A rate, in units a second, that `who` wants kept; None is none. The lowest of all is kept."""
        if cap is None:
            self._caps.pop(who, None)
            return
        self._caps[who] = cap
        # a turn far ahead was reckoned at another rate
        self._slot = min(self._slot, self._clock() + 1.0)

    def set_in_flight(self, places: int) -> None:
        """How many may be under way at once."""
        self._places.total_tokens = places

    # what it says

    @property
    def in_flight(self) -> int:
        """How many may be under way at once."""
        return int(self._places.total_tokens)

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return self._under_way == 0

    @property
    def held(self) -> bool:
        return bool(self._holds)

    @property
    def rate(self) -> float | None:
        """Units a second that it lets through at most; None: nobody caps it."""
        cap = self._lowest()
        return None if cap is None else cap.rate

    @property
    def limit(self) -> Cap | None:
        """The lowest of its caps, with why it is there."""
        return self._lowest()

    @property
    def reason(self) -> str:
        """What callers wait for now, as what they are held back by; empty when none waits."""
        if not self._waiting:
            return ""
        if self._holds:
            return next(iter(self._holds.values()))
        now = self._clock()
        if now < self._paused_until:
            return f"{self._pause_why}, for {self._paused_until - now:.0f} s more"
        cap = self._lowest()
        if cap is not None and self._slot > now:
            return cap.why
        if self.share is not None and self.share.reason:
            return self.share.reason
        if self._places.available_tokens < 1:
            return f"{self._places.total_tokens:.0f} under way in {self.name}"
        return ""

    def _lowest(self) -> Cap | None:
        return min(self._caps.values(), key=lambda cap: cap.rate, default=None)
