"""One table's way through a run: its shards, its tallies, and what is shown and saved of it."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from rewrap.engine.pipeline import Gauge
from rewrap.events import Progress
from rewrap.ledgers.sql import TableProgress
from rewrap.model import Activity, Outcome, ShardLease, Table, Tally, merge_tally

SLOWEST_RATE = 1.0
"""Rows per second below which no time of arrival is given: it is at a standstill."""


@dataclass(slots=True)
class Course:
    """One table of a run.

    `base` is the tally of the sweep that read every row, `later` that of the sweeps after it, `late` how
    many values those resealed; `before` is how often rows had come and gone when the run began to read it.
    `rows_before` were read by earlier processes of the run, `rows_later` by later sweeps.
    """

    table: Table
    leases: list[ShardLease]
    base: Tally = field(default_factory=dict)
    recounted: Tally | None = None
    before: Activity = field(default_factory=lambda: Activity(0, 0))
    gauge: Gauge = field(default_factory=Gauge)
    sweep: int = 1
    late: int = 0
    later: Tally = field(default_factory=dict)
    rows: int = 0
    rows_before: int = 0
    rows_later: int = 0
    started: float = 0.0
    rate: float = 0.0
    _sealed: int = 0
    _probed: Counter[str] = field(default_factory=Counter)
    _seen: tuple[float, int] = (0.0, 0)

    @property
    def fresh(self) -> bool:
        """Whether nothing of the table has been settled yet."""
        return all(lease.sweep == 1 and lease.cursor is None and not lease.done for lease in self.leases)

    @property
    def done(self) -> bool:
        return all(lease.done for lease in self.leases)

    @property
    def tally(self) -> Tally:
        """The counts of the sweep in hand, over all shards."""
        total: Tally = {}
        for lease in self.leases:
            merge_tally(total, lease.tally)
        return total

    @property
    def put_off(self) -> int:
        """Values of the sweep in hand that others held: found, and still there."""
        return sum(counts.get(Outcome.DEFERRED, 0) for counts in self.tally.values())

    @property
    def sealed(self) -> int:
        """Values sealed by this process, landed or not."""
        return self._sealed + self.gauge.sealed

    @property
    def probed(self) -> Counter[str]:
        """Values that this process has found the key of by trying, as `Judged.probed`."""
        return self._probed + self.gauge.probed

    def begin(self, sweep: int) -> None:
        """Starts a sweep's gauge, from where its shards stand."""
        self._sealed += self.gauge.sealed
        self._probed += self.gauge.probed
        self.sweep = sweep
        self.gauge = Gauge(rows=sum(lease.rows for lease in self.leases))
        if sweep == 1:
            self.rows_before = self.gauge.rows
        for counts in self.tally.values():
            self.gauge.resealed += counts.get(Outcome.RESEALED, 0)
            self.gauge.quarantined += counts.get(Outcome.QUARANTINED, 0)
        self.rate, self._seen = 0.0, (0.0, 0)

    def settle_elements(self, tally: Tally) -> None:
        """Counts lists that were resealed in part, and put aside by a later sweep, as what they ended as."""
        for column in self.table.fields:
            if column.many and column.name in tally and column.name in self.later:
                counts = tally[column.name]
                moved = min(counts[Outcome.RESEALED], self.later[column.name][Outcome.QUARANTINED])
                counts[Outcome.RESEALED] -= moved
                counts[Outcome.QUARANTINED] += moved

    def observe(self) -> None:
        """Updates the rate: an average that leans to the last few seconds."""
        at, rows = time.monotonic(), self.gauge.rows
        if self._seen[0]:
            elapsed = max(1e-6, at - self._seen[0])
            current = max(0.0, (rows - self._seen[1]) / elapsed)
            self.rate = current if not self.rate else 0.6 * self.rate + 0.4 * current
        self._seen = (at, rows)

    def progress(self) -> Progress:
        gauge, full = self.gauge, self.sweep == 1
        left = max(0, self.table.estimated_rows - gauge.rows)
        return Progress(
            target=self.table.name,
            sweep=self.sweep,
            rows_done=gauge.rows,
            rows_estimated=max(self.table.estimated_rows, gauge.rows),
            resealed=gauge.resealed,
            quarantined=gauge.quarantined,
            stale_left=self._stale_left(left) if full else None,
            rows_per_s=round(self.rate, 1),
            eta_s=round(left / self.rate, 1) if full and self.rate >= SLOWEST_RATE else None,
            waiting_for=gauge.waiting_for,
        )

    def record(self) -> TableProgress:
        return TableProgress(
            relation=self.table.relation,
            sweep=self.sweep,
            rows_estimated=self.table.estimated_rows,
            rows_done=self.gauge.rows,
            found=self.gauge.found,
            tally=self.tally,
            done=self.done,
            rows_per_s=self.rate,
            waiting_for=self.gauge.waiting_for,
            inserted_before=self.before.inserted,
            deleted_before=self.before.deleted,
        )

    def _stale_left(self, left: int) -> int:
        """Rows not yet read, times the share of those read that were stale."""
        here = self.gauge.rows - self.rows_before
        share = self.gauge.found / here if here else 1.0
        return round(left * len(self.table.fields) * min(1.0, share))
