"""Who holds a lease: which process on which machine, and whether it is still there.

A document says nothing of the process that wrote it, and a server that speaks HTTP has no sessions to lose.
What can be known at once is only what this machine's own kernel says of its own processes.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Counts while the machine sleeps. Where there is no BOOTTIME (macOS) the monotonic clock does so itself."""

_MACHINE_IDS = ("/etc/machine-id", "/var/lib/dbus/machine-id")
_BOOT_ID = "/proc/sys/kernel/random/boot_id"

_DEAD_STATES = frozenset("ZXx")
"""Process states of one that has ended and was not waited for yet (proc(5))."""


def elapsed_s() -> float:
    """Seconds on a clock that nobody sets, and that goes on while the machine is suspended."""
    return time.clock_gettime(_CLOCK)


@dataclass(frozen=True, slots=True)
class Holder:
    """A process: a digest of its machine, boot and process namespace, its number there, and its start.

    The digest stands for the machine's id, which is not for others to read (machine-id(5)). `started` is in
    clock ticks since the boot. Both are empty where the kernel does not tell: then nothing is provable.
    """

    host: str
    pid: int
    started: str

    @property
    def gone(self) -> bool:
        """Whether it is a process of this very machine that does not run any more, beyond doubt.

        A process of another boot or namespace is not looked for: two machines may be copies of one image.
        """
        if not self.host or not self.started or self.host != this_host():
            return False
        try:
            # asked first: /proc may hide processes of other users, and this does not
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass
        found = _stat(self.pid)
        return found is not None and (found[0] in _DEAD_STATES or found[1] != self.started)

    def as_json(self) -> dict[str, str | int]:
        return {"host": self.host, "pid": self.pid, "started": self.started}

    @classmethod
    def of(cls, told: object) -> Holder:
        """The holder that a document tells; one of whom nothing is known where it tells nothing usable."""
        if not isinstance(told, dict):
            return cls("", 0, "")
        host, pid, started = (told.get(name) for name in ("host", "pid", "started"))
        if not isinstance(pid, int) or isinstance(pid, bool) or pid <= 0:
            return cls("", 0, "")
        return cls(str(host or ""), pid, str(started or ""))


def this_process() -> Holder:
    found = _stat(os.getpid())
    return Holder(this_host(), os.getpid(), found[1] if found else "")


def this_host() -> str:
    """SHA-256 of machine, boot and process namespace, in hex; empty where the kernel does not tell them."""
    boot = _text(_BOOT_ID)
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
    if not boot:
        return ""
    machine = next((text for text in map(_text, _MACHINE_IDS) if text), "")
    return hashlib.sha256("\x00".join(("rewrap", machine, boot, namespace)).encode()).hexdigest()


def _stat(pid: int) -> tuple[str, str] | None:
    """A process's state, and its start in clock ticks since the boot; None when that cannot be read."""
    text = _text(f"/proc/{pid}/stat")
    # the program's name comes second, in brackets, and may hold anything
    fields = text.rpartition(")")[2].split()
    return (fields[0], fields[19]) if len(fields) > 19 else None


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""
