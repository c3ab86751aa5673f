"""Processes that a command has started, as the kernel tells of them."""

from __future__ import annotations

from pathlib import Path

WORKER = b"rewrap.stores.cosmos.worker"


def workers_of(parent: int) -> list[int]:
    """The worker processes of a run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        fields = _text(folder / "stat").rpartition(b")")[2].split()
        if len(fields) > 1 and int(fields[1]) == parent and is_worker(int(folder.name)):
            found.append(int(folder.name))
    return sorted(found)


def is_worker(pid: int) -> bool:
    """Whether a process is a worker, and runs: of one that has ended there is no command line."""
    return WORKER in _text(Path(f"/proc/{pid}/cmdline"))


def _text(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
