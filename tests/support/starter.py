"""Starts rewrap many times: a process that has everything imported, and forks for each command.

What is run is what `python -m rewrap` runs, in a process of its own with its own arguments, environment,
folder and exit code. Only the second that imports take is spent once. What a command's environment decides
while modules are imported is not imported before: `aiohttp` reads there whose certificates it trusts.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import math
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

NEEDED = (
    "rewrap.cli", "rewrap.api", "aiosqlite", "asyncpg", "sqlalchemy.dialects.sqlite.aiosqlite",
    "azure.cosmos.aio", "azure.identity.aio", "azure.keyvault.keys.crypto.aio",
    "rewrap.stages",
)  # fmt: skip

FDS = 4
"""The order, standard output, standard error, and the pipe for the exit code."""

OF_AN_INTERPRETER = ("PYTHON", "LC_", "LANG")
"""Variables that decide how an interpreter starts: a command that is given others needs one of its own."""


class Starter:
    """The process that forks. Several threads may have commands run at once."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._control, theirs = socket.socketpair()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("REWRAP_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.starter", str(theirs.fileno())],
            cwd=Path(__file__).parents[2],
            env={**kept, "NO_COLOR": "1", "COLUMNS": "200"},
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()

    def close(self) -> None:
        self._control.close()
        self._process.wait(60)

    def run(
        self, arguments: Sequence[str], folder: Path, environ: Mapping[str, str], timeout_s: float
    ) -> tuple[int, str, str]:
        """Runs `rewrap …` in a folder to its end: its exit code and what it printed."""
        order = {
            "arguments": list(arguments), "folder": str(folder), "environ": dict(environ),
            "timeout_s": timeout_s,
        }  # fmt: skip
        told, tell = os.pipe()
        with (
            os.fdopen(told) as answer,
            tempfile.TemporaryFile("w+") as ordered,
            tempfile.TemporaryFile("w+") as out,
            tempfile.TemporaryFile("w+") as err,
        ):
            json.dump(order, ordered)
            ordered.flush()
            ordered.seek(0)
            with self._turn:
                fds = [ordered.fileno(), out.fileno(), err.fileno(), tell]
                socket.send_fds(self._control, [b"1"], fds)
            os.close(tell)
            said = answer.read()
            assert said, "the process that starts rewrap has died"
            if int(said) == -signal.SIGALRM:
                raise subprocess.TimeoutExpired(["rewrap", *arguments], timeout_s)
            return int(said), _text(out), _text(err)


def _text(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


@functools.cache
def starter() -> Starter:
    """The one that all tests of this process share."""
    found = Starter()
    atexit.register(found.close)
    return found


def can_start(environ: Mapping[str, str]) -> bool:
    """Whether a command's interpreter would start as this one did."""
    names = [name for name in {*environ, *os.environ} if name.startswith(OF_AN_INTERPRETER)]
    ours = {name: os.environ.get(name) for name in names if name != "PYTHONDONTWRITEBYTECODE"}
    return ours == {name: environ.get(name) for name in ours}


def _serve(control: socket.socket) -> dict[str, Any] | None:
    """Forks for each order. Returns in each command's process with its order, and at the end with None."""
    for name in NEEDED:
        __import__(name)
    gc.freeze()
    # nobody waits for those who wait for a command
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        byte, fds, _, _ = socket.recv_fds(control, 1, FDS)
        if not byte:
            return None
        if os.fork() == 0:
            control.close()
            return _command(*fds)
        for fd in fds:
            os.close(fd)


def _command(ordered: int, out: int, err: int, answer: int) -> dict[str, Any]:
    """Waits for the command and tells its exit code; returns in the command's own process."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with os.fdopen(ordered) as file:
        order: dict[str, Any] = json.load(file)
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        os.write(answer, str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)
    os.close(answer)
    for number, fd in ((1, out), (2, err)):
        os.dup2(fd, number)
        os.close(fd)
    return order


def _become(order: dict[str, Any]) -> None:
    """Is the command, from here on, and ends like it."""
    signal.alarm(math.ceil(order["timeout_s"]))
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environ"])
    sys.path[0] = order["folder"]
    sys.argv = ["rewrap", *order["arguments"]]
    runpy.run_module("rewrap", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as opened:
        found = _serve(opened)
    if found is not None:
        _become(found)
