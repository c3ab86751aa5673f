"""The public functions: build the adapters of a job, run one verb over them, close them again.

The command line uses these and nothing below them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import anyio

from rewrap.audit.auditor import Auditor, Delivery
from rewrap.audit.record import Listener
from rewrap.control import Answer, cancel, let_go, pause, to_go_on_with, tune
from rewrap.engine import quiescence
from rewrap.engine.compile import Rotation
from rewrap.engine.conductor import Conductor, Examined
from rewrap.engine.dryrun import dry_run
from rewrap.engine.options import RunOptions
from rewrap.engine.pipeline import StopFlag
from rewrap.engine.swapped import warning_of_swapped
from rewrap.errors import LedgerError, UsageError
from rewrap.events import Event, RunEnded
from rewrap.forecast import Server, TableShape
from rewrap.interfaces import Sink, Store
from rewrap.job import Job
from rewrap.keys.keyring import Keyring
from rewrap.learned import Learned, Quota
from rewrap.ledgers.control import ControlRecord
from rewrap.ledgers.naming import of_table
from rewrap.ledgers.opened import latest_run, opened_ledger
from rewrap.ledgers.records import RelationRecord
from rewrap.ledgers.sql import ExceptionRecord, Ledger, RunRecord, TableProgress, operator
from rewrap.model import RunState, Table
from rewrap.plan import Plan, quotas_of
from rewrap.plan import plan as _plan
from rewrap.probed import probed
from rewrap.queries import queries_of
from rewrap.remaining import Left, left_of
from rewrap.rotations import (
    close_all,
    keys_to_verify,
    label_notices,
    notices_of,
    rotation_of,
    version_to_verify,
    with_deks,
)
from rewrap.stores.cosmos.store import CosmosContainers
from rewrap.stores.fleet import FleetStore
from rewrap.stores.open import Stores
from rewrap.stores.postgres.store import PostgresStore
from rewrap.verify import Verification
from rewrap.verify import verify as _verify
from rewrap.witness import Witness, check, take

__all__ = [
    "Answer", "Status", "cancel", "ignore", "let_go", "pause", "plan", "quarantined", "queries", "resume",
    "retry", "run", "send_audit", "status", "tune", "verify", "waive",
]  # fmt: skip


def ignore(_event: Event) -> None:
    """A sink for callers who only want the result."""


async def run(
    job: Job,
    *,
    from_versions: str,
    to_version: str,
    options: RunOptions | None = None,
    dry: bool = False,
    sink: Sink = ignore,
    stop: StopFlag | None = None,
    environ: Mapping[str, str] = os.environ,
) -> RunEnded:
    """Rotates a job's values from some versions (`"v1"`, `"v1,v2"`, `"any"`) to one.

    Resumes the job's unfinished run of the same versions, if there is one. `stop` ends it at the next batch's
    edge. The result's `exit_code` is 0 when verified complete, 3 when values remain, 4 when stopped; whatever
    fails raises a RewrapError. Either way the job's audit is told, but of a dry run.
    """
    options, stop = options or RunOptions(), stop or StopFlag()

    async def work(sink: Sink) -> RunEnded:
        if not dry:
            quiescence.require(job, options.quiesced)
        rotation = await rotation_of(job, from_versions, to_version, environ)
        try:
            for notice in notices_of(rotation):
                sink(notice)
            return await _rotated(rotation, environ, sink, stop, options, dry=dry)
        finally:
            await rotation.keyring.close()

    if dry or job.audit is None:
        ended = await work(sink)
    else:
        asked = [version.strip() for version in from_versions.split(",")]
        listener = Listener(
            job.name, job.digest, asked, to_version, compromised=options.compromised, sink=sink
        )
        ended = await Auditor(job, environ, note=options.note).audited(listener, work, lambda: stop.requested)
    sink(ended)
    return ended


async def send_audit(job: Job, *, environ: Mapping[str, str] = os.environ) -> Delivery:
    """Sends the records of runs that the job's webhook has not taken yet."""
    if job.audit is None or not job.audit.webhook:
        raise UsageError(
            f'job "{job.name}" has no audit webhook', hint="set audit.webhook; see docs/audit.md"
        )
    return await Auditor(job, environ).deliver()


