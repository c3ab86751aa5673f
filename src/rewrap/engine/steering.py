"""Hands on a running process: what is asked of it from elsewhere is carried out, and answered.

Wishes stand in the ledger, or are a file that is there. Both may hold the run, and it goes on when neither
does. What waits is held in the gates of the stores; what passes no gate asks here, or is cut short.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import anyio

from rewrap.engine.compile import Rotation
from rewrap.engine.pipeline import StopFlag
from rewrap.engine.retry import quiet, until_reachable
from rewrap.engine.settle import Resolve
from rewrap.engine.sweep import first_of
from rewrap.errors import LedgerUnavailable
from rewrap.events import Steered
from rewrap.interfaces import Sink
from rewrap.job import Job
from rewrap.ledgers.control import CANCEL, NOTHING_ASKED, PAUSE
from rewrap.ledgers.records import operator
from rewrap.ledgers.sql import Ledger
from rewrap.model import RunState
from rewrap.pace.pacer import GivenUp, Pacer
from rewrap.storage import CosmosStore

T = TypeVar("T")

LOOK_S = 0.25
"""Seconds between two looks at what is asked."""

BEAT_S = 1.0
"""Seconds between two signs of life."""


def pacers_of(job: Job, stop: StopFlag) -> dict[str, Pacer]:
    """The pace of each store's work; documents are written one by one, and none waits for a batch of them."""
    return {
        name: Pacer(
            name,
            job.pace,
            job.shards_at_once(name),
            lambda: stop.requested,
            locks=not isinstance(store, CosmosStore),
        )
        for name, store in job.stores.items()
    }


