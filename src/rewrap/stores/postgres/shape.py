"""What a forecast asks of the catalog: how wide, how full and how indexed a table is."""

from __future__ import annotations

from collections.abc import Sequence

from rewrap.errors import StoreError
from rewrap.forecast import PAGE, IndexShape, Server, TableShape
from rewrap.model import FieldColumn, Table
from rewrap.stores.postgres.connection import Connection, translated
from rewrap.stores.postgres.places import columns_of

SAMPLE_ROWS = 2_000
"""Rows whose width is averaged."""

EMPTY_ROW = 64.0
"""Bytes of a row where there is none to measure."""

ORDERED = 0.9
"""Correlation of keys and places on disk from which a walk by key is one along the table."""


async def server_settings(connection: Connection) -> Server:
    with translated("database"):
        row = await connection.fetchrow(_SERVER)
    return Server(
        max_wal_bytes=row["max_wal"],
        checkpoint_s=float(row["checkpoint_s"]),
        full_page_writes=row["full_page_writes"] == "on",
    )


async def table_shape(connection: Connection, table: Table) -> TableShape:
    """The shape of one table; its width from some of its rows."""
    written = _written(table.fields)
    percent = 100.0 * SAMPLE_ROWS / max(1, table.estimated_rows)
    sampled = f" TABLESAMPLE SYSTEM ({percent:.6f})" if percent < 100 else ""
    with translated(table.relation):
        row = await connection.fetchrow(_TABLE, table.oid, table.key[0].name)
        indexes = await connection.fetch(_INDEXES, table.oid, written)
    try:
        with translated(table.relation):
            width = await connection.fetchval(
                f"SELECT avg(pg_column_size(t.*)) FROM (SELECT * FROM {table.relation}{sampled} "
                f"LIMIT {SAMPLE_ROWS:d}) AS t"
            )
    except StoreError as exc:
        if exc.sqlstate != "42501":
            raise
        # a role that may read some columns only: then the table's size has to tell
        width = None
    return TableShape(
        rows=table.estimated_rows,
        pages=row["pages"],
        row_bytes=_inline(width, row["pages"], table.estimated_rows),
        indexes=tuple(IndexShape(one["name"], one["bytes"], one["holds"]) for one in indexes),
        spread=row["correlation"] is None or abs(row["correlation"]) < ORDERED,
        autovacuum=row["vacuum_at"] if row["autovacuum"] else None,
        logical=row["logical"],
        identity_full=row["identity_full"],
    )


def _inline(width: float | None, pages: int, rows: int) -> float:
    """Bytes of a row in the heap: the server counts what is stored outside of it to its width."""
    share = pages * PAGE / rows if rows and pages else None
    if width is None:
        return share or EMPTY_ROW
    return min(float(width), share or float(width))


def _written(fields: Sequence[FieldColumn]) -> list[str]:
    return list(dict.fromkeys(name for field in fields for name in columns_of(field)))


_SERVER = """
SELECT pg_size_bytes(current_setting('max_wal_size'))::int8 AS max_wal,
       (SELECT setting::int FROM pg_settings WHERE name = 'checkpoint_timeout') AS checkpoint_s,
       current_setting('full_page_writes') AS full_page_writes
"""

_TABLE = """
SELECT (pg_relation_size(c.oid) / current_setting('block_size')::int)::int8 AS pages,
       (SELECT s.correlation FROM pg_stats s WHERE s.schemaname = n.nspname AND s.tablename = c.relname
           AND s.attname = $2 LIMIT 1) AS correlation,
       current_setting('autovacuum')::bool
         AND coalesce((SELECT option_value::bool FROM pg_options_to_table(c.reloptions)
                        WHERE option_name = 'autovacuum_enabled'), true) AS autovacuum,
       (current_setting('autovacuum_vacuum_threshold')::float8
         + current_setting('autovacuum_vacuum_scale_factor')::float8 * greatest(c.reltuples, 0)) AS vacuum_at,
       current_setting('wal_level') = 'logical' AND c.relpersistence = 'p' AS logical,
       current_setting('wal_level') = 'logical' AND c.relreplident = 'f' AS identity_full
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1::int8::oid
"""

# by what the index depends on: its columns, those it includes, and those of its expressions and condition
_INDEXES = """
SELECT x.indexrelid::regclass::text AS name, pg_relation_size(x.indexrelid) AS bytes,
       EXISTS (SELECT FROM pg_depend d JOIN pg_attribute a
                 ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
                WHERE d.classid = 'pg_class'::regclass AND d.objid = x.indexrelid
                  AND d.refclassid = 'pg_class'::regclass AND d.refobjid = x.indrelid
                  AND a.attname = ANY ($2::text[])) AS holds
  FROM pg_index x WHERE x.indrelid = $1::int8::oid AND x.indislive ORDER BY 1
"""
