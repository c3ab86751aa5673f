"""Where a ledger is: a file beside the job, on a disk whose locks hold, or a Postgres database."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from rewrap.errors import LedgerError, UsageError
from rewrap.stores.postgres.connection import address_of, connect

LEDGER_VARIABLE = "REWRAP_LEDGER_URL"

NETWORK_FILESYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "glusterfs", "ceph", "lustre", "afs"}
)


def ledger_path(job_path: Path, job_name: str) -> Path:
    """Where a job's ledger file is: beside the job, named after it."""
    return job_path.parent / f"{job_name}.rewrap-ledger.sqlite"


def postgres_engine(url: str) -> AsyncEngine:
    """An engine over a Postgres URL as an environment variable has it; parameters never show."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.partition("+")[0] not in ("postgres", "postgresql"):
        raise UsageError(
            f"{LEDGER_VARIABLE} is not a Postgres URL",
            hint="write postgresql://user@host:port/database, or unset it for a file beside the job",
        )
    address = address_of(f"{scheme}://{rest}")
    return create_async_engine(
        "postgresql+asyncpg://",
        # the same reading of URLs as the stores': sslmode, sockets, framework parameters
        async_creator=lambda: connect(address, application_name="rewrap ledger"),
        hide_parameters=True,
        pool_size=2,
        pool_pre_ping=True,
    )


def sqlite_engine(path: Path) -> AsyncEngine:
    """An engine over a SQLite file in which a commit is on disk when it returns."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", hide_parameters=True)

    @sa.event.listens_for(engine.sync_engine, "connect")
    def settle(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        # a reader (rewrap status) never blocks the run; a commit is on disk when it returns
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA busy_timeout=10000")
        cursor.close()

    return engine


def check_place(path: Path) -> None:
    """Raises LedgerError where a ledger file could not be kept. Makes nothing."""
    kind = filesystem_of(path)
    if kind in NETWORK_FILESYSTEMS:
        raise LedgerError(
            f"ledger {path} is on a network filesystem ({kind}), where SQLite's locks do not hold",
            hint=f"put the job on a local disk, or set {LEDGER_VARIABLE} to a Postgres URL",
        )
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise _not_writable(path, "permission denied")


def make_file(path: Path) -> None:
    """Makes the file, readable by its owner alone."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        path.chmod(0o600)
    except OSError as exc:
        raise _not_writable(path, exc.strerror or "") from None


def _not_writable(path: Path, reason: str) -> LedgerError:
    return LedgerError(
        f"ledger {path} cannot be written: {reason}",
        hint=f"the ledger is a file beside the job; make that folder writable, or set {LEDGER_VARIABLE} "
        "to a Postgres URL",
    )


def filesystem_of(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The type of the filesystem a path is on, by the longest mount point above it; "" if unknown."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return ""
    place = str(path.resolve())
    best, kind = "", ""
    for line in lines:
        head, _, tail = line.partition(" - ")
        point = head.split(" ")[4]
        inside = place == point or place.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, tail.split(" ")[0]
    return kind