class Steering:
    """The steering of one run by one process."""

    def __init__(
        self, job: Job, ledger: Ledger, sink: Sink, stop: StopFlag, pacers: Mapping[str, Pacer]
    ) -> None:
        self.state = RunState.RUNNING
        self.cancelled_by = ""
        self._job = job
        self._ledger = ledger
        self._sink = sink
        self._stop = stop
        self._pacers = pacers
        self._file = _pause_file(job)
        self._run_id = ""
        self._asked = NOTHING_ASKED
        self._holders: dict[str, str] = {}
        self._said = ("", "")
        self._tuned: tuple[dict[str, Any], str] = ({}, "")
        self._under_way = 0
        self._answered = (-1, 0.0)

    @property
    def held(self) -> bool:
        """Whether nothing new is to be begun."""
        return bool(self._holders)

    @property
    def reason(self) -> str:
        """Who holds the run, as what it is held back by; empty when nobody does."""
        for who, by in self._holders.items():
            return f"a pause by {by}" if who == "pause" else by
        return ""

    # for what passes no gate

    async def clear(self) -> None:
        """Waits while the run is held; a stop ends the wait."""
        while True:
            if not self.held or self._stop.requested:
                return
            await anyio.sleep(LOOK_S)

    async def heeded(self, work: Callable[[], Awaitable[T]]) -> T | None:
        """The result of work that may be begun again: a pause cuts it short. None on a stop."""
        while True:
            await self.clear()
            if self._stop.requested:
                return None
            done: list[T] = []

            async def told(done: list[T] = done) -> None:
                done.append(await work())

            await self._until_held(told)
            if done:
                return done[0]

    async def whole(self, work: Callable[[], Awaitable[T]]) -> T:
        """The result of work that is not cut short, once nobody holds the run."""
        await self.clear()
        self._under_way += 1
        try:
            return await work()
        finally:
            self._under_way -= 1

    def resolving(self, rotation: Rotation) -> Resolve:
        """What gives its results once vaults have answered; a pause cuts that short, and a stop: GivenUp."""
        if not rotation.keyring.sources:
            return rotation.resolved
        # records of new DEKs are made on the way: what is begun of that is ended
        limit = self._unless_stopped if rotation.deks else self.heeded

        async def told(attempt: Callable[[], T]) -> T:
            found: list[T] = []

            async def work() -> bool:
                found.append(await rotation.resolved(attempt))
                return True

            if await limit(work) is None:
                raise GivenUp
            return found[0]

        return told

    async def _unless_stopped(self, work: Callable[[], Awaitable[T]]) -> T | None:
        """The result of work that is not begun while the run is held; None on a stop, which ends it."""
        await self.clear()
        done: list[T] = []

        async def told() -> None:
            done.append(await work())

        await self._until_held(told, pauses=False)
        return done[0] if done else None

    async def _until_held(self, work: Callable[[], Awaitable[None]], *, pauses: bool = True) -> None:
        """Works until it is done, or until the run is held or to stop."""

        async def watch(scope: anyio.CancelScope) -> None:
            while True:
                if self._stop.requested or (pauses and self.held):
                    scope.cancel()
                await anyio.sleep(LOOK_S)

        self._under_way += 1
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(watch, group.cancel_scope)
                await work()
                group.cancel_scope.cancel()
        except BaseExceptionGroup as errors:
            raise first_of(errors) from None
        finally:
            self._under_way -= 1

    # what is asked

    async def begin(self, run_id: str) -> None:
        """The run has its tables: from here on the process answers, and says what it is asked."""
        given = tuple(self._job.pace.given)
        await self._patiently(lambda: self._ledger.control.adopt(run_id, given))
        self._run_id = run_id
        await self.look()

    async def watch(self) -> None:
        """Looks again and again, until it is cancelled."""
        while True:
            await self.look()
            await anyio.sleep(LOOK_S)

    async def look(self) -> None:
        """Takes up what is asked now. While the ledger is away, what was asked last stays.

        Raises LedgerError when the ledger is gone: nobody could reach the run any more.
        """
        self._ledger.check_kept()
        with contextlib.suppress(LedgerUnavailable):
            self._asked = await self._ledger.control.now()
        self._hold()
        self._keep_pace()
        if self._run_id:
            # what the ledger cannot be told now, it is told with the next look
            with contextlib.suppress(LedgerUnavailable):
                await self._carry_out()

    def _hold(self) -> None:
        """Holds every gate for whoever wants that, and lets go for who does not any more."""
        before = set(self._holders)
        self._holders = {}
        if self._asked.state == PAUSE:
            self._holders["pause"] = self._asked.state_by
        if self._file is not None and (seen := _seen(self._file)):
            self._holders["pause file"] = seen
        for pacer in self._pacers.values():
            for who, by in self._holders.items():
                pacer.gate.hold(who, f"a pause by {by}" if who == "pause" else by)
            for who in before - set(self._holders):
                pacer.gate.let_go(who)

    def _keep_pace(self) -> None:
        asked = self._asked
        tuned = (asked.tuned, asked.tuned_by) if asked.run_id == self._run_id else ({}, "")
        if tuned == self._tuned:
            return
        self._tuned = tuned
        changes, by = tuned
        for pacer in self._pacers.values():
            pacer.keep(self._job.pace.model_copy(update=changes), by if "max_rate" in changes else "")
        self._say("tune", by)

    async def _carry_out(self) -> None:
        asked = self._asked
        if asked.state == CANCEL and asked.run_id == self._run_id and not self.cancelled_by:
            self.cancelled_by = asked.state_by
            self._stop.set(f"{asked.state_by}, who cancelled the run")
            self._say("cancel", asked.state_by)
        elif self.cancelled_by and asked.state != CANCEL:
            # it ends, whatever was asked since: who waits for that must not read that it goes on
            await self._ledger.control.ask(CANCEL, self.cancelled_by, self._run_id)
        await self._change_state()
        number, at = self._answered
        if asked.number != number or time.monotonic() - at >= BEAT_S:
            await self._ledger.control.answer(self._run_id, asked.number, operator(), self._budgets())
            self._answered = (asked.number, time.monotonic())

    async def _change_state(self) -> None:
        if self.held:
            who, by = next(iter(self._holders.items()))
            if self.state is RunState.RUNNING:
                await self._note(RunState.PAUSING, who, by)
            elif self.state is RunState.PAUSING and self._quiet:
                await self._note(RunState.PAUSED, who, by)
            elif by != self._said[1]:
                await self._note(self.state, who, by)
        elif self.state is not RunState.RUNNING:
            who, by = self._said
            let_go = self._asked.state_by if who == "pause" else f"{by}, taken away"
            await self._note(RunState.RUNNING, "", let_go)

    async def _note(self, state: RunState, who: str, by: str) -> None:
        await self._ledger.set_state(self._run_id, state, by=by)
        self.state, self._said = state, (who, by)
        self._say("pause" if self.held else "resume", by)

    @property
    def _quiet(self) -> bool:
        return not self._under_way and all(pacer.idle for pacer in self._pacers.values())

    def _say(self, asked: str, by: str) -> None:
        if not self._run_id:
            return
        pace = self._job.pace.model_copy(update=self._tuned[0])
        self._sink(
            Steered(
                run_id=self._run_id,
                asked=asked,
                by=by,
                state=self.state,
                max_rate=pace.max_rate,
                batch_size=pace.batch_size,
                in_flight=pace.in_flight,
            )
        )

    def _budgets(self) -> list[dict[str, Any]]:
        return [pacer.budget for pacer in self._pacers.values()]

    # the end

    async def end(self, state: RunState) -> None:
        """The process ends: a run that is finished is nobody's to ask for anything."""
        if state.finished:
            await self._ledger.control.forget()

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        return await until_reachable(attempt, self._job.limits.reconnect_s, quiet)


def _pause_file(job: Job) -> Path | None:
    name = job.pace.pause_file
    return None if name is None else job.folder / os.path.expanduser(name)


def _seen(file: Path) -> str:
    """What holds the run, when the file is there or nobody can say that it is not; else nothing."""
    try:
        file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as exc:
        return f"pause file {file}, which cannot be looked at: {exc.strerror}"
    return f"pause file {file}"
