"""Who else is in a database: asked before tables are rotated that nobody else may work in."""

from __future__ import annotations

from collections.abc import Sequence

from rewrap.interfaces import Bystanders
from rewrap.stores.postgres.connection import Connection, translated


async def bystanders(connection: Connection, subject: str, oids: Sequence[int]) -> Bystanders:
    """Open transactions that have written one of the tables, and all sessions but rewrap's own, in words."""
    with translated(subject):
        writing = await connection.fetch(_WRITING, list(oids))
        sessions = await connection.fetch(_SESSIONS)
    return Bystanders(
        tuple(row["shown"] for row in writing),
        tuple(f"{row['name']} as {row['role']} ({row['count']})" for row in sessions),
    )


# a lock that writers take is held until their transaction ends, by a prepared one even across a restart: it
# has no process then. Everybody may look at pg_locks. What a killed process of rewrap's left is not meant:
# its fence keeps it out
_WRITING = """
SELECT DISTINCT coalesce(format('pid %s (%s)', l.pid, coalesce(nullif(a.application_name, ''), 'no name')),
                         'a prepared transaction') AS shown
  FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
 WHERE l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' AND l.granted
   AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
   AND l.relation = ANY ($1::int8[]::oid[]) AND l.pid IS DISTINCT FROM pg_backend_pid()
   AND coalesce(a.backend_type, '') <> 'autovacuum worker'
   AND NOT starts_with(coalesce(a.application_name, ''), 'rewrap ')
 ORDER BY 1
"""

# without the right to see them, backend_type and the state of others are null; their names are not
_SESSIONS = """
SELECT coalesce(nullif(application_name, ''), 'no name') AS name, usename::text AS role, count(*)
  FROM pg_catalog.pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid() AND usename IS NOT NULL
   AND coalesce(backend_type, 'client backend') = 'client backend'
   AND NOT starts_with(application_name, 'rewrap ')
 GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2
"""