async def _rotated(
    rotation: Rotation,
    environ: Mapping[str, str],
    sink: Sink,
    stop: StopFlag,
    options: RunOptions,
    *,
    dry: bool,
) -> RunEnded:
    stores = Stores(rotation.job, environ)
    rotation = with_deks(rotation, stores)
    store = stores.store()
    try:
        if dry:
            return await dry_run(rotation, store, sink, stop, options, lambda: _checked(stores, store))
        ended = await _run(rotation, stores, store, sink, stop, options)
        return await probed(rotation.job, rotation.to_version, ended, sink, environ)
    finally:
        await close_all(store, *rotation.deks.values())


async def _checked(stores: Stores, store: Store) -> None:
    """Raises what a run is refused for when it takes its lock, and its fingerprints."""
    await stores.check_guards(store)
    if stores.job.witnessed:
        census = stores.census()
        try:
            await check(stores.job, census)
        finally:
            with anyio.CancelScope(shield=True):
                await census.close()


async def _run(
    rotation: Rotation, stores: Stores, store: Store, sink: Sink, stop: StopFlag, options: RunOptions
) -> RunEnded:
    job, environ = rotation.job, stores.environ
    guard = await stores.guard(store)
    async with opened_ledger(job, environ) as ledger:
        assert ledger is not None

        async def examine(drain_s: float) -> Examined:
            said: list[Event] = []
            found = await _verified(
                job, rotation.keyring, rotation.to_version, ledger, said.append, environ,
                drain_s=drain_s, stores=stores,
            )  # fmt: skip
            left: Counter[str] = Counter()
            for column in found.fields:
                unmarked = rotation.adopts(column.declared)
                left[column.relation] += column.left(rotation.from_versions, unmarked=unmarked)
            verdict = found.verdict
            return Examined(verdict.complete, tuple(verdict.reasons), found.values, +left, tuple(said))

        async def fingerprint(run_id: str) -> None:
            census = stores.census()
            try:
                await take(job, census, ledger.fingerprints, run_id, sink)
            finally:
                # also when it is told to stop in the middle of a query
                with anyio.CancelScope(shield=True):
                    await census.close()

        before = fingerprint if job.witnessed else None
        earlier, known = await ledger.latest(), await ledger.completed(rotation.to_version)
        try:
            ended = await Conductor(
                rotation, store, guard, ledger, sink, stop, options, examine, before, stores.gates
            ).run()
        finally:
            await guard.close()
        resumed = earlier is not None and earlier.run_id == ended.run_id
        swapped = warning_of_swapped(job, rotation.from_versions, rotation.to_version, ended)
        if swapped is not None and not known and not resumed:
            sink(swapped)
        return ended


async def resume(
    job: Job,
    *,
    options: RunOptions | None = None,
    sink: Sink = ignore,
    stop: StopFlag | None = None,
    environ: Mapping[str, str] = os.environ,
) -> RunEnded:
    """Goes on with the job's unfinished run, with the versions it began with."""
    latest = await to_go_on_with(job, environ)
    return await run(
        job,
        from_versions=",".join(latest.from_versions),
        to_version=latest.to_version,
        options=options or RunOptions(resume=True),
        sink=sink,
        stop=stop,
        environ=environ,
    )


