"""One row swapped, read back and rolled back: what a constraint or a trigger does to a write shows here."""

from __future__ import annotations

from rewrap.errors import StoreError
from rewrap.interfaces import Checkpoint, SwapBatch
from rewrap.job import Job
from rewrap.model import ShardLease, ShardRange, Table
from rewrap.stores.postgres.connection import Address, translated
from rewrap.stores.postgres.writer import PostgresWriter

_LEASE_TABLE = "pg_temp.rewrap_canary"
"""Stands for the guard's table in the one transaction; nobody else can see it."""

_MAKE = f"""
CREATE TEMPORARY TABLE rewrap_canary (
    relation text, shard int, cursor_key text, row_count bigint, tally text, seq bigint, fence bigint,
    done boolean, lease_until timestamptz, updated_at timestamptz) ON COMMIT DROP;
INSERT INTO {_LEASE_TABLE} (relation, shard, seq, fence) VALUES ('canary', 0, 0, 1)
"""


async def try_canary(
    address: Address, job: Job, table: Table, batch: SwapBatch, lock_timeout_ms: int
) -> bool:
    """Swaps a row as a run would, without a claim; False when it was locked or has changed.

    Everything happens in one transaction that is rolled back: the row keeps its values, its version and its
    place. What a trigger does outside of transactions (a sequence's next number) is not undone.
    Raises StoreError when the database refuses the write or keeps something else than was sent.
    """
    writer = PostgresWriter(address, job, table, _LEASE_TABLE, lock_timeout_ms, full=False)
    lease = ShardLease("canary", ShardRange(0, None, None), fence=1, sweep=1)
    try:
        connection = await writer.connected()
        with translated(table.relation):
            transaction = connection.transaction()
            await transaction.start()
            try:
                await connection.execute(_MAKE)
                written = await writer.swap(lease, batch, Checkpoint(None, 0, {}), skip_locked=True)
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
