"""Starts rewrap many times: a process that has everything imported, and forks for each command.

What is run is what `python -m rewrap` runs, in a process of its own with its own arguments, environment,
folder and exit code. Only the half second that imports take is spent once.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.support.workbench import Result

LONGEST_S = 300
"""Seconds after which a command is ended: a million rows take 60 on a slow machine."""

NEEDED = ("rewrap.cli", "rewrap.api", "aiosqlite", "asyncpg", "sqlalchemy.dialects.sqlite.aiosqlite")


class Starter:
    """The process that forks; use as a context."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cases.starter"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_exc: object) -> None:
        self._process.communicate(timeout=120)

    def rewrap(self, arguments: Sequence[str], folder: Path, environ: Mapping[str, str]) -> Result:
        """Runs `rewrap …` in a folder, to its end."""
        out, err = folder / "stdout.txt", folder / "stderr.txt"
        order = {
            "arguments": list(arguments), "folder": str(folder), "environ": dict(environ),
            "out": str(out), "err": str(err),
        }  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process that starts rewrap has died"
        found = Result(json.loads(answer), out.read_text(), err.read_text())
        out.unlink()
        err.unlink()
        return found


def _serve() -> None:
    for name in NEEDED:
        __import__(name)
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(order)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become(order: dict[str, object]) -> None:
    """Is the command, from here on; does not return."""
    signal.alarm(LONGEST_S)
    os.chdir(str(order["folder"]))
    environ = order["environ"]
    assert isinstance(environ, dict)
    os.environ.clear()
    os.environ.update(environ)
    for number, path, mode in (
        (0, os.devnull, os.O_RDONLY),
        (1, order["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        (2, order["err"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        os.dup2(os.open(str(path), mode, 0o600), number)
    arguments = order["arguments"]
    assert isinstance(arguments, list)
    sys.argv = ["rewrap", *arguments]
    code: object = 1
    try:
        runpy.run_module("rewrap", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as left:
        code = left.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    _serve()
