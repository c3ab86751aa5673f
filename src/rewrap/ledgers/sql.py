"""The ledger over SQLAlchemy: a SQLite file beside the job, or a Postgres database for several hosts.

It holds what people and later commands ask for. The cursors that decide what is read again are in the store
itself (docs/adr/0001-checkpoint-beside-the-rows.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from rewrap.errors import LedgerError, LedgerUnavailable, StoreError
from rewrap.ledgers.fingerprints import KeptFingerprints
from rewrap.ledgers.place import (
    LEDGER_VARIABLE,
    check_place,
    ledger_path,
    make_file,
    postgres_engine,
    sqlite_engine,
)
from rewrap.ledgers.records import (
    ExceptionRecord,
    RelationRecord,
    RunRecord,
    TableProgress,
    now,
    operator,
)
from rewrap.ledgers.tables import (
    SCHEMA_NUMBER,
    exceptions,
    meta,
    metadata,
    progress,
    proofs,
    relations,
    runs,
    seals,
)
from rewrap.model import Fault, RunState

__all__ = [
    "ExceptionRecord",
    "Ledger",
    "RelationRecord",
    "RunRecord",
    "TableProgress",
    "now",
    "operator",
]


_ROW_ID_MAX = 400
"""Characters of a key's text that the ledger's primary key holds. Longer ones are rare: an index entry may
have 2,700 bytes."""


class Ledger:
    """One open ledger. Every method is durable when it returns.

    A new one is made by the first write to it: a run that is refused leaves none behind.
    """

    def __init__(self, engine: AsyncEngine, job: str, path: Path | None) -> None:
        self._engine = engine
        self._path = path
        self._there = False
        self.job = job
        self.fingerprints = KeptFingerprints(self._writing, self._rows)
        self.shown = str(path) if path is not None else LEDGER_VARIABLE

    @classmethod
    async def open(
        cls, job_name: str, job_path: Path, environ: Mapping[str, str], *, create: bool = True
    ) -> Ledger | None:
        """The job's ledger; None when there is none and `create` is false.

        Raises LedgerError when it is newer than this program, belongs to another job, or could not be made.
        """
        url = environ.get(LEDGER_VARIABLE)
        if url:
            ledger = cls(postgres_engine(url), job_name, None)
        else:
            path = ledger_path(job_path, job_name)
            if create:
                check_place(path)
            if create and path.exists():
                # one that was copied with an open mode is closed again
                make_file(path)
            ledger = cls(sqlite_engine(path), job_name, path)
        try:
            await ledger._look()
        except BaseException:
            await ledger.close()
            raise
        if not ledger._there and not create:
            await ledger.close()
            return None
        return ledger

    async def _look(self) -> None:
        """Finds out whether the ledger is there, and fit to be used; makes nothing."""
        if self._path is not None and not self._path.exists():
            return
        with self._translated():
            async with self._engine.begin() as connection:
                names = await connection.run_sync(lambda c: sa.inspect(c).get_table_names())
                if meta.name not in names:
                    return
                rows = await connection.execute(sa.select(meta.c.name, meta.c.value))
                found = {row.name: row.value for row in rows}
        if int(found.get("schema", "0")) > SCHEMA_NUMBER:
            raise LedgerError(
                f"ledger {self.shown} was written by a newer rewrap "
                f"(schema {found['schema']}, this one knows {SCHEMA_NUMBER})",
                hint="use that version of rewrap, or finish the run with it first",
            )
        if found.get("job") not in ("", self.job):
            raise LedgerError(
                f'ledger {self.shown} belongs to job "{found.get("job")}", not "{self.job}"',
                hint="keep each job's ledger beside it, or set " + LEDGER_VARIABLE,
            )
        self._there = True
        if int(found["schema"]) < SCHEMA_NUMBER:
            await self._upgrade()

    async def _upgrade(self) -> None:
        """Brings an older ledger up to this program's tables; unless another process has just done so."""
        with self._translated():
            async with self._engine.begin() as connection:
                await self._lock_creation(connection)
                number = await connection.scalar(sa.select(meta.c.value).where(meta.c.name == "schema"))
                await connection.run_sync(metadata.create_all)
                if int(number or 1) < 2:
                    await connection.execute(
                        sa.text(f"ALTER TABLE {exceptions.name} ADD COLUMN row_key TEXT")
                    )
                await connection.execute(
                    meta.update().where(meta.c.name == "schema").values(value=str(SCHEMA_NUMBER))
                )

    async def _make(self) -> None:
        """Makes the ledger's tables, unless another process has just done so."""
        if self._path is not None:
            make_file(self._path)
        with self._translated():
            async with self._engine.begin() as connection:
                await self._lock_creation(connection)
                await connection.run_sync(metadata.create_all)
                if not await connection.scalar(sa.select(sa.func.count()).select_from(meta)):
                    await connection.execute(
                        meta.insert(),
                        [
                            {"name": "schema", "value": str(SCHEMA_NUMBER)},
                            {"name": "job", "value": self.job if self._path is not None else ""},
                        ],
                    )
        await self._look()

    async def _lock_creation(self, connection: AsyncConnection) -> None:
        """Two first runs at once must not both make the tables."""
        if self._engine.dialect.name == "postgresql":
            await connection.execute(sa.text("SELECT pg_advisory_xact_lock(7310027849561)"))
        else:
            await connection.execute(sa.text("BEGIN IMMEDIATE"))

    async def close(self) -> None:
        await self._engine.dispose()

    @contextmanager
    def _translated(self) -> Any:
        try:
            yield
        except sa.exc.DBAPIError as exc:
            cut_off = exc.connection_invalidated or getattr(exc.orig, "sqlstate", "")[:2] in ("08", "57")
            if cut_off or isinstance(exc, sa.exc.OperationalError):
                # a server going down, a disk that is full or busy: later it may work
                lost = "the connection was lost"
                raise self._unavailable(lost if cut_off else "its disk is full or busy") from None
            raise LedgerError(
                f"ledger {self.shown} cannot be used ({type(exc.orig).__name__})",
                hint="check that it is a rewrap ledger, that it can be written, and that the disk "
                "is not full",
            ) from None
        except StoreError as exc:
            if exc.retryable:
                raise self._unavailable("no answer") from None
            raise LedgerError(f"ledger {self.shown}: {exc.message}", hint=exc.hint) from None
        except (OSError, TimeoutError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else None
            raise self._unavailable(reason or "no answer") from None

    def _unavailable(self, reason: str) -> LedgerUnavailable:
        return LedgerUnavailable(
            f"ledger {self.shown} cannot be reached: {reason}",
            hint=f"check {LEDGER_VARIABLE} and the server; rewrap resume goes on",
        )

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[AsyncConnection]:
        if not self._there:
            await self._make()
        with self._translated():
            async with self._engine.begin() as connection:
                yield connection

    async def _rows(self, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        """A query's rows; none where there is no ledger yet."""
        if not self._there:
            return []
        with self._translated():
            async with self._engine.begin() as connection:
                rows: Sequence[sa.Row[Any]] = (await connection.execute(query)).all()
        return rows

    # runs

    async def latest(self) -> RunRecord | None:
        """The job's newest run."""
        rows = await self._rows(
            sa.select(runs).where(runs.c.job == self.job).order_by(runs.c.number.desc()).limit(1)
        )
        if not rows:
            return None
        (row,) = rows
        return RunRecord(
            row.run_id,
            row.job,
            row.job_digest,
            tuple(row.from_versions.split(",")),
            row.to_version,
            RunState(row.state),
            row.state_by,
            row.origin,
            dict(row.commitments),
            row.started_at,
            row.updated_at,
        )

    async def begin(self, record: RunRecord) -> None:
        async with self._writing() as connection:
            number = await connection.scalar(sa.select(sa.func.max(runs.c.number)))
            await connection.execute(
                runs.insert().values(
                    run_id=record.run_id,
                    job=record.job,
                    job_digest=record.job_digest,
                    from_versions=",".join(record.from_versions),
                    to_version=record.to_version,
                    state=record.state,
                    state_by=record.state_by,
                    origin=record.origin,
                    commitments=record.commitments,
                    started_at=record.started_at,
                    updated_at=record.updated_at,
                    number=(number or 0) + 1,
                )
            )

    async def set_state(self, run_id: str, state: RunState, *, origin: str | None = None) -> None:
        values: dict[str, Any] = {"state": state, "state_by": operator(), "updated_at": now()}
        if origin is not None:
            values["origin"] = origin
        async with self._writing() as connection:
            await connection.execute(runs.update().where(runs.c.run_id == run_id).values(**values))

    # progress

    async def save_progress(self, run_id: str, entries: Iterable[TableProgress]) -> None:
        async with self._writing() as connection:
            for entry in entries:
                same = sa.and_(
                    progress.c.run_id == run_id,
                    progress.c.relation == entry.relation,
                    progress.c.sweep == entry.sweep,
                )
                values = {
                    "rows_estimated": entry.rows_estimated,
                    "rows_done": entry.rows_done,
                    "found": entry.found,
                    "tally": {name: dict(counts) for name, counts in (entry.tally or {}).items()},
                    "done": entry.done,
                    "rows_per_s": entry.rows_per_s,
                    "waiting_for": entry.waiting_for,
                    "inserted_before": entry.inserted_before,
                    "deleted_before": entry.deleted_before,
                    "updated_at": now(),
                }
                changed = await connection.execute(progress.update().where(same).values(**values))
                if not changed.rowcount:
                    await connection.execute(
                        progress.insert().values(
                            run_id=run_id, relation=entry.relation, sweep=entry.sweep, **values
                        )
                    )

    async def progress(self, run_id: str) -> list[TableProgress]:
        """Every table and sweep of a run, sweeps in order."""
        rows = await self._rows(
            sa.select(progress)
            .where(progress.c.run_id == run_id)
            .order_by(progress.c.sweep, progress.c.relation)
        )
        return [
            TableProgress(
                row.relation, row.sweep, row.rows_estimated, row.rows_done, row.found,
                row.tally, row.done, row.rows_per_s, row.waiting_for, row.inserted_before,
                row.deleted_before, row.updated_at,
            )
            for row in rows
        ]  # fmt: skip

    async def forget_progress(self, run_id: str) -> None:
        async with self._writing() as connection:
            await connection.execute(progress.delete().where(progress.c.run_id == run_id))

    # tables

    async def add_relations(self, run_id: str, entries: Iterable[tuple[int, str, str]]) -> None:
        """Remembers what a run works on: oid, relation and target of each table."""
        async with self._writing() as connection:
            for oid, relation, target in entries:
                same = sa.and_(relations.c.run_id == run_id, relations.c.oid == oid)
                await connection.execute(relations.delete().where(same))
                await connection.execute(
                    relations.insert().values(run_id=run_id, oid=oid, relation=relation, target=target)
                )

    async def relations(self, to_version: str) -> list[RelationRecord]:
        """Every table that a run of the job to a version has worked on."""
        rows = await self._rows(
            sa.select(relations, runs.c.origin)
            .join(runs, runs.c.run_id == relations.c.run_id)
            .where(runs.c.job == self.job, runs.c.to_version == to_version)
            .order_by(relations.c.relation, runs.c.number)
        )
        return [RelationRecord(row.oid, row.relation, row.target, row.origin) for row in rows]

    # values put aside

    async def record(self, run_id: str, to_version: str, relation: str, faults: Sequence[Fault]) -> None:
        """Puts values aside, before a checkpoint passes them. A waiver survives only on equal bytes."""
        async with self._writing() as connection:
            for fault in faults:
                same = _same(self.job, to_version, relation, fault.field, fault.row_id)
                held = (await connection.execute(sa.select(exceptions).where(same))).first()
                kept = held is not None and held.state == "waived" and held.digest == fault.digest
                if held:
                    await connection.execute(exceptions.delete().where(same))
                await connection.execute(
                    exceptions.insert().values(
                        job=self.job,
                        to_version=to_version,
                        relation=relation,
                        field=fault.field,
                        row_id=_row_id(fault.row_id),
                        row_key=fault.row_id if len(fault.row_id) > _ROW_ID_MAX else None,
                        reason=fault.reason,
                        digest=fault.digest,
                        version=fault.version or None,
                        attempts=(held.attempts if held else 0) + 1,
                        state="waived" if kept else "open",
                        run_id=run_id,
                        note=held.note if held is not None and kept else "",
                        updated_at=now(),
                    )
                )

    async def exceptions(
        self, to_version: str, *, states: Sequence[str] = ("open", "waived", "retry")
    ) -> list[ExceptionRecord]:
        rows = await self._rows(
            sa.select(exceptions)
            .where(
                exceptions.c.job == self.job,
                exceptions.c.to_version == to_version,
                exceptions.c.state.in_(states),
            )
            .order_by(exceptions.c.relation, exceptions.c.field, exceptions.c.row_id)
        )
        return [
            ExceptionRecord(
                row.relation, row.field, row.row_key or row.row_id, row.reason, row.digest, row.version,
                row.attempts, row.state, row.note, row.updated_at,
            )
            for row in rows
        ]  # fmt: skip

    async def mark(self, to_version: str, entries: Iterable[ExceptionRecord], state: str, note: str) -> None:
        """Sets the state of values put aside: waived, retry or resolved."""
        async with self._writing() as connection:
            for entry in entries:
                await connection.execute(
                    exceptions.update()
                    .where(
                        _same(self.job, to_version, entry.relation, entry.field, entry.row_id),
                        exceptions.c.digest == entry.digest,
                    )
                    .values(state=state, note=note, updated_at=now())
                )

    async def withdraw(self, run_id: str) -> int:
        """Forgets what a run put aside: it had the wrong key. The number of entries forgotten."""
        async with self._writing() as connection:
            gone = await connection.execute(
                exceptions.delete().where(exceptions.c.run_id == run_id, exceptions.c.state == "open")
            )
        return gone.rowcount

    # keys

    async def proof(self, name: str) -> int:
        """How many stored values a key is known to have opened."""
        rows = await self._rows(sa.select(proofs.c.opened).where(proofs.c.name == name))
        return int(rows[0].opened) if rows else 0

    async def add_proof(self, opened: Mapping[str, int]) -> None:
        """Remembers that keys (by name) have opened stored values."""
        async with self._writing() as connection:
            for name, count in opened.items():
                await connection.execute(proofs.delete().where(proofs.c.name == name))
                await connection.execute(proofs.insert().values(name=name, opened=count))

    async def sealed(self, fingerprint: str) -> int:
        """How many values this ledger has seen sealed under a key."""
        rows = await self._rows(sa.select(seals.c.sealed).where(seals.c.fingerprint == fingerprint))
        return int(rows[0].sealed) if rows else 0

    async def add_sealed(self, fingerprint: str, count: int) -> None:
        async with self._writing() as connection:
            changed = await connection.execute(
                seals.update().where(seals.c.fingerprint == fingerprint).values(sealed=seals.c.sealed + count)
            )
            if not changed.rowcount:
                await connection.execute(seals.insert().values(fingerprint=fingerprint, sealed=count))


def _same(job: str, to_version: str, relation: str, column: str, row_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(
        exceptions.c.job == job,
        exceptions.c.to_version == to_version,
        exceptions.c.relation == relation,
        exceptions.c.field == column,
        exceptions.c.row_id == _row_id(row_id),
    )


def _row_id(text: str) -> str:
    """A key's text as far as it fits; a longer one by its beginning and a hash of the whole."""
    if len(text) <= _ROW_ID_MAX:
        return text
    return f"{text[: _ROW_ID_MAX - 67]}...{hashlib.sha256(text.encode()).hexdigest()}"
