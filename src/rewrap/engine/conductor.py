"""A run: admitted, then sweeps until nothing is stale, then verified, then added up."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import anyio

from rewrap.engine import quiescence
from rewrap.engine.accounting import Account
from rewrap.engine.admission import Admission, Admitted
from rewrap.engine.compile import Rotation
from rewrap.engine.compromise import warning_of_compromise
from rewrap.engine.course import Course
from rewrap.engine.health import KeyHealth
from rewrap.engine.keywatch import KeyWatch
from rewrap.engine.measuring import Measuring
from rewrap.engine.options import RunOptions
from rewrap.engine.pipeline import StopFlag
from rewrap.engine.rehearsal import rehearse
from rewrap.engine.retry import FORBIDDEN, LOCKED, TABLE_LOCK_PAUSE_S, TABLE_LOCKED, quiet, until_reachable
from rewrap.engine.sharing import Sharing
from rewrap.engine.steering import Steering, pacers_of
from rewrap.engine.sweep import Sweeper, first_of
from rewrap.engine.vitals import watch
from rewrap.errors import (
    AccountingError,
    KeyRefused,
    LeaseLost,
    LedgerError,
    SchemaMismatch,
    StoreError,
    StoreUnavailable,
    UnsafeTarget,
)
from rewrap.events import Event, Notice, RunEnded
from rewrap.interfaces import Guard, Sink, Store
from rewrap.ledgers.sql import Ledger
from rewrap.model import Activity, RunState, merge_tally
from rewrap.pace.gate import Gate

T = TypeVar("T")

PROGRESS_S = 1.0
"""Seconds between two progress events, and between two saves of progress to the ledger."""

DRAIN_STEP_S = 0.5
"""Seconds between two looks at whether the run is to stop, while open writers are waited for."""

STATISTICS_DELAY_S = 12.0
"""Postgres' sessions report their row counts at the latest 10 s after they fell idle (pgstat)."""


@dataclass(frozen=True, slots=True)
class Examined:
    """What verify says to a run: complete or not, and why.

    By relation, `values` is its count of them, and `left` how many a further sweep would find. `events` are
    what it has to tell, once the run has ended.
    """

    complete: bool
    reasons: tuple[str, ...]
    values: dict[str, int]
    left: Mapping[str, int]
    events: tuple[Event, ...]


Examine = Callable[[float], Awaitable[Examined]]
"""Verifies, waiting for open writers for at most so many seconds."""

