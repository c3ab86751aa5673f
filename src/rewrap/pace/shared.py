"""A gate's part of a budget that processes share: units drawn from a ledger in pieces, and used in time.

The budget is a line of time of which each process draws the next piece. Units come at the budget's full rate
while a process's own piece passes, and at no other time; at most one piece's are kept, and not for long. So
in any second all together use at most what the rate gives, and what each of them had kept.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio

from rewrap.errors import LedgerUnavailable

AHEAD_S = 15.0
"""Seconds of a budget that are given out at most before they come. A piece lasts a quarter of a second and
each process waits for one: enough for 60."""

PIECE_S = 0.25
"""Seconds of the whole budget that are drawn at once. Shorter ones ask the ledger more often, longer ones
make the others wait; four a second are nothing to a server."""

LARGEST_S = 1.0
"""Seconds of the whole budget that one attempt may need at once; a dearer one is paid for afterwards."""

KEPT_S = 1.0
"""Seconds for which units are kept that nobody waits for: longer than a batch takes, and short enough that a
process that was stopped does not come back with what was another's meanwhile."""

DRAW_S = 3.0
"""Seconds after which a ledger that does not answer counts as away."""

ALONE_S = 5.0
"""Seconds for which a process goes on with its last share before it asks a ledger again that is away."""

REMEMBERED = 8
"""Pieces that a process's last share is reckoned from: with four processes, the last 8 seconds."""

STEP_S = 0.25
"""Seconds between two looks at whether who waits still wants to."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A piece of a budget: its units, in how many seconds it begins, and the rate at which they come."""

    units: float
    starts_in_s: float
    rate: float


@dataclass(frozen=True, slots=True)
class _Piece:
    starts: float
    ends: float
    rate: float
    alone: bool = False


