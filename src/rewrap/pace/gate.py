"""The gate: what uses up a budget passes it, attempt by attempt, and it always knows why it makes them wait.

A budget is a database server's, an account's or a vault's. A passage waits in three ways: for a free place
(so many at once), while somebody holds the gate or the service wants a pause, and for its turn (so much a
second: the lowest of the caps, and what the service was found to take).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType

import anyio

from rewrap.pace.law import SHORTEST_S, Law
from rewrap.pace.places import Places
from rewrap.pace.terms import Cap, GivenUp, Share, never

__all__ = ["Cap", "Gate", "GivenUp", "Passage", "Share", "never"]

BACKOFF_S = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds to pause where a service does not say how long."""

BURST_S = 0.25
"""Seconds of turns that may be taken at once: a gate that was idle owes its callers no more."""

STEP_S = 0.25
"""Seconds between two looks at whether a held gate is open again, and its caller still wants to pass."""

PROBE_STEP_S = 0.02
"""Seconds between two looks at what came of the one attempt that tries a service again."""

SMOOTHING = 0.1
"""The weight of the newest attempt in what attempts cost, and how long they take."""

REFUSALS_SMOOTHING, SHARE_DOUBTED = 0.001, 0.25
"""The weight of each attempt in the share of those that are throttled, and from where on that says that a
shared budget is more than the service has to give."""


class Passage:
    """One attempt on its way. Tell it what came of the attempt; what was assumed of its cost is corrected.

    `began` is the gate's clock when it was let through.
    """

    __slots__ = ("_ahead", "_giving_up", "began", "cost", "gate")

    def __init__(
        self, gate: Gate, cost: float, giving_up: Callable[[], bool] = never, *, ahead: bool = False
    ) -> None:
        self.gate = gate
        self.cost = cost
        self.began = gate._clock()
        self._giving_up = giving_up
        self._ahead = ahead

    async def __aenter__(self) -> Passage:
        if self._ahead:
            await self.gate._enter_ahead()
        else:
            await self.gate._enter(self.cost, self._giving_up)
        self.began = self.gate._clock()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.gate._leave(placed=not self._ahead)

    def accepted(self, charge: float | None = None) -> None:
        """It was done, at this cost in the gate's unit: as assumed, where nobody says."""
        self.gate.accepted(self.cost, self.cost if charge is None else charge, began=self.began)

    def throttled(self, retry_after_s: float | None, charge: float = 0.0) -> float:
        """It was too much for the service: all pause. Seconds that will have passed without anything done."""
        return self.gate.throttled(retry_after_s, self.cost, charge, began=self.began)