async def verify(
    job: Job,
    *,
    to_version: str | None = None,
    deep: bool = False,
    fence: bool = False,
    sink: Sink = ignore,
    environ: Mapping[str, str] = os.environ,
) -> Verification:
    """Counts every configured value in one snapshot; with `deep`, opens each with the new key alone.

    `to_version` defaults to the last run's. Only the new key must be at hand; others help to tell unmarked
    values from plaintext.
    """
    to_version, labels = await version_to_verify(job, to_version, environ)
    for notice in label_notices(labels):
        sink(notice)
    latest = await latest_run(job, environ)
    left = latest.from_versions if latest and latest.to_version == to_version else ()
    keyring = await keys_to_verify(job, to_version, left, environ)
    job = job.with_versions(keyring.known)
    try:
        async with opened_ledger(job, environ, create=False) as ledger:
            return await _verified(job, keyring, to_version, ledger, sink, environ, deep=deep, fence=fence)
    finally:
        await keyring.close()


async def plan(
    job: Job,
    *,
    from_versions: str,
    to_version: str,
    environ: Mapping[str, str] = os.environ,
) -> Plan:
    """What a rotation would meet: tables, census by class and version, hazards. Reads only."""
    rotation = await rotation_of(job, from_versions, to_version, environ)
    try:
        return await _planned(rotation, environ)
    finally:
        await rotation.keyring.close()


async def _planned(rotation: Rotation, environ: Mapping[str, str]) -> Plan:
    job = rotation.job
    stores = Stores(job, environ)
    rotation = with_deks(rotation, stores)
    store = stores.store()

    async def shape_of(table: Table) -> tuple[Server, TableShape] | None:
        home = store.members[store.home_of(table.relation)] if isinstance(store, FleetStore) else store
        return await home.shape(table) if isinstance(home, PostgresStore) else None

    def bounds_of(table: Table) -> list[Quota]:
        home = store.members[store.home_of(table.relation)] if isinstance(store, FleetStore) else store
        cap = home.units_cap if isinstance(home, CosmosContainers) else None
        return [] if cap is None else [Quota("request_units", cap.rate, cap.why)]

    try:
        async with opened_ledger(job, environ, create=False) as ledger:
            census = await _verified(
                job, rotation.keyring, rotation.to_version, ledger, ignore, environ, drain_s=0.0, settle=False
            )
            learned = Learned(tuple(await ledger.measured.figures())) if ledger else None
        return await _plan(rotation, store, census, shape_of, learned, bounds_of)
    finally:
        await close_all(store, *rotation.deks.values())


async def queries(
    job: Job, *, to_version: str | None = None, environ: Mapping[str, str] = os.environ
) -> list[tuple[str, str]]:
    """Verify's census to paste into psql, or into Data Explorer: what each query counts, and its text.

    Defaults as `verify`.
    """
    to_version, _ = await version_to_verify(job, to_version, environ)
    if job.keys.provided:
        latest = await latest_run(job, environ)
        job = job.with_versions((to_version, *(latest.from_versions if latest else ())))
    return await queries_of(Stores(job, environ), to_version)


@dataclass(frozen=True, slots=True)
class Status:
    """The job's newest run and how far each of its tables is, as the ledger has it."""

    run: RunRecord
    progress: tuple[TableProgress, ...]
    put_aside: tuple[ExceptionRecord, ...]
    control: ControlRecord
    left: Left | None = None
    """What is left of it; None when it has ended."""


async def status(job: Job, *, environ: Mapping[str, str] = os.environ) -> Status | None:
    """The newest run of a job; None when there was none. Reads the ledger only."""
    async with opened_ledger(job, environ, create=False) as ledger:
        latest = await ledger.latest() if ledger else None
        if ledger is None or latest is None:
            return None
        progress, control = await ledger.progress(latest.run_id), await ledger.control.now()
        if control.run_id == latest.run_id:
            job = job.model_copy(update={"pace": job.pace.model_copy(update=control.tuned)})
        left = None
        if not latest.state.finished:
            left = left_of(
                latest.run_id,
                progress,
                Learned(tuple(await ledger.measured.figures())),
                running=latest.state == RunState.RUNNING,
                quotas=quotas_of(job, next(iter(job.stores))) if len(job.stores) == 1 else (),
            )
        return Status(
            latest,
            tuple(progress),
            tuple(await ledger.exceptions(latest.to_version)),
            control,
            left,
        )


