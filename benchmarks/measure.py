"""One run's cost: time, CPU on both sides, WAL, memory; and what several runs have in common."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.server import Server

_LOOK_S = 0.1
"""Seconds between two looks at a program's memory. The kernel keeps the peak: only the last tenth of a
second of a process can be missed."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A program that ran to its end."""

    code: int
    out: str
    err: str
    span: tuple[float, float]
    """From exec to exit, in seconds of the monotonic clock."""
    cpu_s: float
    """User and system time, of the program and of all its children."""
    peak_rss_bytes: int
    """The peaks of all its processes, added."""

    @property
    def seconds(self) -> float:
        return self.span[1] - self.span[0]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run over `rows` rows took. Client fields are None where the client is the bench itself."""

    rows: int
    seconds: float
    server_cpu_s: float
    background_cpu_s: float
    wal_bytes: int
    client_cpu_s: float | None = None
    peak_rss_bytes: int | None = None

    @property
    def rows_per_s(self) -> float:
        return self.rows / self.seconds

    def as_json(self) -> dict[str, Any]:
        """By row, and rounded: what a line of results holds."""
        figures: dict[str, Any] = {
            "rows": self.rows,
            "seconds": round(self.seconds, 3),
            "rows_per_s": round(self.rows_per_s),
            "server_us_per_row": round(self.server_cpu_s / self.rows * 1e6, 2),
            "background_us_per_row": round(self.background_cpu_s / self.rows * 1e6, 2),
            "wal_bytes_per_row": round(self.wal_bytes / self.rows, 1),
        }
        if self.client_cpu_s is not None:
            figures["client_us_per_row"] = round(self.client_cpu_s / self.rows * 1e6, 2)
        if self.peak_rss_bytes is not None:
            figures["rss_mb"] = round(self.peak_rss_bytes / 1e6, 1)
        return figures


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some rounds, and how far they lie apart."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: Iterable[float], digits: int = 3) -> Spread:
        there = list(figures)
        return cls(*(round(figure, digits) for figure in (statistics.median(there), min(there), max(there))))


def summarise(
    figures: Mapping[str, Sequence[float]], digits: int = 3
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Medians by name, and ranges by name; null for what no round has."""
    medians: dict[str, Any] = {}
    ranges: dict[str, Any] = {}
    for name, rounds in figures.items():
        spread = Spread.of(rounds, digits) if rounds else None
        medians[name] = spread.median if spread else None
        ranges[name] = [spread.low, spread.high] if spread else None
    return medians, ranges


def cost_of_program(server: Server, rows: int, run: Callable[[], Ended]) -> tuple[Cost, Ended]:
    """What a program cost, and what it did."""
    wal, spent = server.wal_bytes(), server.spent()
    ended = run()
    server_spent = server.spent() - spent
    cost = Cost(
        rows,
        ended.seconds,
        server_spent.cpu_s,
        server_spent.background_s,
        server.wal_bytes() - wal,
        ended.cpu_s,
        ended.peak_rss_bytes,
    )
    return cost, ended


def cost_of_statements(server: Server, rows: int, run: Callable[[], float]) -> Cost:
    """What the server spent on statements of the bench itself; `run` returns its seconds."""
    wal, spent = server.wal_bytes(), server.spent()
    seconds = run()
    server_spent = server.spent() - spent
    return Cost(rows, seconds, server_spent.cpu_s, server_spent.background_s, server.wal_bytes() - wal)


def run_program(command: Sequence[str], *, environ: Mapping[str, str], folder: Path) -> Ended:
    """Runs a program to its end, timed from exec to exit."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        peaks: dict[int, int] = {}
        ended = threading.Event()
        began = time.monotonic()
        process = subprocess.Popen(
            command, cwd=folder, env=dict(environ), stdin=subprocess.DEVNULL, stdout=out, stderr=err
        )
        watcher = threading.Thread(target=_watch_memory, args=(process.pid, peaks, ended))
        watcher.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
            span = (began, time.monotonic())
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()
            ended.set()
            watcher.join()
        return Ended(
            process.returncode,
            _text(out),
            _text(err),
            span,
            usage.ru_utime + usage.ru_stime,
            sum(peaks.values()),
        )


def _watch_memory(pid: int, peaks: dict[int, int], ended: threading.Event) -> None:
    """Keeps the peak of each process of a program: ru_maxrss would hold the bench's own, from before exec."""
    while True:
        for member in _family(pid):
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{member}/status").read_text()
                found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
                if found:
                    peaks[member] = int(found[0]) * 1024
        if ended.wait(_LOOK_S):
            return


def _family(pid: int) -> list[int]:
    """A process and its descendants, from the kernel's own list of children: cheap enough to ask often."""
    members = [pid]
    for member in members:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{member}/task").iterdir():
                members += map(int, (task / "children").read_text().split())
    return members


def _text(file: Any) -> str:
    file.seek(0)
    text: str = file.read().decode(errors="replace")
    return text
