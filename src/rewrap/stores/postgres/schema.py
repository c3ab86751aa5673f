"""What a job's tables really are: keys, columns, privileges, and what would make a rotation unsafe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rewrap.errors import SchemaMismatch, StoreError, UnsafeTarget
from rewrap.job import Job
from rewrap.model import Partitioned, ServerIdentity, Table
from rewrap.stores.postgres.connection import Connection, translated
from rewrap.stores.postgres.fields import attributes_of, find_fields, no_privilege, written_columns
from rewrap.stores.postgres.partitions import Leaf, find_leaves, partition_columns
from rewrap.stores.postgres.places import quote
from rewrap.stores.postgres.uniques import find_key
from rewrap.stores.postgres.unnamed import unnamed_versions
from rewrap.targets import TargetSection

MIN_SERVER_VERSION = 120_000

_EXACT_COUNT_BELOW = 200_000
"""Rows. A table that the planner believes smaller is counted; a larger one is estimated."""


@dataclass(frozen=True, slots=True)
class Survey:
    """A table, and what the operator should know about it before a run."""

    table: Table
    notices: tuple[str, ...]


async def identify(connection: Connection, subject: str) -> ServerIdentity:
    """Which database this is; refuses standbys, poolers and servers too old."""
    with translated(subject):
        row = await connection.fetchrow(
            """SELECT pg_is_in_recovery() AS standby, pg_backend_pid() AS pid,
                      current_setting('server_version_num')::int AS version,
                      current_setting('row_security') AS row_security,
                      ARRAY(SELECT format('%s = %s', name, current_setting(name))
                              FROM unnest(ARRAY['idle_session_timeout', 'transaction_timeout']) AS name
                             WHERE current_setting(name, true) <> '0' ORDER BY 1) AS ending,
                      pg_catalog.array_position(pg_catalog.current_schemas(true), 'pg_catalog') AS catalog,
                      pg_catalog.current_schemas(true) AS path, current_database() AS database"""
        )
    before = [name for name in row["path"][: row["catalog"] - 1] if not name.startswith("pg_temp")]
    if before:
        raise UnsafeTarget(
            f"{subject}: this role's search_path has {', '.join(before)} before pg_catalog: what looks like "
            "a function or view of Postgres may be somebody else's",
            hint="ALTER ROLE … SET search_path without pg_catalog, which then comes first",
        )
    if row["standby"]:
        raise UnsafeTarget(
            f"{subject} is a standby: it can be read, not written, and may lag",
            hint="point the store's url at the primary",
        )
    if row["pid"] != connection.get_server_pid() or row["row_security"] != "off":
        raise UnsafeTarget(
            f"{subject}: this is a connection pooler, not a Postgres server",
            hint="point the store's url at the server itself: rewrap sets its own session parameters "
            "and must not share sessions with the application",
        )
    if row["version"] < MIN_SERVER_VERSION:
        raise UnsafeTarget(
            f"{subject}: Postgres {row['version'] // 10_000} is too old",
            hint="rewrap needs Postgres 12 or newer",
        )
    if row["ending"]:
        # no startup parameters: a server that does not know one would refuse the connection
        each = "; ".join(f"ALTER ROLE … SET {setting.partition(' ')[0]} = 0" for setting in row["ending"])
        raise UnsafeTarget(
            f"{subject}: {' and '.join(row['ending'])} for this role: the server would end rewrap's sessions "
            "while they are needed",
            hint=f"{each}, for the role that rewrap uses",
        )
    system_id, timeline = "unknown", "unknown"
    try:
        with translated(subject):
            found = await connection.fetchrow(
                """SELECT (pg_control_system()).system_identifier::text AS system_id,
                          substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) AS timeline"""
            )
        system_id, timeline = found["system_id"], found["timeline"]
    except StoreError as exc:
        # a managed server may withhold these functions: then only the database's name identifies it
        if exc.sqlstate != "42501":
            raise
    return ServerIdentity(system_id, timeline, row["database"], row["version"])


async def survey(connection: Connection, job: Job, *, writing: bool = True) -> list[Survey]:
    """The tables that hold the rows of a job's targets, checked; of a partitioned one each of its partitions.

    Raises SchemaMismatch or UnsafeTarget with a hint. What only matters to a write (UPDATE privilege,
    triggers, rules) is passed over unless `writing`.
    """
    found: list[Survey] = []
    taken = {target.table for target in job.targets}
    for target in job.targets:
        subject = f'table "{target.table}"'
        with translated(subject):
            oid = await find_table(connection, target.table)
            if oid is None:
                raise SchemaMismatch(
                    f"{subject} does not exist in this database",
                    hint="check targets.table; a table outside the search path is written schema.table",
                )
            leaves = await find_leaves(connection, oid, target.table, taken)
        mine = [await _survey_leaf(connection, job, target, leaf, writing=writing) for leaf in leaves]
        if writing and mine:
            unnamed = await unnamed_versions(connection, job, target, oid)
            notices = [f"{subject}: {one.reason}; {one.hint}" for one in unnamed]
            # a partitioned table's once, and not with each of its partitions
            mine[0] = replace(mine[0], notices=(*notices, *mine[0].notices))
        found += mine
    seen: dict[int, str] = {}
    for entry in found:
        other = seen.setdefault(entry.table.oid, entry.table.target)
        if other != entry.table.target:
            raise SchemaMismatch(
                f'targets "{entry.table.target}" and "{other}" are the same table',
                hint="list all its columns in one target",
            )
    return found


async def same_leaves(connection: Connection, job: Job, tables: Sequence[Table]) -> bool:
    """Whether these are still the tables that hold the rows of a job's targets."""
    now: set[int] = set()
    for target in job.targets:
        with translated(f'table "{target.table}"'):
            oid = await find_table(connection, target.table)
            leaves = await find_leaves(connection, oid, target.table) if oid is not None else []
        now.update(leaf.oid for leaf in leaves)
    return now == {table.oid for table in tables}


