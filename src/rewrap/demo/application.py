"""Somebody else's application, which keeps writing while its key is rotated.

It shares nothing with rewrap on purpose: it seals and opens with PyNaCl and cryptography directly,
it knows nothing of the bulk run, and it remembers what it wrote, so that its `audit` can say
whether a value was lost.
"""

import asyncio
import contextlib
import random
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import asyncpg

from rewrap.demo.truth import (
    ACCOUNTS,
    Key,
    Row,
    Sealer,
    Table,
    TableModel,
    Unopenable,
    derived_row,
)

__all__ = ["Application", "Audit", "TableModel", "Tally"]

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

# How often each operation comes, out of 100. More updates than anything else: an update of the
# encrypted column is what a careless bulk run would overwrite.
_WEIGHTS = {"insert": 15, "update": 35, "annotate": 15, "move": 15, "delete": 5, "read": 15}


@dataclass(frozen=True, slots=True)
class Tally:
    """What the application did since the last tally. Latencies are of whole transactions."""

    inserts: int
    updates: int
    annotations: int
    moves: int
    deletes: int
    reads: int
    seconds: float
    p50_ms: float
    p99_ms: float

    @property
    def writes(self) -> int:
        return self.inserts + self.updates + self.annotations + self.moves + self.deletes


@dataclass(frozen=True, slots=True)
class Audit:
    """Every row compared with what its last writer wrote.

    `lost` counts plaintexts that differ, rows that are missing and rows that nobody wrote. A value
    that does not open is `undecryptable` and not `lost`. All four counts are 0 when all is well.
    """

    rows: int
    lost: int
    undecryptable: int
    other_columns_wrong: int
    by_version: Mapping[str, int]

    @property
    def clean(self) -> bool:
        return not (self.lost or self.undecryptable or self.other_columns_wrong)


