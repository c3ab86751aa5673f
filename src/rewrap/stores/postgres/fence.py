"""The writer fence: a constraint that refuses old values for good, and proves that there are none."""

from __future__ import annotations

import hashlib

from rewrap.errors import FenceError, StoreError, UnsafeTarget
from rewrap.interfaces import Prefix
from rewrap.model import Table
from rewrap.stores.postgres.connection import Connection, translated
from rewrap.stores.postgres.places import quote, value_of
from rewrap.stores.postgres.statements import begins

FENCE_LOCK_TIMEOUT_MS = 2_000
"""How long adding a fence may wait for open transactions. Writers queue behind it meanwhile."""

_NAME_BYTES_MAX = 63


def fence_name(column: str) -> str:
    """The constraint's name: `rewrap_fence_` and the column's, shortened by a hash where it is too long."""
    name = f"rewrap_fence_{column}"
    if len(name.encode()) <= _NAME_BYTES_MAX:
        return name
    short = hashlib.sha256(column.encode()).hexdigest()[:12]
    return f"{name.encode()[: _NAME_BYTES_MAX - 13].decode(errors='ignore')}_{short}"


async def add_fence(connection: Connection, table: Table, column: str, prefix: Prefix) -> bool:
    """Adds and validates the fence of one column; False when it was there already.

    A partition's is added to the whole partitioned table, so that every later partition has it too, and
    validated one partition after the other.

    Adding waits for open transactions, for at most FENCE_LOCK_TIMEOUT_MS; validating reads the table
    beside the application. Raises FenceError when a row does not have the marker, and takes the fence
    away again.
    """
    name = fence_name(column)
    whole = table.partition_of or table
    there = await _fences(connection, whole.oid, table, column)
    if there.get(prefix):
        return False
    alter = f"ALTER TABLE {whole.relation}"
    field = next(field for field in table.fields if field.name == column)
    check = f"{value_of(field)} IS NULL OR {begins(field, prefix)}"
    # one that was added and not validated, by a process killed in between, is only validated now
    if prefix not in there:
        try:
            with translated(table.relation):
                async with connection.transaction():
                    await connection.execute(f"SET LOCAL lock_timeout = '{FENCE_LOCK_TIMEOUT_MS}ms'")
                    await connection.execute(
                        f"{alter} ADD CONSTRAINT {quote(name)} CHECK ({check}) NOT VALID"
                    )
        except StoreError as exc:
            raise _not_added(table, column, exc, alter, name, check) from None
    if (await _fences(connection, table.oid, table, column)).get(prefix):
        return False
    try:
        with translated(table.relation):
            await connection.execute(f"ALTER TABLE {table.relation} VALIDATE CONSTRAINT {quote(name)}")
            if table.partition_of and not await connection.fetchval(_UNPROVEN, whole.oid, name):
                # every partition is proven: this only says so of the whole, and reads no row
                await connection.execute(f"{alter} VALIDATE CONSTRAINT {quote(name)}")
    except StoreError as exc:
        with translated(table.relation):
            await connection.execute(f"{alter} DROP CONSTRAINT IF EXISTS {quote(name)}")
        raise _not_added(table, column, exc, alter, name, check) from None
    return True


async def refuse_fenced(connection: Connection, table: Table, prefixes: dict[str, Prefix]) -> None:
    """Raises UnsafeTarget when a fence of an earlier rotation would refuse values of these."""
    for column, prefix in prefixes.items():
        if set(await _fences(connection, table.oid, table, column)) - {prefix}:
            name = fence_name(column)
            holder = await connection.fetchrow(_HOLDER, table.oid, name)
            relation = f"{quote(holder['nspname'])}.{quote(holder['relname'])}" if holder else table.relation
            raise UnsafeTarget(
                f'table "{table.name}": the fence of an earlier rotation on column "{column}" refuses '
                + (f'values that begin with "{shown(prefix)}"' if prefix else "values without a marker"),
                hint="the application cannot write them either; drop it first: "
                f"ALTER TABLE {relation} DROP CONSTRAINT {quote(name)}",
            )


