"""What is left of a run, as far as its ledger tells: time, log, request units and calls, low and high."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rewrap.derived import Derivation, runs_said
from rewrap.forecast import NOTHING, Forecast, Range
from rewrap.learned import (
    ENDING_S,
    READ_ROW_S,
    REST_ROW_S,
    REST_ROW_UNITS,
    ROW_UNITS,
    SEAL_VALUE_S,
    VALUE_CALLS,
    WAIT_ROW_S,
    WAL_VALUE_BYTES,
    WHOLE_RUN,
    Kind,
    Learned,
    Quota,
    Seen,
    margin,
)
from rewrap.ledgers.records import TableProgress
from rewrap.model import Outcome

_IN_SCOPE = (Outcome.RESEALED, Outcome.CONVERGED, Outcome.DEFERRED, Outcome.QUARANTINED)

IN_HAND_S = 5.0
"""Seconds' worth of rows that have passed a quota and are not settled, or not told of yet: at most a batch
of half a second in each shard, and a ledger that hears of it once a second."""

_MARGIN = 1.5
"""What a rate of the last seconds may be off by."""


@dataclass(frozen=True, slots=True)
class Left:
    """What is left, and where each figure comes from; a figure without a derivation is not known."""

    forecast: Forecast
    derived: dict[str, Derivation]


@dataclass(frozen=True, slots=True)
class _Table:
    entry: TableProgress
    learned: Learned

    @property
    def all_rows(self) -> int:
        return max(self.entry.rows_done, self.entry.rows_estimated)

    @property
    def rows(self) -> int:
        return max(0, self.entry.rows_estimated - self.entry.rows_done)

    @property
    def values(self) -> float:
        """Values in scope of the rows that are left, if they are like those that were read."""
        tally = self.entry.tally or {}
        found = sum(counts.get(outcome, 0) for counts in tally.values() for outcome in _IN_SCOPE)
        if not self.entry.rows_done:
            return float(self.rows * max(1, len(tally)))
        return self.rows * found / self.entry.rows_done

    def seen(self, name: str) -> Seen | None:
        return self.learned.seen(self.entry.relation, name)

    def seconds(self, running: bool) -> tuple[Range, tuple[str, ...]] | None:
        """Between the pace of the last seconds and that of all that was measured."""
        paces: list[Range] = []
        if running and self.entry.rows_per_s >= 1:
            now = self.rows / self.entry.rows_per_s
            paces.append(Range(now / _MARGIN, now * _MARGIN))
        relation = self.entry.relation
        read, seal = self.learned.pace(relation, READ_ROW_S), self.learned.pace(relation, SEAL_VALUE_S)
        waits = self.seen(WAIT_ROW_S)
        if read is not None and (seal is not None or not self.values):
            wide = margin(read.samples, self.rows)
            low, high = self.rows * read.low, self.rows * (read.high + (waits.high if waits else 0.0))
            if seal is not None:
                low, high = low + self.values * seal.low, high + self.values * seal.high
            paces.append(Range(low / wide, high * wide))
        if not paces:
            return None
        # a run that is made to wait goes at the pace of now, whatever it could do
        return Range(min(one.low for one in paces), max(one.high for one in paces)), read.runs if read else ()


def left_of(
    run_id: str,
    progress: Sequence[TableProgress],
    learned: Learned,
    *,
    running: bool,
    quotas: Iterable[Quota] = (),
) -> Left:
    """What is left of a run that is under way, or that can be gone on with.

    What it measured itself counts; what earlier runs did, only where it has not.
    """
    own = Learned(tuple(one for one in learned.figures if one.run_id == run_id))
    first = [entry for entry in progress if entry.sweep == 1]
    tables = []
    for entry in first:
        told = own if own.seen(entry.relation, READ_ROW_S) or not learned.figures else learned
        # with its shards done, what is left of a table is to look at it again
        tables.append(_Table(replace(entry, rows_estimated=0) if entry.done else entry, told))
    left = Forecast(NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, NOTHING)
    derived: dict[str, Derivation] = {}
    rows = sum(max(entry.rows_done, entry.rows_estimated) for entry in first)
    took = _seconds(tables, learned, rows, running=running, quotas=quotas)
    if took is not None:
        left, derived["seconds"] = replace(left, seconds=took[0]), took[1]
    for name, figure, per, rest in (
        ("wal_bytes", WAL_VALUE_BYTES, "a value, with what others wrote", None),
        ("request_units", ROW_UNITS, "a row, and verification", REST_ROW_UNITS),
        ("remote_calls", VALUE_CALLS, "a value", None),
    ):
        cost = _cost(tables, figure, learned.seen(WHOLE_RUN, rest) if rest else None, rows)
        if cost is not None:
            left = replace(left, **{name: cost[0]})
            derived[name] = Derivation(f"measured by {runs_said(cost[1])}: {per}", ("measured",), cost[1])
    return Left(left, derived)


def _seconds(
    tables: Sequence[_Table], learned: Learned, rows: int, *, running: bool, quotas: Iterable[Quota]
) -> tuple[Range, Derivation] | None:
    each = [(table, table.seconds(running)) for table in tables if table.rows]
    known = [found for _, found in each if found is not None]
    if len(known) < len(each):
        return None
    rest = learned.seen(WHOLE_RUN, REST_ROW_S)
    # tables are worked on side by side: at best the slowest is waited for
    low = max((one.low for one, _ in known), default=0.0)
    high = sum(one.high for one, _ in known) + ENDING_S
    # verify reads a table twice; a short run has not shown what that takes
    reads = [(table, table.seen(READ_ROW_S)) for table in tables]
    high += sum(2 * table.all_rows * seen.high * _MARGIN for table, seen in reads if seen is not None)
    runs = list(dict.fromkeys(run for _, found in known for run in found))
    parts, kinds = [], list[Kind]()
    if running and known:
        kinds.append("measured")
        parts.append("the pace of now")
    if rest is not None:
        high += rows * rest.high * margin(rest.samples, rows)
        runs = list(dict.fromkeys([*runs, *rest.runs]))
    if runs:
        kinds = ["measured"]
        parts.append(f"measured by {runs_said(runs)}")
    for quota in quotas:
        if quota.figure == "rows" and known:
            at_least = sum(table.rows for table in tables) / quota.rate
            low, high = max(low, at_least - IN_HAND_S), high + at_least
            kinds.append("quota")
            parts.append(f"kept to: {quota.said}")
    if rest is None:
        kinds.append("assumed")
        parts.append("assumed: verification")
    return Range(max(0.0, low), high), Derivation("; ".join(parts), tuple(kinds), tuple(runs))


def _cost(
    tables: Sequence[_Table], figure: str, rest: Seen | None, rows: int
) -> tuple[Range, tuple[str, ...]] | None:
    """What is left of something metered; None where a table's cost of it is not known, or none has any."""
    total, runs = Range(0.0, 0.0), list[str]()
    for table in tables:
        seen = table.seen(figure)
        if seen is None:
            continue
        count = float(table.rows) if figure == ROW_UNITS else table.values
        wide = max(_MARGIN, margin(seen.samples, count))
        total = total + Range(count * seen.low / wide, count * seen.high * wide)
        runs += seen.runs
    if rest is not None:
        total = total + Range(0.0, rows * rest.high * _MARGIN)
        runs += rest.runs
    return (total, tuple(dict.fromkeys(runs))) if runs and total.high else None
