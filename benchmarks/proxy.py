"""A TCP proxy in a process of its own, which adds a delay in each direction and does not limit bandwidth.

    python -m benchmarks.proxy --to PORT --delay-ms 2

It listens on a free port of 127.0.0.1, which it prints, and ends with its stdin. Each chunk is delivered its
delay after it came, in order, however many are on their way: a longer line, not a thinner one.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from benchmarks.errors import BenchError
from benchmarks.loops import precise_loop
from benchmarks.options import ROOT

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that runs: where it listens, and its process."""

    port: int
    process: psutil.Process

    def cpu_s(self) -> float:
        """What it has spent: it takes its part of the cores that the others have."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


@contextmanager
def proxy_to(port: int, delay_ms: float) -> Iterator[Proxy]:
    """A proxy to a port of this machine, as long as the block lasts."""
    command = [sys.executable, "-m", "benchmarks.proxy", "--to", str(port), "--delay-ms", str(delay_ms)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline().strip()
            if not said.isdigit():
                raise BenchError("the proxy did not start")
            yield Proxy(int(said), psutil.Process(process.pid))
        finally:
            process.terminate()


class Line:
    """One direction of one connection: what came in, and when it is due at the other end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, delay_s: float) -> None:
        self._loop = loop
        self._delay_s = delay_s
        self._end: asyncio.Transport | None = None
        # None is the end of the stream
        self._chunks: deque[tuple[float, bytes | None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def lead_to(self, end: asyncio.Transport) -> None:
        """Where chunks go; what came before is delivered when it is due."""
        self._end = end
        self._deliver()

    def put(self, chunk: bytes | None) -> None:
        self._chunks.append((self._loop.time() + self._delay_s, chunk))
        if self._timer is None:
            self._deliver()

    def _deliver(self) -> None:
        self._timer = None
        if self._end is None:
            return
        now = self._loop.time()
        due: list[bytes] = []
        while self._chunks and self._chunks[0][0] <= now:
            _, chunk = self._chunks.popleft()
            if chunk is None:
                self._end.write(b"".join(due))
                self._end.close()
                return
            due.append(chunk)
        if due:
            # one send for all of them: the proxy is there to be late, not to be busy
            self._end.write(b"".join(due))
        if self._chunks:
            self._timer = self._loop.call_at(self._chunks[0][0], self._deliver)


class Side(asyncio.Protocol):
    """One end of a connection: what it hears goes down a line, and another line leads to it."""

    def __init__(self, out: Line, back: Line) -> None:
        self._out = out
        self._back = back

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        # nothing is held back: what is in flight is bounded by what the protocol asks for
        transport.set_write_buffer_limits(high=1 << 30)
        self._back.lead_to(transport)

    def data_received(self, data: bytes) -> None:
        self._out.put(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._out.put(None)


async def serve(to_port: int, delay_s: float) -> None:
    loop = asyncio.get_running_loop()
    connecting: set[asyncio.Task[object]] = set()

    def accept() -> Side:
        towards, back = Line(loop, delay_s), Line(loop, delay_s)
        task = loop.create_task(loop.create_connection(lambda: Side(back, towards), HOST, to_port))
        connecting.add(task)

        def connected(task: asyncio.Task[object]) -> None:
            connecting.discard(task)
            if task.exception() is not None:
                back.put(None)

        task.add_done_callback(connected)
        return Side(towards, back)

    server = await loop.create_server(accept, HOST, 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--to", type=int, required=True)
    parser.add_argument("--delay-ms", type=float, required=True)
    asked = parser.parse_args()
    with asyncio.Runner(loop_factory=precise_loop) as runner:
        runner.run(serve(asked.to, asked.delay_ms / 1_000))


if __name__ == "__main__":
    main()