async def _fences(connection: Connection, oid: int, table: Table, column: str) -> dict[Prefix, bool]:
    """The prefixes that fences on a field admit, and whether each was validated: a table's, or of the whole
    that it is a partition of."""
    field = next(field for field in table.fields if field.name == column)
    whole = len(field.parts) == 1 and not field.parts[0].path
    with translated(table.relation):
        rows = await connection.fetch(
            """SELECT substring(pg_get_constraintdef(c.oid) from $3) AS marker, c.convalidated
                 FROM pg_constraint c
                WHERE c.conrelid = $1::int8::oid AND c.contype = 'c'
                  AND (c.conname = $4 OR starts_with(c.conname::text, 'rewrap_fence_') AND EXISTS (
                        SELECT FROM pg_attribute a
                         WHERE a.attrelid = c.conrelid AND c.conkey = ARRAY[a.attnum] AND a.attname = $2))""",
            oid,
            field.parts[0].column if whole else None,
            # a column's fence is found by the column, which may have been renamed; others by their name
            r"""(?:starts_with\(.*, |(?:substring|SUBSTRING).* = )'((?:[^']|'')*)'""",
            fence_name(column),
        )
    return {_admitted(row["marker"], field.binary): row["convalidated"] for row in rows if row["marker"]}


def shown(prefix: Prefix) -> str:
    """A prefix for people; bytes that are not text show as escapes."""
    return prefix if isinstance(prefix, str) else prefix.decode(errors="backslashreplace")


def _admitted(marker: str, binary: bool) -> Prefix:
    """A prefix as a constraint's definition shows it; bytes are shown in hex."""
    if binary:
        return bytes.fromhex(marker.removeprefix("\\x"))
    return marker.replace("''", "'")


def _not_added(table: Table, column: str, exc: StoreError, alter: str, name: str, check: str) -> StoreError:
    if exc.sqlstate == "55P03":
        return FenceError(
            f'table "{table.name}": the fence on "{column}" waited {FENCE_LOCK_TIMEOUT_MS} ms for open '
            "transactions and gave up",
            hint="end the long transactions (see pg_stat_activity) and try again",
            sqlstate=exc.sqlstate,
        )
    if exc.sqlstate == "23514":
        return FenceError(
            f'table "{table.name}": a row of column "{column}" does not have the new marker',
            hint="something still writes the old version; run rewrap run again, then verify --fence",
            sqlstate=exc.sqlstate,
        )
    if exc.sqlstate == "42501":
        return FenceError(
            f'table "{table.name}": only its owner may add a constraint',
            hint="run verify --fence as the table's owner, or have the owner run: "
            f"{alter} ADD CONSTRAINT {quote(name)} CHECK ({check}) NOT VALID; "
            f"{alter} VALIDATE CONSTRAINT {quote(name)};",
            sqlstate=exc.sqlstate,
        )
    return exc


# a partition below the whole, at any depth, whose fence was not validated yet
_UNPROVEN = """
WITH RECURSIVE part AS (
  SELECT i.inhrelid FROM pg_inherits i WHERE i.inhparent = $1::int8::oid
  UNION ALL SELECT i.inhrelid FROM pg_inherits i JOIN part p ON i.inhparent = p.inhrelid)
SELECT EXISTS (SELECT FROM part p JOIN pg_class r ON r.oid = p.inhrelid AND r.relkind <> 'p'
   WHERE NOT EXISTS (SELECT FROM pg_constraint c
          WHERE c.conrelid = r.oid AND c.conname = $2 AND c.convalidated))
"""

# the topmost table that has a constraint which a partition inherits: only there can it be dropped
_HOLDER = """
WITH RECURSIVE above AS (
  SELECT c.conrelid AS relid, 0 AS depth FROM pg_constraint c
   WHERE c.conrelid = $1::int8::oid AND c.conname = $2
  UNION ALL
  SELECT i.inhparent, a.depth + 1
    FROM above a JOIN pg_inherits i ON i.inhrelid = a.relid
    JOIN pg_constraint c ON c.conrelid = i.inhparent AND c.conname = $2)
SELECT n.nspname::text AS nspname, r.relname::text AS relname
  FROM above a JOIN pg_class r ON r.oid = a.relid JOIN pg_namespace n ON n.oid = r.relnamespace
 ORDER BY depth DESC LIMIT 1
"""