Before = Callable[[str], Awaitable[None]]
"""What is to be done, for the run of this id, before its first write. Done again it changes nothing."""


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
        before: Before | None = None,
        accounts: Mapping[str, Gate] | None = None,
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
        self.before = before
        self.health = KeyHealth(self.limits.max_quarantine, self.limits.max_quarantine_share)
        job = rotation.job
        self.pacers = pacers_of(job, stop)
        self.measuring = Measuring(rotation, store, ledger, self.pacers)
        gates = {name: one.gate for name, one in self.pacers.items()} | dict(accounts or {})
        self.sharing = Sharing(job, ledger, sink, gates, rotation.keyring.gate)
        self.steering = Steering(job, ledger, sink, stop, self.pacers)
        self.keys = KeyWatch(rotation.keyring.watched, job.keys.recheck_s, stop)
        self.run_id = ""
        self._courses: list[Course] = []
        self._sealed_noted = 0
        self._drain_left = self.limits.drain_s

    async def run(self) -> RunEnded:
        """The run's end; raises RewrapError when it failed. Whatever happens, the leases are given back."""
        started = time.monotonic()
        await self.sharing.begin()
        # whoever has paused the job already must not see the beginning of another run
        await self.steering.look()
        admitted = await Admission(
            self.rotation, self.store, self.guard, self.ledger, self.sink, self.options
        ).admit()
        self.run_id, self._courses = admitted.run_id, admitted.courses
        for course in self._courses:
            # it may be told to wait before its first sweep, and stands where an earlier process left it
            course.begin(course.leases[0].sweep)
        self.sweeper = Sweeper(
            self.rotation, self.store, self.guard, self.ledger, self.sink, self.stop, self.options,
            self.health, self.run_id, {c.table.relation: c.table.name for c in self._courses}, self.pacers,
            self.steering,
        )  # fmt: skip
        admitted.proof.feed(self.health, self.rotation.from_versions)
        state: RunState | None = RunState.FAILED
        void = False
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._beat)
                group.start_soon(self._watch)
                group.start_soon(self.measuring.watch)
                tables = [course.table for course in self._courses]
                await watch(group, self.store, tables, self.pacers, self.rotation.job.pace, self.sink)
                await group.start(self.sharing.run)
                await self.steering.begin(self.run_id)
                group.start_soon(self.steering.watch)
                group.start_soon(self.keys.run)
                try:
                    ended = await self.keys.over(self._work(admitted, started))
                    await self.measuring.ended(ended)
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
                by = self.steering.cancelled_by if state is RunState.CANCELLED else None
                await self.ledger.set_state(self.run_id, state, by=by)
                await self.guard.release(finished=state.finished, void=void)
                await self.steering.end(state)
        except (StoreUnavailable, LedgerError):
            # the lease runs out by itself, and the run stays resumable
            pass

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of an idempotent step, tried again while the store or the ledger is away."""
        return await until_reachable(attempt, self.limits.reconnect_s, quiet)

    # sweeps

    async def _work(self, admitted: Admitted, started: float) -> RunEnded:
        if self.before is not None and not await self._done_before(self.before):
            return self._stopped(started)
        await self.keys.look()
        await self._prepare(admitted)
        first = [course for course in self._courses if course.leases[0].sweep == 1]
        if first:
            sweep = self.sweeper.sweep(first, 1, full=True)
            if not await self.measuring.over(self.run_id, first, sweep):
                return self._stopped(started)
        highest = max((course.leases[0].sweep for course in self._courses), default=1)
        sweeps = 1
        if self.options.sweeps_only and not await self._sweep_again(self._courses, highest + 1, sweeps):
            return self._stopped(started)
        # verify's count decides whether another sweep is needed: it reads the table once for both
        while (examined := await self._examined()) is not None:
            left = [course for course in self._courses if examined.left.get(course.table.relation)]
            if sweeps > 1 or not admitted.resumed:
                quiescence.judge(self.rotation, left, examined.left)
            if not left or sweeps >= self.limits.max_sweeps:
                return await self._conclude(started, sweeps, examined, left)
            sweeps += 1
            if not await self._sweep_again(left, highest + sweeps, sweeps):
                break
        return self._stopped(started)

    async def _done_before(self, before: Before) -> bool:
        """Whether what comes before the first write is done."""

        async def work() -> bool:
            await before(self.run_id)
            return True

        return bool(await self.steering.heeded(lambda: self._unlocked(work)))

    async def _sweep_again(self, courses: list[Course], sweep: int, count: int) -> bool:
        """Looks for what is still in scope, after a pause that grows with every such sweep."""
        if count > 2:
            await anyio.sleep(min(2.0, 0.1 * 2**count))
        await self.steering.clear()
        return await self.sweeper.sweep(courses, sweep, full=False)

    async def _prepare(self, admitted: Admitted) -> None:
        """Loads what earlier processes of the run left behind, and rehearses one write to each table."""
        for entry in await self.ledger.exceptions(self.rotation.to_version, states=("open", "waived")):
            if not entry.deferred:
                known = self.sweeper.known.setdefault(entry.relation, {})
                known[entry.field, entry.row_id] = entry.digest
        saved = {(p.relation, p.sweep): p for p in await self.ledger.progress(self.run_id)}
        for course in self._courses:
            if not self.options.sweeps_only:
                await rehearse(
                    self.store, self.rotation, course, admitted.proof, self.stop, self.sink, self.steering
                )
            first = saved.get((course.table.relation, 1))
            if first is None or course.fresh:
                course.before = await self._activity(course)
                continue
            course.before = Activity(first.inserted_before, first.deleted_before)
            if course.leases[0].sweep > 1:
                merge_tally(course.base, first.tally or {})
                course.rows = course.rows_before = first.rows_done

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
        if self.steering.cancelled_by:
            reason = (
                f"cancelled by {self.steering.cancelled_by}: values are under old versions and the new one"
            )
            return self._ended(RunState.CANCELLED, 5, started, 0, [reason])
        return self._ended(RunState.INTERRUPTED, 4, started, 0, [reason])

    async def _conclude(
        self, started: float, sweeps: int, examined: Examined, left: Sequence[Course]
    ) -> RunEnded:
        await self.keys.look()
        for event in examined.events:
            self.sink(event)
        if not self.options.sweeps_only:
            for course in self._courses:
                counted = examined.values.get(course.table.relation)
                if counted is None:
                    self._notice(
                        "warning",
                        f"partition {course.table.name} is not part of {course.table.target} any more: "
                        "its values were not counted with it",
                    )
                    continue
                await self._close_account(course, counted)
        reasons = list(examined.reasons)
        reasons += [
            f"table {course.table.name} still receives values under "
            f"{', '.join(self.rotation.from_versions)}: {examined.left[course.table.relation]} are there "
            f"after sweep {course.sweep}"
            for course in left
            if examined.left[course.table.relation] > course.put_off
        ]
        altered = await self._altered()
        reasons += altered
        complete = examined.complete and not left and not altered
        state = RunState.COMPLETE if complete else RunState.INCOMPLETE
        ended = self._ended(state, 0 if complete else 3, started, sweeps, reasons)
        if self.options.compromised:
            self.sink(warning_of_compromise(ended, self.rotation.from_versions))
        return ended

    async def _altered(self) -> list[str]:
        """What a run would be refused for now, and was not when this one began.

        A trigger made meanwhile may have changed what was written, and values that no key opens are complete
        to a count while they have the new marker.
        """
        try:
            found = await self.steering.heeded(lambda: self._unlocked(self.store.tables))
        except StoreError as exc:
            if not isinstance(exc, SchemaMismatch | UnsafeTarget) and exc.sqlstate != FORBIDDEN:
                raise
            return [
                f"{exc.message}; that was not so when the run began: rewrap verify --deep tells what it did"
            ]
        if found is None:
            return ["stopped before its tables were looked at once more"]
        now = {table.relation: table.identity for table in found}
        return [
            f"{course.table.relation}, or a column of it, was dropped and made anew while the run was at "
            "work: what it held is gone, and what is there now was not there when the run began"
            for course in self._courses
            if now.get(course.table.relation, course.table.identity) != course.table.identity
        ]

    async def _examined(self) -> Examined | None:
        """Verify's count, once open writers have ended and the log is flushed; None on a stop.

        A pause cuts it short: nobody's snapshot is to be held open for as long as that lasts.
        """
        return await self.steering.heeded(self._counted)

    async def _counted(self) -> Examined | None:
        await self._drain()
        if self.stop.requested:
            return None
        await self._patiently(self.store.flush)
        return await self._unlocked(lambda: self.examine(max(DRAIN_STEP_S, self._drain_left)))

    async def _unlocked(self, attempt: Callable[[], Awaitable[T]]) -> T | None:
        """The result of a look at the tables, once nobody keeps one locked; None on a stop."""
        while True:
            try:
                return await self._patiently(attempt)
            except StoreError as exc:
                if exc.sqlstate != LOCKED:
                    raise
                if self.stop.requested:
                    return None
                self._notice("warning", f"{exc.message}: somebody holds {TABLE_LOCKED}")
            await anyio.sleep(TABLE_LOCK_PAUSE_S)

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
        examined = None
        if await self.sweeper.sweep([course], course.sweep + 1, full=True):
            examined = await self._examined()
        if examined is None:
            raise AccountingError(f"table {course.table.relation}: stopped while it was counted again")
        counted = examined.values[course.table.relation]
        again = Account(course.table.relation, fields, course.recounted or {}, before)
        if not again.closes(counted, await self._activity(course)):
            raise AccountingError(
                f"table {course.table.relation}: {again.expected} values were classified, verify counts "
                f"{counted}, and no inserts or deletes explain the difference",
                hint="do not retire the old key; rows whose key keeps changing are met twice or not at all: "
                "run again, and rewrap verify --deep, when the table is quiet",
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
            final = {name: counts.copy() for name, counts in tally.items()}
            if not self.options.sweeps_only:
                course.settle_elements(final)
            outcomes[course.table.name] = {name: dict(+counts) for name, counts in final.items()}
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
            spent=self.rotation.spent(self.store),
            probed=dict(sum((course.probed for course in self._courses), Counter())),
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
                waits = self.rotation.keyring.waiting_for or self.store.waiting_for
                course.gauge.outside = (
                    self.steering.reason or waits or self.pacers[self.sweeper.home_of(course)].gate.reason
                )
                course.observe()
                if course.started and not course.done:
                    self.sink(course.progress())
            await self.sweeper.save(self._courses)
            await self._note_seals()

    async def _note_seals(self) -> None:
        total = sum(course.sealed for course in self._courses)
        if total > self._sealed_noted:
            fingerprint = self.rotation.keyring.get(self.rotation.to_version).fingerprint
            fresh, self._sealed_noted = total - self._sealed_noted, total
            await self._patiently(lambda: self.ledger.add_sealed(fingerprint, fresh))

    def _notice(self, level: str, message: str, hint: str | None = None) -> None:
        self.sink(Notice(level=level, message=message, hint=hint))
