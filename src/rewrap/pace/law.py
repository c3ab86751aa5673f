"""The law by which a gate learns what a service takes: pure arithmetic over moments and amounts.

A service that throttles has told what it has to give: between two moments in which it had nothing left, what
it accepted *is* its capacity. So the rate falls to that, less 2 %, at once and however far it is. It holds
for a while, and then grows by 2, 4, 8 … 50 % a tick until the service throttles again.
"""

from __future__ import annotations

TICK_S = 1.0
"""Seconds between two steps of growth."""

KEPT = 0.98
"""What is made use of, of a capacity just measured: the rest keeps the service from throttling at once."""

HOLD_TICKS = 3
"""Ticks without growth after a small fall: what is near its best has little to gain."""

STEP, SOON_STEP, MOST_STEP = 0.02, 0.05, 0.5
"""The first step of growth after a small fall, the first after a large one, and the largest."""

LARGE_FALL = 0.15
"""From this share of the rate on, a fall is large: what took the capacity may be gone as suddenly."""

USED = 0.85
"""There is no growth while less of the rate is made use of: nobody would know what it is worth."""

SHORTEST_S, LONGEST_S, FEWEST = 0.1, 2.5, 8
"""Between two throttlings so far apart in seconds, with so many attempts, what was accepted is the capacity:
closer, a bucket's drops decide; further apart, it may have been less than the service would have taken."""

ABOVE = 0.03
"""How far above what it took on average a rate may be that passed for a tick."""

PATIENCE, MOST_PATIENCE_TICKS = 100, 6
"""Attempts without growth for each one that was throttled, so that those stay under 1 %; but no longer."""

UNMEASURED = 0.9
"""What a rate falls to where throttlings come too fast to measure between them."""

LEAST_PER_S = 1.0
"""Attempts a second that are always made: a rate of none would never be tried again."""


class Law:
    """A rate in units a second, learned from what a service accepts and when it throttles.

    `rate` is None until it throttles: nothing is known, and nothing holds it back.
    """

    def __init__(self, now: float) -> None:
        self.rate: float | None = None
        self._total = 0.0
        self._count = 0
        self._mark = (now, 0.0, 0)
        self._event_at = float("-inf")
        self._passed = 0.0
        self._grew = False
        self._empty = False
        self._least = 0.0
        self._refused = 0
        self._fallen_count = 0
        self._patient_until = now
        self._cold = True
        self._step = 1.0
        self._tick_at = now
        self._tick_total = 0.0
        self._hold_until = now

    def accepted(self, charge: float, began: float) -> None:
        """The service did what cost so much, asked at that moment."""
        if self._empty and began > self._event_at:
            self._measured(began, began)
        self._total += charge
        self._count += 1

    def is_news(self, began: float) -> bool:
        """Whether an attempt begun then tells anything: those under way together are one event."""
        return began > self._event_at

    def closely(self, now: float) -> bool:
        """Whether it throttled a moment ago."""
        return now - self._event_at < 2 * SHORTEST_S

    def grown(self, now: float) -> bool:
        """Takes a step, if one is due; whether the rate is another one now."""
        since = now - self._tick_at
        if self.rate is None or self._empty or since < TICK_S:
            return False
        used = self._total - self._tick_total
        self._tick_at, self._tick_total = now, self._total
        if now < self._hold_until or used < USED * self.rate * since:
            return False
        held = self._count - self._fallen_count
        if held < PATIENCE * self._refused and now < self._patient_until:
            return False
        self._refused = 0
        self._passed = self.rate
        self._grew = True
        self.rate *= 1 + self._step
        self._step = min(1.0 if self._cold else MOST_STEP, 3.5 * self._step)
        return True

    def throttled(self, now: float, retry_after_s: float | None, cost: float) -> None:
        """The service had nothing left at this moment: the first that says so of those under way.

        `cost` is what an attempt costs. Without a time to ask again, the service is taken to have something
        again when it next accepts.
        """
        self._event_at = now
        self._least = LEAST_PER_S * cost
        self._empty = True
        if retry_after_s is not None:
            self._measured(now, now + retry_after_s)

    def _measured(self, now: float, until: float) -> None:
        """Sets the rate, at the moment at which the service has something again."""
        self._empty = False
        at, total, count = self._mark
        since, got, attempts = until - at, self._total - total, self._count - count
        if self.rate is None:
            # what it took in less than a second may be a bucket's, or a window's, for all of it
            before = fallen = got / max(since, 1.0)
        else:
            before = self.rate
            if since < SHORTEST_S:
                # a moment after the last one: what was done then has not had its effect
                return
            if attempts < FEWEST:
                self._fall(now, before, before * UNMEASURED)
                return
            took = got / since
            if since <= LONGEST_S and not self._grew:
                fallen = took * KEPT
                self._cold = False
            elif before <= took * (1 + LARGE_FALL):
                # near its best for long: it took this on average, and what passed for a tick, or nearly
                fallen = min(max(took, self._passed), took * (1 + ABOVE))
            else:
                # it had grown until now: how far it is too much is told by the next time, soon
                fallen = before
        self._fall(now, before, fallen)
        self._mark = (until, self._total, self._count)
        self._grew = False

    def refused(self) -> None:
        """One more attempt was throttled."""
        self._refused += 1

    def tried(self, now: float) -> None:
        """It was one that was to try whether the service has anything again, and too early."""
        self._event_at = now

    def _fall(self, now: float, before: float, fallen: float) -> None:
        self.rate = max(self._least, min(before, fallen))
        large = self.rate < before * (1 - LARGE_FALL)
        self._step = 1.0 if self._cold else SOON_STEP if large else STEP
        self._hold_until = now + TICK_S * (1 if large or self._cold else HOLD_TICKS)
        self._patient_until = now + TICK_S * (0 if large or self._cold else MOST_PATIENCE_TICKS)
        self._tick_at, self._tick_total = now, self._total
        self._fallen_count = self._count
