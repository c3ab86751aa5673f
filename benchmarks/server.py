"""The Postgres that is measured: its settings, its statements, what it spent."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import psutil

from benchmarks.errors import BenchError
from rewrap.demo.postgres import EmbeddedPostgres

SETTINGS = {
    # a table of a million rows, old and new versions, fits in
    "shared_buffers": "1GB",
    # no checkpoint falls into a run: every run begins right after one
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
}
"""What differs from Postgres' defaults. fsync, full_page_writes and synchronous_commit are on."""

QUIET = {"autovacuum": "off"}
"""For runs that are compared with each other, each on a fresh table: a vacuum that happens to start during
one of them would be counted against it alone."""

_BACKGROUND = re.compile(
    r"postgres: (checkpointer|background writer|walwriter|io worker|autovacuum|archiver|logger"
    r"|logical replication|startup|walsummarizer|slotsync)"
)


@dataclass(frozen=True, slots=True)
class Spent:
    """CPU seconds of the whole server since it started; `background` is the part of its own processes."""

    cpu_s: float
    background_s: float

    def __sub__(self, earlier: Spent) -> Spent:
        return Spent(self.cpu_s - earlier.cpu_s, self.background_s - earlier.background_s)


class Server:
    """One running server with one database, for one bench."""

    def __init__(self, postgres: EmbeddedPostgres, settings: Mapping[str, str], origin: str) -> None:
        self.settings = dict(settings)
        self.origin = origin
        self.dsn = postgres.dsn("bench")
        self.port = postgres.port
        self.data = postgres.data
        self._postmaster = psutil.Process(postgres.pid)
        self.version: str = self.value("SHOW server_version")

    def dsn_at(self, port: int | None = None) -> str:
        """The URL of the database by another port of this machine: a proxy's."""
        return self.dsn if port is None else self.dsn.replace(f":{self.port}/", f":{port}/")

    def execute(self, *statements: str) -> None:
        """Statements one after the other, each in a transaction of its own."""

        async def work(connection: asyncpg.Connection) -> None:
            for statement in statements:
                await connection.execute(statement)

        self._connected(work)

    def fetch(self, statement: str, *arguments: Any) -> list[asyncpg.Record]:
        rows: list[asyncpg.Record] = self._connected(lambda it: it.fetch(statement, *arguments))
        return rows

    def value(self, statement: str, *arguments: Any) -> Any:
        return self._connected(lambda it: it.fetchval(statement, *arguments))

    def wal_bytes(self) -> int:
        """Bytes of WAL written since the server was made."""
        return int(self.value("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')"))

    def spent(self, *, timeout_s: float = 30.0) -> Spent:
        """What the server has spent, once the last client's backend has ended.

        Backends that ended are in the postmaster's own account, since it waited for them; those that run
        are counted one by one.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            before = {child.pid: child for child in self._postmaster.children()}
            background = live = 0.0
            clients = False
            try:
                for child in before.values():
                    times, title = child.cpu_times(), " ".join(child.cmdline())
                    live += times.user + times.system
                    if _BACKGROUND.match(title):
                        background += times.user + times.system
                    else:
                        clients = True
            except psutil.NoSuchProcess:
                continue
            own = self._postmaster.cpu_times()
            # one that ended in between would be counted twice or not at all
            same = {child.pid for child in self._postmaster.children()} == before.keys()
            if same and not clients:
                ended = own.children_user + own.children_system
                return Spent(own.user + own.system + ended + live, background)
            time.sleep(0.01)
        raise BenchError("a backend of the server did not end")

    def _connected(self, work: Any) -> Any:
        async def connected() -> Any:
            connection = await asyncpg.connect(self.dsn, statement_cache_size=0)
            try:
                return await work(connection)
            finally:
                await connection.close()

        return asyncio.run(connected())


@contextmanager
def running(settings: Mapping[str, str], *, programs: Path | None = None) -> Iterator[Server]:
    """A server of the embedded programs, or of those in a directory; gone at the end, with its data."""
    effective = {**SETTINGS, **settings}
    with EmbeddedPostgres(effective, programs=programs) as postgres:
        postgres.create_database("bench")
        yield Server(postgres, effective, "embedded" if programs is None else str(programs))


def programs_with_pgcrypto() -> Path | None:
    """The newest installed Postgres that has pgcrypto, if there is one."""
    found = []
    candidates = [path / "bin" / "pg_config" for path in Path("/usr/lib/postgresql").glob("*")]
    if on_path := shutil.which("pg_config"):
        candidates.append(Path(on_path))
    for pg_config in candidates:
        try:
            asked = [str(pg_config), "--version", "--bindir", "--sharedir"]
            lines = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
        except (OSError, subprocess.CalledProcessError):
            continue
        if len(lines) != 3:
            continue
        version, programs, share = lines
        number = re.search(r"\d+", version)
        there = (Path(share) / "extension" / "pgcrypto.control").exists()
        if number and there and (Path(programs) / "postgres").exists():
            found.append((int(number.group()), Path(programs)))
    return max(found)[1] if found else None
