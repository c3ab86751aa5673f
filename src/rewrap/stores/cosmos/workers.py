"""Worker processes of one store: where one core's time bounds what is written, several send it.

The run keeps everything that decides: what is read and sealed, the gate, the lease, what a failure means.
A worker is handed one document at a time with leave to send it once, and tells what came of it. One that ends
takes with it the answers to what it was sending: those count as lost, as on a line that breaks.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import anyio

from rewrap import errors
from rewrap.errors import RewrapError, StoreError, StoreUnavailable
from rewrap.pace.gate import Passage
from rewrap.stores.cosmos import faults
from rewrap.stores.cosmos.client import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, Account, Container, Document
from rewrap.stores.cosmos.line import LATE, Line, told
from rewrap.stores.cosmos.meter import Kind
from rewrap.stores.cosmos.shape import ETAG

MOST_ENDED = 8
"""Workers that may end by themselves in a run; then something ends them that will not stop."""

SILENT_S = READ_TIMEOUT_S + CONNECT_TIMEOUT_S + 10.0
"""Seconds that a worker may owe an answer: longer than any of its requests may take. Then it is ended."""

START_S = 60.0
"""Seconds that a worker may take to start, on a machine that has much else to do."""

_GRACE_S = 2.0
"""Seconds in which a worker leaves, or lets go of a document, before it is ended."""

_OF_ITSELF: Kind = ("GET", False, "")
"""What the SDK asks for by itself: the account, a container's setting."""

_LOOK_S = 0.005
"""Seconds between two looks at whether a process has ended."""

_KINDS: Mapping[str, type[RewrapError]] = {
    kind.__name__: kind
    for module in (errors, faults)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, RewrapError)
}
"""What a worker may say that a failure is."""


class Lease(Protocol):
    """What is asked of the lease before a document is handed over."""

    @property
    def request_timeout_s(self) -> float: ...

    @property
    def good_until(self) -> float: ...

    def still_held(self) -> None: ...


@dataclass(slots=True)
class _Sent:
    """What became of a document: its new etag, or an error; and status, charge and pause of an answer."""

    etag: str
    error: list[Any] | None
    came: list[Any] | None


@dataclass(eq=False, slots=True)
class _Worker:
    """One process, and what it has not answered yet."""

    process: subprocess.Popen[bytes]
    line: Line = field(init=False)
    sending: dict[int, asyncio.Future[_Sent]] = field(default_factory=dict)
    turns: dict[int, Passage] = field(default_factory=dict)
    asking: set[asyncio.Task[None]] = field(default_factory=set)
    ended: bool = False
    heard_at: float = field(kw_only=True)

    @property
    def silent_s(self) -> float:
        """How long it owes an answer that nothing holds up."""
        if not self.sending or self.asking:
            return 0.0
        return asyncio.get_running_loop().time() - self.heard_at