async def former_table(connection: Connection, job: Job, target: TargetSection, oid: int) -> Table | None:
    """A table that once held rows of a target, if it is still there and has the target's fields.

    Its key plays no part any more, so it has none if it is not fit for one.
    """
    with translated(f"table {oid}"):
        relation = await connection.fetchrow(_RELATION, oid)
        if relation is None or relation["relkind"] != "r":
            return None
        columns = await columns_of(connection, oid)
    name = f"{quote(relation['nspname'])}.{quote(relation['relname'])}"
    try:
        fields, aad_columns = find_fields(job, columns, target, f"table {name}", writing=False)
    except (SchemaMismatch, UnsafeTarget):
        return None
    try:
        key = await find_key(connection, oid, columns, target, f"table {name}")
    except (SchemaMismatch, UnsafeTarget):
        key = ()
    whole = Partitioned(target.table, name, oid)
    return Table(name, name, oid, key, fields, aad_columns, 0, 0, whole)


async def _survey_leaf(
    connection: Connection, job: Job, target: TargetSection, leaf: Leaf, *, writing: bool
) -> Survey:
    subject = leaf.subject
    with translated(subject):
        relation = await connection.fetchrow(_RELATION, leaf.oid)
        columns = await columns_of(connection, leaf.oid)
        decisive = await partition_columns(connection, leaf.oid)
        generated = await connection.fetch(_GENERATED, leaf.oid, written_columns(target))
        follows = {row["attname"] for row in generated}
    _check_kind(relation, subject, writing=writing)
    key = await find_key(connection, leaf.oid, columns, target, subject)
    fields, aad_columns = find_fields(job, columns, target, subject, writing=writing)
    if moving := follows.intersection([*(column.name for column in key), *aad_columns]):
        raise UnsafeTarget(
            f'{subject}: column "{min(moving)}" is generated from an encrypted one, and changes with it',
            hint="rows are found, and values bound, by columns that a rotation leaves as they are",
        )
    if writing and not relation["may_stamp"]:
        raise no_privilege(subject, "xmin", "SELECT")
    if clash := set(decisive).intersection(written_columns(target)):
        raise UnsafeTarget(
            f'{subject}: encrypted column "{min(clash)}" decides in which partition a row is',
            hint="a new value may belong to another partition; partition by a column that is not encrypted",
        )
    notices: tuple[str, ...] = ()
    if writing:
        notices = await _check_hazards(connection, relation, target, subject)
    with translated(subject):
        name = f"{quote(relation['nspname'])}.{quote(relation['relname'])}"
        rows = int(relation["reltuples"])
        if rows < _EXACT_COUNT_BELOW:
            rows = await connection.fetchval(f"SELECT count(*) FROM {name}")
    return Survey(
        Table(
            name=leaf.name,
            relation=name,
            oid=leaf.oid,
            key=key,
            fields=fields,
            aad_columns=aad_columns,
            estimated_rows=rows,
            estimated_bytes=relation["bytes"],
            partition_of=leaf.partition_of,
            attributes=attributes_of(columns, key, fields, aad_columns),
        ),
        notices,
    )


