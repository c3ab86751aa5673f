"""A run: prove the keys, take the tables, sweep until nothing is stale, have it verified, add it up."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import anyio

from rewrap.engine.accounting import Account
from rewrap.engine.compile import Rotation
from rewrap.engine.health import KeyHealth
from rewrap.engine.options import RunOptions
from rewrap.engine.pipeline import Budget, Gauge, ShardTask, StopFlag, run_shard
from rewrap.engine.proof import Proof, gather_proof, judge_sources, judge_target
from rewrap.engine.retry import until_reachable
from rewrap.errors import (
    AccountingError,
    KeyRefused,
    LeaseLost,
    LedgerError,
    RewrapError,
    StoreUnavailable,
    UsageError,
)
from rewrap.events import (
    Notice,
    Progress,
    Quarantined,
    RunEnded,
    RunStarted,
    SweepDone,
    SweepStarted,
)
from rewrap.interfaces import Claim, Guard, Scope, Sink, Store
from rewrap.ledgers.sql import Ledger, RunRecord, TableProgress, now, operator
from rewrap.model import (
    Activity,
    Fault,
    Outcome,
    Reason,
    RunState,
    ServerIdentity,
    ShardLease,
    Table,
    Tally,
    merge_tally,
)

PROGRESS_S = 1.0
"""Seconds between two progress events, and between two saves of progress to the ledger."""

SEALS_WARN, SEALS_MAX = 2**31, 2**32
"""Values sealed under one AES-GCM key with random nonces (SP 800-38D 8.3)."""

STATISTICS_DELAY_S = 12.0
"""Postgres' sessions report their row counts at the latest 10 s after they fell idle (pgstat)."""


@dataclass(frozen=True, slots=True)
class Examined:
    """What verify says to a run: complete or not, why, and its count of values by relation."""

    complete: bool
    reasons: tuple[str, ...]
    values: dict[str, int]


Examine = Callable[[Sequence[Table]], Awaitable[Examined]]


@dataclass(slots=True)
class _Course:
    """One table's way through a run. `base` is the tally of the sweep that read every row."""

    table: Table
    leases: list[ShardLease]
    estimated: int
    base: Tally = field(default_factory=dict)
    recounted: Tally | None = None
    before: Activity = field(default_factory=lambda: Activity(0, 0))
    gauge: Gauge = field(default_factory=Gauge)
    sweep: int = 1
    late: int = 0
    rows: int = 0
    started: float = 0.0
    rate: float = 0.0
    _seen: tuple[float, int] = (0.0, 0)

    def observe(self) -> None:
        """Updates the rate: an average that leans to the last few seconds."""
        at, rows = time.monotonic(), self.gauge.rows
        if self._seen[0]:
            elapsed = max(1e-6, at - self._seen[0])
            current = (rows - self._seen[1]) / elapsed
            self.rate = current if not self.rate else 0.6 * self.rate + 0.4 * current
        self._seen = (at, rows)


