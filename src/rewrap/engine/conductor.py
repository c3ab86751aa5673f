"""A run: admitted, then sweeps until nothing is stale, then verified, then added up."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import anyio

from rewrap.engine.accounting import Account
from rewrap.engine.admission import Admission, Admitted
from rewrap.engine.compile import Rotation
from rewrap.engine.course import Course
from rewrap.engine.health import KeyHealth
from rewrap.engine.options import RunOptions
from rewrap.engine.pipeline import Budget, ShardTask, StopFlag, run_shard
from rewrap.engine.rehearsal import rehearse
from rewrap.engine.retry import until_reachable
from rewrap.errors import (
    AccountingError,
    KeyRefused,
    LeaseLost,
    LedgerError,
    Rewound,
    RewrapError,
    StoreUnavailable,
)
from rewrap.events import Notice, Quarantined, RunEnded, SweepDone, SweepStarted
from rewrap.interfaces import Guard, Scope, Sink, Store
from rewrap.ledgers.sql import Ledger
from rewrap.model import Activity, Fault, Outcome, Reason, RunState, ShardLease, merge_tally

T = TypeVar("T")

PROGRESS_S = 1.0
"""Seconds between two progress events, and between two saves of progress to the ledger."""

DRAIN_STEP_S = 0.5
"""Seconds between two looks at whether the run is to stop, while open writers are waited for."""

STATISTICS_DELAY_S = 12.0
"""Postgres' sessions report their row counts at the latest 10 s after they fell idle (pgstat)."""


@dataclass(frozen=True, slots=True)
class Examined:
    """What verify says to a run: complete or not, why, and its count of values by relation."""

    complete: bool
    reasons: tuple[str, ...]
    values: dict[str, int]


Examine = Callable[[float], Awaitable[Examined]]
"""Verifies, waiting for open writers for at most so many seconds."""