async def columns_of(connection: Connection, oid: int) -> dict[str, Connection]:
    """A table's columns as the catalog describes them, by name."""
    return {row["attname"]: row for row in await connection.fetch(_COLUMNS, oid)}


async def find_table(connection: Connection, name: str) -> int | None:
    """A table's oid by the name as a job writes it: exact spelling first, then SQL's quoting rules."""
    exact: int | None = await connection.fetchval(
        "SELECT to_regclass(quote_ident($1::text))::oid::int8", name
    )
    if exact is None and "." in name:
        schema, _, table = name.partition(".")
        exact = await connection.fetchval(
            "SELECT to_regclass(quote_ident($1::text) || '.' || quote_ident($2::text))::oid::int8",
            schema,
            table,
        )
    if exact is None:
        try:
            exact = await connection.fetchval("SELECT to_regclass($1::text)::oid::int8", name)
        except Exception as exc:
            if getattr(exc, "sqlstate", "") not in ("42601", "42602", "22023"):
                raise
    return exact


def _check_kind(relation: Connection, subject: str, *, writing: bool) -> None:
    reasons = {
        "v": "a view",
        "m": "a materialized view",
        "f": "a foreign table",
    }
    if relation["relkind"] != "r":
        what = reasons.get(relation["relkind"], "not a table")
        hint = "name the table that stores the rows"
        if relation["relispartition"]:
            hint = "detach it, and rotate it in the database that stores its rows"
        raise UnsafeTarget(f"{subject} is {what}", hint=hint)
    if relation["has_children"]:
        raise UnsafeTarget(
            f"{subject} has child tables that inherit from it",
            hint="a write to the parent reaches the children, whose keys may repeat; "
            "name the child tables themselves",
        )
    if relation["rls_active"]:
        raise UnsafeTarget(
            f"{subject} has row-level security that applies to this role: rows would stay hidden",
            hint="use the table's owner or a role with BYPASSRLS",
        )
    if writing and relation["update_rules"]:
        raise UnsafeTarget(
            f"{subject} has a rule on UPDATE, which may rewrite what rewrap writes",
            hint="drop the rule or use a trigger in its place",
        )
    if writing and relation["unidentified_publication"]:
        raise UnsafeTarget(
            f"{subject} is published for logical replication without a replica identity: "
            "Postgres refuses updates",
            hint="ALTER TABLE … REPLICA IDENTITY FULL, or add a primary key",
        )


async def _check_hazards(
    connection: Connection, relation: Connection, target: TargetSection, subject: str
) -> tuple[str, ...]:
    notices = []
    with translated(subject):
        triggers = await connection.fetch(_TRIGGERS, relation["oid"], written_columns(target))
    before = [row["tgname"] for row in triggers if row["before"]]
    if before and "triggers" not in target.acknowledge:
        raise UnsafeTarget(
            f"{subject} has a BEFORE UPDATE trigger ({', '.join(before)}), "
            "which may change or drop what rewrap writes",
            hint="read the trigger; if it leaves the encrypted columns alone, set "
            'acknowledge = ["triggers"] in the target',
        )
    notices += [
        f'{subject}: trigger "{row["tgname"]}" will fire for every row that is resealed' for row in triggers
    ]
    if relation["published"]:
        notices.append(f"{subject} is published: every resealed row goes to the subscribers")
    return tuple(notices)


