"""The database a ledger is in: made by its first write, brought up to date, and never cut off in a write."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Self

import anyio
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from rewrap.errors import LedgerError, LedgerUnavailable, StoreError
from rewrap.ledgers.place import (
    LEDGER_VARIABLE,
    check_place,
    ledger_path,
    make_file,
    postgres_engine,
    sqlite_engine,
)
from rewrap.ledgers.tables import SCHEMA_NUMBER, exceptions, meta, metadata, progress, runs
from rewrap.model import RunState


class LedgerDatabase:
    """The database of one open ledger. What is written is durable when a method returns.

    A new one is made by the first write to it: a run that is refused leaves none behind.
    """

    def __init__(self, engine: AsyncEngine, job: str, path: Path | None) -> None:
        self._engine = engine
        self._path = path
        self._there = False
        self._file: tuple[int, int] | None = None
        self.job = job
        self.shown = str(path) if path is not None else LEDGER_VARIABLE

    @classmethod
    async def open(
        cls, job_name: str, job_path: Path, environ: Mapping[str, str], *, create: bool = True
    ) -> Self | None:
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
        async with self._transaction() as connection:
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
        self._file = self._identity()
        if int(found["schema"]) < SCHEMA_NUMBER:
            await self._upgrade()

    def _identity(self) -> tuple[int, int] | None:
        """Which file stands at the path; None where there is none, or the ledger is no file."""
        try:
            found = self._path.stat() if self._path is not None else None
        except OSError:
            return None
        return None if found is None else (found.st_dev, found.st_ino)

    def check_kept(self) -> None:
        """Raises LedgerError when the file was taken away, or another put in its place."""
        if self._file is not None and self._identity() != self._file:
            raise LedgerError(
                f"ledger {self.shown} was removed or replaced while it was in use",
                hint="put it back, and rewrap resume goes on; without it, see docs/what-if.md",
            )

    async def _upgrade(self) -> None:
        """Brings an older ledger up to this program's tables; unless another process has just done so."""
        async with self._transaction() as connection:
            await self._lock_creation(connection)
            number = await connection.scalar(sa.select(meta.c.value).where(meta.c.name == "schema"))
            await connection.run_sync(metadata.create_all)
            if int(number or 1) < 2:
                await connection.execute(sa.text(f"ALTER TABLE {exceptions.name} ADD COLUMN row_key TEXT"))
            if int(number or 1) < 4 and self._engine.dialect.name == "postgresql":
                # a reason to wait may be long; SQLite never minded
                await connection.execute(
                    sa.text(f"ALTER TABLE {progress.name} ALTER COLUMN waiting_for TYPE TEXT")
                )
            if int(number or 1) < 4:
                # a run whose process had ended was called paused; now one is whose process waits
                await connection.execute(
                    runs.update().where(runs.c.state == RunState.PAUSED).values(state=RunState.INTERRUPTED)
                )
            await connection.execute(
                meta.update().where(meta.c.name == "schema").values(value=str(SCHEMA_NUMBER))
            )

    async def _make(self) -> None:
        """Makes the ledger's tables, unless another process has just done so."""
        if self._path is not None:
            make_file(self._path)
        async with self._transaction() as connection:
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
    def _translated(self) -> Iterator[None]:
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
    async def _transaction(self) -> AsyncIterator[AsyncConnection]:
        # SQLite works in a thread of its own: one that is cut off in the middle may leave a connection that
        # waits for that thread for ever, and with it the whole program
        with anyio.CancelScope(shield=self._path is not None), self._translated():
            async with self._engine.begin() as connection:
                yield connection

    def _insert(self, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
        """An insert that may say what becomes of a row that is there already."""
        if self._engine.dialect.name == "postgresql":
            return postgresql.insert(table)
        return sqlite.insert(table)

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction, in a ledger that is made if there is none."""
        if not self._there:
            await self._make()
        async with self._transaction() as connection:
            yield connection

    async def rows(self, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        """A query's rows; none where there is no ledger yet."""
        if not self._there:
            return []
        async with self._transaction() as connection:
            found: Sequence[sa.Row[Any]] = (await connection.execute(query)).all()
        return found
