"""Waiting for writers: a count means nothing while a transaction may still commit an old value."""

from __future__ import annotations

import time

import anyio

from rewrap.stores.postgres.connection import Connection, translated

_POLL_S = 0.05


async def drain(connection: Connection, subject: str, timeout_s: float) -> list[str]:
    """Waits until every transaction that is writing in this database now has ended.

    A transaction that has written anything holds a lock on its own id until it commits or rolls back, a
    prepared one even across a restart; what it writes next is not known, so its table does not matter.
    Returns the ones that were still open after `timeout_s` seconds, described for people.
    """
    deadline = time.monotonic() + timeout_s
    with translated(subject):
        waiting = {row["tx"]: row["shown"] for row in await connection.fetch(_WRITERS)}
        while waiting:
            now = {row["tx"] for row in await connection.fetch(_WRITERS)}
            waiting = {tx: shown for tx, shown in waiting.items() if tx in now}
            if not waiting or time.monotonic() >= deadline:
                break
            await anyio.sleep(_POLL_S)
    return sorted(waiting.values())


# nobody is passed over for what it calls itself: rewrap's own sessions write for a moment at a time, and a
# run back to the old version writes old values
_WRITERS = """
SELECT l.virtualtransaction || ' ' || l.transactionid AS tx,
       format('pid %s (%s)', l.pid, coalesce(nullif(a.application_name, ''), 'no name')) AS shown
  FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
 WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted
   AND l.pid <> pg_backend_pid() AND a.datname = current_database()
   AND coalesce(a.backend_type, '') <> 'autovacuum worker'
UNION ALL
SELECT gid, format('prepared transaction "%s"', gid) FROM pg_catalog.pg_prepared_xacts
 WHERE database = current_database()
"""