class Gate:
    """The way to one budget. `unit` is what is counted: rows, RU, calls.

    `clock` is in seconds and never goes back; `sleep` waits that many; `chance` gives numbers from 0 to 1.
    `backoff` is how long to pause where the service does not say, each time that it throttles in a row.
    """

    def __init__(
        self,
        name: str,
        unit: str,
        in_flight: int,
        *,
        budget: Cap | None = None,
        backoff: Sequence[float] = BACKOFF_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self.unit = unit
        self.share: Share | None = None
        self.spent = 0.0
        self.attempts = 0
        self.throttlings = 0
        self._clock, self._sleep, self._chance = clock, sleep, chance
        self._backoff = backoff
        self._caps: dict[str, Cap] = {} if budget is None else {"budget": budget}
        self._holds: dict[str, str] = {}
        self._law = Law(clock())
        self._refusals = 0.0
        # turns are places in a line of units: what was asked for, and how far in it passages may be
        self._asked = 0.0
        self._allowed = 0.0
        self._at = 0.0
        self._rate: float | None = None
        self._paused_until = 0.0
        self._pause_why = ""
        self._probing = False
        self._troubled_since: float | None = None
        self._troubles = 0
        self._cost: float | None = None
        self._took_s: float | None = None
        self._most = in_flight
        self._places = Places(in_flight)
        self._waiting = 0
        self._under_way = 0
        self._set_rate(self._clock())

    # the way through

    def passed(self, cost: float | None = 1.0, *, giving_up: Callable[[], bool] = never) -> Passage:
        """Held, as an asynchronous context, while one attempt is under way.

        A `cost` of None is what attempts have cost lately. Raises GivenUp when its caller no longer wants to
        wait.
        """
        return Passage(self, self.typical if cost is None else cost, giving_up)

    def ahead(self) -> Passage:
        """As `passed`, for what keeps a lease alive: only a service's own pause makes it wait.

        What it costs is taken from the turns of the others.
        """
        return Passage(self, 0.0, never, ahead=True)

    async def wait(self, cost: float, *, giving_up: Callable[[], bool] = never) -> None:
        """Waits for a turn of this cost, without taking a place: for what loads a service little."""
        self._waiting += 1
        try:
            await self._admitted(cost, giving_up)
        finally:
            self._waiting -= 1

    def give_back(self, cost: float) -> None:
        """Takes back what a turn was too dear."""
        if self.share is not None:
            self.share.give_back(cost)
        self._refill(self._clock())
        self._allowed += cost

    async def _enter(self, cost: float, giving_up: Callable[[], bool]) -> None:
        self._waiting += 1
        try:
            # the place first: a pause may begin while it is waited for, and is kept
            if not self._places.taken_at_once() and not await self._places.taken(giving_up):
                raise GivenUp
            try:
                await self._admitted(cost, giving_up)
            except BaseException:
                self._places.free()
                raise
        finally:
            self._waiting -= 1
        self.attempts += 1
        self._under_way += 1

    async def _enter_ahead(self) -> None:
        self._waiting += 1
        try:
            while (left := self._paused_until - self._clock()) > 0:
                await self._sleep(left)
        finally:
            self._waiting -= 1
        self.attempts += 1
        self._under_way += 1

    def _leave(self, *, placed: bool) -> None:
        self._under_way -= 1
        if placed:
            self._places.free()

    async def _admitted(self, cost: float, giving_up: Callable[[], bool]) -> None:
        await self._turn(cost, giving_up)
        if self.share is not None:
            if not await self.share.take(cost, giving_up):
                raise GivenUp
            # somebody may have shut the gate meanwhile
            while self._holds or self._clock() < self._paused_until:
                if giving_up():
                    raise GivenUp
                await self._sleep(STEP_S)

    async def _turn(self, cost: float, giving_up: Callable[[], bool]) -> None:
        now = self._clock()
        self._refill(now)
        turn = self._asked
        self._asked += cost
        try:
            while (wait := self._wait_s(now, turn, cost)) > 0:
                if giving_up():
                    raise GivenUp
                await self._sleep(min(wait, STEP_S))
                now = self._clock()
                self._refill(now)
        except BaseException:
            self._allowed += cost
            raise

    def _wait_s(self, now: float, turn: float, cost: float) -> float:
        """Seconds until this turn may come; 0 when it is there."""
        if self._holds:
            return STEP_S
        if now < self._paused_until:
            # not all in the same moment: what was throttled together would be throttled again
            left = self._paused_until - now
            return left + self._chance() * min(left, 0.1)
        if self._probing and self._under_way:
            return PROBE_STEP_S
        # what costs nothing is paid for
        if self._rate is None or not cost or turn <= self._allowed:
            return 0.0
        # rounded up: a sleep of less than a clock can tell would never end
        return max((turn - self._allowed) / self._rate, 1e-6)

    def _refill(self, now: float) -> None:
        """Moves the line on by what time has brought; none comes while the gate is held or paused."""
        if self._law.grown(now):
            self._set_rate(now)
        rate = self._rate
        if rate is None:
            self._allowed = self._asked
        else:
            if not self._holds and now > self._paused_until:
                self._allowed += (now - max(self._at, self._paused_until)) * rate
            if self._allowed > self._asked + rate * BURST_S:
                self._allowed = self._asked + rate * BURST_S
        self._at = now

    # what comes back

    def accepted(self, cost: float, charge: float, *, began: float | None = None) -> None:
        """The service did what it was asked; `cost` was assumed of it, and it `began` then."""
        self._charged(cost, charge)
        self._refusals -= REFUSALS_SMOOTHING * self._refusals
        self._cost = charge if self._cost is None else self._cost + SMOOTHING * (charge - self._cost)
        now = self._clock()
        rate = self._law.rate
        self._law.accepted(charge, now if began is None else began)
        if self._law.rate != rate:
            self._set_rate(now)
        if began is not None:
            took = now - began
            self._took_s = took if self._took_s is None else self._took_s + SMOOTHING * (took - self._took_s)
            if not self._law.is_news(began):
                # it was under way when the service throttled another: that tells nothing of now
                return
        self._troubled_since, self._troubles, self._probing = None, 0, False

    def throttled(
        self,
        retry_after_s: float | None,
        cost: float = 0.0,
        charge: float = 0.0,
        *,
        began: float | None = None,
    ) -> float:
        """The service said that it is too much: all pause, and go on at what it was found to take.

        The result is how many seconds will have passed by then since it last did anything.
        """
        now = self._clock()
        why = f"throttling by {self.name}"
        self.throttlings += 1
        self._refusals += REFUSALS_SMOOTHING * (1 - self._refusals)
        self._law.refused()
        self._refill(now)
        self._charged(cost, charge)
        # attempts that were under way together are one event, however many of them come back
        news = now >= self._paused_until if began is None else self._law.is_news(began)
        if self._troubled_since is None:
            self._troubled_since = now
        if news:
            closely = self._law.closely(now)
            if self._probing:
                self._law.tried(now)
            else:
                if self.share is None or self._refusals > SHARE_DOUBTED:
                    # a part of a budget comes in pieces: a steady rate of its own would let them lapse
                    self._law.throttled(now, retry_after_s, self.typical)
                self._set_rate(now)
            if retry_after_s is None:
                self.pause(self._backoff[min(self._troubles, len(self._backoff) - 1)], why)
                self._probing = True
            elif closely:
                # what a service takes can be told only over a while
                retry_after_s = max(retry_after_s, SHORTEST_S / 2)
            self._troubles += 1
        if retry_after_s is not None:
            self.pause(retry_after_s, why)
        return self._paused_until - self._troubled_since

    def _charged(self, cost: float, charge: float) -> None:
        self.spent += charge
        self._allowed += cost - charge
        if self.share is not None and charge != cost:
            self.share.charged(charge - cost)

    def failed(self, why: str, retry_after_s: float | None = None) -> float:
        """The service did not do it, and may later: all pause. The result is as of `throttled`."""
        now = self._clock()
        if self._troubled_since is None:
            self._troubled_since = now
        if retry_after_s is not None:
            self.pause(retry_after_s, why)
            self._troubles += 1
        elif now >= self._paused_until:
            self.pause(self._backoff[min(self._troubles, len(self._backoff) - 1)], why)
            self._troubles += 1
        return self._paused_until - self._troubled_since

    # hands on it

    def pause(self, seconds: float, why: str) -> None:
        """Nothing passes for some seconds, for a reason."""
        now = self._clock()
        self._refill(now)
        if now + seconds > self._paused_until:
            self._paused_until, self._pause_why = now + seconds, why

    def hold(self, who: str, why: str) -> None:
        """Nothing passes until `who` lets go; `why` is what callers are then held back by."""
        self._refill(self._clock())
        self._holds[who] = why

    def let_go(self, who: str) -> None:
        self._refill(self._clock())
        self._holds.pop(who, None)

    def cap(self, who: str, cap: Cap | None) -> None:
        """A rate, in units a second, that `who` wants kept; None is none. The lowest of all is kept."""
        now = self._clock()
        self._refill(now)
        if cap is None:
            self._caps.pop(who, None)
        else:
            self._caps[who] = cap
        before = self._rate
        self._set_rate(now)
        if self._rate is not None and before is not None and self._rate < before:
            # who waits has asked for what another rate had room for, and is not to wait for it for ever
            debt = max(0.0, self._asked - self._allowed)
            self._allowed += debt * (1 - self._rate / before)

    def set_in_flight(self, places: int) -> None:
        """How many may be under way at once."""
        self._most = places
        self._set_places()

    def _set_rate(self, now: float) -> None:
        """Works out what is let through, after a change of a cap or of what was learned."""
        limit = self.limit
        if self._rate is None:
            # nobody was counted until now
            self._allowed, self._at = self._asked, now
        self._rate = None if limit is None else limit.rate
        self._set_places()

    def _set_places(self) -> None:
        rate, took_s = self._law.rate, self._took_s
        places = self._most
        if rate is not None and took_s is not None:
            # twice what is needed, so that a slow answer keeps nobody waiting; more is only more to refuse
            places = min(places, math.ceil(2 * rate * took_s / self.typical) + 2)
        self._places.set_number(places)

    # what it says

    @property
    def in_flight(self) -> int:
        """How many may be under way at once."""
        return self._places.number

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return self._under_way == 0

    @property
    def held(self) -> bool:
        return bool(self._holds)

    @property
    def rate(self) -> float | None:
        """Units a second that it lets through at most; None: nothing bounds it."""
        return self._rate

    @property
    def limit(self) -> Cap | None:
        """What bounds its rate, with why: the lowest of its caps, or what the service was found to take."""
        cap = self._lowest()
        rate = self._law.rate
        if rate is None or (cap is not None and cap.rate <= rate):
            return cap
        return Cap(rate, f"the pace of {rate:,.0f} {self.unit}/s after throttling")

    @property
    def learned(self) -> float | None:
        """Units a second that the service was found to take; None: it never throttled."""
        return self._law.rate

    @property
    def typical(self) -> float:
        """What an attempt has cost lately."""
        return self._cost or 1.0

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
        self._refill(now)
        if self._probing:
            return f"throttling by {self.name}"
        limit, queued = self.limit, self._places.queued
        if limit is not None and self._waiting > queued and self._allowed < self._asked:
            return limit.why
        if self.share is not None and self.share.reason:
            return self.share.reason
        if queued:
            return f"{self._places.number} under way in {self.name}"
        return ""

    def _lowest(self) -> Cap | None:
        return min(self._caps.values(), key=lambda cap: cap.rate, default=None)
