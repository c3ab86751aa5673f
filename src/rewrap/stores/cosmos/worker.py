"""A worker process: sends one run's patches and replacements of documents, and decides nothing.

The run starts it with one end of a pair of sockets as its standard input, and says there which account to
reach, and with which key: neither its command line nor its environment has any of that. Each document comes
with leave to be sent once, until a time. Whatever else the SDK asks for on the way waits for a turn at the
run's own gate. What came of it is told; nothing is tried again here.

It ends with the run: the kernel ends it (Linux), and so does the end of its line.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rewrap.errors import RewrapError, StoreUnavailable
from rewrap.job import Job
from rewrap.storage import CosmosStore
from rewrap.stores.cosmos.client import Account, guarded
from rewrap.stores.cosmos.faults import translated
from rewrap.stores.cosmos.holder import elapsed_s
from rewrap.stores.cosmos.line import LATE, Line, placed
from rewrap.stores.cosmos.shape import ETAG
from rewrap.stores.cosmos.transport import PacedTransport

T = TypeVar("T")

_PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal for this process when the thread ends that started it."""

_KEY = "KEY"
"""What the account's key is called on its way to the client; no variable of the environment."""


class _Late(StoreUnavailable):
    """The lease may be over: the run has to look."""


@dataclass(slots=True)
class _Sending:
    """One document on its way: whether the SDK's request now is its own, and whether it may still be sent."""

    is_document: bool = False
    leave: bool = True
    came: list[Any] | None = None


_SENDING: ContextVar[_Sending | None] = ContextVar("rewrap_worker_sending", default=None)


@dataclass(slots=True)
class _FarPassage:
    """One request on its way; `tell` is what the run learns of it by."""

    tell: Callable[[list[Any]], None]

    def accepted(self, charge: float) -> None:
        self.tell([False, charge, None])

    def throttled(self, retry_after_s: float | None, charge: float) -> None:
        self.tell([True, charge, retry_after_s])


@dataclass(slots=True)
class _FarGate:
    """The run's gate, as seen from here: a document has passed it once, any other request asks for a turn."""

    line: Line
    waiting: dict[int, asyncio.Future[None]] = field(default_factory=dict)
    asked: int = 0

    @asynccontextmanager
    async def passed(self, _: float) -> AsyncIterator[_FarPassage]:
        sending = _SENDING.get()
        if sending is not None and sending.is_document and sending.leave:
            sending.leave = False
            yield _FarPassage(lambda came: setattr(sending, "came", came))
            return
        self.asked += 1
        number = self.asked
        turn = self.waiting[number] = asyncio.get_running_loop().create_future()
        self.line.say(["ask", number])
        await turn
        yield _FarPassage(lambda came: self.line.say(["came", number, *came]))

    def turn(self, number: int) -> None:
        waiting = self.waiting.pop(number)
        if not waiting.done():
            waiting.set_result(None)


class _Transport(PacedTransport):
    """Knows which of the SDK's requests is the document's own."""

    async def send(self, request: Any, **config: Any) -> Any:
        sending = _SENDING.get()
        if sending is not None:
            sending.is_document = request.method in ("PATCH", "PUT")
        return await super().send(request, **config)


class _OneAttempt(Account):
    """An account whose requests are sent once. `gate` is the run's."""

    def __init__(self, section: CosmosStore, key: str | None, gate: Any) -> None:
        # how fast is the run's affair
        unpaced = {"max_rus": None, "share": None}
        named = section.model_copy(update={"key": None if key is None else f"env:{_KEY}", **unpaced})
        # all of a job that a client looks at
        only: dict[str, Any] = {"stores": {"": named}}
        super().__init__(Job.model_construct(**only), {_KEY: key or ""})
        self.gate = gate

    async def patiently(
        self, attempt: Callable[[], Awaitable[T]], subject: str, *, writes: bool = False
    ) -> T:
        with translated(subject, writes=writes):
            return await attempt()

    def _transport(self) -> Any:
        return _Transport(self.gate, self.meter, self._section.in_flight)


class Worker:
    """One end of the line: the first value is what to reach, and each further one a document or a turn."""

    def __init__(self) -> None:
        self.line = Line(self._heard, _leave)
        self._gate = _FarGate(self.line)
        self._account: Account | None = None
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def _heard(self, said: list[Any]) -> None:
        match said:
            case ["send", number, *what]:
                self._tasks[number] = asyncio.create_task(self._send(number, *what))
            case ["turn", number]:
                self._gate.turn(number)
            case ["drop", number]:
                if task := self._tasks.pop(number, None):
                    task.cancel()
                    self.line.say(["sent", number, "", [LATE, "", None], None])
            case ["reach", parent, section, key]:
                if os.getppid() != parent:
                    # it ended before the kernel was asked to tell
                    _leave()
                self._account = _OneAttempt(CosmosStore.model_validate(section), key, self._gate)
                self.line.say(["here"])

    async def _send(self, number: int, until: float, timeout_s: float, *what: Any) -> None:
        sending = _Sending()
        _SENDING.set(sending)

        def in_time() -> None:
            if elapsed_s() > until:
                raise _Late("the lease may be over")

        etag, error = "", None
        try:
            with guarded(in_time, timeout_s):
                etag = await self._written(*what)
        except _Late:
            error = [LATE, "", None]
        except RewrapError as exc:
            error = [type(exc).__name__, exc.message, exc.hint]
        except Exception as exc:
            # what it says might quote a document
            error = ["", type(exc).__name__, None]
        if self._tasks.pop(number, None) is not None:
            self.line.say(["sent", number, etag, error, sending.came])

    async def _written(self, container: str, name: str, partition: list[Any], change: Any, etag: str) -> str:
        """The new etag of a document that was patched, by a list, or replaced by a whole one."""
        assert self._account is not None
        there = self._account.container(container)
        if isinstance(change, list):
            return await there.patch(name, placed(partition), change, etag)
        return str((await there.replace(change, etag))[ETAG])


def _leave() -> None:
    # nothing of what is on its way matters to anybody any more, and nothing more is to be sent
    os._exit(0)


def _end_with_the_run() -> None:
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # the run stops when its batch is written, and that takes its workers
        signal.signal(one, signal.SIG_IGN)
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


async def _serve() -> None:
    await Worker().line.over(socket.socket(fileno=0))
    await asyncio.Event().wait()


def main() -> None:
    _end_with_the_run()
    import azure.cosmos.aio  # noqa: F401 - the first document would wait for it, and what is frozen is all there

    # as the command does: what is there now stays, and a request leaves nothing behind that goes in circles
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)
    asyncio.run(_serve())


if __name__ == "__main__":
    main()
