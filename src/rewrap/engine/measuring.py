"""What a run measures of itself, for the forecasts of the next one: kept in the ledger as it goes."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import anyio

from rewrap.engine.compile import Rotation
from rewrap.engine.course import Course
from rewrap.errors import LedgerError, StoreError, StoreUnavailable
from rewrap.events import RunEnded
from rewrap.interfaces import Logging, Store
from rewrap.learned import (
    ENDING_S,
    READ_ROW_S,
    REST_ROW_S,
    REST_ROW_UNITS,
    ROW_UNITS,
    ROW_VALUES,
    SEAL_VALUE_S,
    SWEEP_S,
    VALUE_CALLS,
    WAIT_ROW_S,
    WAL_VALUE_BYTES,
    WHOLE_RUN,
    Figure,
)
from rewrap.ledgers.sql import Ledger
from rewrap.model import Outcome
from rewrap.pace.pacer import Pacer

TICK_S, KEEP_S = 1.0, 30.0
"""Seconds between two looks, and between two writes to the ledger."""

LEAST_ROWS, LEAST_VALUES = 100, 20
"""Rows from which an average of time says something, and values from which one of costs does."""

HELD_SHARE = 0.05
"""Of its time, what somebody may have held a run: past it, its pace was not its own."""

WAITED_SHARE = 0.5
"""Of its shards' time, what they may have waited for the job's own cap: past it nobody knows their pace."""


@dataclass(slots=True)
class _Before:
    """Where a process found a table: rows and values that earlier ones of the run had done."""

    course: Course
    resealed: int
    logged: int | None = None
    logged_after: int | None = None

    @property
    def rows(self) -> int:
        return self.course.gauge.rows - self.course.rows_before

    @property
    def values(self) -> int:
        return max(0, self.course.gauge.resealed - self.resealed)


@dataclass(slots=True)
class Measuring:
    """Measures the sweep that reads every row, and what the run takes besides it."""

    rotation: Rotation
    store: Store
    ledger: Ledger
    pacers: Mapping[str, Pacer]
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep
    _run_id: str = ""
    _tables: list[_Before] = field(default_factory=list)
    _began: float = 0.0
    _held_s: float = 0.0
    _spent: dict[str, float] = field(default_factory=dict)
    _sweep_s: float = 0.0
    _sweep_spent: dict[str, float] = field(default_factory=dict)
    _rows: int = 0
    _under_way: bool = False

    async def over(self, run_id: str, courses: Sequence[Course], work: Awaitable[bool]) -> bool:
        """The result of a first sweep over these tables; what it showed is in the ledger then."""
        self._run_id = run_id
        self._tables = [_Before(course, _resealed(course)) for course in courses]
        for one in self._tables:
            one.logged = await self._logged(one.course)
        self._spent = self.rotation.spent(self.store)
        self._began, self._under_way = self.clock(), True
        done = await work
        self._look()
        self._under_way = False
        # later sweeps begin gauges of their own
        self._rows = sum(one.rows for one in self._tables)
        for one in self._tables:
            one.logged_after = await self._logged(one.course)
        await self._keep(self._figures())
        return done

    async def watch(self) -> None:
        """Runs beside the work: what a process that is killed had measured by then is kept too."""
        waited = 0.0
        while True:
            await self.sleep(TICK_S)
            if not self._under_way:
                continue
            if any(pacer.gate.held for pacer in self.pacers.values()):
                self._held_s += TICK_S
            waited += TICK_S
            if waited >= KEEP_S:
                waited = 0.0
                self._look()
                await self._keep(self._figures())

    async def ended(self, ended: RunEnded) -> None:
        """Keeps what a run took besides its first sweep, if it came to its end."""
        rows = self._rows
        if ended.exit_code not in (0, 3) or rows < LEAST_ROWS:
            return
        figures = [(REST_ROW_S, max(0.0, ended.seconds - self._sweep_s - ENDING_S))]
        units = ended.spent.get("request_units")
        if units is not None:
            before = self._spent.get("request_units", 0.0)
            in_sweep = self._sweep_spent.get("request_units", before) - before
            figures.append((REST_ROW_UNITS, max(0.0, units - in_sweep)))
        if self._held_s > HELD_SHARE * ended.seconds or any(self._bounded(one) for one in self._tables):
            figures = figures[1:]
        await self._keep([Figure(WHOLE_RUN, name, self._run_id, used / rows, rows) for name, used in figures])

    def _look(self) -> None:
        self._sweep_s = self.clock() - self._began
        self._sweep_spent = self.rotation.spent(self.store)

    async def _logged(self, course: Course) -> int | None:
        if not isinstance(self.store, Logging):
            return None
        try:
            return await self.store.logged(course.table)
        except StoreError:
            # a forecast is not worth a run
            return None

    async def _keep(self, figures: Sequence[Figure]) -> None:
        try:
            if figures:
                await self.ledger.measured.keep(figures)
        except (LedgerError, StoreUnavailable):
            # as above
            pass

    def _figures(self) -> list[Figure]:
        found: list[Figure] = []
        if self._sweep_s:
            rows = sum(one.rows for one in self._tables)
            found.append(Figure(WHOLE_RUN, SWEEP_S, self._run_id, self._sweep_s, rows))
        for one in self._tables:
            relation = one.course.table.relation
            for name, value, samples in (*self._seconds(one), *self._costs(one)):
                found.append(Figure(relation, name, self._run_id, value, samples))
        return found

    def _seconds(self, one: _Before) -> list[tuple[str, float, int]]:
        """The table's share of the sweep's time, by what its shards were busy with."""
        busy = sum(_busy(each.course) for each in self._tables)
        waits = sum(each.course.gauge.wait_s for each in self._tables)
        held = self._held_s > HELD_SHARE * self._sweep_s
        if not busy or one.rows < LEAST_ROWS or held or self._bounded(one):
            return []
        # shards work side by side: all of their time together is that of the sweep
        share = self._sweep_s / (busy + waits)
        gauge, found = one.course.gauge, []
        capped = self._capped(self._home_of(one))
        if not capped or waits <= WAITED_SHARE * (busy + waits):
            found.append((READ_ROW_S, share * gauge.read_s / one.rows, one.rows))
            if one.values >= LEAST_VALUES:
                found.append(
                    (SEAL_VALUE_S, share * (gauge.cpu_s + gauge.write_s) / one.values, one.values)
                )  # fmt: skip
        if not capped:
            found.append((WAIT_ROW_S, share * gauge.wait_s / one.rows, one.rows))
        return found

    def _capped(self, home: str) -> bool:
        """Whether the job bounds how many rows a second a store gets."""
        pace = self.rotation.job.pace
        return pace.max_rate is not None or any(one.store in (None, home) for one in pace.shared.values())

    def _bounded(self, one: _Before) -> bool:
        """Whether its account kept to what the job allows it: then its pace was that."""
        section = self.rotation.job.stores[self._home_of(one)]
        return section.kind == "cosmos" and (section.max_rus is not None or section.share is not None)

    def _costs(self, one: _Before) -> list[tuple[str, float, int]]:
        """What was used of what is metered, of several tables in proportion to the time they took."""
        found: list[tuple[str, float, int]] = []
        if one.values < LEAST_VALUES:
            return found
        home = self._home_of(one)
        if one.logged is not None and one.logged_after is not None:
            logged = (one.logged_after - one.logged) * self._share(one, home)
            if logged > 0:
                found.append((WAL_VALUE_BYTES, logged / one.values, one.values))
        units = self._used("request_units")
        if units and self._metered(home):
            mine = units * self._share(one, None)
            found.append((ROW_UNITS, mine / one.rows, one.rows))
            found.append((ROW_VALUES, one.values / one.rows, one.rows))
        calls = self._used("vault_calls")
        if calls:
            every = sum(each.values for each in self._tables)
            found.append((VALUE_CALLS, calls / every, one.values))
        return found

    def _used(self, unit: str) -> float:
        return self._sweep_spent.get(unit, 0.0) - self._spent.get(unit, 0.0)

    def _home_of(self, one: _Before) -> str:
        return self.rotation.job.store_of(self.rotation.target(one.course.table))

    def _metered(self, home: str) -> bool:
        return self.rotation.job.stores[home].kind == "cosmos"

    def _share(self, one: _Before, home: str | None) -> float:
        """Of what the tables of a store took, or of all stores that charge, how much was this one's."""
        among = [
            each
            for each in self._tables
            if (self._metered(self._home_of(each)) if home is None else self._home_of(each) == home)
        ]
        total = sum(_moved(each.course) for each in among)
        return _moved(one.course) / total if total else 0.0


def _busy(course: Course) -> float:
    return course.gauge.read_s + course.gauge.cpu_s + course.gauge.write_s


def _moved(course: Course) -> float:
    return course.gauge.read_s + course.gauge.write_s


def _resealed(course: Course) -> int:
    """Values of the sweep that earlier processes had resealed."""
    return sum(counts.get(Outcome.RESEALED, 0) for counts in course.tally.values())
