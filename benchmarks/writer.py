"""An application that writes at its own pace, in a process of its own, and what each write took.

    python -m benchmarks.writer --rows N --per-second N

Single-row updates of random rows: of a column that is not encrypted, or of an encrypted value, which is
sealed anew under v2 with the plaintext that it had. A write is due when the clock says so, whether or not the
one before has ended, and its time counts from then: a stall makes every write late that it holds up.

It prints a line when it writes, and, when its stdin ends, every write as [kind, due, milliseconds].
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import asyncpg

from benchmarks.data import TABLE, Data
from benchmarks.errors import BenchError
from benchmarks.loops import precise_loop
from benchmarks.options import ROOT
from benchmarks.values import Keys, plaintext

CONNECTIONS = 4

UPDATES = {
    "note": f"UPDATE {TABLE} SET note = $2 WHERE id = $1",
    "value": f"UPDATE {TABLE} SET ciphertext = $2 WHERE id = $1",
}


@dataclass(slots=True)
class Writes:
    """What the writer reported: kind, due moment on the monotonic clock, milliseconds."""

    all: list[tuple[str, float, float]] = field(default_factory=list)

    def latencies_ms(self, span: tuple[float, float]) -> list[float]:
        """Of the writes that were due in a span of time, sorted."""
        return sorted(took for _, due, took in self.all if span[0] <= due < span[1])


def percentile(ordered: Sequence[float], share: float) -> float:
    """Of sorted figures: the one that `share` of them do not exceed."""
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]


@contextmanager
def writing(data: Data, rows: int, per_second: float) -> Iterator[Writes]:
    """A writer over the first `rows` rows; its writes are there after the block."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.writer",
        "--rows",
        str(rows),
        "--per-second",
        str(per_second),
    ]
    environ = {**os.environ, **data.keys.environ, "DATABASE_URL": data.server.dsn}
    writes = Writes()
    with subprocess.Popen(
        command, cwd=ROOT, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "writing":
                raise BenchError("the writer did not start")
            yield writes
            said, _ = process.communicate(timeout=60)
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise BenchError("the writer failed: an update of the application ended in an error")
    writes.all = [(kind, due, took) for kind, due, took in json.loads(said)]


class Writer:
    """Paced updates over a few connections."""

    def __init__(self, keys: Keys, rows: int, per_second: float) -> None:
        self._keys = keys
        self._rows = rows
        self._interval_s = 1 / per_second
        self._idle: asyncio.Queue[asyncpg.Connection] = asyncio.Queue()
        self._writes: list[tuple[str, float, float]] = []

    async def work(self, dsn: str) -> list[tuple[str, float, float]]:
        """Writes until stdin ends. Raises what a statement raises."""
        for _ in range(CONNECTIONS):
            connection = await asyncpg.connect(dsn)
            for update in UPDATES.values():
                await connection.prepare(update)
            self._idle.put_nowait(connection)
        print("writing", flush=True)
        ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
        due = time.monotonic()
        async with asyncio.TaskGroup() as group:
            while not ended.done():
                due += self._interval_s * random.uniform(0.5, 1.5)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                group.create_task(self._write(random.choice(list(UPDATES)), due))
        return self._writes

    async def _write(self, kind: str, due: float) -> None:
        number = random.randint(1, self._rows)
        new = self._keys.seal_gcm("v2", plaintext(number)) if kind == "value" else f"note {due}"
        connection = await self._idle.get()
        try:
            done = await connection.execute(UPDATES[kind], number, new)
        finally:
            self._idle.put_nowait(connection)
        if done != "UPDATE 1":
            raise BenchError(f"an update said {done}")
        self._writes.append((kind, due, (time.monotonic() - due) * 1_000))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--per-second", type=float, required=True)
    asked = parser.parse_args()
    keys = Keys({version: bytes.fromhex(os.environ[f"KEY_{version.upper()}"]) for version in ("v1", "v2")})
    writer = Writer(keys, asked.rows, asked.per_second)
    with asyncio.Runner(loop_factory=precise_loop) as runner:
        print(json.dumps(runner.run(writer.work(os.environ["DATABASE_URL"]))))


if __name__ == "__main__":
    main()
