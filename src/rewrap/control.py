"""What an operator does to a run from elsewhere: asks through the ledger, and waits to be answered.

A process that is at work answers within a second or so. One that was killed never does: its silence is what
tells them apart, since a ledger keeps nobody's clock.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

import anyio

from rewrap.audit.auditor import Auditor
from rewrap.audit.record import Listener
from rewrap.errors import LeaseHeld, UsageError
from rewrap.events import Event, RunEnded, RunStarted
from rewrap.interfaces import Claim, Sink
from rewrap.job import Job
from rewrap.ledgers.control import CANCEL, NOTHING_ASKED, PAUSE, RUN, ControlRecord
from rewrap.ledgers.opened import opened_ledger
from rewrap.ledgers.records import RunRecord, operator
from rewrap.ledgers.sql import Ledger
from rewrap.model import RunState
from rewrap.rotations import close_all
from rewrap.stores.open import Stores

SILENCE_S = 10.0
"""Seconds without a sign of life after which a process counts as gone: it gives one each second."""

LOOK_S = 0.2
"""Seconds between two looks for an answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a wish. `answered` when a process that is at work has taken it up.

    `run` is the job's newest run as it is now; None where there is none. `ledger` is where that was read.
    """

    asked: str
    answered: bool
    run: RunRecord | None
    control: ControlRecord
    ledger: str


def no_unfinished_run(job: Job) -> UsageError:
    return UsageError(
        f'job "{job.name}" has no unfinished run',
        hint="start one with rewrap run --from … --to …",
    )


def nothing(_answer: Answer) -> None:
    """Takes no notice of what a run is while it is waited for."""


def _unheard(_event: Event) -> None:
    """A sink for callers who only want the answer."""


async def pause(
    job: Job, *, environ: Mapping[str, str] = os.environ, waiting: Callable[[Answer], None] = nothing
) -> Answer:
    """Asks that the job's run wait, and returns when nothing of it is under way any more.

    The wish stands until `let_go` or `cancel`, or until the run has finished: whatever goes on with the run,
    or begins one of the job, waits. Not answered, there was no process to wait for; or there is one that
    neither reads its ledger nor gives a sign of life.
    """
    async with opened_ledger(job, environ) as ledger:
        assert ledger is not None
        number = await ledger.control.ask(PAUSE, operator())
        asker = _Asker("pause", ledger, number, waiting)

        def done(found: Answer) -> bool:
            pausing = found.run is not None and found.run.state is RunState.PAUSING
            return found.control.seen >= number and not pausing

        answer = await asker.answer(done)
        if answer.run is not None and answer.run.state.finished and asker.was_unfinished:
            # it ended before it was asked: the next run is not what was meant
            await ledger.control.ask(RUN, operator())
        return answer


async def let_go(
    job: Job,
    *,
    changes: Mapping[str, float | None] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Answer | None:
    """Lets the job's paused run go on, at another pace if `changes` has any; None where nothing is paused.

    Answered, a process has it and goes on. Else there is none: `resume` goes on in this one.
    """
    async with opened_ledger(job, environ, create=False) as ledger:
        if ledger is None:
            return None
        latest, control = await ledger.latest(), await ledger.control.now()
        waits = latest is not None and latest.state in (RunState.PAUSING, RunState.PAUSED)
        if control.state == RUN and not waits:
            return None
        if changes and latest is not None:
            await ledger.control.tune(changes, operator(), latest.run_id)
        number = await ledger.control.ask(RUN, operator())
        asker = _Asker("resume", ledger, number, nothing)
        # a process that is held by its pause file has taken it up as well
        return await asker.answer(lambda found: found.control.seen >= number)


async def standing(job: Job, environ: Mapping[str, str] = os.environ) -> ControlRecord:
    """What is asked of the job's runs now."""
    async with opened_ledger(job, environ, create=False) as ledger:
        return NOTHING_ASKED if ledger is None else await ledger.control.now()


async def to_go_on_with(job: Job, environ: Mapping[str, str]) -> RunRecord:
    """The job's unfinished run, of which nothing is asked any more but its pace."""
    async with opened_ledger(job, environ, create=False) as ledger:
        latest = await ledger.latest() if ledger is not None else None
        if ledger is None or latest is None or latest.state.finished:
            raise no_unfinished_run(job)
        if (await ledger.control.now()).state != RUN:
            await ledger.control.ask(RUN, operator())
        return latest


async def tune(
    job: Job, changes: Mapping[str, float | None], *, environ: Mapping[str, str] = os.environ
) -> Answer:
    """Asks the job's unfinished run to keep to another pace: fields of `[pace]`; no `max_rate` is None.

    It is kept for the run, by whichever process goes on with it.
    """
    async with opened_ledger(job, environ, create=False) as ledger:
        latest = await ledger.latest() if ledger is not None else None
        if ledger is None or latest is None or latest.state.finished:
            raise no_unfinished_run(job)
        number = await ledger.control.tune(changes, operator(), latest.run_id)
        return await _Asker("tune", ledger, number, nothing).answer(
            lambda found: found.control.seen >= number
        )


