"""What a check says about the server: settings, sessions, slots, and where rewrap keeps its lock."""

from __future__ import annotations

from collections.abc import Iterable

from rewrap.events import Finding
from rewrap.job import Job
from rewrap.model import ServerIdentity
from rewrap.stores.postgres.connection import Connection, translated
from rewrap.stores.postgres.places import quote

LONG_TRANSACTION_S = 300
"""Seconds after which an open transaction is worth a word: it holds up vacuum, and verify waits for it."""

RETAINED_WORTH_A_WARNING = 2**30
"""Bytes of WAL that an idle slot already keeps."""


def finding(severity: str, code: str, subject: str, reason: str, hint: str | None = None) -> Finding:
    return Finding(severity=severity, code=code, subject=subject, reason=reason, hint=hint)


async def inspect_server(
    connection: Connection, job: Job, identity: ServerIdentity | None, subject: str
) -> list[Finding]:
    """Everything about the server that a rotation would meet. `identity` None: it was refused already."""
    found: list[Finding] = []
    if identity is not None:
        shown = f"Postgres {identity.version // 10_000}, the primary itself"
        found.append(finding("info", "server", subject, shown))
    with translated(subject):
        settings = {row["name"]: row["setting"] for row in await connection.fetch(_SETTINGS)}
        found += _about_settings(settings, subject)
        found += await _about_connections(connection, job, settings, subject)
        found += await _about_transactions(connection, subject)
        found += await _about_slots(connection)
        if not await connection.fetchval(_MAY_EMIT):
            found.append(
                finding(
                    "error", "no-emit-message", subject,
                    "this role may not call pg_logical_emit_message, with which a run waits for the log",
                    "GRANT EXECUTE ON FUNCTION pg_logical_emit_message(boolean, text, text) TO the role",
                )
            )  # fmt: skip
        found += await _about_guard(connection, job)
    return found


def _about_settings(settings: dict[str, str], subject: str) -> Iterable[Finding]:
    if settings.get("default_transaction_read_only") == "on":
        yield finding(
            "error", "read-only", subject,
            "transactions are read-only by default, so that nothing is written",
            "ALTER ROLE … SET default_transaction_read_only = off, for the role that rewrap uses",
        )  # fmt: skip
    if settings.get("server_encoding") == "SQL_ASCII":
        yield finding(
            "warning", "sql-ascii", subject,
            "the database's encoding is SQL_ASCII: text there may be in any encoding, and a value or key "
            "that is not UTF-8 stops whatever reads it",
            "find values that are not UTF-8 and convert them before the rotation",
        )  # fmt: skip
    for name, why in (
        ("fsync", "a crash of the machine may lose or mangle what was committed"),
        ("full_page_writes", "a crash of the machine may leave torn pages"),
        ("autovacuum", "what a rotation leaves behind is only removed when you run VACUUM yourself"),
    ):
        if settings.get(name) == "off":
            yield finding(
                "warning", f"{name.replace('_', '-')}-off", subject, f"{name} is off: {why}",
                f"set {name} = on before the rotation",
            )  # fmt: skip
    if settings.get("synchronous_standby_names"):
        yield finding(
            "info", "synchronous-standby", subject,
            "commits wait for a synchronous standby; batches do not, and the last commit of a run does",
        )  # fmt: skip


async def _about_connections(
    connection: Connection, job: Job, settings: dict[str, str], subject: str
) -> list[Finding]:
    most = int(settings["max_connections"]) - int(settings["superuser_reserved_connections"])
    used = await connection.fetchval("SELECT sum(numbackends)::int FROM pg_stat_database")
    wanted = 4 + 2 * job.shards_at_once(next(iter(job.stores)))
    if most - used >= wanted:
        return []
    return [
        finding(
            "warning", "few-connections", subject,
            f"{max(0, most - used)} connections are free, and a run opens up to {wanted}",
            "lower pace.shards, or stores.*.max_connections; each shard at work takes two",
        )
    ]  # fmt: skip


async def _about_transactions(connection: Connection, subject: str) -> list[Finding]:
    found = [
        finding(
            "warning", "prepared-transaction", subject,
            f'prepared transaction "{row["gid"]}" has been open for {row["age_s"]:,} s: it may still commit '
            "an old value, and verify does not conclude while it is open",
            "commit or roll it back: COMMIT PREPARED …, or ROLLBACK PREPARED …",
        )
        for row in await connection.fetch(_PREPARED)
    ]  # fmt: skip
    found += [
        finding(
            "warning", "long-transaction", subject,
            f"process {row['pid']} ({row['name']}) has a transaction open for {row['age_s']:,} s: "
            "vacuum cannot "
            "clear what is rewritten, and verify waits for its end if it has written",
            "let it end, or end it: SELECT pg_terminate_backend(…)",
        )
        for row in await connection.fetch(_LONG, LONG_TRANSACTION_S)
    ]  # fmt: skip
    if not await connection.fetchval(_SEES_SESSIONS):
        found.append(
            finding(
                "info", "sessions-hidden", subject,
                "this role does not see how long other roles' transactions have been open",
                "GRANT pg_read_all_stats TO the role, to have long transactions named here",
            )
        )  # fmt: skip
    return found


