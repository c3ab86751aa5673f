"""What the command line asked for, and what stands above every table of results."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.server import Server

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Options:
    """How large and how often. None is the bench's own default."""

    arguments: tuple[str, ...]
    quick: bool = False
    rows: int | None = None
    rounds: int | None = None

    def rows_or(self, usual: int, quick: int) -> int:
        return self.rows or (quick if self.quick else usual)

    def rounds_or(self, usual: int) -> int:
        return self.rounds or (1 if self.quick else usual)

    def setting(self, server: Server | None = None) -> dict[str, Any]:
        """Machine, programs, settings, command and moment, for the first line of a bench."""
        found: dict[str, Any] = {
            "command": shlex.join(["scripts/bench", *self.arguments]),
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "commit": _commit(),
            "cores": len(os.sched_getaffinity(0)),
            "cpu": _cpu(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
            "kernel": platform.release(),
            "python": platform.python_version(),
        }
        if server is not None:
            found |= {
                "postgres": f"{server.version} ({server.origin})",
                "settings": server.settings,
                "filesystem": _filesystem(server.data),
            }
        return found


def _cpu() -> str:
    """The processor's name, as the kernel gives it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    """The commit that is measured, and whether files differ from it; empty without git."""
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _filesystem(path: Path) -> str:
    """The type of the filesystem that holds a path: fsync costs nothing on tmpfs."""
    mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    holding = [(place, kind) for place, kind in mounts if path.is_relative_to(place)]
    return max(holding, key=lambda mount: len(mount[0]), default=("", "unknown"))[1]