class Conductor:
    """Runs one rotation. Made for one use: `await Conductor(...).run()`."""

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
        self.job = rotation.job
        self.store = store
        self.guard = guard
        self.ledger = ledger
        self.sink = sink
        self.stop = stop
        self.options = options
        self.examine = examine
        self.health = self._new_health()
        self.run_id = ""
        self._resumed = False
        self._courses: list[_Course] = []
        self._known: dict[str, dict[tuple[str, str], str]] = {}
        self._proof = Proof()
        self._void = False
        self._sealed_noted = 0

    def _new_health(self) -> KeyHealth:
        limits = self.job.limits
        return KeyHealth(limits.max_quarantine, limits.max_quarantine_share)

    async def run(self) -> RunEnded:
        """The run's end; raises RewrapError when it failed. Whatever happens, the leases are given back."""
        started = time.monotonic()
        identity = await self.store.identity()
        tables = await self.store.tables()
        record = await self._record(identity)
        for notice in self.store.notices:
            self._notice("info", notice)
        for table in tables:
            await self.store.refuse_fenced(table, self.rotation.target_markers(table))
        await self._prove(tables, record)
        await self._claim(tables, record, identity)
        state = RunState.FAILED
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._beat)
                group.start_soon(self._watch)
                try:
                    ended = await self._work(tables, started)
                finally:
                    group.cancel_scope.cancel()
            state = RunState(ended.state)
        except BaseExceptionGroup as errors:
            first = _first(errors)
            self._void = isinstance(first, KeyRefused)
            raise first from None
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(10):
                await self._end(state)
        return ended

    # before the first write

    async def _record(self, identity: ServerIdentity) -> RunRecord:
        """The run to go on with, or a new one; refuses what would leave another one half done."""
        latest = await self.ledger.latest()
        keys = [*self.rotation.from_versions, self.rotation.to_version]
        commitments = {v: self.rotation.keyring.get(v).commitment for v in keys}
        same = (
            latest is not None
            and latest.from_versions == self.rotation.from_versions
            and latest.to_version == self.rotation.to_version
        )
        if latest is not None and not latest.state.finished and self.options.abandon != latest.run_id:
            self._check_unfinished(latest, same)
            self._check_commitments(latest, commitments)
            self.run_id, self._resumed = latest.run_id, True
            return latest
        if latest is not None and self.options.abandon == latest.run_id:
            await self.ledger.set_state(latest.run_id, RunState.ABANDONED)
        if latest is not None and same and self.options.sweeps_only:
            self._check_commitments(latest, commitments)
            self.run_id, self._resumed = latest.run_id, True
            return latest
        if self.options.resume:
            raise UsageError(
                f'job "{self.job.name}" has no unfinished run',
                hint="start one with rewrap run --from … --to …",
            )
        self.run_id = _new_id()
        return RunRecord(
            self.run_id, self.job.name, self.job.digest, self.rotation.from_versions,
            self.rotation.to_version, RunState.RUNNING, operator(), identity.origin, commitments,
            now(), now(),
        )  # fmt: skip

    def _check_unfinished(self, latest: RunRecord, same: bool) -> None:
        came_from = ",".join(latest.from_versions)
        if not same:
            raise UsageError(
                f'job "{self.job.name}" has an unfinished run {latest.run_id} '
                f"from {came_from} to {latest.to_version} ({latest.state})",
                hint=f"finish it with rewrap resume, or give it up with --abandon {latest.run_id}; "
                "the values it has resealed stay readable under both keys",
            )
        if latest.job_digest != self.job.digest:
            raise LedgerError(
                f"the job file has changed since run {latest.run_id} began",
                hint="restore its targets, layouts and keys (pace and limits may change), or give "
                f"the run up with --abandon {latest.run_id} and start again",
            )

    @staticmethod
    def _check_commitments(latest: RunRecord, commitments: dict[str, str]) -> None:
        for version, commitment in commitments.items():
            if latest.commitments.get(version, commitment) != commitment:
                raise KeyRefused(
                    f'key version "{version}" is not the key that run {latest.run_id} began with',
                    hint="one name must not stand for two keys; restore the first one",
                )

    async def _prove(self, tables: Sequence[Table], record: RunRecord) -> None:
        rotation = self.rotation
        self._proof = await gather_proof(
            self.store, tables, [*rotation.from_versions, rotation.to_version],
            frozenset(rotation.from_versions), rotation.bind,
        )  # fmt: skip
        judge_sources(self._proof, rotation.from_versions, rotation.keyring)
        judge_target(
            self._proof,
            rotation.keyring.get(rotation.to_version),
            expected_fingerprint=self.options.to_fingerprint,
            # a resumed run's key was vouched for when it began, and is recognised by its commitment
            allow_unseen=self.options.allow_unseen_target or self._resumed,
            allow_unopenable=self.options.allow_unopenable_target,
        )
        self.health.opened(self._proof.opened)
        await self._check_seals(tables)

    async def _check_seals(self, tables: Sequence[Table]) -> None:
        """Random 96-bit nonces: refuses to go past 2^32 seals under a key, the application's included."""
        limited = [
            table
            for table in tables
            if any(
                self.rotation.bind(table, name, self.rotation.to_version).layout.cipher.seal_limit
                for name in table.field_names
            )
        ]
        if not limited:
            return
        fingerprint = self.rotation.keyring.get(self.rotation.to_version).fingerprint
        sealed = await self.ledger.sealed(fingerprint)
        ahead = sum(table.estimated_rows * len(table.fields) for table in limited)
        # the application seals with the same key: at least as often as there are values, we assume
        expected = sealed + 2 * ahead
        if expected >= SEALS_MAX:
            raise KeyRefused(
                f'key version "{self.rotation.to_version}" would come to about {expected} seals, past '
                f"the {SEALS_MAX} that random 96-bit nonces allow",
                hint="mint a new key and rotate to that one",
            )
        if expected >= SEALS_WARN:
            self._notice(
                "warning",
                f'key version "{self.rotation.to_version}" comes to about {expected} seals of the '
                f"{SEALS_MAX} that random nonces allow",
                "plan the next rotation",
            )

    async def _claim(self, tables: Sequence[Table], record: RunRecord, identity: ServerIdentity) -> None:
        ranges = {t.relation: await self.store.split(t, self.job.pace.shards) for t in tables}
        leases = await self.guard.claim(
            Claim(
                run_id=self.run_id,
                owner=f"{operator()} {_new_id()}",
                from_versions=self.rotation.from_versions,
                to_version=self.rotation.to_version,
                ranges=ranges,
                ttl_s=self.job.limits.lease_s,
                restart=self.options.restart,
                abandon=self.options.abandon,
            )
        )
        if self._resumed:
            if record.origin != identity.origin:
                self._notice(
                    "warning",
                    "the database was restored or failed over since this run began: "
                    "it starts from the beginning",
                )
            await self.ledger.set_state(self.run_id, RunState.RUNNING, origin=identity.origin)
        else:
            await self.ledger.begin(record)
        for table in tables:
            self._courses.append(_Course(table, leases[table.relation], table.estimated_rows))
        keyring = self.rotation.keyring
        versions = [*self.rotation.from_versions, self.rotation.to_version]
        self.sink(
            RunStarted(
                run_id=self.run_id,
                job=self.job.name,
                from_versions=list(self.rotation.from_versions),
                to_version=self.rotation.to_version,
                targets=[table.name for table in tables],
                fingerprints={v: keyring.get(v).fingerprint for v in versions},
                resumed=self._resumed,
                dry_run=False,
            )
        )

    async def _rehearse(self, course: _Course) -> None:
        """Swaps one stored value and rolls back, before the first real write to a table."""
        reseal = self.rotation.reseal(course.table)
        for row in self._proof.rows.get(course.table.relation, [])[:5]:
            batch = reseal([row]).swap
            if len(batch) and await self.store.rehearse(course.table, course.leases[0], batch):
                return

    # the work

    async def _work(self, tables: Sequence[Table], started: float) -> RunEnded:
        await self._load_known()
        saved = {(p.relation, p.sweep): p for p in await self.ledger.progress(self.run_id)}
        for course in self._courses:
            if not self.options.sweeps_only:
                await self._rehearse(course)
            first = saved.get((course.table.relation, 1))
            if first is not None and not (self.options.restart or self._voided(course)):
                course.before = Activity(first.inserted_before, first.deleted_before)
            else:
                course.before = await self.store.activity(course.table)
            if course.leases[0].sweep > 1 and first is not None:
                merge_tally(course.base, first.tally or {})
                course.rows = first.rows_done
        sweeps = 1
        first_sweep = [c for c in self._courses if c.leases[0].sweep == 1]
        if first_sweep and not await self._sweep(first_sweep, 1, full=True):
            return await self._stopped(started)
        highest = max(c.leases[0].sweep for c in self._courses)
        clean = False
        for sweep in range(highest + 1, highest + self.job.limits.max_sweeps):
            await self._drain()
            if not await self._sweep(self._courses, sweep, full=False):
                return await self._stopped(started)
            sweeps += 1
            if not any(course.gauge.found for course in self._courses):
                clean = True
                break
            await anyio.sleep(min(2.0, 0.1 * 2**sweeps))
        return await self._conclude(tables, started, sweeps, clean)

    def _voided(self, course: _Course) -> bool:
        return all(lease.sweep == 1 and lease.cursor is None and not lease.done for lease in course.leases)

    async def _sweep(self, courses: list[_Course], sweep: int, *, full: bool) -> bool:
        """One pass over the tables; False when it was stopped before its end."""
        limiter = anyio.CapacityLimiter(self.job.pace.shards)
        for course in courses:
            await self._begin_sweep(course, sweep, full=full)
        async with anyio.create_task_group() as group:
            for course in courses:
                group.start_soon(self._sweep_table, course, sweep, full, limiter)
        return all(lease.done for course in courses for lease in course.leases)

    async def _begin_sweep(self, course: _Course, sweep: int, *, full: bool) -> None:
        if course.leases[0].sweep != sweep:
            course.leases = await self.guard.begin_sweep(course.table.relation, sweep)
        course.sweep = sweep
        course.gauge = Gauge(rows=sum(lease.rows for lease in course.leases))
        for lease in course.leases:
            for counts in lease.tally.values():
                course.gauge.resealed += counts.get(Outcome.RESEALED, 0)
                course.gauge.quarantined += counts.get(Outcome.QUARANTINED, 0)
        course.rate, course._seen = 0.0, (0.0, 0)
        await self._save([course])
        self.sink(
            SweepStarted(
                target=course.table.name,
                sweep=sweep,
                rows_estimated=course.estimated,
                rows_done=course.gauge.rows,
            )
        )

    async def _sweep_table(
        self, course: _Course, sweep: int, full: bool, limiter: anyio.CapacityLimiter
    ) -> None:
        course.started = time.monotonic()
        budget = Budget(self.options.sample)
        async with anyio.create_task_group() as group:
            for lease in course.leases:
                if not lease.done:
                    group.start_soon(self._shard, course, lease, full, budget, limiter)
        tally: Tally = {}
        for lease in course.leases:
            merge_tally(tally, lease.tally)
        done = all(lease.done for lease in course.leases)
        if full and sweep == 1:
            course.base = tally
            course.rows = sum(lease.rows for lease in course.leases)
        elif full:
            course.recounted = tally
        else:
            course.late += sum(counts[Outcome.RESEALED] for counts in tally.values())
        await self._save([course], tally=tally, done=done)
        self._progress(course)
        if done:
            self.sink(
                SweepDone(
                    target=course.table.name,
                    sweep=sweep,
                    rows_done=course.gauge.rows,
                    found=course.gauge.found,
                    outcomes={name: dict(counts) for name, counts in tally.items()},
                    seconds=round(time.monotonic() - course.started, 3),
                )
            )

    async def _shard(
        self,
        course: _Course,
        lease: ShardLease,
        full: bool,
        budget: Budget,
        limiter: anyio.CapacityLimiter,
    ) -> None:
        async with limiter:
            if self.stop:
                return
            table = course.table
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
                        batch_size=self.job.pace.batch_size,
                        patience_s=self.job.limits.reconnect_s,
                    )
                )
            finally:
                with anyio.CancelScope(shield=True), anyio.move_on_after(3):
                    await reader.close()
                    await writer.close()

    async def record(self, relation: str, faults: Sequence[Fault]) -> None:
        """Puts values aside in the ledger, before the checkpoint passes them (see `Quarantine`)."""
        await self.ledger.record(self.run_id, self.rotation.to_version, relation, faults)
        known = self._known.setdefault(relation, {})
        name = next(c.table.name for c in self._courses if c.table.relation == relation)
        for fault in faults:
            if fault.reason != Reason.CONTENDED:
                known[fault.field, fault.row_id] = fault.digest
                self.sink(Quarantined(target=name, row=fault.row_id, field=fault.field, reason=fault.reason))

    async def _load_known(self) -> None:
        for entry in await self.ledger.exceptions(self.rotation.to_version, states=("open", "waived")):
            if not entry.deferred:
                known = self._known.setdefault(entry.relation, {})
                known[entry.field, entry.row_id] = entry.digest

    async def _drain(self) -> list[str]:
        """Waits for the writers that were there; what did not end is said, and verify will see it."""
        left = []
        for course in self._courses:
            for writer in await self.store.drain(course.table, self.job.limits.drain_s):
                left.append(f"table {course.table.name}: {writer} has written and not yet ended")
        return left

    # the end

    async def _stopped(self, started: float) -> RunEnded:
        sampled = self.options.sample is not None and not self.stop
        reason = "the sample is done" if sampled else f"stopped by {self.stop.by}"
        return self._ended(RunState.PAUSED, 4, started, 0, (reason,))

    async def _conclude(self, tables: Sequence[Table], started: float, sweeps: int, clean: bool) -> RunEnded:
        open_writers = await self._drain()
        await self.store.flush()
        examined = await self.examine(tables)
        if not self.options.sweeps_only:
            for course in self._courses:
                await self._close_account(course, examined.values[course.table.relation])
        reasons = [*examined.reasons, *open_writers]
        if not clean:
            reasons += [
                f"table {course.table.name} still receives values under "
                f"{', '.join(self.rotation.from_versions)}: sweep {course.sweep} found "
                f"{course.gauge.found}"
                for course in self._courses
                if course.gauge.found
            ]
        complete = examined.complete and clean and not open_writers
        state = RunState.COMPLETE if complete else RunState.INCOMPLETE
        return self._ended(state, 0 if complete else 3, started, sweeps, tuple(reasons))

    async def _close_account(self, course: _Course, counted: int) -> None:
        """Compares verify's count with the engine's classes; fails closed."""
        fields = len(course.table.fields)
        account = Account(course.table.relation, fields, course.base, course.before)
        deadline = time.monotonic() + STATISTICS_DELAY_S
        while not account.closes(counted, await self.store.activity(course.table)):
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
        before = await self.store.activity(course.table)
        if not await self._sweep([course], course.sweep + 1, full=True):
            raise AccountingError(f"table {course.table.relation}: stopped while it was counted again")
        examined = await self.examine([entry.table for entry in self._courses])
        again = Account(course.table.relation, fields, course.recounted or {}, before)
        counted = examined.values[course.table.relation]
        if not again.closes(counted, await self.store.activity(course.table)):
            raise AccountingError(
                f"table {course.table.relation}: {again.expected} values were classified, verify counts "
                f"{counted}, and no inserts or deletes explain the difference",
                hint="do not retire the old key; run rewrap verify --deep when the table is quiet",
            )

    def _ended(
        self, state: RunState, exit_code: int, started: float, sweeps: int, reasons: tuple[str, ...]
    ) -> RunEnded:
        seconds = time.monotonic() - started
        rows = sum(course.rows or course.gauge.rows for course in self._courses)
        outcomes: dict[str, dict[str, dict[str, int]]] = {}
        values = 0
        for course in self._courses:
            tally = course.base
            if not tally:
                for lease in course.leases:
                    merge_tally(tally, lease.tally)
            outcomes[course.table.name] = {name: dict(+counts) for name, counts in tally.items()}
            values += sum(sum(counts.values()) for counts in tally.values())
        return RunEnded(
            run_id=self.run_id,
            state=state,
            exit_code=exit_code,
            outcomes=outcomes,
            rows=rows,
            values=values,
            resealed_late=sum(course.late for course in self._courses),
            sweeps=sweeps,
            seconds=round(seconds, 3),
            rows_per_s=round(rows / seconds, 1) if seconds else 0.0,
            reasons=list(reasons),
        )

    async def _end(self, state: RunState) -> None:
        try:
            await self._note_seals()
            if self._void:
                # it had the wrong key: what it put aside was no fault of the values
                await self.ledger.withdraw(self.run_id)
                await self.ledger.forget_progress(self.run_id)
            await self.ledger.set_state(self.run_id, state)
            await self.guard.release(finished=state.finished, void=self._void)
        except (StoreUnavailable, LedgerError):
            # the lease runs out by itself, and the run stays resumable
            pass

    # beside the work

    async def _beat(self) -> None:
        pause = self.job.limits.lease_s / 3
        while True:
            await anyio.sleep(pause)
            # a server that restarts may take a while; the fence keeps us honest until it is back
            await until_reachable(self.guard.beat, self.job.limits.reconnect_s, lambda: None)

    async def _watch(self) -> None:
        while True:
            await anyio.sleep(PROGRESS_S)
            for course in self._courses:
                course.observe()
                if course.started and not all(lease.done for lease in course.leases):
                    self._progress(course)
            await self._save(self._courses)
            await self._note_seals()

    def _progress(self, course: _Course) -> None:
        gauge = course.gauge
        left = max(0, course.estimated - gauge.rows)
        full = course.sweep == 1
        self.sink(
            Progress(
                target=course.table.name,
                sweep=course.sweep,
                rows_done=gauge.rows,
                rows_estimated=max(course.estimated, gauge.rows),
                resealed=gauge.resealed,
                quarantined=gauge.quarantined,
                stale_left=self._stale_left(course, left) if full else None,
                rows_per_s=round(course.rate, 1),
                eta_s=round(left / course.rate, 1) if full and course.rate else None,
                waiting_for=gauge.waiting_for,
            )
        )

    @staticmethod
    def _stale_left(course: _Course, left: int) -> int:
        """Rows not yet read, times the share of those read that were stale."""
        share = course.gauge.found / course.gauge.rows if course.gauge.rows else 1.0
        return round(left * len(course.table.fields) * min(1.0, share))

    async def _save(
        self, courses: Sequence[_Course], *, tally: Tally | None = None, done: bool = False
    ) -> None:
        entries = []
        for course in courses:
            counts: Tally = {}
            if tally is None:
                for lease in course.leases:
                    merge_tally(counts, lease.tally)
            entries.append(
                TableProgress(
                    relation=course.table.relation,
                    sweep=course.sweep,
                    rows_estimated=course.estimated,
                    rows_done=course.gauge.rows,
                    found=course.gauge.found,
                    tally=tally if tally is not None else counts,
                    done=done or all(lease.done for lease in course.leases),
                    rows_per_s=course.rate,
                    waiting_for=course.gauge.waiting_for,
                    inserted_before=course.before.inserted,
                    deleted_before=course.before.deleted,
                )
            )
        await self.ledger.save_progress(self.run_id, entries)

    async def _note_seals(self) -> None:
        total = sum(course.gauge.resealed for course in self._courses)
        if total > self._sealed_noted:
            fingerprint = self.rotation.keyring.get(self.rotation.to_version).fingerprint
            await self.ledger.add_sealed(fingerprint, total - self._sealed_noted)
        self._sealed_noted = total

    def _notice(self, level: str, message: str, hint: str | None = None) -> None:
        self.sink(Notice(level=level, message=message, hint=hint))


def _new_id() -> str:
    return secrets.token_hex(4)


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error to show: ours before others; a lost lease before what it caused."""
    flat: list[BaseException] = []
    queue: list[BaseException] = [errors]
    while queue:
        error = queue.pop(0)
        if isinstance(error, BaseExceptionGroup):
            queue += error.exceptions
        else:
            flat.append(error)
    order: tuple[type[BaseException], ...] = (LeaseLost, KeyRefused, AccountingError, RewrapError)
    for kind in order:
        for error in flat:
            if isinstance(error, kind):
                return error
    return flat[0]
