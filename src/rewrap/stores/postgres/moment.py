"""Whether tables are still what a snapshot has of them.

A snapshot is one moment for rows, not for tables. What rewrites a table (ALTER TABLE … TYPE, TRUNCATE), adds
a column or gives a name to another table takes effect in every snapshot at once, and rows that were there
are gone from it. The catalog's tables are read in the snapshot; its functions answer as of now.
"""

from __future__ import annotations

from rewrap.errors import StoreError
from rewrap.model import Table
from rewrap.stores.postgres.connection import Connection, translated

NOT_THERE = ("42P01", "3F000")
"""SQLSTATEs of a table, or a schema, that is not there."""


async def known(connection: Connection, oid: int) -> bool:
    """Whether the snapshot knows a table under the name that it has now."""
    return bool(await connection.fetchval(_KNOWN, oid))


async def hold(connection: Connection, table: Table) -> bool:
    """Keeps a table from being altered until the transaction ends; False when it was since the snapshot.

    Raises StoreError when somebody keeps a lock on it.
    """
    try:
        with translated(table.relation):
            # not LOCK TABLE: that needs a right on the whole table
            await connection.execute(f"SELECT FROM {table.relation} LIMIT 0")
    except StoreError as exc:
        if exc.sqlstate in NOT_THERE:
            return False
        raise
    return await as_seen(connection, table)


async def as_seen(connection: Connection, table: Table) -> bool:
    """Whether a table has the name, the rows and the columns that the snapshot has of it."""
    with translated(table.relation):
        return bool(await connection.fetchval(_AS_SEEN, table.oid, table.relation))


_KNOWN = """
SELECT to_regclass(format('%I.%I', n.nspname, c.relname)) = c.oid
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1::int8::oid
"""

# before Postgres 14 the names of what is gone are an error: they are asked for last
_AS_SEEN = """
SELECT CASE WHEN to_regclass($2) IS DISTINCT FROM c.oid THEN false
            WHEN pg_relation_filenode(c.oid) IS DISTINCT FROM c.relfilenode THEN false
            ELSE NOT EXISTS (
              SELECT FROM pg_attribute a
               WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                 AND (pg_identify_object_as_address('pg_class'::regclass, c.oid, a.attnum)).object_names
                     IS DISTINCT FROM ARRAY[n.nspname, c.relname, a.attname]::text[])
       END
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1::int8::oid
"""
