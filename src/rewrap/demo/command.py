"""The `rewrap` command as the demonstration runs it: another process, as an operator's would be."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from rewrap.demo.errors import DemoError

# Seconds: far beyond any demonstration, so that a command that hangs ends it.
PATIENCE_S = 900.0

# What is run. Not the console script: that may be missing or another version's.
PROGRAM = (sys.executable, "-m", "rewrap")


class Command:
    """One running `rewrap` command in a process group of its own.

    Every line it prints goes to `show`; the lines of stdout are kept in `printed`.
    """

    def __init__(self, process: asyncio.subprocess.Process, show: Callable[[str], None]) -> None:
        self.printed: list[str] = []
        self.began = time.monotonic()
        self._process = process
        self._show = show
        assert process.stdout is not None
        assert process.stderr is not None
        self._readers = asyncio.gather(
            self._follow(process.stdout, self.printed), self._follow(process.stderr, [])
        )

    @classmethod
    async def start(
        cls,
        arguments: list[str],
        directory: Path,
        environment: Mapping[str, str],
        show: Callable[[str], None],
    ) -> Self:
        """Starts `rewrap ARGUMENTS` in a directory, with additions to the environment."""
        process = await asyncio.create_subprocess_exec(
            *PROGRAM,
            *arguments,
            cwd=directory,
            env={**os.environ, **environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=2**20,
        )
        return cls(process, show)

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    async def wait(self) -> int:
        """The exit code; negative is the signal that ended it. Cancelled, it kills the process."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._readers
                return await self._process.wait()
        except TimeoutError as exc:
            raise DemoError(f"rewrap did not end within {PATIENCE_S:.0f} s") from exc
        finally:
            if self.running:
                await self.kill()

    async def kill(self) -> int:
        """Ends the process and its children by SIGKILL: no chance to put anything in order."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        # Not awaited itself: it is cancelled when whoever waits for the process is.
        await asyncio.wait([self._readers])
        return await self._process.wait()

    async def _follow(self, stream: asyncio.StreamReader, kept: list[str]) -> None:
        async for raw in stream:
            line = raw.decode(errors="replace").rstrip()
            kept.append(line)
            if line:
                self._show(line)
