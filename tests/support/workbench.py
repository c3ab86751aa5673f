"""One database, one job file, one folder: what a test of the whole program works on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from tests.support.starter import can_start, starter
from tests.support.values import KEYS

TIMEOUT_S = 400

WAIT_S = 120.0
"""Seconds after which a test waits in vain: a limit for what went wrong, however slow the machine is."""

_NOT_OURS = ("REWRAP_", "PYTHONDONTWRITEBYTECODE")
"""Variables a command does not inherit: settings of rewrap's, and what makes each start compile anew."""

JOB = """
name = "test"
[stores.main]
kind = "postgres"
url = "${{DATABASE_URL}}"
[keys.versions.v1]
material = "env:KEY_V1"
[keys.versions.v2]
material = "env:KEY_V2"
[keys.versions.v3]
material = "env:KEY_V3"
[layouts.aead]
marker = "{{version}}:"
version = "v[0-9]+"
encoding = "base64"
cipher = "aes-256-gcm"
aad = "{{account_id}}"
{targets}
{more}
"""

NOTES = """
[[targets]]
table = "notes"
fields = [{ column = "body", layout = "libsodium-token" }]
"""

UNYIELDING = "[pace.health]\nyield_to_others = false\n"
"""As hard as it can beside writers: that is when a value would be lost, and no writer makes it wait."""

ACCOUNTS = """
[[targets]]
table = "accounts"
fields = [{ column = "secret", layout = "aead" }]
"""


@dataclass(frozen=True)
class Result:
    """What a command printed and how it left."""

    code: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines() if line.startswith("{")]

    def event(self, kind: str) -> dict[str, Any]:
        """The last event of a type."""
        return [event for event in self.events if event["type"] == kind][-1]


def rewrap(
    arguments: Sequence[str], folder: Path, environ: Mapping[str, str], timeout: float = TIMEOUT_S
) -> Result:
    """Runs `rewrap …` in a folder to its end, as a user would, in a process of its own."""
    if can_start(environ):
        return Result(*starter().run(arguments, folder, environ, timeout))
    done = subprocess.run(
        [sys.executable, "-m", "rewrap", *arguments],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


@dataclass
class Workbench:
    """A database with a job for it. Commands run as a user runs them, in a process of their own."""

    dsn: str
    folder: Path
    environ: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(_NOT_OURS)},
            "DATABASE_URL": self.dsn,
            "NO_COLOR": "1",
            "COLUMNS": "200",
            **{f"KEY_{version.upper()}": key.hex() for version, key in KEYS.items()},
        }
        self.job()

    @property
    def ledger(self) -> Path:
        return self.folder / "test.rewrap-ledger.sqlite"

    def job(self, targets: str = NOTES, more: str = "") -> Path:
        """Writes rewrap.toml; `more` is further TOML (pace, limits)."""
        path = self.folder / "rewrap.toml"
        if "[pace.health]" not in more + targets:
            # whoever looks at a table from a test is somebody at work there: only tests of that yield
            more += "\n[pace.health]\nyield_to_others = false\n"
        path.write_text(JOB.format(targets=targets, more=more))
        return path

    def rewrap(self, *arguments: str, timeout: float = TIMEOUT_S, **environ: str) -> Result:
        """Runs `rewrap …` to its end."""
        return rewrap(arguments, self.folder, {**self.environ, **environ}, timeout)

    def run(self, *arguments: str, **environ: str) -> Result:
        """`rewrap run --from v1 --to v2`, the new key vouched for, events as JSON."""
        return self.rewrap(
            "run", "--from", "v1", "--to", "v2", "--allow-unseen-target", "--json", *arguments, **environ
        )

    @contextlib.contextmanager
    def started(self, *arguments: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
        """A command in the background; killed at the end if it still runs."""
        process = subprocess.Popen(
            [sys.executable, "-m", "rewrap", *arguments],
            cwd=self.folder,
            env={**self.environ, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.communicate(timeout=TIMEOUT_S)

    def sql(self, statement: str, *arguments: Any) -> list[Any]:
        """Runs SQL and returns its rows."""

        async def work() -> list[Any]:
            connection = await asyncpg.connect(self.dsn)
            try:
                if arguments:
                    return list(await connection.fetch(statement, *arguments))
                if statement.lstrip().upper().startswith(("SELECT", "WITH", "TABLE")):
                    return list(await connection.fetch(statement))
                await connection.execute(statement)
                return []
            finally:
                await connection.close()

        return asyncio.run(work())

    def value(self, statement: str, *arguments: Any) -> Any:
        return self.sql(statement, *arguments)[0][0]

    def insert(self, table: str, columns: list[str], rows: list[tuple[Any, ...]]) -> None:
        """Copies rows into a table."""

        async def work() -> None:
            connection = await asyncpg.connect(self.dsn)
            try:
                await connection.copy_records_to_table(table, columns=columns, records=rows)
            finally:
                await connection.close()

        asyncio.run(work())

    def notes(self, values: list[str | None], *, key: str = "bigint") -> None:
        """Makes table notes(id, body, other) with these values, ids from 1."""
        self.sql(f"CREATE TABLE notes (id {key} PRIMARY KEY, body text, other text DEFAULT 'same')")
        self.insert("notes", ["id", "body"], list(enumerate(values, 1)))

    def swept(self) -> int:
        """Rows that a run has checkpointed, in this sweep of it."""
        if self.value("SELECT to_regclass('rewrap.shard')") is None:
            return 0
        return int(self.value("SELECT coalesce(sum(row_count), 0) FROM rewrap.shard"))

    def bodies(self) -> dict[int, str | None]:
        return {row["id"]: row["body"] for row in self.sql("SELECT id, body FROM notes")}


def wait_for(condition: Any, timeout_s: float = WAIT_S, every_s: float = 0.02) -> Any:
    """What `condition()` gives, once that is true; AssertionError when it stays false."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(every_s)
    return found


def wait_while(process: subprocess.Popen[str], condition: Any, timeout_s: float = WAIT_S) -> None:
    """Returns when `condition()` is true and the command still runs; AssertionError when it ended before.

    What makes sure that it still runs is the command's: a pace (`--max-rate`), a lock, a value that is held.
    """

    def settled() -> bool:
        ended = process.poll() is not None
        assert not ended, f"it ended with {process.returncode} before: {process.communicate()}"
        return bool(condition())

    wait_for(settled, timeout_s)
    assert process.poll() is None, f"it ended with {process.returncode}: {process.communicate()}"