async def cancel(
    job: Job,
    *,
    sink: Sink = _unheard,
    environ: Mapping[str, str] = os.environ,
    waiting: Callable[[Answer], None] = nothing,
) -> Answer:
    """Ends the job's unfinished run for good, at the edge of the batch in hand; nothing is written back.

    Where no process has it, its leases are taken and given back here. Answered and unfinished, the run goes
    on: somebody asked for that before its process had read this. Raises LeaseHeld when one has it that does
    not answer.
    """
    async with opened_ledger(job, environ, create=False) as ledger:
        latest = await ledger.latest() if ledger is not None else None
        if ledger is None or latest is None or latest.state.finished:
            raise no_unfinished_run(job)
        number = await ledger.control.ask(CANCEL, operator(), latest.run_id)
        asker = _Asker("cancel", ledger, number, waiting)

        def overruled(found: Answer) -> bool:
            return found.control.state != CANCEL and found.control.seen == found.control.number > number

        answer = await asker.answer(overruled)
        goes_on = answer.answered and answer.control.state != CANCEL
        if answer.run is not None and (answer.run.state.finished or (answer.run.state.live and goes_on)):
            return answer
        await _audited(job, latest, environ, sink, lambda: _take_and_end(job, latest, ledger, environ))
        await ledger.control.forget()
        return replace(answer, run=await ledger.latest(), control=await ledger.control.now())


class _Asker:
    """Waits for what comes of one wish."""

    def __init__(self, asked: str, ledger: Ledger, number: int, waiting: Callable[[Answer], None]) -> None:
        self._asked = asked
        self._ledger = ledger
        self._number = number
        self._waiting = waiting
        self.was_unfinished = False

    async def answer(self, done: Callable[[Answer], bool]) -> Answer:
        """The answer, once it is done, or once no process can be there to do it."""
        found = await self._look()
        self.was_unfinished = found.run is not None and not found.run.state.finished
        run_id = found.run.run_id if found.run is not None else ""
        beat, heard_at = found.control.beat, time.monotonic()
        while found.run is not None and found.run.state.live and found.run.run_id == run_id:
            if done(found):
                return replace(found, answered=True)
            self._waiting(found)
            await anyio.sleep(LOOK_S)
            found = await self._look()
            if found.control.beat != beat:
                beat, heard_at = found.control.beat, time.monotonic()
            if time.monotonic() - heard_at > SILENCE_S:
                return found
        return replace(found, answered=self.was_unfinished and found.control.seen >= self._number)

    async def _look(self) -> Answer:
        control = await self._ledger.control.now()
        return Answer(self._asked, False, await self._ledger.latest(), control, self._ledger.shown)


async def _take_and_end(job: Job, run: RunRecord, ledger: Ledger, environ: Mapping[str, str]) -> RunEnded:
    """Takes the tables of a run that no process has, which shuts out any that still writes, and ends it."""
    job = job.with_versions((*run.from_versions, run.to_version))
    stores = Stores(job, environ)
    store = stores.store()
    try:
        guard = await stores.guard(store)
        try:
            tables = await store.tables()
            claim = Claim(
                run_id=run.run_id,
                owner=f"{operator()} {secrets.token_hex(4)}",
                from_versions=run.from_versions,
                to_version=run.to_version,
                ranges={table.relation: await store.split(table, job.pace.shards) for table in tables},
                orders={table.relation: table.order for table in tables},
                ttl_s=job.limits.lease_s,
            )
            try:
                await guard.claim(claim)
            except LeaseHeld as exc:
                raise LeaseHeld(
                    f"{exc.message}, and its process does not answer",
                    hint="it is told to end as soon as it reads its ledger; or end it where it runs, then "
                    "rewrap cancel once more",
                ) from None
            await ledger.set_state(run.run_id, RunState.CANCELLED)
            await guard.release(finished=True)
        finally:
            await guard.close()
    finally:
        await close_all(store)
    return RunEnded(
        run_id=run.run_id, state=RunState.CANCELLED, exit_code=5, outcomes={}, rows=0, values=0,
        resealed_late=0, sweeps=0, seconds=0.0, rows_per_s=0.0,
        reasons=[f"cancelled by {operator()} while no process had it"],
    )  # fmt: skip


async def _audited(
    job: Job,
    run: RunRecord,
    environ: Mapping[str, str],
    sink: Sink,
    work: Callable[[], Awaitable[RunEnded]],
) -> None:
    """Does it, and keeps the record that its process cannot write any more."""
    if job.audit is None:
        await work()
        return
    versions = list(run.from_versions)
    listener = Listener(job.name, job.digest, versions, run.to_version, compromised=False, sink=sink)
    listener(
        RunStarted(
            run_id=run.run_id,
            job=run.job,
            from_versions=versions,
            to_version=run.to_version,
            targets=[target.table for target in job.targets],
            fingerprints={},
            resumed=True,
            dry_run=False,
        )
    )
    await Auditor(job, environ).audited(listener, lambda _sink: work(), lambda: False)
