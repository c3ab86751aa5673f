"""Verify's own look at DEKs in Postgres: every record, and every id that some place names.

Nothing here is shared with the reading and writing of a run but the names of things.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

from rewrap.deks import DekRecord
from rewrap.envelopes import DekSection, ReferenceSection
from rewrap.errors import SchemaMismatch, UnsafeTarget
from rewrap.job import Job
from rewrap.model import FieldColumn, Location, Role, Table, is_text
from rewrap.packed import ELEMENT, PART
from rewrap.stores.postgres.connection import Address, Connection, close, connect, translated
from rewrap.stores.postgres.deks import Records, find_records
from rewrap.stores.postgres.places import quote, value_of
from rewrap.stores.postgres.schema import columns_of, find_table, identify

_FETCH_ROWS = 1_000
"""Rows a server-side cursor hands over at a time."""

_UUID = re.compile("[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

_ODD = "\x02"
"""Begins what stands for a part of a document that is no text."""


class PostgresDekCensus:
    """A `DekCensus` over one database; each pass is one snapshot of its own."""

    def __init__(self, job: Job, address: Address) -> None:
        self._job = job
        self._address = address
        self._connection: Connection | None = None
        self._tables: dict[tuple[str, str], Records] = {}

    async def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = await connect(
                self._address, application_name="rewrap verify", lock_timeout="10s"
            )
            await identify(self._connection, f"database {self._address.shown}")
        return self._connection

    async def records(self, section: DekSection) -> AsyncIterator[list[DekRecord]]:
        connection = await self._connected()
        statement = self._read(await self._found(connection, section))
        async for page in self._pages(connection, statement, f'table "{section.table}"'):
            yield [DekRecord(row[0], row[1], tuple(row[2:])) for row in page]

    async def find(self, section: DekSection, ids: Sequence[str]) -> list[DekRecord]:
        connection = await self._connected()
        found = await self._found(connection, section)
        # as texts: whatever is no id of the column's type is only not there
        statement = f'{self._read(found)} WHERE t.{quote(found.id.name)}::text COLLATE "C" = ANY ($1::text[])'
        if found.id.type_name == "uuid":
            statement = f"{self._read(found)} WHERE t.{quote(found.id.name)} = ANY ($1::text[]::uuid[])"
            ids = [one for one in ids if _UUID.fullmatch(one)]
        ids = [one for one in ids if is_text(one)]
        with translated(f'table "{section.table}"'):
            rows = await connection.fetch(statement, list(ids))
        return [DekRecord(row[0], row[1], tuple(row[2:])) for row in rows]

    async def _found(self, connection: Connection, section: DekSection) -> Records:
        key = (section.table, section.id)
        if key not in self._tables:
            self._tables[key] = await find_records(connection, self._job, section, writing=False)
        return self._tables[key]

    @staticmethod
    def _read(found: Records) -> str:
        bound = [f"t.{quote(name)}::text" for name in found.aad_columns]
        columns = [f"t.{quote(found.id.name)}::text", value_of(found.field, "t"), *bound]
        return f"SELECT {', '.join(columns)} FROM {found.relation} AS t"

    async def references(self, place: ReferenceSection) -> AsyncIterator[list[str]]:
        connection = await self._connected()
        value, relation = await self._place(connection, place)
        statement = f"SELECT {value} FROM {relation} AS t WHERE {value} IS NOT NULL"
        async for page in self._pages(connection, statement, place.name):
            ids = [one for row in page for one in row[0].split(ELEMENT)]
            yield [one for one in ids if one and not one.startswith(_ODD)]

    async def joined_query(self, section: DekSection, table: Table, column: str) -> str | None:
        """The count of a field's values by what their DEKs' records say, as SQL; None where SQL cannot."""
        found = await self._found(await self._connected(), section)
        field = next(field for field in table.fields if field.name == column)
        if field.many or found.field.parts[0].role is not Role.VERSION:
            return None
        part = f"chr({ord(PART)})"
        value = value_of(field, "t")
        return (
            f"SELECT split_part({value_of(found.field, 'd')}, {part}, 1) AS version, "
            f"d.{quote(found.id.name)} IS NOT NULL AS recorded, count(*) AS n FROM {table.relation} AS t "
            f"LEFT JOIN {found.relation} AS d ON d.{quote(found.id.name)}::text = "
            f"split_part({value}, {part}, 1) WHERE {value} IS NOT NULL GROUP BY 1, 2 ORDER BY 1, 2"
        )

    async def _place(self, connection: Connection, place: ReferenceSection) -> tuple[str, str]:
        """The expression of the ids in a place, and the relation that it is in."""
        subject = f'table "{place.table}"'
        with translated(subject):
            oid = await find_table(connection, place.table)
            columns = await columns_of(connection, oid) if oid is not None else {}
            relation = await connection.fetchval(_RELATION, oid)
        if place.column not in columns:
            raise SchemaMismatch(
                f'{subject} has no column "{place.column}"' if columns else f"{subject} does not exist",
                hint="correct deks.*.referenced_by",
            )
        if relation is None:
            raise UnsafeTarget(
                f"{subject} is not a table whose every row this role sees",
                hint="name the table that stores the rows, and use its owner or a role with BYPASSRLS",
            )
        base = columns[place.column]["base"]
        if (base == "jsonb") != bool(place.steps):
            raise SchemaMismatch(
                f'{subject}: column "{place.column}" is {base}, and the job names '
                f"{'a path' if place.steps else 'no path'} in it",
                hint="a path leads into a column of jsonb, and only there",
            )
        part = Location(Role.PAYLOAD, place.column, base, base, place.steps)
        return value_of(FieldColumn(place.name, base, True, (part,)), "t"), str(relation)

    async def _pages(self, connection: Connection, statement: str, subject: str) -> AsyncIterator[list[Any]]:
        with translated(subject):
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                cursor = await connection.cursor(statement)
                while page := await cursor.fetch(_FETCH_ROWS):
                    yield page

    async def close(self) -> None:
        if self._connection is not None:
            await close(self._connection)
            self._connection = None


_RELATION = """
SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid = $1::int8::oid AND c.relkind IN ('r', 'p')
   AND NOT (c.relrowsecurity AND row_security_active(c.oid))
"""
