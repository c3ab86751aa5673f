"""Every column of a database that could hold ciphertext, and samples of their values. Reads only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rewrap.errors import StoreError
from rewrap.stores.postgres.connection import Connection, translated
from rewrap.stores.postgres.places import quote

SAMPLE_BYTES_MAX = 64 * 1024
"""Bytes of one value that are looked at."""

LOOK_MS = 5_000
"""Milliseconds that one column may take."""

DOCUMENT_TYPES = ("json", "jsonb")

LOCKED_MS = 2_000
"""Milliseconds that one table may be waited for while somebody holds a lock on it."""

LOOKED_AT = ("text", "varchar", "bpchar", "citext", "bytea", *DOCUMENT_TYPES)
"""Types, beneath any domain, of columns that are looked into."""


@dataclass(frozen=True, slots=True)
class StoredColumn:
    """A column as the catalog has it. `skipped` says why it cannot be looked into."""

    name: str
    declared: str
    base: str
    skipped: str | None = None


@dataclass(frozen=True, slots=True)
class StoredTable:
    """A table: how SQL names it and how a job does, its columns, its primary key, about how many rows."""

    oid: int
    relation: str
    name: str
    columns: tuple[StoredColumn, ...]
    key: tuple[str, ...]
    rows: int
    others: dict[str, str] = field(default_factory=dict)


async def list_tables(connection: Connection, subject: str, guard_schema: str) -> list[StoredTable]:
    """The ordinary and partitioned tables outside of the system's schemas and the guard's."""
    with translated(subject):
        tables = await connection.fetch(_TABLES, guard_schema)
        columns = await connection.fetch(_COLUMNS, [row["oid"] for row in tables], list(LOOKED_AT))
    by_table: dict[int, list[Any]] = {row["oid"]: [] for row in tables}
    for row in columns:
        by_table[row["oid"]].append(row)
    return [
        StoredTable(
            row["oid"],
            f"{quote(row['nspname'])}.{quote(row['relname'])}",
            row["relname"] if row["visible"] else f"{row['nspname']}.{row['relname']}",
            tuple(
                StoredColumn(one["attname"], one["declared"], one["base"], _why_skipped(row, one))
                for one in by_table[row["oid"]]
                if one["looked_at"] or one["opaque"]
            ),
            tuple(row["key"] or ()),
            row["rows"],
            {one["attname"]: one["base"] for one in by_table[row["oid"]] if one["may_select"]},
        )
        for row in tables
    ]


def _why_skipped(table: Connection, column: Connection) -> str | None:
    if table["relkind"] == "f":
        return "a foreign table: look at it where it is stored"
    if not table["may_use"]:
        return f"this role lacks USAGE on schema {table['nspname']}"
    if table["rls_active"]:
        return "row-level security hides rows from this role"
    if not column["may_select"]:
        return "this role lacks SELECT"
    if not column["looked_at"]:
        return f"values of type {column['declared']} are not looked into"
    return None


async def sample_column(
    connection: Connection, table: StoredTable, column: StoredColumn, count: int
) -> list[Any]:
    """Up to `count` values that are not NULL, from across the table, each cut to SAMPLE_BYTES_MAX.

    Raises StoreError; with the SQLSTATE 57014 it took longer than LOOK_MS.
    """
    name = quote(column.name)
    if column.base in DOCUMENT_TYPES:
        value = f"CASE WHEN octet_length({name}::text) <= {SAMPLE_BYTES_MAX:d} THEN {name}::text END"
    elif column.base == "bytea":
        value = f"substring({name} from 1 for {SAMPLE_BYTES_MAX:d})"
    else:
        value = f"left({name}::text, {SAMPLE_BYTES_MAX:d})"
    found: list[Any] = []
    shares: Sequence[str] = ("",)
    if table.rows > 20 * count:
        shares = (f" TABLESAMPLE SYSTEM ({min(100.0, 1_000.0 * count / table.rows):.6f})", "")
    for sampled in shares:
        statement = (
            f"SELECT {value} AS value FROM {table.relation}{sampled} WHERE {name} IS NOT NULL LIMIT {count:d}"
        )
        with translated(f"column {table.name}.{column.name}"):
            rows = await connection.fetch(statement)
        found = [row["value"] for row in rows if row["value"] not in (None, "", b"")]
        # few or none by chance: look from the start before saying that there is none
        if len(found) * 4 >= count:
            break
    return found


LABELS_MAX = 20
"""Different texts of a column beyond which they are no versions of a key."""


async def list_labels(connection: Connection, table: StoredTable, column: str, count: int) -> dict[str, int]:
    """How often each text of a column is in its first rows, if more than once; none if they are many."""
    name = quote(column)
    with translated(f"column {table.name}.{column}"):
        rows = await connection.fetch(
            f"SELECT v, count(*) AS n FROM (SELECT {name}::text AS v FROM {table.relation} "
            f"WHERE {name} IS NOT NULL LIMIT {count:d}) AS seen GROUP BY 1 LIMIT {LABELS_MAX + 1:d}"
        )
    found = {row["v"]: row["n"] for row in rows if row["n"] > 1 and len(row["v"]) <= 100}
    return found if len(rows) <= LABELS_MAX else {}


def is_locked(exc: StoreError) -> bool:
    """Whether somebody holds a lock on the whole table."""
    return exc.sqlstate == "55P03"


def why_not_read(exc: StoreError) -> str:
    if is_locked(exc):
        return "somebody holds a lock on the table (see pg_locks)"
    return "it took too long" if exc.sqlstate == "57014" else f"it cannot be read [{exc.sqlstate}]"


_TABLES = """
SELECT c.oid::int8 AS oid, n.nspname::text, c.relname::text, c.relkind::text AS relkind,
       pg_table_is_visible(c.oid) AS visible, has_schema_privilege(n.oid, 'USAGE') AS may_use,
       (c.relrowsecurity AND row_security_active(c.oid)) AS rls_active,
       CASE WHEN c.relkind = 'p' THEN (
              SELECT coalesce(sum(greatest(p.reltuples, 0)), 0)::int8 FROM pg_partition_tree(c.oid) t
                JOIN pg_class p ON p.oid = t.relid WHERE t.isleaf)
            ELSE greatest(c.reltuples, 0)::int8 END AS rows,
       (SELECT array_agg(a.attname::text ORDER BY k.place)
          FROM pg_index x, unnest(x.indkey::int2[]) WITH ORDINALITY AS k(attnum, place)
          JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
         WHERE x.indrelid = c.oid AND x.indisprimary AND a.attrelid = x.indrelid) AS key
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'f') AND NOT c.relispartition AND c.relpersistence <> 't'
   AND n.nspname NOT IN ('pg_catalog', 'information_schema', $1)
   AND NOT starts_with(n.nspname::text, 'pg_toast')
 ORDER BY n.nspname, c.relname
"""

_COLUMNS = """
WITH RECURSIVE beneath AS (
  SELECT t.oid AS type, t.oid AS base FROM pg_type t WHERE t.typtype <> 'd'
  UNION ALL
  SELECT t.oid, b.base FROM pg_type t JOIN beneath b ON b.type = t.typbasetype WHERE t.typtype = 'd')
SELECT a.attrelid::int8 AS oid, a.attname::text, format_type(a.atttypid, a.atttypmod) AS declared,
       t.typname::text AS base, t.typname = ANY ($2::text[]) AS looked_at,
       (t.typname IN ('hstore', 'xml', '_text', '_varchar', '_bytea', '_json', '_jsonb')) AS opaque,
       has_column_privilege(a.attrelid, a.attnum, 'SELECT') AS may_select
  FROM pg_attribute a JOIN beneath b ON b.type = a.atttypid JOIN pg_type t ON t.oid = b.base
 WHERE a.attrelid = ANY (SELECT unnest($1::int8[])::oid) AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attrelid, a.attnum
"""