async def _about_slots(connection: Connection) -> list[Finding]:
    found = []
    for row in await connection.fetch(_SLOTS):
        kept = row["retained"] or 0
        subject = f'slot "{row["slot_name"]}"'
        logical = row["slot_type"] == "logical"
        who = f"logical ({row['plugin']}) of this database" if logical else "physical"
        if not row["active"]:
            found.append(
                finding(
                    "warning", "idle-slot", subject,
                    f"{who}, nobody reads from it, and it keeps {_mib(kept)} of WAL: all that a rotation "
                    "writes is kept too, until the disk is full",
                    "drop it if nobody needs it: SELECT pg_drop_replication_slot(…); or start its reader",
                )
            )  # fmt: skip
        elif logical:
            found.append(
                finding(
                    "warning" if kept > RETAINED_WORTH_A_WARNING else "info", "change-consumer", subject,
                    f"{who}: whoever reads changes from it gets every resealed row; it is "
                    f"{_mib(kept)} behind",
                    "tell its owner, and watch how far it falls behind",
                )
            )  # fmt: skip
    return found


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


async def _about_guard(connection: Connection, job: Job) -> list[Finding]:
    """Whether rewrap may keep its lock and checkpoints where the job says; and who has the lock now."""
    name = job.postgres.guard_schema
    schema, subject = quote(name), f'schema "{name}"'
    row = await connection.fetchrow(_GUARD, name)
    if row["table"] is not None:
        if not row["may_write"]:
            return [
                finding(
                    "error", "guard", subject,
                    "this role may not write rewrap's own table there",
                    f"GRANT USAGE ON SCHEMA {schema} TO the role; "
                    f"GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.shard TO the role",
                )
            ]  # fmt: skip
        busy = await connection.fetch(_BUSY.format(f"{schema}.shard"))
        return [
            finding(
                "warning", "run-at-work", f"table {entry['relation']}",
                f"run {entry['run_id']} is at work on it", "see rewrap status",
            )
            for entry in busy
        ]  # fmt: skip
    if row["schema"] if row["there"] else row["database"]:
        return []
    return [
        finding(
            "error", "guard", subject,
            "this role may not make rewrap's table there, where its lock and its checkpoints are kept",
            f"have an owner run: CREATE SCHEMA {schema} AUTHORIZATION <role>; or name a schema the "
            "role owns in "
            "stores.*.guard_schema",
        )
    ]  # fmt: skip


_SETTINGS = """
SELECT name::text, setting FROM pg_settings WHERE name IN (
  'default_transaction_read_only', 'fsync', 'full_page_writes', 'autovacuum', 'synchronous_standby_names',
  'max_connections', 'superuser_reserved_connections', 'server_encoding')
"""

_PREPARED = """
SELECT gid, extract(epoch FROM clock_timestamp() - prepared)::int8 AS age_s
  FROM pg_prepared_xacts WHERE database = current_database() ORDER BY prepared
"""

_LONG = """
SELECT pid, coalesce(nullif(application_name, ''), 'no name') AS name,
       extract(epoch FROM clock_timestamp() - xact_start)::int8 AS age_s
  FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
   AND xact_start < clock_timestamp() - make_interval(secs => $1) AND application_name !~ '^rewrap'
 ORDER BY xact_start LIMIT 20
"""

_SEES_SESSIONS = """
SELECT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')
       OR (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
"""

_MAY_EMIT = """
SELECT coalesce(bool_or(has_function_privilege(p.oid, 'EXECUTE')), true) FROM pg_proc p
 WHERE p.proname = 'pg_logical_emit_message' AND p.pronamespace = 'pg_catalog'::regnamespace
"""

_SLOTS = """
SELECT slot_name::text, slot_type, plugin::text, active,
       pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn()
                            ELSE pg_current_wal_lsn() END, restart_lsn)::int8 AS retained
  FROM pg_replication_slots
 WHERE NOT temporary AND (slot_type <> 'logical' OR database = current_database()) ORDER BY 1
"""

_GUARD = """
SELECT to_regnamespace(quote_ident($1::text)) IS NOT NULL AS there, c.oid AS table,
       coalesce(has_schema_privilege(n.oid, 'USAGE') AND has_schema_privilege(n.oid, 'CREATE'), false)
         AS schema,
       has_database_privilege(current_database(), 'CREATE') AS database,
       coalesce(has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
         AND has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'UPDATE')
         AND has_table_privilege(c.oid, 'DELETE'), false) AS may_write
  FROM (VALUES (1)) AS one
  LEFT JOIN pg_namespace n ON n.nspname = $1::text
  LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = 'shard'
"""

_BUSY = """
SELECT DISTINCT s.relation, s.run_id FROM {} s
 WHERE s.lease_until > clock_timestamp() AND NOT s.finished AND EXISTS (
         SELECT FROM pg_stat_activity a WHERE a.pid = s.owner_pid
            AND (a.backend_start IS NULL OR a.backend_start = s.owner_started))
 ORDER BY 1
"""
