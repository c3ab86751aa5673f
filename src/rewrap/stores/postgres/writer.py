"""Writes batches by compare-and-swap, each with its checkpoint, in one statement."""

from __future__ import annotations

from typing import Any

from rewrap.errors import Rewound, UnsafeTarget
from rewrap.interfaces import Checkpoint, Row, SwapBatch
from rewrap.job import Job
from rewrap.model import ShardLease, Table
from rewrap.packed import Column, listed, packable, packed
from rewrap.stores.claims import dump_tally, lease_lost
from rewrap.stores.postgres.connection import Address, Connection, close, connect, translated
from rewrap.stores.postgres.keys import KeySql
from rewrap.stores.postgres.statements import Statements

_WRITER_FULL = {"enable_seqscan": "off", "enable_bitmapscan": "off", "enable_nestloop": "off"}
"""A batch of consecutive rows is met by one walk along the index, not by a search from its root for each."""

# what a writer waits behind: a lock that keeps writers out, held or queued for
_TABLE_LOCKED = """
SELECT EXISTS (SELECT FROM pg_locks l
  WHERE l.locktype = 'relation' AND l.relation = $1::int8::oid AND l.pid <> pg_backend_pid()
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock'))
"""

STATEMENT_TIMEOUT_S = 60.0
"""Seconds for one batch: far beyond any (row locks give up in under one), so silence is a broken line."""


class PostgresWriter:
    """Writes one table under a lease: one statement and one round trip a batch.

    `synchronous_commit` is off: the checkpoint rides in the same transaction as the rows, so a server that
    crashes loses both or neither, and the run ends with a commit that waits for the log.
    """

    def __init__(
        self, address: Address, job: Job, table: Table, guard: str, lock_timeout_ms: int, *, full: bool
    ) -> None:
        self._address = address
        self._pace = job.pace
        self._lock_timeout_ms = lock_timeout_ms
        self._table = table
        self._consecutive = full
        self._key = KeySql(table.key)
        self._statements = Statements(table, guard)
        self._swaps: dict[tuple[bool, bool, bool], str] = {}
        self._lease_s = job.limits.lease_s
        pace = job.pace
        self._inline = min(pace.batch_bytes // pace.batch_size, pace.max_value_bytes)
        self._connection: Connection | None = None
        self._checked = False

    async def connected(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(
                self._address,
                application_name="rewrap writer",
                synchronous_commit="off",
                lock_timeout=f"{self._lock_timeout_ms}ms",
                # replanned for each batch, the join turns into a merge that reads the key from its start
                plan_cache_mode="force_generic_plan",
                **(_WRITER_FULL if self._consecutive else {}),
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
                raise Rewound("the server crashed and lost its last writes")
            # one more than was acknowledged: the last one landed, and its answer was lost
            lease.seq = kept["seq"]
            self._checked = True
        return connection

    async def swap(
        self, lease: ShardLease, batch: SwapBatch, checkpoint: Checkpoint, *, skip_locked: bool
    ) -> int:
        stamped = batch.stamps is not None
        packs = stamped or all(packable(tokens) for tokens in batch.tokens)
        arguments: list[Any] = [*self._place(lease, checkpoint), *self._key.batch(batch.keys)]
        if stamped:
            arguments.append(batch.stamps)
        for field in self._table.fields:
            if not stamped:
                arguments.append(_sent(batch.olds[field.name], len(batch), packs=not field.binary))
            arguments.append(_sent(batch.news[field.name], len(batch), packs=not field.binary))
        if not stamped:
            arguments += [_sent(tokens, len(batch), packs=packs) for tokens in batch.tokens]
        kind = (skip_locked, stamped, packs)
        if kind not in self._swaps:
            self._swaps[kind] = self._statements.swap(
                consecutive=self._consecutive, skip_locked=skip_locked, stamped=stamped, packs=packs
            )
        connection = await self._ready(lease)
        with translated(self._table.relation):
            status = await connection.execute(self._swaps[kind], *arguments, timeout=STATEMENT_TIMEOUT_S)
        written = int(status.rpartition(" ")[2])
        if written == 0:
            await self._check_fence(lease)
            await self._check_names()
        lease.seq += 1
        return written

    async def unsettled(self, batch: SwapBatch) -> list[tuple[int, Row | None]]:
        news = [_sent(batch.news[f.name], len(batch), packs=not f.binary) for f in self._table.fields]
        connection = await self.connected()
        with translated(self._table.relation):
            rows = await connection.fetch(
                self._statements.unsettled(consecutive=self._consecutive),
                self._inline,
                *self._key.batch(batch.keys),
                *news,
                timeout=STATEMENT_TIMEOUT_S,
            )
        return [(row[0] - 1, self._key.folded(row, 1) if row[1] is not None else None) for row in rows]

    async def bound(self, batch: SwapBatch) -> list[tuple[str | None, ...]]:
        """The associated data's columns of a batch's rows, as they are now."""
        if not self._table.aad_columns:
            return []
        connection = await self.connected()
        with translated(self._table.relation):
            rows = await connection.fetch(
                self._statements.bound(), *self._key.batch(batch.keys), timeout=STATEMENT_TIMEOUT_S
            )
        return [tuple(row) for row in rows]

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

    async def _check_names(self) -> None:
        connection = await self.connected()
        with translated(self._table.relation):
            unchanged = await connection.fetchval(self._statements.unchanged())
        if not unchanged:
            raise UnsafeTarget(
                f"table {self._table.relation}: the table or its columns were renamed, dropped or made anew "
                "while the run was at work",
                hint="what was written before went to the columns of then; compare the job file's names with "
                "the table, then run again",
            )


def _sent(column: Column, count: int, *, packs: bool) -> Any:
    """A column as a parameter: one text costs the driver one check, an array one for each element."""
    return packed(column, count) if packs else listed(column)
