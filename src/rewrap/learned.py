"""What earlier runs measured, and what it makes of a forecast. Pure.

A run measures per row read and per value resealed; a forecast multiplies by what there is to do now. Time is
the run's, not one shard's: what shards did side by side is counted once. The further a forecast reaches past
what was measured, the wider it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from rewrap.forecast import Forecast, Range, Sampled, Work

RUNS = 5
"""Runs of which each figure is kept."""

READ_ROW_S, SEAL_VALUE_S, WAIT_ROW_S = "read_row_s", "seal_value_s", "wait_row_s"
"""Seconds to read a row, to reseal a value, and those that a row waited because of others' load."""

WAL_VALUE_BYTES = "wal_value_bytes"
"""Bytes that a value's server logged for each value resealed, whoever caused them."""

ROW_UNITS, ROW_VALUES = "row_units", "row_values"
"""Request units for each row read, all charges of the first sweep together; values resealed for each."""

VALUE_CALLS = "value_calls"
"""Calls to a vault for each value resealed."""

REST_ROW_S, REST_ROW_UNITS = "rest_row_s", "rest_row_units"
"""What a whole run took besides its first sweep, for each row: later sweeps, verification. Of its seconds,
those past `ENDING_S`."""

SWEEP_S = "sweep_s"
"""Seconds that a run's first sweep took in one process."""

WHOLE_RUN = ""
"""Stands for the relation where a figure is of no single table."""

Kind = Literal["measured", "assumed", "quota", "counted"]

_TIME_MARGIN, _COST_MARGIN = 1.5, 1.1
"""What a range is wider by at each end: the pace of a machine varies more than what a row costs."""

_TIME_REACH, _COST_REACH = 0.5, 0.05
"""How much wider for each power of ten that the forecast reaches past what was measured, as a share."""

ENDING_S = 10.0
"""Seconds of a run besides its rows at most: its proofs, its lock, the last looks."""

_START_S = 0.5
"""Seconds in which a sweep opens its connections and plans its statements, at most: a short one is slow for
that, and none at its low end is."""

_REST_UNITS = 300.0
"""Request units that these may take."""

_LEAST_SHARE = 0.05
"""Of the rows read, those that must have been resealed for their charges to be told from reading's."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure as one run measured it: an average over `samples` rows or values of a table."""

    relation: str
    name: str
    run_id: str
    value: float
    samples: int
    measured_at: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """A figure over the last runs: lowest and highest, the runs' ids (newest first), the largest sample."""

    low: float
    high: float
    runs: tuple[str, ...]
    samples: int


@dataclass(frozen=True, slots=True)
class Learned:
    """All figures of a job, the newest first."""

    figures: tuple[Figure, ...] = ()

    def seen(self, relation: str, name: str) -> Seen | None:
        mine = [one for one in self.figures if (one.relation, one.name) == (relation, name)]
        return _seen(mine, lambda one: one.value)

    def pace(self, relation: str, name: str) -> Seen | None:
        """A figure of time: its low end is without what a sweep took to start, at most."""
        seen = self.seen(relation, name)
        sweeps = {one.run_id: one.value for one in self.figures if one.name == SWEEP_S}
        if seen is None:
            return None
        lows = [
            one.value * max(0.0, 1 - _START_S / max(_START_S, sweeps.get(one.run_id, 0.0)))
            for one in self.figures
            if (one.relation, one.name) == (relation, name)
        ]
        return replace(seen, low=min(lows))

    def patch_units(self, relation: str, read_units: float) -> Seen | None:
        """Request units for each value resealed: what a sweep was charged, less what reading is charged."""
        share = {
            one.run_id: one.value
            for one in self.figures
            if (one.relation, one.name) == (relation, ROW_VALUES) and one.value >= _LEAST_SHARE
        }
        mine = [
            one
            for one in self.figures
            if (one.relation, one.name) == (relation, ROW_UNITS) and one.run_id in share
        ]
        return _seen(mine, lambda one: max(0.0, one.value - read_units) / share[one.run_id])


def _seen(mine: Sequence[Figure], value_of: Callable[[Figure], float]) -> Seen | None:
    if not mine:
        return None
    values = [value_of(one) for one in mine]
    return Seen(min(values), max(values), tuple(one.run_id for one in mine), max(one.samples for one in mine))


@dataclass(frozen=True, slots=True)
class Quota:
    """Something that is kept to, however fast the rest is: `rate` a second of a forecast's figure.

    `figure` is what it counts: `rows`, or a name of `Forecast`; `said` is where it comes from. `head_s` are
    seconds' worth that it may let through at once.
    """

    figure: str
    rate: float
    said: str
    head_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Outlook:
    """A table's forecast, and by figure from which runs it is measured and which quotas bound it."""

    forecast: Forecast
    runs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    quotas: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sized:
    """What a forecast is of: a table, its rows, what is to do in it, and what a sample of it showed.

    `again` are values that a stop may have repeated; `images` the bytes of whole pages that a log may hold;
    `remote` is whether keys are kept elsewhere.
    """

    relation: str
    rows: int
    work: Work
    sampled: Sampled
    again: int
    images: float = 0.0
    remote: bool = False


