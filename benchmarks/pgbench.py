"""pgbench as the application beside a run: transactions at a steady rate, and what each of them took."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.errors import BenchError
from benchmarks.server import Server
from rewrap.demo.wheel import find_programs

SCALE = 10
"""A million accounts, 150 MB: in memory, as are the rows that are rotated."""

CLIENTS = 4


@dataclass(slots=True)
class Transactions:
    """What was done: the moment of each transaction's end, in seconds of time.time, and its milliseconds.

    A transaction's time counts from the moment at which it was due.
    """

    all: list[tuple[float, float]] = field(default_factory=list)
    stop: float = 0.0

    def latencies_ms(self, *spans: tuple[float, float]) -> list[float]:
        """Of the transactions that ended in some spans of time, sorted."""
        return sorted(took for at, took in self.all if any(begin <= at < end for begin, end in spans))


def prepare(server: Server) -> None:
    """The tables that pgbench works on."""
    _run(["-i", "-q", "-s", str(SCALE), server.dsn])
    server.execute("CHECKPOINT")


@dataclass(slots=True)
class Application:
    """pgbench at work; `stop` ends it, and gives what it did."""

    process: subprocess.Popen[bytes]
    folder: Path

    def stop(self) -> Transactions:
        at = time.time()
        if self.process.poll() is not None:
            raise BenchError(f"pgbench ended by itself, with exit code {self.process.returncode}")
        self.process.terminate()
        self.process.wait(30)
        done = Transactions(stop=at)
        for log in self.folder.glob("log*"):
            for line in log.read_text().splitlines():
                # client, transaction, microseconds, script, second, microsecond of its end
                fields = line.split()
                if len(fields) >= 6:
                    done.all.append((int(fields[4]) + int(fields[5]) / 1e6, int(fields[2]) / 1_000))
        return done


@contextmanager
def at_work(server: Server, per_second: float) -> Iterator[Application]:
    """Transactions of pgbench's own mix: three updates, a select and an insert, each committed to disk."""
    with tempfile.TemporaryDirectory(prefix="rewrap-bench-") as folder:
        command = [
            *(_program(), "-n", "-c", str(CLIENTS), "-j", "1", "-T", "36000", "-R", str(per_second)),
            *("-l", "--log-prefix", f"{folder}/log", server.dsn),
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield Application(process, Path(folder))
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def _program() -> str:
    return str(find_programs(18) / "pgbench")


def _run(arguments: list[str]) -> None:
    done = subprocess.run([_program(), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"pgbench ended with exit code {done.returncode}")
