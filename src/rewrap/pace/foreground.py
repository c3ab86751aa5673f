"""Yielding to others: how fast a run may be while an application is at work on the same server.

Nobody tells what an application's statements take. So a tiny commit of our own is timed, while the run works
and while it does not: by how much it differs is what the run costs others. Held back by that, and by a share
of the time that is ours at most, an application hardly notices the run.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

LOOKS = 4
"""Looks at who else is at work that are remembered: a second."""

COME = 2
"""Of so many of them, with others at work, it takes this many to tell an application from one statement."""

GONE_S = 2.0
"""Seconds without anybody after which the run takes its speed back."""

CALM_S = 0.3
"""Seconds without work of ours in which the server is timed for others alone."""

CALM_EVERY_S = 10.0
"""Seconds of work between two such pauses. What others do changes, and with it what is normal."""

STEP_S = 1.0
"""Seconds between two changes of the share."""

FIRST_SHARE, LEAST_SHARE, MOST_SHARE = 0.1, 0.02, 0.15
"""Of the time, what may be spent on work of ours. Even where nothing tells that it costs others anything, it
takes a processor from them."""

DEARER, CHEAPER = 0.7, 1.15
"""Factors on the share: when others wait longer for us, and when they do not."""

NOTICED, UNNOTICED = 1.35, 1.15
"""How many times as long a probe may take beside our work as without it, before the share falls; and below
which it grows."""

GRAIN_S = 0.0002
"""Seconds by which two probes differ on any machine, whatever is at work."""

RANK = 0.8
"""Of the probes, the one that is compared: a median does not notice what happens to one in five."""

BATCH_S = 0.001
"""Seconds of work that a batch is, while others are there: so long do they wait for one at most."""

SMALLEST, LARGEST = 50, 100
"""Rows of such a batch."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a run may do beside others: rows a second, and rows a batch."""

    rows_per_s: float
    batch_size: int


class Foreground:
    """Whether others are at work, and what is left to the run while they are.

    Fed by `seen` with each look, by `probed` with each timed commit. `calm` says that nothing of ours is to
    be under way, for a moment. All times are seconds of one clock.
    """

    def __init__(self, now: float) -> None:
        self.present = False
        self.calm = False
        self.share = FIRST_SHARE
        self.busy = 0
        self._looks: deque[int] = deque(maxlen=LOOKS)
        self._last_busy = now
        self._calm_until = now
        self._next_calm = now
        self._next_step = now
        self._alone: deque[float] = deque(maxlen=16)
        self._beside: deque[float] = deque(maxlen=16)

    def seen(self, busy: int, now: float) -> None:
        """One look found so many sessions of others at work."""
        first = not self._looks
        self._looks.append(busy)
        if busy:
            self._last_busy, self.busy = now, busy
        if not self.present:
            # who is there at the very start is not to be run over for a second
            if busy and (first or sum(1 for one in self._looks if one) >= COME):
                self.present = True
                self.share = FIRST_SHARE
                self._alone.clear()
                self._begin_calm(now)
        elif now - self._last_busy >= GONE_S:
            self.present = self.calm = False

    def probed(self, took_s: float, now: float) -> None:
        """A commit of nothing took so long."""
        if not self.present:
            return
        if self.calm:
            self._alone.append(took_s)
            if now >= self._calm_until:
                self.calm = False
                self._beside.clear()
                self._next_calm, self._next_step = now + CALM_EVERY_S, now + STEP_S
            return
        self._beside.append(took_s)
        if now >= self._next_step:
            self._next_step = now + STEP_S
            self._change()
        if now >= self._next_calm:
            self._begin_calm(now)

    def allowance(self, row_s: float | None) -> Allowance:
        """What may be done, where a row takes so many seconds to be written; to read it takes as long."""
        if row_s is None:
            return Allowance(1_000.0, SMALLEST)
        wanted = min(max(BATCH_S / row_s, SMALLEST), LARGEST)
        # few sizes: each is a statement of its own to the server
        size = SMALLEST * 2 ** int(math.log2(wanted / SMALLEST))
        return Allowance(max(self.share / (2 * row_s), 1.0), size)

    def _begin_calm(self, now: float) -> None:
        self.calm = True
        self._calm_until = now + CALM_S

    def _change(self) -> None:
        if len(self._beside) < 4 or not self._alone:
            return
        alone, beside = _ranked(self._alone), _ranked(self._beside)
        if beside > alone * NOTICED + GRAIN_S:
            self.share = max(LEAST_SHARE, self.share * DEARER)
        elif beside < alone * UNNOTICED + GRAIN_S:
            self.share = min(MOST_SHARE, self.share * CHEAPER)


def _ranked(figures: Sequence[float]) -> float:
    return sorted(figures)[math.ceil(len(figures) * RANK) - 1]
