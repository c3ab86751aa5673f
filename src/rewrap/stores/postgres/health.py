"""What a Postgres server says of itself while a run is at work, and what a commit takes there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta

from rewrap.model import Table
from rewrap.pace.vitals import Replica, Swelling, Vitals
from rewrap.stores.postgres.connection import Address, Connection, close, connect, translated

THOROUGH_S = 1.0
"""Seconds between two looks at what changes slowly, or costs more to find."""

# what others do: their sessions, or where this role may not see those, transactions of everybody
_SESSIONS = """
SELECT count(*) FILTER (WHERE a.state = 'active' OR a.state_change > clock_timestamp() - $1::interval)
         AS busy,
       pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), '0/0')::int8 AS position
  FROM pg_catalog.pg_stat_activity a
 WHERE a.backend_type = 'client backend' AND a.application_name NOT LIKE 'rewrap%'
   AND a.pid <> pg_catalog.pg_backend_pid()
"""

_TRANSACTIONS = "SELECT sum(d.xact_commit + d.xact_rollback)::int8 FROM pg_catalog.pg_stat_database d"

# a standby that has not answered yet is as far behind as it has been sent
_REPLICAS = """
SELECT coalesce(nullif(r.application_name, ''), r.client_addr::text, 'of process ' || r.pid) AS name,
       pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), coalesce(r.replay_lsn, r.sent_lsn))::int8
         AS lag,
       pg_catalog.pg_wal_lsn_diff(coalesce(r.replay_lsn, r.sent_lsn), '0/0')::int8 AS replayed
  FROM pg_catalog.pg_stat_replication r
 WHERE r.state IN ('streaming', 'catchup') AND r.sent_lsn IS NOT NULL
"""

_SLOTS = """
SELECT s.slot_name::text AS name,
       pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), s.restart_lsn)::int8 AS kept
  FROM pg_catalog.pg_replication_slots s WHERE s.restart_lsn IS NOT NULL
"""

_TABLES = """
SELECT t.oid, pg_catalog.pg_stat_get_live_tuples(t.oid) AS live,
       pg_catalog.pg_stat_get_dead_tuples(t.oid) AS dead,
       EXISTS (SELECT FROM pg_catalog.pg_stat_progress_vacuum v WHERE v.relid = t.oid) AS vacuumed
  FROM unnest($1::int8[]) AS n (oid), LATERAL (SELECT n.oid::oid) AS t (oid)
"""

_BLOCKED = """
SELECT count(DISTINCT l.pid) FROM pg_catalog.pg_locks l
 WHERE NOT l.granted AND pg_catalog.pg_blocking_pids(l.pid) && (
   SELECT array_agg(a.pid) FROM pg_catalog.pg_stat_activity a WHERE a.application_name LIKE 'rewrap%')
   AND l.pid NOT IN (SELECT a.pid FROM pg_catalog.pg_stat_activity a WHERE a.application_name LIKE 'rewrap%')
"""

_MAY_SEE = "SELECT pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE')"


class PostgresMonitor:
    """Looks at one server and at some tables of it, through a connection of its own."""

    def __init__(self, address: Address, tables: Sequence[Table]) -> None:
        self._address = address
        self._names = {table.oid: table.name for table in tables}
        self._connection: Connection | None = None
        self._asking: Connection | None = None
        self._may_see = True
        self._thorough = float("-inf")
        self._retained: dict[str, int] = {}
        self._tables: tuple[Swelling, ...] = ()
        self._blocked = 0

    @property
    def _subject(self) -> str:
        return f"database {self._address.shown}"

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(
                self._address,
                application_name="rewrap health",
                lock_timeout="1s",
                statement_timeout="10s",
                # what is timed is a commit that waits for the disk, as an application's does
                synchronous_commit="local",
            )
            with translated(self._subject):
                self._may_see = bool(await self._connection.fetchval(_MAY_SEE))
        return self._connection

    async def look(self, window_s: float) -> Vitals:
        """One look; what others did in the last `window_s` seconds counts as now."""
        connection = await self._connected()
        with translated(self._subject):
            began = time.monotonic()
            here = await connection.fetchrow(_SESSIONS, timedelta(seconds=window_s))
            took = time.monotonic() - began
            transactions = None if self._may_see else await connection.fetchval(_TRANSACTIONS)
            replicas = await connection.fetch(_REPLICAS)
            if began - self._thorough >= THOROUGH_S:
                self._thorough = began
                await self._look_thoroughly(connection)
        return Vitals(
            at=time.monotonic(),
            took_s=took,
            busy=here["busy"],
            transactions=transactions,
            blocked=self._blocked,
            position=here["position"],
            replicas=tuple(Replica(row["name"], max(0, row["lag"]), row["replayed"]) for row in replicas),
            retained=self._retained,
            tables=self._tables,
        )

    async def _look_thoroughly(self, connection: Connection) -> None:
        self._retained = {row["name"]: row["kept"] for row in await connection.fetch(_SLOTS)}
        self._blocked = await connection.fetchval(_BLOCKED)
        self._tables = tuple(
            Swelling(self._names[row["oid"]], row["live"] or 0, row["dead"] or 0, row["vacuumed"])
            for row in await connection.fetch(_TABLES, list(self._names))
        )

    async def probe(self) -> float:
        """Seconds that a commit takes which writes nothing but itself."""
        connection = await self._connected()
        began = time.monotonic()
        with translated(self._subject):
            await connection.execute("SELECT pg_catalog.pg_logical_emit_message(true, 'rewrap', '')")
        return time.monotonic() - began

    async def answer(self, query: str, timeout_s: float) -> object:
        """The first value that a query of the job's own gives; it may write nothing."""
        if self._asking is None or self._asking.is_closed():
            self._asking = await connect(
                self._address,
                application_name="rewrap probe",
                # an application is asked as it asks: its policies apply
                row_security="on",
                default_transaction_read_only="on",
                statement_timeout=f"{max(1, int(timeout_s * 1_000))}ms",
            )
        with translated("probe"):
            found: object = await self._asking.fetchval(query)
        return found

    async def close(self) -> None:
        for connection in (self._connection, self._asking):
            if connection is not None:
                await close(connection)
        self._connection = self._asking = None