def margin(samples: int, wanted: float, *, cost: bool = False) -> float:
    """What to divide and to multiply by, for so much from a sample so large."""
    reach = math.log10(max(1.0, wanted / max(1, samples)))
    base, more = (_COST_MARGIN, _COST_REACH) if cost else (_TIME_MARGIN, _TIME_REACH)
    return base * (1 + more * reach)


def learn(prior: Forecast, learned: Learned, sized: Sized, quotas: Iterable[Quota] = ()) -> Outlook:
    """A forecast with what earlier runs of the job measured in its place, within the quotas."""
    runs: dict[str, tuple[str, ...]] = {}
    one = prior
    if sized.work.values:
        for name, found in (
            ("wal_bytes", _logged(prior, learned, sized)),
            ("request_units", _charged(prior, learned, sized)),
            ("remote_calls", _called(prior, learned, sized)),
        ):
            if found is not None:
                one, runs[name] = replace(one, **{name: found[0]}), found[1]
    took = _took(one, learned, sized)
    if took is not None:
        one, runs["seconds"] = replace(one, seconds=took[0]), took[1]
    bound: list[str] = []
    for quota in quotas:
        counted = (
            Range(sized.rows, sized.rows + sized.again)
            if quota.figure == "rows"
            else getattr(one, quota.figure)
        )
        least = max(0.0, counted.low / quota.rate - quota.head_s)
        if not least or not sized.work.values:
            continue
        bound.append(quota.said)
        # at worst the work itself comes on top of what the quota allows
        high = one.seconds.high + 1.05 * counted.high / quota.rate
        one = replace(one, seconds=Range(max(one.seconds.low, least), high))
    return Outlook(one, runs, {"seconds": tuple(bound)} if bound else {})


Found = tuple[Range, tuple[str, ...]]


def _took(prior: Forecast, learned: Learned, sized: Sized) -> Found | None:
    read = learned.pace(sized.relation, READ_ROW_S)
    seal = learned.pace(sized.relation, SEAL_VALUE_S)
    values = sized.work.values
    if read is None or (values and seal is None):
        return None
    rest = learned.seen(WHOLE_RUN, REST_ROW_S)
    waits = learned.seen(sized.relation, WAIT_ROW_S)
    low, high = sized.rows * read.low, sized.rows * read.high
    wide = margin(read.samples, sized.rows)
    if seal is not None:
        low, high = low + values * seal.low, high + (values + sized.again) * seal.high
        wide = max(wide, margin(seal.samples, values))
    high += sized.rows * (waits.high if waits else 0.0)
    # verify reads a table twice; a short run has not shown what that takes
    after = sized.rows * max(rest.high if rest else 0.0, 2 * max(sized.sampled.read_s, read.high))
    # a vault has its own pace: what its calls take is known from its quota; and where no run was long enough,
    # what plan has measured has to do
    least = prior.seconds.low if sized.remote or not low else low / wide
    # of a database, a run's ending is added once for all its tables
    ending = ENDING_S if prior.request_units.high else 0.0
    most = max((high + after) * wide + ending, 1.2 * least)
    return Range(least, most), read.runs


def _logged(prior: Forecast, learned: Learned, sized: Sized) -> Found | None:
    """The high end alone: others wrote to the same log, so that a run's own share may be less."""
    seen = learned.seen(sized.relation, WAL_VALUE_BYTES)
    if seen is None or not prior.wal_bytes.high:
        return None
    most = seen.high * sized.work.values * margin(seen.samples, sized.work.values, cost=True) + sized.images
    high = min(prior.wal_bytes.high, max(most, 1.1 * prior.wal_bytes.low))
    return Range(prior.wal_bytes.low, high), seen.runs


def _charged(prior: Forecast, learned: Learned, sized: Sized) -> Found | None:
    seen = learned.patch_units(sized.relation, sized.sampled.read_units)
    if seen is None or not prior.request_units.high:
        return None
    rest = learned.seen(WHOLE_RUN, REST_ROW_UNITS)
    reading, values = sized.rows * sized.sampled.read_units, sized.work.values
    wide = margin(seen.samples, values, cost=True)
    after = sized.rows * rest.high if rest else 2 * reading
    return (
        Range(
            (reading + values * seen.low) / wide,
            (reading + (values + sized.again) * seen.high + after) * wide + _REST_UNITS,
        ),
        seen.runs,
    )


def _called(prior: Forecast, learned: Learned, sized: Sized) -> Found | None:
    """What is opened once for several values takes fewer calls than there are values."""
    seen = learned.seen(sized.relation, VALUE_CALLS)
    if seen is None or not prior.remote_calls.high:
        return None
    values = sized.work.values
    wide = margin(seen.samples, values, cost=True)
    low = min(prior.remote_calls.low, values * seen.low / wide)
    most = (values + sized.again) * seen.high * wide + (prior.remote_calls.high - prior.remote_calls.low)
    return Range(low, max(low, min(prior.remote_calls.high, most))), seen.runs
