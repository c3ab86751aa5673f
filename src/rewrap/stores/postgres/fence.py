"""The writer fence: a constraint that refuses old values for good, and proves that there are none."""

from __future__ import annotations

from rewrap.errors import FenceError, StoreError, UnsafeTarget
from rewrap.model import Table
from rewrap.stores.postgres.connection import Connection, translated
from rewrap.stores.postgres.schema import quote
from rewrap.stores.postgres.statements import literal

FENCE_LOCK_TIMEOUT_MS = 2_000
"""How long adding a fence may wait for open transactions. Writers queue behind it meanwhile."""

_NAME_BYTES_MAX = 63


def fence_name(column: str) -> str:
    """The constraint's name: `rewrap_fence_` and the column's, cut to Postgres' limit."""
    return f"rewrap_fence_{column}".encode()[:_NAME_BYTES_MAX].decode(errors="ignore")


async def add_fence(connection: Connection, table: Table, column: str, marker: str) -> bool:
    """Adds and validates the fence of one column; False when it was there already.

    Adding waits for open transactions, for at most FENCE_LOCK_TIMEOUT_MS; validating reads the table
    beside the application. Raises FenceError when a row does not have the marker, and takes the fence
    away again.
    """
    name = fence_name(column)
    if marker in await _fences(connection, table, column):
        return False
    alter = f"ALTER TABLE {table.relation}"
    check = f"{quote(column)} IS NULL OR starts_with({quote(column)}, {literal(marker)})"
    try:
        with translated(table.relation):
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = '{FENCE_LOCK_TIMEOUT_MS}ms'")
                await connection.execute(f"{alter} ADD CONSTRAINT {quote(name)} CHECK ({check}) NOT VALID")
    except StoreError as exc:
        raise _not_added(table, column, exc, alter, name, check) from None
    try:
        with translated(table.relation):
            await connection.execute(f"{alter} VALIDATE CONSTRAINT {quote(name)}")
    except StoreError as exc:
        with translated(table.relation):
            await connection.execute(f"{alter} DROP CONSTRAINT IF EXISTS {quote(name)}")
        raise _not_added(table, column, exc, alter, name, check) from None
    return True


async def refuse_fenced(connection: Connection, table: Table, markers: dict[str, str]) -> None:
    """Raises UnsafeTarget when a fence of an earlier rotation would refuse values under `markers`."""
    for column, marker in markers.items():
        if await _fences(connection, table, column) - {marker}:
            name = quote(fence_name(column))
            raise UnsafeTarget(
                f'table "{table.name}": the fence of an earlier rotation on column "{column}" refuses '
                f'values that begin with "{marker}"',
                hint="the application cannot write them either; drop it first: "
                f"ALTER TABLE {table.relation} DROP CONSTRAINT {name}",
            )


async def _fences(connection: Connection, table: Table, column: str) -> set[str]:
    """The markers that fences on a column admit (at most one)."""
    with translated(table.relation):
        rows = await connection.fetch(
            """SELECT substring(pg_get_constraintdef(oid) from $3) AS marker FROM pg_constraint
                WHERE conrelid = $1::int8::oid AND conname = $2 AND contype = 'c' AND convalidated""",
            table.oid,
            fence_name(column),
            r"starts_with\(.*, '((?:[^']|'')*)'",
        )
    return {row["marker"].replace("''", "'") for row in rows if row["marker"] is not None}


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
