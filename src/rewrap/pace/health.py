"""Judges what looks at a server found: go on, go slower, or wait, and why."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from rewrap.pace.thresholds import Health, Threshold
from rewrap.pace.vitals import Vitals

REMEMBERED = 1_200
"""Looks whose positions in the log are remembered: five minutes."""

REPLAY_S = 5.0
"""Seconds over which a replica's rate of replay is measured."""

BEHIND_S = 1.0
"""A replica that is less behind than this is not behind: between two looks nobody knows."""

AHEAD_S = 0.5
"""Seconds of log, at the present rate, that are on their way before a pause takes hold."""

WAL_S = 2.0
"""Seconds over which the rate of the log is measured."""

LATENCY_LOOKS = 4
"""Looks of which the quickest counts: one that was late says little."""

HALF = 0.5
"""What is left of the speed where a signal has no figure at which nothing is left."""

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is left of the speed, from 1 (all of it) to 0 (wait), and why."""

    left: float = 1.0
    why: str = ""


WELL = Verdict()


def left_at(figure: float, threshold: Threshold) -> float:
    """What a figure leaves of the speed: less and less from `slow` on, nothing from `pause` on."""
    slow, pause = threshold.slow, threshold.pause
    if pause is not None and figure >= pause:
        return 0.0
    if slow is None or figure <= slow:
        return 1.0
    return HALF if pause is None else max(0.05, (pause - figure) / (pause - slow))


class Judge:
    """One server's judge: it remembers what rates and ages are reckoned from."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._log: deque[tuple[float, int]] = deque(maxlen=REMEMBERED)
        self._replayed: dict[str, deque[tuple[float, int]]] = {}
        self._took: deque[float] = deque(maxlen=LATENCY_LOOKS)

    def judge(self, vitals: Vitals) -> Verdict:
        """The worst of what a look found."""
        self._took.append(vitals.took_s)
        if vitals.position is not None:
            self._log.append((vitals.at, vitals.position))
        found = [*self._replication(vitals), *self._log_and_slots(vitals), *self._tables(vitals)]
        found += self._sessions(vitals)
        return min(found, key=lambda verdict: verdict.left, default=WELL)

    def wal_rate(self, now: float) -> float:
        """Bytes of log a second, of late."""
        return _rate(self._log, now, WAL_S)

    # signals

    def _replication(self, vitals: Vitals) -> Iterable[Verdict]:
        by_bytes, by_time = self._health.replica_lag_bytes, self._health.replica_lag_s
        for replica in vitals.replicas:
            seen = self._replayed.setdefault(replica.name, deque(maxlen=REMEMBERED))
            seen.append((vitals.at, replica.replayed))
            if by_bytes:
                coming = replica.lag_bytes + self.wal_rate(vitals.at) * AHEAD_S
                yield Verdict(
                    left_at(coming, by_bytes),
                    f"replica {replica.name} is {replica.lag_bytes / MIB:,.0f} MiB behind",
                )
            if by_time:
                behind = self.behind_s(replica.name, replica.lag_bytes, vitals.at)
                yield Verdict(left_at(behind, by_time), f"replica {replica.name} is {behind:,.0f} s behind")

    def behind_s(self, name: str, lag_bytes: int, now: float) -> float:
        """How long ago the server wrote what a replica replays now; at its rate, the time to catch up."""
        seen = self._replayed[name]
        at = bisect_right(self._log, seen[-1][1], key=lambda entry: entry[1])
        if at >= len(self._log):
            return 0.0
        age = now - self._log[at][0]
        rate = _rate(seen, now, REPLAY_S)
        return max(age, lag_bytes / rate) if age >= BEHIND_S and rate > 0 else age

    def _log_and_slots(self, vitals: Vitals) -> Iterable[Verdict]:
        wal, slots = self._health.wal_bytes_per_s, self._health.slot_bytes
        if wal:
            rate = self.wal_rate(vitals.at)
            why = f"the log grows by {rate / MIB:,.1f} MiB/s"
            # the run makes most of it: what is left is what brings it to where it is not slowed
            over = wal.slow is not None and rate > wal.slow and left_at(rate, wal) > 0
            yield Verdict((wal.slow or 0.0) / rate if over else left_at(rate, wal), why)
        if slots:
            for name, kept in vitals.retained.items():
                yield Verdict(left_at(kept, slots), f"slot {name} retains {kept / MIB:,.0f} MiB of log")

    def _tables(self, vitals: Vitals) -> Iterable[Verdict]:
        for table in vitals.tables:
            if self._health.vacuum and table.vacuumed:
                yield Verdict(HALF, f"table {table.name} is being vacuumed")
            if dead := self._health.dead_share:
                yield Verdict(
                    left_at(table.dead_share, dead),
                    f"table {table.name} has {table.dead_share:.0%} dead rows",
                )

    def _sessions(self, vitals: Vitals) -> Iterable[Verdict]:
        if blocked := self._health.blocked:
            sessions = "session waits" if vitals.blocked == 1 else "sessions wait"
            yield Verdict(
                left_at(vitals.blocked, blocked), f"{vitals.blocked} {sessions} for locks of the run"
            )
        if latency := self._health.latency_s:
            quickest = min(self._took)
            yield Verdict(left_at(quickest, latency), f"the server takes {quickest:.1f} s for a look")


def _rate(seen: deque[tuple[float, int]], now: float, over_s: float) -> float:
    """Bytes a second over the last seconds of a row of positions."""
    first = next((entry for entry in seen if entry[0] >= now - over_s), None)
    if first is None or seen[-1][0] <= first[0]:
        return 0.0
    return max(0.0, (seen[-1][1] - first[1]) / (seen[-1][0] - first[0]))


STEP_S = 1.0
"""Seconds between two changes of a cap, so that the figures can follow."""

REGROWTH = (1.25, 1.5, 2.0)
"""Factors by which a cap grows from step to step while all is well; the last one from then on."""

LEAST = 50.0
"""Rows a second that a cap leaves."""


class Brake:
    """From verdicts to a cap: down to what is left of the speed, and up again step by step."""

    def __init__(self) -> None:
        self.cap: float | None = None
        self._fastest = 0.0
        self._next = 0.0
        self._well = 0

    def apply(self, left: float, speed: float, now: float) -> float | None:
        """The cap in rows a second, or None; `speed` is what was done in the last second."""
        self._fastest = max(self._fastest, speed)
        if now < self._next:
            return self.cap
        if left < 1:
            self._next = now + STEP_S
            at = speed if self.cap is None else min(self.cap, max(speed, LEAST))
            self.cap = max(LEAST, at * max(left, HALF))
            self._well = 0
        elif self.cap is not None:
            self._next = now + STEP_S
            self.cap *= REGROWTH[min(self._well, len(REGROWTH) - 1)]
            self._well += 1
            if self.cap > 2 * self._fastest:
                self.cap = None
        return self.cap