class Conductor:
    """Runs one rotation. Made for one use: `await Conductor(…).run()`."""

    def __init__(
        self,
        rotation: Rotation,
        store: Store,
        guard: Guard,
        ledger: Ledger,
        sink: Sink,
        stop: StopFlag,
        options: RunOptions,
        examine: Examine,
    ) -> None:
        self.rotation = rotation
        self.limits = rotation.job.limits
        self.store = store
        self.guard = guard
        self.ledger = ledger
        self.sink = sink
        self.stop = stop
        self.options = options
        self.examine = examine
        self.health = KeyHealth(self.limits.max_quarantine, self.limits.max_quarantine_share)
        self.run_id = ""
        self._courses: list[Course] = []
        self._known: dict[str, dict[tuple[str, str], str]] = {}
        self._sealed_noted = 0
        self._drain_left = self.limits.drain_s

    async def run(self) -> RunEnded:
        """The run's end; raises RewrapError when it failed. Whatever happens, the leases are given back."""
        started = time.monotonic()
        admitted = await Admission(
            self.rotation, self.store, self.guard, self.ledger, self.sink, self.options
        ).admit()
        self.run_id, self._courses = admitted.run_id, admitted.courses
        admitted.proof.feed(self.health)
        state: RunState | None = RunState.FAILED
        void = False
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._beat)
                group.start_soon(self._watch)
                try:
                    ended = await self._work(admitted, started)
                finally:
                    group.cancel_scope.cancel()
            state = RunState(ended.state)
        except BaseExceptionGroup as errors:
            first = first_of(errors)
            void = isinstance(first, KeyRefused)
            if isinstance(first, LeaseLost):
                # the run is another process's now, and so is its record
                state = None
            raise first from None
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(10):
                await self._end(state, void=void)
        return ended

    async def _end(self, state: RunState | None, *, void: bool) -> None:
        try:
            await self._note_seals()
            if void:
                # it had the wrong key: what it put aside was no fault of the values
                await self.ledger.withdraw(self.run_id)
                await self.ledger.forget_progress(self.run_id)
            if state is not None:
                await self.ledger.set_state(self.run_id, state)
                await self.guard.release(finished=state.finished, void=void)
        except (StoreUnavailable, LedgerError):
            # the lease runs out by itself, and the run stays resumable
            pass

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of an idempotent step, tried again while the store or the ledger is away."""
        return await until_reachable(attempt, self.limits.reconnect_s, _quiet)

    # sweeps

    async def _work(self, admitted: Admitted, started: float) -> RunEnded:
        await self._prepare(admitted)
        first = [course for course in self._courses if course.leases[0].sweep == 1]
        if first and not await self._sweep(first, 1, full=True):
            return self._stopped(started)
        highest = max(course.leases[0].sweep for course in self._courses)
        sweeps, clean = 1, False
        while not clean and sweeps < self.limits.max_sweeps:
            if sweeps > 1:
                await anyio.sleep(min(2.0, 0.1 * 2**sweeps))
            await self._drain()
            if not await self._sweep(self._courses, highest + sweeps, full=False):
                return self._stopped(started)
            sweeps += 1
            clean = not any(course.gauge.found for course in self._courses)
        return await self._conclude(started, sweeps, clean=clean)

    async def _prepare(self, admitted: Admitted) -> None:
        """Loads what earlier processes of the run left behind, and rehearses one write to each table."""
        for entry in await self.ledger.exceptions(self.rotation.to_version, states=("open", "waived")):
            if not entry.deferred:
                known = self._known.setdefault(entry.relation, {})
                known[entry.field, entry.row_id] = entry.digest
        saved = {(p.relation, p.sweep): p for p in await self.ledger.progress(self.run_id)}
        for course in self._courses:
            if not self.options.sweeps_only:
                await rehearse(self.store, self.rotation, course, admitted.proof, self.stop, self.sink)
            first = saved.get((course.table.relation, 1))
            if first is None or course.fresh:
                course.before = await self._activity(course)
                continue
            course.before = Activity(first.inserted_before, first.deleted_before)
            if course.leases[0].sweep > 1:
                merge_tally(course.base, first.tally or {})
                course.rows = course.rows_before = first.rows_done

    async def _sweep(self, courses: list[Course], sweep: int, *, full: bool) -> bool:
        """One pass over the tables; False when it was stopped before its end."""
        for course in courses:
            if course.leases[0].sweep != sweep:
                course.leases = await self._patiently(
                    lambda course=course: self.guard.begin_sweep(course.table.relation, sweep)  # type: ignore[misc]  # mypy: default argument of a lambda
                )
            course.begin(sweep)
        todo = [course for course in courses if not course.done]
        for course in courses:
            if course.done:
                self._fold(course, full=full)
        await self._save(courses)
        limiter = anyio.CapacityLimiter(self.rotation.job.shards_at_once)
        async with anyio.create_task_group() as group:
            for course in todo:
                group.start_soon(self._sweep_table, course, full, limiter)
        return all(course.done for course in courses)

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
        await self._save([course])
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
                except Rewound:
                    pass
                except BaseExceptionGroup as errors:
                    first = first_of(errors)
                    if not isinstance(first, Rewound):
                        raise first from None
                # the server crashed and lost writes it had acknowledged, and their checkpoints with
                # them: whatever this process remembers of them is wrong
                await self._rewind(course, lease)

    async def _rewind(self, course: Course, lease: ShardLease) -> None:
        kept = await self._patiently(lambda: self.guard.lease(lease.relation, lease.range.shard))
        course.gauge.rows -= lease.rows - kept.rows
        lease.cursor, lease.rows, lease.tally, lease.seq = kept.cursor, kept.rows, kept.tally, kept.seq
        self._notice(
            "warning",
            f"table {course.table.name}: the server crashed and lost its last writes; "
            "going on from the checkpoint that it kept",
        )

    async def _shard_once(self, course: Course, lease: ShardLease, full: bool, budget: Budget) -> None:
        table, pace = course.table, self.rotation.job.pace
        reader, writer = self.store.reader(table, full=full), self.store.writer(table)
        try:
            await run_shard(
                ShardTask(
                    table=table,
                    lease=lease,
                    reader=reader,
                    writer=writer,
                    reseal=self.rotation.reseal(table),
                    scope=Scope() if full else self.rotation.scope(table),
                    known=self._known.get(table.relation, {}),
                    quarantine=self,
                    health=self.health,
                    gauge=course.gauge,
                    stop=self.stop,
                    budget=budget,
                    batch_size=pace.batch_size,
                    patience_s=self.limits.reconnect_s,
                )
            )
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(3):
                await reader.close()
                await writer.close()

    async def record(self, relation: str, faults: Sequence[Fault]) -> None:
        """Puts values aside in the ledger, before the checkpoint passes them (see `Quarantine`)."""
        await self._patiently(
            lambda: self.ledger.record(self.run_id, self.rotation.to_version, relation, faults)
        )
        known = self._known.setdefault(relation, {})
        name = next(c.table.name for c in self._courses if c.table.relation == relation)
        for fault in faults:
            if fault.reason != Reason.CONTENDED:
                known[fault.field, fault.row_id] = fault.digest
                self.sink(Quarantined(target=name, row=fault.row_id, field=fault.field, reason=fault.reason))

    async def _activity(self, course: Course) -> Activity:
        return await self._patiently(lambda: self.store.activity(course.table))

    async def _drain(self) -> None:
        """Waits for the writers that are there now, so that what comes next sees what they leave.

        All waits of a run together last at most `limits.drain_s`, and end when the run is told to stop.
        """
        while not self.stop.requested:
            step = min(DRAIN_STEP_S, self._drain_left)
            began = time.monotonic()
            if not await self._patiently(lambda step=step: self.store.drain(step)):  # type: ignore[misc]  # mypy: default argument of a lambda
                return
            self._drain_left = max(0.0, self._drain_left - (time.monotonic() - began))
            if not self._drain_left:
                return

    # the end

    def _stopped(self, started: float) -> RunEnded:
        sampled = self.options.sample is not None and not self.stop.requested
        reason = "the sample is done" if sampled else f"stopped by {self.stop.by}"
        return self._ended(RunState.PAUSED, 4, started, 0, [reason])

    async def _conclude(self, started: float, sweeps: int, *, clean: bool) -> RunEnded:
        await self._drain()
        if self.stop.requested:
            return self._stopped(started)
        await self._patiently(self.store.flush)
        examined = await self._examined()
        if not self.options.sweeps_only:
            for course in self._courses:
                await self._close_account(course, examined.values[course.table.relation])
        reasons = list(examined.reasons)
        if not clean:
            reasons += [
                f"table {course.table.name} still receives values under "
                f"{', '.join(self.rotation.from_versions)}: sweep {course.sweep} found "
                f"{course.gauge.found}"
                for course in self._courses
                if course.gauge.found > course.put_off
            ]
        if self.options.compromised:
            self._notice(
                "warning",
                "whoever had the old key could write values that were resealed here as genuine, and can read "
                "any copy of the old ones: authenticity since the compromise is not established",
            )
        complete = examined.complete and clean
        state = RunState.COMPLETE if complete else RunState.INCOMPLETE
        return self._ended(state, 0 if complete else 3, started, sweeps, reasons)

    async def _examined(self) -> Examined:
        return await self._patiently(lambda: self.examine(max(DRAIN_STEP_S, self._drain_left)))

    async def _close_account(self, course: Course, counted: int) -> None:
        """Compares verify's count with the engine's classes; fails closed."""
        fields = len(course.table.fields)
        account = Account(course.table.relation, fields, course.base, course.before)
        deadline = time.monotonic() + STATISTICS_DELAY_S
        while not account.closes(counted, await self._activity(course)):
            if time.monotonic() > deadline:
                break
            await anyio.sleep(0.5)
        else:
            return
        # rows may move by their key, or be truncated, without the server counting them: count once more
        self._notice(
            "warning",
            f"table {course.table.name}: verify counted {counted} values where {account.expected} were "
            "classified; reading it once more",
        )
        before = await self._activity(course)
        if not await self._sweep([course], course.sweep + 1, full=True):
            raise AccountingError(f"table {course.table.relation}: stopped while it was counted again")
        counted = (await self._examined()).values[course.table.relation]
        again = Account(course.table.relation, fields, course.recounted or {}, before)
        if not again.closes(counted, await self._activity(course)):
            raise AccountingError(
                f"table {course.table.relation}: {again.expected} values were classified, verify counts "
                f"{counted}, and no inserts or deletes explain the difference",
                hint="do not retire the old key; run rewrap verify --deep when the table is quiet",
            )

    def _ended(
        self, state: RunState, exit_code: int, started: float, sweeps: int, reasons: list[str]
    ) -> RunEnded:
        seconds = time.monotonic() - started
        if self.options.sweeps_only:
            rows = here = sum(course.rows_later for course in self._courses)
        else:
            rows = sum(course.rows or course.gauge.rows for course in self._courses)
            here = rows - sum(course.rows_before for course in self._courses)
        outcomes: dict[str, dict[str, dict[str, int]]] = {}
        for course in self._courses:
            tally = course.later if self.options.sweeps_only else course.base or course.tally
            outcomes[course.table.name] = {name: dict(+counts) for name, counts in tally.items()}
        return RunEnded(
            run_id=self.run_id,
            state=state,
            exit_code=exit_code,
            outcomes=outcomes,
            rows=rows,
            values=sum(sum(c.values()) for fields in outcomes.values() for c in fields.values()),
            resealed_late=0 if self.options.sweeps_only else sum(c.late for c in self._courses),
            sweeps=sweeps,
            seconds=round(seconds, 3),
            rows_per_s=round(here / seconds, 1) if seconds else 0.0,
            reasons=reasons,
        )

    # beside the work

    async def _beat(self) -> None:
        pause = self.limits.lease_s / 3
        while True:
            await anyio.sleep(pause)
            # a server that restarts may take a while; the fence keeps us honest until it is back
            await self._patiently(self.guard.beat)

    async def _watch(self) -> None:
        while True:
            await anyio.sleep(PROGRESS_S)
            for course in self._courses:
                course.observe()
                if course.started and not course.done:
                    self.sink(course.progress())
            await self._save(self._courses)
            await self._note_seals()

    async def _save(self, courses: Sequence[Course]) -> None:
        await self._patiently(
            lambda: self.ledger.save_progress(self.run_id, [course.record() for course in courses])
        )

    async def _note_seals(self) -> None:
        total = sum(course.sealed for course in self._courses)
        if total > self._sealed_noted:
            fingerprint = self.rotation.keyring.get(self.rotation.to_version).fingerprint
            fresh, self._sealed_noted = total - self._sealed_noted, total
            await self._patiently(lambda: self.ledger.add_sealed(fingerprint, fresh))

    def _notice(self, level: str, message: str) -> None:
        self.sink(Notice(level=level, message=message))


def _quiet() -> None:
    """Says nothing while something is tried again in the background."""


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