class Workers:
    """So many processes that send the documents of one account. Started when the first is sent."""

    def __init__(self, account: Account, processes: int) -> None:
        self._account = account
        self._processes = processes
        self._workers: list[_Worker] = []
        self._gone: list[_Worker] = []
        self._ended = 0
        self._number = 0
        self._turn = anyio.Lock()
        self._watching: asyncio.TimerHandle | None = None

    @property
    def pids(self) -> list[int]:
        """The processes that run."""
        return [one.process.pid for one in self._workers]

    def container(self, container: Container, lease: Lease) -> HandedOver:
        """Writes to one container by way of these, under a lease."""
        return HandedOver(container, lease, self)

    async def send(self, container: Container, lease: Lease, kind: Kind, *what: Any) -> str:
        """Hands one document over, through the gate; its new etag. Raises as the client does."""
        account = self._account
        async with account.gate.passed(account.meter.expected(kind)) as passage:
            worker = await self._idlest()
            # only now: it may have waited for long, and the lease may have run out meanwhile
            lease.still_held()
            sent = await self._sent(worker, lease.good_until, lease.request_timeout_s, container.name, *what)
            if sent.came is not None:
                self._note(kind, passage, *sent.came)
        if sent.error is None:
            return sent.etag
        if sent.error[0] == LATE:
            lease.still_held()
            raise StoreUnavailable(f"{container.subject}: the lease was not sure when a write was due")
        raise _error(container.subject, *sent.error)

    async def close(self) -> None:
        """Ends them all."""
        if self._watching is not None:
            self._watching.cancel()
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.ended = True
            worker.line.close()
        with anyio.CancelScope(shield=True):
            for worker in workers + self._gone:
                await _reap(worker.process)
        self._gone = []

    # one document

    async def _sent(self, worker: _Worker, *what: Any) -> _Sent:
        self._number += 1
        number = self._number
        loop = asyncio.get_running_loop()
        if worker.ended:
            raise _gone(self._account.subject)
        if not worker.sending:
            worker.heard_at = max(worker.heard_at, loop.time())
        answer: asyncio.Future[_Sent] = loop.create_future()
        worker.sending[number] = answer
        worker.line.say(["send", number, *what])
        try:
            return await answer
        except asyncio.CancelledError:
            await self._drop(worker, number)
            raise

    async def _drop(self, worker: _Worker, number: int) -> None:
        """Nobody waits for a document any more: when this returns, it is not sent any more either."""
        if number not in worker.sending:
            return
        answer = worker.sending[number] = asyncio.get_running_loop().create_future()
        worker.line.say(["drop", number])
        with anyio.move_on_after(_GRACE_S, shield=True) as waited, contextlib.suppress(StoreUnavailable):
            await answer
        if waited.cancelled_caught:
            worker.process.kill()
            with anyio.CancelScope(shield=True):
                await _reap(worker.process)

    def _note(
        self, kind: Kind, passage: Passage, throttled: bool, charge: float, retry_after_s: float | None
    ) -> None:
        """Tells the gate and the meter what an answer said."""
        if throttled:
            self._account.meter.refused(charge)
            passage.throttled(retry_after_s, charge)
        else:
            self._account.meter.charged(kind, charge)
            passage.accepted(charge)

    # the processes

    async def _idlest(self) -> _Worker:
        """The one with the least to do; those that have ended are replaced first."""
        if self._ended > MOST_ENDED:
            raise StoreError(
                f"{self._account.subject}: {self._ended} worker processes have ended, {await self._how()}",
                hint="see what ends them, and the machine's memory, or set stores.*.processes = 1; then "
                "rewrap resume",
            )
        if len(self._workers) < self._processes:
            async with self._turn:
                while len(self._workers) < self._processes:
                    self._workers.append(await self._started())
        return min(self._workers, key=lambda one: len(one.sending))

    async def _how(self) -> str:
        await _reap(self._gone[-1].process)
        code = self._gone[-1].process.returncode
        return f"the last by signal {-code}" if code < 0 else f"the last with exit code {code}"

    async def _started(self) -> _Worker:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        heard_at = asyncio.get_running_loop().time() + START_S
        with theirs, contextlib.ExitStack() as failed:
            failed.callback(ours.close)
            worker = _Worker(_spawned(theirs, self._account.subject), heard_at=heard_at)
            failed.pop_all()
        worker.line = Line(lambda said: self._heard(worker, said), lambda: self._lost(worker))
        await worker.line.over(ours)
        worker.line.say(["reach", os.getpid(), *self._account.reached()])
        if self._watching is None:
            self._watch()
        return worker

    def _heard(self, worker: _Worker, said: list[Any]) -> None:
        worker.heard_at = asyncio.get_running_loop().time()
        match said:
            case ["sent", number, *what]:
                answer = worker.sending.pop(number)
                if not answer.done():
                    answer.set_result(_Sent(*what))
            case ["ask", number]:
                task = asyncio.create_task(self._admit(worker, number))
                worker.asking.add(task)
                task.add_done_callback(worker.asking.discard)
            case ["came", number, *came]:
                self._note(_OF_ITSELF, worker.turns.pop(number), *came)

    async def _admit(self, worker: _Worker, number: int) -> None:
        """A turn for what the SDK asks for by itself; the document that it is for has a place already."""
        gate, cost = self._account.gate, self._account.meter.expected(_OF_ITSELF)
        await gate.wait(cost)
        worker.turns[number] = Passage(gate, cost)
        worker.heard_at = asyncio.get_running_loop().time()
        worker.line.say(["turn", number])

    def _lost(self, worker: _Worker) -> None:
        """The line has ended, and so has the process, or will in a moment."""
        for task in worker.asking:
            task.cancel()
        sending, worker.sending = worker.sending, {}
        for answer in sending.values():
            if not answer.done():
                answer.set_exception(_gone(self._account.subject))
        if worker.ended:
            return
        worker.ended = True
        self._ended += 1
        self._workers.remove(worker)
        self._gone.append(worker)

    def _watch(self) -> None:
        """Ends, now and then, workers that do not answer: they are stopped, or hang."""
        for worker in self._workers:
            if worker.silent_s > SILENT_S:
                worker.process.kill()
        self._watching = asyncio.get_running_loop().call_later(SILENT_S / 10, self._watch)


class HandedOver:
    """One container, for a writer: the same requests, sent by workers."""

    def __init__(self, container: Container, lease: Lease, workers: Workers) -> None:
        self._container = container
        self._lease = lease
        self._workers = workers

    async def patch(self, name: str, partition: Any, operations: list[Document], etag: str) -> str:
        return await self._sent("PATCH", name, told(partition), operations, etag)

    async def replace(self, document: Document, etag: str) -> Document:
        return {ETAG: await self._sent("PUT", document["id"], ["none"], document, etag)}

    async def _sent(self, method: str, *what: Any) -> str:
        container = self._container
        kind: Kind = (method, False, container.name)
        return await container.account.patiently(
            lambda: self._workers.send(container, self._lease, kind, *what), container.subject, writes=True
        )


def _spawned(theirs: socket.socket, subject: str) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            # -P: no module of the folder that a run happens to be started in
            [sys.executable, "-P", "-m", "rewrap.stores.cosmos.worker"],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # what a terminal sends to the run is for the run to heed
            process_group=0,
        )
    except OSError as exc:
        raise StoreError(
            f"{subject}: no worker process can be started: {exc.strerror}",
            hint="see the machine's limits, or set stores.*.processes = 1; then rewrap resume",
        ) from None


def _error(subject: str, kind: str, message: str, hint: str | None) -> RewrapError:
    """The error that a worker told of."""
    if kind in _KINDS:
        return _KINDS[kind](message, hint=hint)
    return StoreError(f"{subject}: a worker process failed ({message})", hint="please report it")


def _gone(subject: str) -> StoreUnavailable:
    return StoreUnavailable(
        f"{subject}: a worker process has ended", hint="another takes its place; what it sent is read again"
    )


async def _reap(process: subprocess.Popen[bytes]) -> None:
    """Returns once a process has ended; it is made to, where it does not by itself."""
    for _ in range(int(_GRACE_S / _LOOK_S)):
        if process.poll() is not None:
            return
        await anyio.sleep(_LOOK_S)
    process.kill()
    # the kernel ends it, in no time that anybody could notice
    process.wait()
