"""The Postgres store: reads pages by key, swaps batches by compare-and-swap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rewrap.errors import StoreError
from rewrap.forecast import Server, TableShape
from rewrap.interfaces import Bystanders, Checkpoint, Prefix, SwapBatch
from rewrap.job import Job
from rewrap.model import Activity, ServerIdentity, ShardLease, ShardRange, Table, key_text
from rewrap.stores.postgres.bystanders import bystanders
from rewrap.stores.postgres.connection import (
    Address,
    Connection,
    address_of,
    close,
    connect,
    translated,
)
from rewrap.stores.postgres.drain import drain
from rewrap.stores.postgres.fence import refuse_fenced
from rewrap.stores.postgres.guard import PostgresGuard
from rewrap.stores.postgres.health import PostgresMonitor
from rewrap.stores.postgres.reader import SAMPLE_ROWS, PostgresReader
from rewrap.stores.postgres.schema import identify, survey
from rewrap.stores.postgres.shape import server_settings, table_shape
from rewrap.stores.postgres.statements import Statements
from rewrap.stores.postgres.writer import PostgresWriter

_MIN_ROWS_A_SHARD = 20_000
"""Below this a second shard costs more in connections than it gains."""


class PostgresStore:
    """One database of a job: its identity, its tables, and readers and writers for them."""

    def __init__(self, job: Job, password: str | None = None) -> None:
        self.job = job
        self.address: Address = address_of(job.postgres.url, password)
        self.notices: list[str] = []
        self._connection: Connection | None = None
        self._identity: ServerIdentity | None = None
        self._deadlock_ms = 1_000

    @property
    def subject(self) -> str:
        return f"database {self.address.shown}"

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            # a look that waits for somebody's lock says so instead of hanging
            self._connection = await connect(self.address, lock_timeout="5s")
        return self._connection

    async def identity(self) -> ServerIdentity:
        if self._identity is None:
            connection = await self._connected()
            self._identity = await identify(connection, self.subject)
            with translated(self.subject):
                self._deadlock_ms = await connection.fetchval(
                    "SELECT setting::int FROM pg_settings WHERE name = 'deadlock_timeout'"
                )
        return self._identity

    async def tables(self) -> list[Table]:
        await self.identity()
        connection = await self._connected()
        found = await survey(connection, self.job)
        self.notices = [notice for entry in found for notice in entry.notices]
        return [entry.table for entry in found]

    @property
    def lock_timeout_ms(self) -> int:
        """Below the server's deadlock_timeout, so that the application is never a deadlock's victim."""
        return max(1, min(self.job.postgres.lock_timeout_ms, self._deadlock_ms // 2))

    @property
    def guard_table(self) -> str:
        return PostgresGuard(self.address, self.job.postgres.guard_schema, _NOBODY).table

    async def split(self, table: Table, shards: int) -> list[ShardRange]:
        count = max(1, min(shards, table.estimated_rows // _MIN_ROWS_A_SHARD))
        bounds: list[str] = []
        if count > 1:
            connection = await self._connected()
            percent = min(100.0, 100.0 * SAMPLE_ROWS * 4 / table.estimated_rows)
            statement = self._statements(table).bounds(percent, [at / count for at in range(1, count)])
            with translated(table.relation):
                found = await connection.fetch(statement)
            width = len(table.key)
            keys = [row[0] if width == 1 else tuple(row) for row in found]
            bounds = list(dict.fromkeys(key_text(key) for key in keys if key is not None))
        # the first and the last shard are open: rows beyond any bound we saw belong to them
        edges: list[str | None] = [None, *bounds, None]
        return [ShardRange(at, edges[at], edges[at + 1]) for at in range(len(edges) - 1)]

    async def rehearse(self, table: Table, lease: ShardLease, batch: SwapBatch) -> bool:
        """Swaps a batch, reads it back byte for byte, and rolls back; False when its rows were locked.

        Raises StoreError when the database would refuse the write or keep something else than was sent.
        """
        writer = self.writer(table)
        connection = await writer.connected()
        checkpoint = Checkpoint(lease.cursor, lease.rows, lease.tally)
        try:
            with translated(table.relation):
                transaction = connection.transaction()
                await transaction.start()
                try:
                    bound = await writer.bound(batch)
                    written = await writer.swap(replace(lease), batch, checkpoint, skip_locked=True)
                    changed = await writer.unsettled(batch) if written else []
                    # a new value is sealed with what the row held before: it would never open again
                    moved = written == len(batch) and await writer.bound(batch) != bound
                finally:
                    await transaction.rollback()
        finally:
            await writer.close()
        if written and len(changed) > len(batch) - written:
            raise StoreError(
                f"table {table.relation} keeps something else than was written",
                hint="a trigger changes the encrypted column; disable it for the run, or leave the table out",
            )
        if moved:
            raise StoreError(
                f"table {table.relation} changes {', '.join(table.aad_columns)} with every write: what "
                "encrypted values are bound to",
                hint="a trigger does that, and no new value would open; disable it for the run, or leave the "
                "table out",
            )
        return written > 0

    async def refuse_fenced(self, table: Table, prefixes: dict[str, Prefix]) -> None:
        await refuse_fenced(await self._connected(), table, prefixes)

    async def activity(self, table: Table) -> Activity:
        connection = await self._connected()
        with translated(table.relation):
            row = await connection.fetchrow(
                "SELECT pg_stat_get_tuples_inserted($1::int8::oid) AS inserted, "
                "pg_stat_get_tuples_deleted($1::int8::oid) AS deleted",
                table.oid,
            )
        return Activity(row["inserted"] or 0, row["deleted"] or 0)

    async def logged(self, table: Table) -> int:
        """Bytes that the table's server has written to its log so far, whoever caused them."""
        connection = await self._connected()
        with translated(table.relation):
            return int(
                await connection.fetchval("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::int8")
            )

    @property
    def waiting_for(self) -> str:
        return ""

    def spent(self) -> dict[str, float]:
        return {}

    async def drain(self, timeout_s: float) -> list[str]:
        return await drain(await self._connected(), self.subject, timeout_s)

    async def bystanders(self, tables: Sequence[Table]) -> Bystanders:
        return await bystanders(await self._connected(), self.subject, [table.oid for table in tables])

    async def flush(self) -> str:
        connection = await self._connected()
        with translated(self.subject):
            async with connection.transaction():
                # a commit that writes nothing flushes nothing: take a transaction id, and wait for its WAL
                await connection.execute("SET LOCAL synchronous_commit = on")
                await connection.execute("SELECT pg_logical_emit_message(true, 'rewrap', '')")
            position = await connection.fetchval("SELECT pg_current_wal_flush_lsn()::text")
        return str(position)

    async def shape(self, table: Table) -> tuple[Server, TableShape]:
        """What a forecast asks of the catalog."""
        connection = await self._connected()
        return await server_settings(connection), await table_shape(connection, table)

    def reader(self, table: Table, *, full: bool = True) -> PostgresReader:
        return PostgresReader(
            self.address, self.job, table, self.guard_table, self.lock_timeout_ms, full=full
        )

    def writer(self, table: Table, *, full: bool = True) -> PostgresWriter:
        return PostgresWriter(
            self.address, self.job, table, self.guard_table, self.lock_timeout_ms, full=full
        )

    def monitor(self, tables: Sequence[Table]) -> PostgresMonitor:
        return PostgresMonitor(self.address, tables)

    async def close(self) -> None:
        if self._connection is not None:
            await close(self._connection)
            self._connection = None

    def _statements(self, table: Table) -> Statements:
        return Statements(table, self.guard_table)


_NOBODY = ServerIdentity("", "", "", 0)