class Application:
    """Concurrent writers over some tables, and the truth about every row.

    The truth of a loaded row is a function of the seed and its key; only changes are kept. A row is
    written by one writer of this process at a time, so its last writer is known. Postgres has to
    stay up meanwhile: a connection lost during a commit leaves the truth open, and the audit may
    then count a row that is not lost.

    `errors` collects everything the application should never see, as text without values: errors
    of its statements (a deadlock or a serialization failure would be the bulk run's fault), reads
    that return what nobody wrote, and updates that find no row.
    """

    def __init__(
        self,
        dsn: str,
        tables: Sequence[TableModel],
        keys: Mapping[str, bytes],
        current: str,
        *,
        writers: int = 4,
        seed: int = 0,
        operations_per_s: float | None = 400.0,
    ) -> None:
        """`keys`: 32 bytes by version. `operations_per_s`: of all writers; None is unpaced."""
        self.errors: list[str] = []
        self.current = current
        self._dsn = dsn
        self._tables = [Table(model, seed) for model in tables]
        self._sealer = Sealer(keys)
        self._writers = writers
        self._interval_s = writers / operations_per_s if operations_per_s else 0.0
        self._random = random.Random(seed)  # noqa: S311 - chooses rows, makes no keys
        self._locks: weakref.WeakValueDictionary[tuple[str, Key], asyncio.Lock] = (
            weakref.WeakValueDictionary()
        )
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._counts = dict.fromkeys(_WEIGHTS, 0)
        self._latencies_s: list[float] = []
        self._tally_began = time.monotonic()

    async def create(self) -> None:
        """Creates the tables; fails when one is there already."""
        connection = await asyncpg.connect(self._dsn)
        try:
            for table in self._tables:
                await connection.execute(table.ddl)
        finally:
            await connection.close()

    async def load(self, rows_per_table: int) -> None:
        """Fills each table with rows under the current version, by COPY, all tables at once."""
        await asyncio.gather(*(self._load(table, rows_per_table) for table in self._tables))

    async def _load(self, table: Table, count: int) -> None:
        connection = await asyncpg.connect(self._dsn)
        try:
            await connection.copy_records_to_table(
                table.model.name,
                records=self._sealed_rows(table, count),
                columns=table.columns,
            )
            await connection.execute(f"ANALYZE {table.name}")
        finally:
            await connection.close()

    async def _sealed_rows(self, table: Table, count: int) -> AsyncIterator[tuple[object, ...]]:
        for position, (key, row) in enumerate(table.load(count)):
            if position % 500 == 0:
                # Sealing never waits for anything: let the other tables have their turn.
                await asyncio.sleep(0)
            yield (key, self._sealer.seal(self.current, row), *table.plain(row))

    def start(self) -> None:
        """Starts the writers."""
        self._stop.clear()
        self.tally()
        self._tasks = [asyncio.create_task(self._work()) for _ in range(self._writers)]

    async def stop(self) -> None:
        """Lets every writer finish what it is doing. Raises what a writer died of, if one did."""
        self._stop.set()
        tasks, self._tasks = self._tasks, []
        await asyncio.gather(*tasks)

    def switch(self, version: str) -> None:
        """Writes under another version from now on, as after a redeployment.

        Both keys stay readable. A transaction that has sealed its value already still commits it
        under the version before.
        """
        self.current = version

    def tally(self) -> Tally:
        """Counts and latencies since the tally before, or since the start."""
        now = time.monotonic()
        latencies = sorted(self._latencies_s)
        tally = Tally(
            inserts=self._counts["insert"],
            updates=self._counts["update"],
            annotations=self._counts["annotate"],
            moves=self._counts["move"],
            deletes=self._counts["delete"],
            reads=self._counts["read"],
            seconds=now - self._tally_began,
            p50_ms=quantile(latencies, 0.50) * 1000,
            p99_ms=quantile(latencies, 0.99) * 1000,
        )
        self._counts = dict.fromkeys(_WEIGHTS, 0)
        self._latencies_s = []
        self._tally_began = now
        return tally

    def expected(self, table: str, key: Key) -> bytes | None:
        """The plaintext that the last writer of a row wrote; None when it deleted the row."""
        row = next(each for each in self._tables if each.model.name == table).row(key)
        return None if row is None else row.plaintext

    async def versions(self) -> dict[str, int]:
        """How many values are stored under each version now, over all tables."""
        counts: dict[str, int] = {}
        connection = await asyncpg.connect(self._dsn)
        try:
            for table in self._tables:
                for version, count in await connection.fetch(table.census):
                    counts[version] = counts.get(version, 0) + count
        finally:
            await connection.close()
        return counts

    async def audit(self) -> Audit:
        """Opens every row of one snapshot of the database and compares it with the truth.

        The writers have to be stopped.
        """
        if self._tasks:
            raise RuntimeError("the writers are running: stop them before the audit")
        rows = lost = undecryptable = other_columns_wrong = 0
        by_version: dict[str, int] = {}
        connection = await asyncpg.connect(self._dsn)
        try:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                for table in self._tables:
                    missing = table.keys()
                    async for key, token, *plain in connection.cursor(table.scan, prefetch=2000):
                        rows += 1
                        truth = table.row(key) if key in missing else None
                        missing.discard(key)
                        account = plain[1] if len(plain) > 1 else None
                        try:
                            version, plaintext = self._sealer.open(token, account)
                        except Unopenable:
                            undecryptable += 1
                            continue
                        by_version[version] = by_version.get(version, 0) + 1
                        if truth is None or truth.plaintext != plaintext:
                            lost += 1
                        elif table.plain(truth) != tuple(plain):
                            other_columns_wrong += 1
                    lost += len(missing)
        finally:
            await connection.close()
        return Audit(
            rows=rows,
            lost=lost,
            undecryptable=undecryptable,
            other_columns_wrong=other_columns_wrong,
            by_version=by_version,
        )

    async def _work(self) -> None:
        """One writer: operations at the pace until `stop`, on a connection of its own."""
        operations: dict[str, Callable[[Connection, Table], Awaitable[None]]] = {
            "insert": self._insert,
            "update": self._update,
            "annotate": self._annotate,
            "move": self._move,
            "delete": self._delete,
            "read": self._read,
        }
        names, weights = list(_WEIGHTS), list(_WEIGHTS.values())
        connection: Connection | None = None
        due = time.monotonic()
        while not self._stop.is_set():
            table = self._random.choice(self._tables)
            name = self._random.choices(names, weights)[0]
            if name == "move" and table.model.aad is None:
                name = "update"
            if len(table.live) <= self._writers:
                name = "insert"  # every writer always finds a row to choose
            try:
                if connection is None or connection.is_closed():
                    connection = await asyncpg.connect(self._dsn)
                await operations[name](connection, table)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as exc:
                state = getattr(exc, "sqlstate", None) or "no sqlstate"
                self.errors.append(f"{name} {table.model.name}: {type(exc).__name__} ({state})")
                await asyncio.sleep(0.05)
            due = max(due + self._interval_s, time.monotonic() - 1.0)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        if connection is not None:
            await connection.close()

    async def _insert(self, connection: Connection, table: Table) -> None:
        key = table.new_key(self._random)
        row = self._new_row(table)
        token = self._sealer.seal(self.current, row)
        with self._timed("insert"):
            await connection.execute(table.insert, key, token, *table.plain(row))
        table.changed[key] = row
        table.live.append(key)

    async def _update(self, connection: Connection, table: Table) -> None:
        """A new plaintext, whatever was there before."""
        async with self._chosen(table) as (key, row):
            changed = row._replace(plaintext=self._new_row(table).plaintext)
            with self._timed("update"):
                if row.account is None:
                    token = self._sealer.seal(self.current, changed)
                    await self._write(connection, table, table.update, key, token)
                else:
                    async with connection.transaction():
                        # The value is bound to its account, which must stay until the commit.
                        await self._check(connection, table, table.select_for_update, key, row)
                        token = self._sealer.seal(self.current, changed)
                        await self._write(connection, table, table.update, key, token)
            table.changed[key] = changed

    async def _annotate(self, connection: Connection, table: Table) -> None:
        """Another column of the row; the encrypted one is left as it is."""
        async with self._chosen(table) as (key, row):
            changed = row._replace(note=self._new_row(table).note)
            with self._timed("annotate"):
                await self._write(connection, table, table.annotate, key, changed.note)
            table.changed[key] = changed

    async def _move(self, connection: Connection, table: Table) -> None:
        """The row goes to another account, so its value is sealed again under the new AAD."""
        async with self._chosen(table) as (key, row):
            changed = row._replace(account=1 + self._random.randrange(ACCOUNTS))
            with self._timed("move"):
                async with connection.transaction():
                    await self._check(connection, table, table.select_for_update, key, row)
                    token = self._sealer.seal(self.current, changed)
                    await self._write(connection, table, table.move, key, token, changed.account)
            table.changed[key] = changed

    async def _delete(self, connection: Connection, table: Table) -> None:
        async with self._chosen(table, take=True) as (key, _):
            with self._timed("delete"):
                await self._write(connection, table, table.delete, key)
            table.changed[key] = None

    async def _read(self, connection: Connection, table: Table) -> None:
        async with self._chosen(table) as (key, row):
            await self._check(connection, table, table.select, key, row)
            self._counts["read"] += 1

    async def _write(
        self, connection: Connection, table: Table, statement: str, key: Key, *values: object
    ) -> None:
        tag = await connection.execute(statement, key, *values)
        if not tag.endswith(" 1"):
            self.errors.append(f"{table.model.name}: a write found no row")

    async def _check(self, connection: Connection, table: Table, statement: str, key: Key, row: Row) -> None:
        """Reads the row as any reader would and compares it with the truth."""
        stored = await connection.fetchrow(statement, key)
        if stored is None:
            self.errors.append(f"{table.model.name}: a read found no row")
            return
        token, *plain = stored
        try:
            _, plaintext = self._sealer.open(token, plain[1] if len(plain) > 1 else None)
        except Unopenable:
            self.errors.append(f"{table.model.name}: a read found a value that does not open")
            return
        if (plaintext, tuple(plain)) != (row.plaintext, table.plain(row)):
            self.errors.append(f"{table.model.name}: a read found what nobody wrote")

    def _new_row(self, table: Table) -> Row:
        return derived_row(table.model, self._random.randbytes(16))

    @contextlib.asynccontextmanager
    async def _chosen(self, table: Table, *, take: bool = False) -> AsyncIterator[tuple[Key, Row]]:
        """A row that is there, locked against this process's other writers.

        With `take` nobody else can choose it from now on.
        """
        while True:
            place = self._random.randrange(len(table.live))
            key = table.live[place]
            if take:
                table.live[place] = table.live[-1]
                table.live.pop()
            lock = self._locks.setdefault((table.model.name, key), asyncio.Lock())
            async with lock:
                # Another writer may have deleted the row while this one waited for the lock.
                row = table.row(key)
                if row is None:
                    continue
                try:
                    yield key, row
                except BaseException:
                    if take:
                        table.live.append(key)
                    raise
                return

    @contextlib.contextmanager
    def _timed(self, operation: str) -> Iterator[None]:
        """Counts an operation that succeeded, with its latency."""
        began = time.perf_counter()
        yield
        self._latencies_s.append(time.perf_counter() - began)
        self._counts[operation] += 1


def quantile(ordered: Sequence[float], quantile: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * quantile))] if ordered else 0.0
