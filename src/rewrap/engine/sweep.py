"""One pass over the tables of a run: every shard's pipeline, a bounded number of them at a time."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

import anyio

from rewrap.engine.compile import Rotation
from rewrap.engine.course import Course
from rewrap.engine.health import KeyHealth
from rewrap.engine.options import RunOptions
from rewrap.engine.pipeline import Budget, ShardTask, StopFlag, run_shard
from rewrap.engine.quiescence import disproved as disturbed_at
from rewrap.engine.retry import quiet, until_reachable
from rewrap.engine.settle import Resolve
from rewrap.errors import AccountingError, KeyRefused, LeaseLost, Rewound, RewrapError
from rewrap.events import Notice, Quarantined, SweepDone, SweepStarted
from rewrap.interfaces import Guard, Scope, Sink, Store
from rewrap.ledgers.sql import Ledger
from rewrap.model import Fault, Outcome, Reason, ShardLease, merge_tally
from rewrap.pace.pacer import Pacer

T = TypeVar("T")


class Heeding(Protocol):
    """Whoever lets a run be paused and stopped."""

    def resolving(self, rotation: Rotation) -> Resolve:
        """What gives its results once vaults have answered; GivenUp on a stop."""
        ...

    async def whole(self, work: Callable[[], Awaitable[T]]) -> T:
        """The result of work that is not cut short, once nobody holds the run."""
        ...


@dataclass
class Sweeper:
    """Sweeps tables for one run. `known` are digests of values put aside before, by relation."""

    rotation: Rotation
    store: Store
    guard: Guard
    ledger: Ledger
    sink: Sink
    stop: StopFlag
    options: RunOptions
    health: KeyHealth
    run_id: str
    names: dict[str, str]
    pacers: Mapping[str, Pacer]
    steering: Heeding
    known: dict[str, dict[tuple[str, str], str]] = field(default_factory=dict)

    async def patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of an idempotent step, tried again while the store or the ledger is away."""
        return await until_reachable(attempt, self.rotation.job.limits.reconnect_s, quiet)

    async def save(self, courses: Sequence[Course]) -> None:
        """Writes to the ledger how far tables are."""
        records = [course.record() for course in courses]
        await self.patiently(lambda: self.ledger.save_progress(self.run_id, records))

    async def sweep(self, courses: list[Course], sweep: int, *, full: bool) -> bool:
        """One pass over the tables; False when it was stopped before its end."""
        for course in courses:
            if course.leases[0].sweep != sweep:
                course.leases = await self.patiently(
                    lambda course=course: self.guard.begin_sweep(course.table.relation, sweep)  # type: ignore[misc]  # mypy: default argument of a lambda
                )
            course.begin(sweep)
        todo = [course for course in courses if not course.done]
        for course in courses:
            if course.done:
                self._fold(course, full=full)
        await self.save(courses)
        job = self.rotation.job
        limiters = {name: anyio.CapacityLimiter(job.shards_at_once(name)) for name in job.stores}
        async with anyio.create_task_group() as group:
            for course in todo:
                group.start_soon(self._sweep_table, course, full, limiters[self.home_of(course)])
        return all(course.done for course in courses)

    def home_of(self, course: Course) -> str:
        """The name of the store that has a table."""
        return self.rotation.job.store_of(self.rotation.target(course.table))

    async def _sweep_table(self, course: Course, full: bool, limiter: anyio.CapacityLimiter) -> None:
        course.started = time.monotonic()
        self.sink(
            SweepStarted(
                target=course.table.name,
                sweep=course.sweep,
                rows_estimated=course.table.estimated_rows,
                rows_done=course.gauge.rows,
            )
        )
        budget = Budget(self.options.sample)
        async with anyio.create_task_group() as group:
            for lease in course.leases:
                if not lease.done:
                    group.start_soon(self._shard, course, lease, full, budget, limiter)
        self._fold(course, full=full)
        await self.save([course])
        self.sink(course.progress())
        if course.done:
            self.sink(
                SweepDone(
                    target=course.table.name,
                    sweep=course.sweep,
                    rows_done=course.gauge.rows,
                    found=course.gauge.found,
                    outcomes={name: dict(+counts) for name, counts in course.tally.items()},
                    seconds=round(time.monotonic() - course.started, 3),
                    probed=dict(course.gauge.probed),
                )
            )

    @staticmethod
    def _fold(course: Course, *, full: bool) -> None:
        """Takes a sweep's counts into the table's."""
        if full and course.sweep == 1:
            course.base, course.rows = course.tally, course.gauge.rows
        elif full:
            course.recounted = course.tally
        else:
            course.late += sum(counts[Outcome.RESEALED] for counts in course.tally.values())
            course.rows_later += course.gauge.rows
            merge_tally(course.later, course.tally)

    async def _shard(
        self,
        course: Course,
        lease: ShardLease,
        full: bool,
        budget: Budget,
        limiter: anyio.CapacityLimiter,
    ) -> None:
        async with limiter:
            while not self.stop.requested:
                try:
                    await self._shard_once(course, lease, full, budget)
                    return
                except Rewound as exc:
                    rewound = exc
                except BaseExceptionGroup as errors:
                    first = first_of(errors)
                    if not isinstance(first, Rewound):
                        raise first from None
                    rewound = first
                # the server lost writes that it had acknowledged, and their checkpoints with them, or does
                # not go on where it was: whatever this process remembers of the shard is wrong
                await self._rewind(course, lease, rewound)

    async def _rewind(self, course: Course, lease: ShardLease, rewound: Rewound) -> None:
        kept = await self.patiently(lambda: self.guard.lease(lease.relation, lease.range.shard))
        course.gauge.rows -= lease.rows - kept.rows
        lease.cursor, lease.rows, lease.tally, lease.seq = kept.cursor, kept.rows, kept.tally, kept.seq
        self.sink(
            Notice(
                level="warning",
                message=f"table {course.table.name}: {rewound.message}; "
                "going on from the checkpoint that it kept",
            )
        )

    async def _shard_once(self, course: Course, lease: ShardLease, full: bool, budget: Budget) -> None:
        table = course.table
        reader, writer = self.store.reader(table, full=full), self.store.writer(table, full=full)
        try:
            await run_shard(
                ShardTask(
                    table=table,
                    lease=lease,
                    reader=reader,
                    writer=writer,
                    reseal=self.rotation.reseal(table, writes=True),
                    resolved=self.steering.resolving(self.rotation),
                    scope=Scope() if full else self.rotation.scope(table),
                    known=self.known.get(table.relation, {}),
                    quarantine=self,
                    health=self.health,
                    gauge=course.gauge,
                    stop=self.stop,
                    budget=budget,
                    pacer=self.pacers[self.home_of(course)],
                    patience_s=self.rotation.job.limits.reconnect_s,
                    disturbed=partial(disturbed_at, self.rotation.job, table.name)
                    if self.rotation.target(table).quiesced
                    else None,
                )
            )
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(3):
                await reader.close()
                await writer.close()

    async def record(self, relation: str, faults: Sequence[Fault]) -> None:
        """Puts values aside in the ledger, before the checkpoint passes them (see `Quarantine`)."""
        await self.patiently(
            lambda: self.ledger.record(self.run_id, self.rotation.to_version, relation, faults)
        )
        known = self.known.setdefault(relation, {})
        name = self.names[relation]
        for fault in faults:
            if fault.reason != Reason.CONTENDED:
                known[fault.field, fault.row_id] = fault.digest
                self.sink(Quarantined(target=name, row=fault.row_id, field=fault.field, reason=fault.reason))


def first_of(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error to show of several: a lost lease or a wrong key before what it caused."""
    flat: list[BaseException] = []
    queue: list[BaseException] = [errors]
    while queue:
        error = queue.pop(0)
        if isinstance(error, BaseExceptionGroup):
            queue += error.exceptions
        else:
            flat.append(error)
    for kind in (LeaseLost, KeyRefused, AccountingError, RewrapError):
        for error in flat:
            if isinstance(error, kind):
                return error
    return flat[0]
