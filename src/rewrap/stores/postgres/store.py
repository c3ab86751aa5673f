"""The Postgres store: reads pages by key, swaps batches by compare-and-swap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rewrap.errors import ResealMismatch, Rewound, SchemaMismatch, StoreError
from rewrap.interfaces import Checkpoint, OversizeMark, Page, Row, Scope, SwapBatch
from rewrap.job import Job
from rewrap.model import Activity, ServerIdentity, ShardLease, ShardRange, Table
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
from rewrap.stores.postgres.guard import PostgresGuard, dump_tally, lease_lost
from rewrap.stores.postgres.schema import identify, survey
from rewrap.stores.postgres.statements import HELD_BACK, Statements

_SAMPLE_ROWS = 4_000
"""Rows a random sample aims to look at: enough for shard bounds within a few per cent of each other."""

_MIN_ROWS_A_SHARD = 20_000
"""Below this a second shard costs more in connections than it gains."""

_READER_FULL = {"enable_seqscan": "off", "enable_bitmapscan": "off", "enable_sort": "off"}
"""A keyset page walks the key's index. Left alone, the planner may sort a whole middling table for each."""


class PostgresStore:
    """One database of a job: its identity, its tables, and readers and writers for them."""

    def __init__(self, job: Job, password: str | None = None) -> None:
        self.job = job
        self.address: Address = address_of(job.store.url, password)
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
        found = [await survey(connection, self.job, target) for target in self.job.targets]
        self.notices = [notice for entry in found for notice in entry.notices]
        names = {entry.table.oid: entry.table.name for entry in found}
        for entry in found:
            if names[entry.table.oid] != entry.table.name:
                raise SchemaMismatch(
                    f'targets "{entry.table.name}" and "{names[entry.table.oid]}" are the same table',
                    hint="list all its columns in one target",
                )
        return [entry.table for entry in found]

    @property
    def lock_timeout_ms(self) -> int:
        """Below the server's deadlock_timeout, so that the application is never a deadlock's victim."""
        return max(1, min(self.job.store.lock_timeout_ms, self._deadlock_ms // 2))

    @property
    def guard_table(self) -> str:
        return PostgresGuard(self.address, self.job.store.guard_schema, _NOBODY).table

    async def split(self, table: Table, shards: int) -> list[ShardRange]:
        count = max(1, min(shards, table.estimated_rows // _MIN_ROWS_A_SHARD))
        bounds: list[str] = []
        if count > 1:
            connection = await self._connected()
            percent = min(100.0, 100.0 * _SAMPLE_ROWS * 4 / table.estimated_rows)
            statement = self._statements(table).bounds(percent, [at / count for at in range(1, count)])
            with translated(table.relation):
                found = await connection.fetchval(statement)
            bounds = list(dict.fromkeys(bound for bound in found or [] if bound is not None))
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
                    written = await writer.swap(replace(lease), batch, checkpoint, skip_locked=True)
                    changed = await writer.unsettled(batch) if written else []
                finally:
                    await transaction.rollback()
        finally:
            await writer.close()
        if written and len(changed) > len(batch) - written:
            raise StoreError(
                f"table {table.relation} keeps something else than was written",
                hint="a trigger changes the encrypted column; disable it for the run, or leave the table out",
            )
        return written > 0

    async def refuse_fenced(self, table: Table, markers: dict[str, str]) -> None:
        await refuse_fenced(await self._connected(), table, markers)

    async def activity(self, table: Table) -> Activity:
        connection = await self._connected()
        with translated(table.relation):
            row = await connection.fetchrow(
                "SELECT pg_stat_get_tuples_inserted($1::int8::oid) AS inserted, "
                "pg_stat_get_tuples_deleted($1::int8::oid) AS deleted",
                table.oid,
            )
        return Activity(row["inserted"] or 0, row["deleted"] or 0)

    async def drain(self, timeout_s: float) -> list[str]:
        return await drain(await self._connected(), self.subject, timeout_s)

    async def flush(self) -> str:
        connection = await self._connected()
        with translated(self.subject):
            async with connection.transaction():
                # a commit that writes nothing flushes nothing: take a transaction id, and wait for its WAL
                await connection.execute("SET LOCAL synchronous_commit = on")
                await connection.execute("SELECT pg_logical_emit_message(true, 'rewrap', '')")
            position = await connection.fetchval("SELECT pg_current_wal_flush_lsn()::text")
        return str(position)

    def reader(self, table: Table, *, full: bool = True) -> PostgresReader:
        return PostgresReader(self, table, full=full)

    def writer(self, table: Table) -> PostgresWriter:
        return PostgresWriter(self, table)

    async def close(self) -> None:
        if self._connection is not None:
            await close(self._connection)
            self._connection = None

    def _statements(self, table: Table) -> Statements:
        return Statements(table, self.guard_table)


# what a writer waits behind: a lock that keeps writers out, held or queued for
_TABLE_LOCKED = """
SELECT EXISTS (SELECT FROM pg_locks l
  WHERE l.locktype = 'relation' AND l.relation = $1::int8::oid AND l.pid <> pg_backend_pid()
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock'))
"""

STATEMENT_TIMEOUT_S = 60.0
"""Seconds for one batch: far beyond any (row locks give up in under one), so silence is a broken line."""

_NOBODY = ServerIdentity("", "", "", 0)


class PostgresReader:
    """Reads one table in key order. Keyset pages: no cursor stays open, so vacuum is never held up."""

    def __init__(self, store: PostgresStore, table: Table, *, full: bool) -> None:
        self._store = store
        self._table = table
        self._statements = Statements(table, store.guard_table)
        self._settings = _READER_FULL if full else {}
        self._connection: Connection | None = None
        self._limit = store.job.pace.batch_size

    async def connected(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(
                self._store.address,
                application_name="rewrap reader",
                lock_timeout=f"{self._store.lock_timeout_ms}ms",
                **self._settings,
            )
        return self._connection

    async def fetch(self, shard: ShardRange, after: str | None, limit: int, scope: Scope) -> Page:
        limit = max(1, min(limit, self._limit))
        # whatever the page holds, it holds at most batch_bytes for each column
        inline = min(self._store.job.pace.batch_bytes // limit, self._store.job.pace.max_value_bytes)
        statement = self._statements.fetch(shard, first=after is None, limit=limit, scope=scope)
        arguments: list[Any] = [inline]
        start = after if after is not None else shard.lower
        if start is not None:
            arguments.append(start)
        if shard.upper is not None:
            arguments.append(shard.upper)
        connection = await self.connected()
        with translated(self._table.relation):
            rows = await connection.fetch(statement, *arguments)
        self._adapt(rows, limit)
        return Page(rows, str(rows[-1][0]) if len(rows) == limit else None)

    def _adapt(self, rows: list[Row], limit: int) -> None:
        """Shorter pages where values are large, so that they come in pages again and not one by one."""
        if not rows:
            return
        fields = range(1, 1 + len(self._table.fields))
        # a look at one row in sixteen is enough to notice, and costs nothing
        looked = rows[::16]
        held = sum(1 for row in looked if any(row[at] and row[at][0] == HELD_BACK for at in fields))
        if held * 4 > len(looked):
            self._limit = max(8, limit // 2)
        elif not held and self._limit < self._store.job.pace.batch_size:
            widest = max(sum(len(row[at] or "") for at in fields) for row in looked)
            if widest * self._limit * 4 < self._store.job.pace.batch_bytes:
                self._limit = min(self._store.job.pace.batch_size, self._limit * 2)

    async def fetch_large(self, key: Any) -> Row | None:
        limit = self._store.job.pace.max_value_bytes
        connection = await self.connected()
        with translated(self._table.relation):
            heads = await connection.fetchrow(self._statements.heads(), key)
            row = await connection.fetchrow(self._statements.fetch_large(), key, limit)
        if row is None or heads is None:
            return None
        whole = list(row)
        for at in range(len(self._table.fields)):
            size, head = heads[2 * at], heads[2 * at + 1]
            if size is not None and size > limit:
                whole[1 + at] = OversizeMark(size, head)
        return whole

    async def sample(self, count: int, prefixes: dict[str, str]) -> list[Row]:
        inline = self._store.job.pace.batch_bytes // count
        share = 100.0 * _SAMPLE_ROWS / max(1, self._table.estimated_rows)
        connection = await self.connected()
        with translated(self._table.relation):
            rows: list[Row] = []
            if share < 100:
                rows = await connection.fetch(
                    self._statements.sample(prefixes, percent=share, limit=count), inline
                )
            if len(rows) < count:
                # few or none by chance: look everywhere before saying that there is none
                rows = await connection.fetch(
                    self._statements.sample(prefixes, percent=None, limit=count), inline
                )
        return rows

    async def close(self) -> None:
        if self._connection is not None:
            await close(self._connection)
            self._connection = None


class PostgresWriter:
    """Writes one table under a lease: one statement and one round trip a batch.

    `synchronous_commit` is off: the checkpoint rides in the same transaction as the rows, so a server that
    crashes loses both or neither, and the run ends with a commit that waits for the log.
    """

    def __init__(self, store: PostgresStore, table: Table) -> None:
        self._store = store
        self._table = table
        self._statements = Statements(table, store.guard_table)
        self._swap = self._statements.swap(skip_locked=False)
        self._swap_free = self._statements.swap(skip_locked=True)
        self._lease_s = store.job.limits.lease_s
        pace = store.job.pace
        self._inline = min(pace.batch_bytes // pace.batch_size, pace.max_value_bytes)
        self._connection: Connection | None = None
        self._checked = False

    async def connected(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(
                self._store.address,
                application_name="rewrap writer",
                synchronous_commit="off",
                lock_timeout=f"{self._store.lock_timeout_ms}ms",
                # replanned for each batch, the join turns into a merge that reads the key from its start
                plan_cache_mode="force_generic_plan",
            )
            self._checked = False
        return self._connection

    async def reconnect(self, lease: ShardLease) -> None:
        await self.close()
        await self._ready(lease)

    async def _ready(self, lease: ShardLease) -> Connection:
        """A connection to write through. A new one first asks what the server kept of the shard."""
        connection = await self.connected()
        if not self._checked:
            with translated(self._table.relation):
                kept = await connection.fetchrow(self._statements.fence(), lease.relation, lease.range.shard)
            if kept is None or kept["fence"] != lease.fence:
                raise lease_lost(f"table {self._table.relation}")
            if kept["seq"] < lease.seq:
                raise Rewound(f"table {self._table.relation}: the server lost acknowledged writes")
            # one more than was acknowledged: the last one landed, and its answer was lost
            lease.seq = kept["seq"]
            self._checked = True
        return connection

    async def swap(
        self, lease: ShardLease, batch: SwapBatch, checkpoint: Checkpoint, *, skip_locked: bool
    ) -> int:
        arguments: list[Any] = [*self._place(lease, checkpoint), batch.keys]
        for name in self._table.field_names:
            arguments.append(joined(batch.olds[name], len(batch)))
            arguments.append(joined(batch.news[name], len(batch)))
        for at in range(len(self._table.aad_columns)):
            assert batch.tokens is not None
            arguments.append([token[at] for token in batch.tokens])
        connection = await self._ready(lease)
        with translated(self._table.relation):
            status = await connection.execute(
                self._swap_free if skip_locked else self._swap, *arguments, timeout=STATEMENT_TIMEOUT_S
            )
        written = int(status.rpartition(" ")[2])
        if written == 0:
            await self._check_fence(lease)
        lease.seq += 1
        return written

    async def unsettled(self, batch: SwapBatch) -> list[tuple[int, Row | None]]:
        arguments: list[Any] = [self._inline, batch.keys]
        arguments += [joined(batch.news[name], len(batch)) for name in self._table.field_names]
        connection = await self.connected()
        with translated(self._table.relation):
            rows = await connection.fetch(
                self._statements.unsettled(), *arguments, timeout=STATEMENT_TIMEOUT_S
            )
        return [(row[0] - 1, row[1:] if row[1] is not None else None) for row in rows]

    async def table_locked(self) -> bool:
        connection = await self.connected()
        with translated(self._table.relation):
            return bool(await connection.fetchval(_TABLE_LOCKED, self._table.oid))

    async def checkpoint(self, lease: ShardLease, checkpoint: Checkpoint) -> None:
        connection = await self._ready(lease)
        with translated(self._table.relation):
            async with connection.transaction():
                if checkpoint.done:
                    # nothing follows that would make this durable, and with it all that came before
                    await connection.execute("SET LOCAL synchronous_commit = on")
                fence = await connection.fetchval(
                    self._statements.checkpoint(), *self._place(lease, checkpoint), checkpoint.done
                )
        if fence is None:
            raise lease_lost(f"table {self._table.relation}")
        lease.seq += 1

    async def close(self) -> None:
        if self._connection is not None:
            await close(self._connection)
            self._connection = None

    def _place(self, lease: ShardLease, checkpoint: Checkpoint) -> tuple[Any, ...]:
        return (
            checkpoint.cursor,
            checkpoint.rows,
            dump_tally(checkpoint.tally),
            lease.relation,
            lease.range.shard,
            lease.fence,
            self._lease_s,
        )

    async def _check_fence(self, lease: ShardLease) -> None:
        connection = await self.connected()
        with translated(self._table.relation):
            kept = await connection.fetchrow(self._statements.fence(), lease.relation, lease.range.shard)
        if kept is None or kept["fence"] != lease.fence:
            raise lease_lost(f"table {self._table.relation}")


def joined(values: Sequence[str | None], count: int) -> str:
    """One text for `string_to_array(…, ',', '')`: values joined by commas, None as nothing.

    Text costs the driver one check where an array costs one for each element. Raises ResealMismatch when
    the text would not come apart into `count` parts: then rows would get each other's values.
    """
    text = ",".join([value or "" for value in values])
    if len(values) != count or text.count(",") != count - 1:
        raise ResealMismatch(
            "a batch does not come apart into its rows again; nothing was written",
            hint="this is a defect in rewrap, please report it",
        )
    return text