def boot_clock() -> float:
    """Seconds that never go back, and count while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Shared:
    """One process's part of a shared budget. `draw` takes a piece of so many units from the ledger.

    `run` does so, as a task beside the work; `take` waits for units. `rate` is what the job says of the whole
    budget, until the ledger tells. `said` hears when the ledger is away, and when it is back.
    """

    def __init__(
        self,
        name: str,
        unit: str,
        rate: float,
        draw: Callable[[float], Awaitable[Drawn]],
        *,
        said: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = boot_clock,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self.name, self.unit = name, unit
        self._rate = rate
        self._draw, self._said = draw, said
        self._clock, self._sleep = clock, sleep
        self._pieces: deque[_Piece] = deque()
        self._known: deque[tuple[float, float]] = deque(maxlen=REMEMBERED)
        self._kept = 0.0
        self._filled_to = clock()
        self._passed_at = 0.0
        self._seen_at = 0.0
        self._size = 0.0
        self._wanted = 0.0
        self._dearest = 0.0
        self._held_back = False
        self._away = False
        self._last_share = 0.0
        self._line = anyio.Lock()
        self._asked = anyio.Event()

    # who wants units

    async def take(self, cost: float, giving_up: Callable[[], bool]) -> bool:
        """Waits until so many units are there, and takes them; False when its caller gave up."""
        if cost <= 0:
            return True
        self._wanted += cost
        try:
            async with self._line:
                waited = False
                while True:
                    now = self._clock()
                    self._dearest = cost
                    self._fill(now)
                    # a dearer attempt than ever comes together goes on credit: the next ones pay for it
                    enough = min(cost, self._rate * LARGEST_S)
                    if self._kept >= enough - 1e-9 * self._rate:
                        self._kept -= cost
                        self._held_back = waited
                        return True
                    waited = True
                    self._ask()
                    if giving_up():
                        return False
                    await self._sleep(min(STEP_S, self._until(enough, now)))
        finally:
            self._wanted -= cost
            self._ask()

    def give_back(self, units: float) -> None:
        """What was taken and not needed."""
        self._kept = min(self._kept + units, self._most)

    def charged(self, more: float) -> None:
        """An attempt was dearer than it was taken for, or cheaper."""
        self.give_back(-more)

    @property
    def piece(self) -> float:
        """Units that come together: who wants more at once waits for longer than his turn."""
        return self._rate * PIECE_S

    @property
    def reason(self) -> str:
        """What those who wait are held back by; empty when none waits."""
        if not self._wanted:
            return ""
        if not self._away:
            return f"shared budget {self.name}, {self._rate:,.0f} {self.unit}/s for all"
        share = self.share
        if not share:
            return f"shared budget {self.name}: the ledger is away"
        return f"its last share of {self.name}, {share:,.0f} {self.unit}/s: no ledger"

    @property
    def share(self) -> float:
        """Units a second that it had lately; 0 while nobody can say."""
        if len(self._known) < 2:
            return min(self._rate, self._last_share)
        return min(self._rate, self._had(0), self._had(len(self._known) - 2))

    def _had(self, since: int) -> float:
        """Units a second from one of the pieces that it remembers to the last."""
        # the last one's own are yet to come, and the wait for it tells of all that have come since
        known = list(self._known)[since:]
        passed = known[-1][0] - known[0][0]
        return sum(units for _, units in known[:-1]) / passed if passed > 0 else self._rate

    # what comes

    @property
    def _most(self) -> float:
        return max(self.piece, min(self._dearest, self._rate * LARGEST_S))

    def _fill(self, now: float) -> None:
        """Adds what came since it was last looked at."""
        while self._pieces:
            piece = self._pieces[0]
            since, until = max(piece.starts, self._filled_to), min(piece.ends, now)
            if until > since:
                self._kept = min(self._kept + piece.rate * (until - since), max(self._most, self._kept))
                self._passed_at = until
            if piece.ends > now:
                break
            self._pieces.popleft()
        if now > max(self._passed_at, self._seen_at) + KEPT_S:
            self._kept = min(self._kept, 0.0)
        if self._wanted:
            self._seen_at = now
        self._filled_to = now

    def _until(self, enough: float, now: float) -> float:
        """Seconds until so many are there, by the pieces it has; STEP_S where they do not do."""
        lacking = enough - self._kept
        for piece in self._pieces:
            start = max(piece.starts, now)
            seconds = lacking / piece.rate
            if start + seconds <= piece.ends + 1e-6:
                return start + seconds - now
            lacking -= piece.rate * max(0.0, piece.ends - start)
        return STEP_S

    def _to_come(self, now: float) -> float:
        return sum(piece.rate * max(0.0, piece.ends - max(piece.starts, now)) for piece in self._pieces)

    # the task beside the work

    async def run(self) -> None:
        """Draws pieces while somebody wants units. Never returns."""
        while True:
            now = self._clock()
            self._fill(now)
            if self._pieces and self._pieces[-1].starts > now:
                # one ahead is enough: what is drawn is not another's
                await self._sleep(self._pieces[-1].starts - now)
                continue
            units = self._units(now)
            if units <= 0:
                self._asked = anyio.Event()
                await self._asked.wait()
                continue
            await self._draw_piece(units)

    def _ask(self) -> None:
        self._asked.set()

    def _units(self, now: float) -> float:
        """How many to draw: twice as many as last time while they are used up in time, a piece at most."""
        if not self._pieces and now > self._passed_at + KEPT_S:
            # what it kept has run out unused: it does not need that much
            self._size, self._held_back = 0.0, False
        # who had to wait for his units will want more, and should not wait for the ledger too
        wanted = self._wanted + (self._size if self._held_back else 0.0)
        enough = wanted <= self._kept + self._to_come(now) + 1e-9 * self._rate
        # a ledger that is away is asked while what it gives itself still lasts
        if enough and not (self._away and self._wanted):
            return 0.0
        least = min(self._dearest, self._rate * LARGEST_S) if self._wanted else 0.0
        self._size = min(self.piece, max(2 * self._size, least, self.piece / 16))
        owed = max(0.0, -self._kept)
        return min(max(self._size, least) + owed, self._rate * LARGEST_S)

    async def _draw_piece(self, units: float) -> None:
        try:
            with anyio.fail_after(DRAW_S):
                drawn = await self._draw(units)
        except (LedgerUnavailable, TimeoutError):
            await self._go_on_alone()
            return
        now = self._clock()
        if self._away:
            self._away, self._last_share = False, self.share
            self._known.clear()
            self._said(f"shared budget {self.name}: the ledger is back")
        self._rate = drawn.rate
        if not drawn.units:
            # more processes than the line has room for
            await self._sleep(STEP_S)
            return
        self._fill(now)
        # what it gave itself while the ledger was away ends here
        while self._pieces and self._pieces[-1].alone:
            self._pieces.pop()
        starts = now + drawn.starts_in_s
        self._pieces.append(_Piece(starts, starts + drawn.units / drawn.rate, drawn.rate))
        self._known.append((starts, drawn.units))

    async def _go_on_alone(self) -> None:
        """Gives itself what it had lately, for a while: never more, and never no limit at all."""
        share = self.share
        if not self._away:
            self._away = True
            left = (
                f"this process goes on with its last share, {share:,.0f} {self.unit}/s"
                if share
                else "this process waits: it has had no share yet"
            )
            self._said(f"shared budget {self.name}: the ledger is away; {left}")
        if not share:
            await self._sleep(STEP_S)
            return
        now = self._clock()
        self._fill(now)
        starts = max([now, *(piece.ends for piece in self._pieces)])
        self._pieces.append(_Piece(starts, starts + ALONE_S, share, alone=True))
