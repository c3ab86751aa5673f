"""Waiting for writers: a count means nothing while a transaction may still commit an old value."""

from __future__ import annotations

import time

import anyio

from rewrap.stores.postgres.connection import Connection, translated

_POLL_S = 0.05


async def drain(connection: Connection, oid: int, subject: str, timeout_s: float) -> list[str]:
    """Waits until every transaction that has written the table by now has ended.

    A transaction holds its lock on the table until it commits or rolls back, a prepared one even across a
    restart. Returns the ones that were still open after `timeout_s` seconds, described for people.
    """
    deadline = time.monotonic() + timeout_s
    with translated(subject):
        waiting = {row["tx"]: row["shown"] for row in await connection.fetch(_WRITERS, oid)}
        while waiting:
            now = {row["tx"] for row in await connection.fetch(_WRITERS, oid)}
            waiting = {tx: shown for tx, shown in waiting.items() if tx in now}
            if not waiting or time.monotonic() >= deadline:
                break
            await anyio.sleep(_POLL_S)
    return sorted(waiting.values())


_WRITERS = """
SELECT l.virtualtransaction AS tx,
       CASE WHEN l.pid IS NULL THEN 'a prepared transaction (see pg_prepared_xacts)'
            ELSE format('pid %s (%s)', l.pid, coalesce(nullif(a.application_name, ''), 'no name')) END
         AS shown
  FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
 WHERE l.locktype = 'relation' AND l.relation = $1::int8::oid AND l.granted
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND l.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
   AND (l.pid IS NULL OR l.pid <> pg_backend_pid())
"""
