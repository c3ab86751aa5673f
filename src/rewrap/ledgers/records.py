"""What the ledger keeps, as values: runs, tables, progress, what was put aside, and who was there."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from rewrap.model import Reason, RunState


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run as the ledger has it."""

    run_id: str
    job: str
    job_digest: str
    from_versions: tuple[str, ...]
    to_version: str
    state: RunState
    state_by: str
    origin: str
    commitments: dict[str, str]
    started_at: str
    updated_at: str


@dataclass(frozen=True, slots=True)
class TableProgress:
    """How far one table is in one sweep; `inserted_before` and `deleted_before` as in `Activity`."""

    relation: str
    sweep: int
    rows_estimated: int
    rows_done: int = 0
    found: int = 0
    tally: Mapping[str, Mapping[str, int]] | None = None
    done: bool = False
    rows_per_s: float = 0.0
    waiting_for: str = ""
    inserted_before: int = 0
    deleted_before: int = 0
    updated_at: str = ""


@dataclass(frozen=True, slots=True)
class ExceptionRecord:
    """A value that was put aside. `state` is open, waived, retry or resolved; `digest` binds it to bytes."""

    relation: str
    field: str
    row_id: str
    reason: str
    digest: str
    version: str | None
    attempts: int
    state: str
    note: str
    updated_at: str

    @property
    def deferred(self) -> bool:
        return self.reason == Reason.CONTENDED


@dataclass(frozen=True, slots=True)
class RelationRecord:
    """A table that a run worked on: its oid and name then, the target it belonged to, and the database."""

    oid: int
    relation: str
    target: str
    origin: str


def operator() -> str:
    """Who is at the keyboard, for the record: `user@host`."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