_RELATION = """
SELECT c.oid::int8 AS oid, n.nspname, c.relname, c.relkind::text AS relkind,
       c.relispartition, CASE WHEN c.reltuples < 0 THEN 0 ELSE c.reltuples END AS reltuples,
       pg_table_size(c.oid) AS bytes,
       CASE c.relkind WHEN 'r' THEN has_column_privilege(c.oid, 'xmin', 'SELECT') END AS may_stamp,
       EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid) AS has_children,
       (c.relrowsecurity AND row_security_active(c.oid)) AS rls_active,
       EXISTS (SELECT FROM pg_rewrite r WHERE r.ev_class = c.oid AND r.ev_type = '2') AS update_rules,
       EXISTS (SELECT FROM pg_publication_tables p
                WHERE p.schemaname = n.nspname AND p.tablename = c.relname) AS published,
       (EXISTS (SELECT FROM pg_publication_tables p JOIN pg_publication b USING (pubname)
                 WHERE p.schemaname = n.nspname AND p.tablename = c.relname AND b.pubupdate)
        AND (c.relreplident = 'n' OR (c.relreplident = 'd' AND NOT EXISTS
             (SELECT FROM pg_index x WHERE x.indrelid = c.oid AND x.indisprimary))))
         AS unidentified_publication
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid = $1::int8::oid
"""

_COLUMNS = """
SELECT a.attname::text AS attname, a.attnum::int2 AS attnum, t.typname::text AS typname,
       (WITH RECURSIVE beneath AS (
          SELECT t.oid, t.typname, t.typbasetype
          UNION ALL SELECT b.oid, b.typname, b.typbasetype
            FROM pg_type b JOIN beneath d ON b.oid = d.typbasetype)
        SELECT typname::text FROM beneath WHERE typbasetype = 0) AS base,
       format_type(a.atttypid, a.atttypmod) AS declared,
       a.attnotnull AND NOT EXISTS (SELECT FROM pg_constraint n WHERE n.conrelid = a.attrelid
         AND n.contype = 'n' AND NOT n.convalidated AND n.conkey = ARRAY[a.attnum]) AS attnotnull,
       a.attgenerated::text AS attgenerated, a.attidentity::text AS attidentity,
       has_column_privilege(a.attrelid, a.attnum, 'SELECT') AS may_select,
       has_column_privilege(a.attrelid, a.attnum, 'UPDATE') AS may_update
  FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
 WHERE a.attrelid = $1::int8::oid AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attnum
"""

# what a generated column depends on is recorded for the column itself, or from Postgres 15 for its expression
_GENERATED = """
SELECT DISTINCT a.attname::text AS attname
  FROM pg_attribute a
  LEFT JOIN pg_attrdef f ON f.adrelid = a.attrelid AND f.adnum = a.attnum
  JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = a.attrelid
   AND ((d.classid = 'pg_class'::regclass AND d.objid = a.attrelid AND d.objsubid = a.attnum)
        OR (d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid))
  JOIN pg_attribute b ON b.attrelid = a.attrelid AND b.attnum = d.refobjsubid
 WHERE a.attrelid = $1::int8::oid AND a.attgenerated <> '' AND b.attname = ANY ($2::text[])
"""

_TRIGGERS = """
SELECT tg.tgname::text AS tgname, (tg.tgtype & 2) <> 0 AS before
  FROM pg_trigger tg
 WHERE tg.tgrelid = $1::int8::oid AND NOT tg.tgisinternal AND tg.tgenabled IN ('O', 'A')
   AND (tg.tgtype & 16) <> 0
   AND (cardinality(tg.tgattr::int2[]) = 0 OR EXISTS (
         SELECT FROM pg_attribute a WHERE a.attrelid = tg.tgrelid
            AND a.attnum = ANY (tg.tgattr::int2[]) AND a.attname = ANY ($2::text[])))
 ORDER BY 1
"""