async def quarantined(
    job: Job,
    *,
    table: str | None = None,
    environ: Mapping[str, str] = os.environ,
    everything: bool = False,
) -> list[ExceptionRecord]:
    """The values put aside on the way to the newest run's version; those of one table where it is named.

    Raises UsageError for a name that no table of the job has, nor any that its runs have worked on.
    """
    found: list[ExceptionRecord] = []
    worked_on: list[RelationRecord] = []
    async with opened_ledger(job, environ, create=False) as ledger:
        latest = await ledger.latest() if ledger else None
        if ledger is not None and latest is not None:
            states = ("open", "waived", "retry", "resolved") if everything else ("open", "waived", "retry")
            found = await ledger.exceptions(latest.to_version, states=states)
            worked_on = await ledger.relations(latest.to_version)
    return found if table is None else of_table(found, table, job, worked_on)


async def waive(
    job: Job,
    entries: Sequence[ExceptionRecord],
    reason: str,
    *,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Accepts that these values stay as they are. The waiver ends when their bytes change."""
    await _mark(job, entries, "waived", f"{operator()}: {reason}", environ)


async def retry(
    job: Job,
    entries: Sequence[ExceptionRecord],
    *,
    quiesced: bool = False,
    sink: Sink = ignore,
    stop: StopFlag | None = None,
    environ: Mapping[str, str] = os.environ,
) -> RunEnded:
    """Tries these values again, in one more sweep of the newest run, and verifies."""
    quiescence.require(job, quiesced)
    await _mark(job, entries, "retry", "", environ)
    latest = await latest_run(job, environ)
    assert latest is not None
    return await run(
        job,
        from_versions=",".join(latest.from_versions),
        to_version=latest.to_version,
        options=RunOptions(sweeps_only=latest.state.finished, quiesced=quiesced),
        sink=sink,
        stop=stop,
        environ=environ,
    )


async def _mark(
    job: Job,
    entries: Sequence[ExceptionRecord],
    state: str,
    note: str,
    environ: Mapping[str, str],
) -> None:
    async with opened_ledger(job, environ, create=False) as ledger:
        latest = await ledger.latest() if ledger else None
        if ledger is None or latest is None:
            raise LedgerError(f'job "{job.name}" has no ledger', hint="run it first")
        await ledger.mark(latest.to_version, entries, state, note)


async def _verified(
    job: Job,
    keyring: Keyring,
    to_version: str,
    ledger: Ledger | None,
    sink: Sink,
    environ: Mapping[str, str],
    *,
    deep: bool = False,
    fence: bool = False,
    drain_s: float | None = None,
    settle: bool = True,
    stores: Stores | None = None,
) -> Verification:
    stores = stores or Stores(job, environ)
    census, looks = stores.census(), stores.dek_censuses()
    exceptions = await ledger.exceptions(to_version) if ledger else []
    latest = await ledger.latest() if ledger else None
    worked_on = await ledger.relations(to_version) if ledger else []
    left = latest.from_versions if latest and latest.to_version == to_version else None
    witness = None
    if deep and job.witnessed:
        ours = latest.run_id if latest is not None and left is not None else None
        witness = Witness(job, ledger.fingerprints if ledger else None, ours)
    try:
        found = await _verify(
            job, census, keyring, to_version, exceptions, sink,
            left_versions=left, deep=deep, fence=fence, drain_s=drain_s, worked_on=worked_on, witness=witness,
            looks=looks,
        )  # fmt: skip
    finally:
        # also when a pause cuts it short in the middle of a count
        with anyio.CancelScope(shield=True):
            await close_all(census, *looks.values())
    # a copy or a restored database says nothing about the one that the ledger speaks of
    here = latest is not None and latest.origin == found.verdict.origin
    if ledger is not None and settle and here and found.healed:
        await ledger.mark(to_version, found.healed, "resolved", "verify found other bytes, or none")
    return found
