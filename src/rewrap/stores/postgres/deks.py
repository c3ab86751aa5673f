"""The records of DEKs in a table of Postgres: looked up by id, and made beside the ones that are there."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import anyio

from rewrap.crypto.layout import Value
from rewrap.deks import DekRecord, NewRecord
from rewrap.envelopes import DekSection
from rewrap.errors import SchemaMismatch, UnsafeTarget
from rewrap.interfaces import Prefix
from rewrap.job import Job
from rewrap.model import FieldColumn, KeyColumn, is_text
from rewrap.stores.postgres.connection import Address, Connection, close, connect, translated
from rewrap.stores.postgres.fields import find_fields, no_privilege
from rewrap.stores.postgres.places import assignments, columns_of, literal, quote, value_of
from rewrap.stores.postgres.schema import columns_of as described
from rewrap.stores.postgres.schema import find_table, identify
from rewrap.stores.postgres.uniques import find_key

LOCK_TIMEOUT = "5s"
"""A look that waits for somebody's lock says so instead of hanging."""

_ID_TYPES = ("text", "varchar", "uuid")


@dataclass(frozen=True, slots=True)
class Records:
    """The table of a `[deks.NAME]` as it was found: what its statements are made of."""

    relation: str
    id: KeyColumn
    field: FieldColumn
    aad_columns: tuple[str, ...]
    copied: tuple[str, ...]
    given: tuple[tuple[str, str, str], ...]

    @property
    def columns(self) -> str:
        """What is read of a record: its id, the wrapped DEK, and what that is bound to."""
        bound = [f"t.{quote(name)}::text" for name in self.aad_columns]
        return ", ".join([f"t.{quote(self.id.name)}::text", value_of(self.field, "t"), *bound])

    def find(self) -> str:
        """The records of the ids in $1."""
        ids = f"$1::text[]::{self.id.type_name}[]"
        return f"SELECT {self.columns} FROM {self.relation} AS t WHERE t.{quote(self.id.name)} = ANY ({ids})"

    def sample(self, prefix: Prefix) -> str:
        """Up to $1 records that begin with a marker."""
        value = value_of(self.field, "t")
        if isinstance(prefix, bytes):
            begins = f"substring({value} from 1 for {len(prefix):d}) = '\\x{prefix.hex()}'::bytea"
        else:
            begins = f'pg_catalog.starts_with({value} COLLATE "C", {literal(prefix)})'
        return f"SELECT {self.columns} FROM {self.relation} AS t WHERE {begins} LIMIT $1"

    def add(self) -> str:
        """Makes records: $1 their ids, $2 the ids of those they are like, $3 the wrapped DEKs.

        What is neither the id, nor copied, nor given, nor part of the wrapped DEK, has its default.
        """
        made = [
            (quote(self.id.name), f"d.id::{self.id.type_name}"),
            *self._wrapped(),
            *((quote(name), f"o.{quote(name)}") for name in self.copied),
            *((quote(name), f"{literal(text)}::{kind}") for name, text, kind in self.given),
        ]
        kind = "bytea" if self.field.binary else "text"
        return (
            f"INSERT INTO {self.relation} ({', '.join(name for name, _ in made)}) "
            f"SELECT {', '.join(value for _, value in made)} "
            f"FROM unnest($1::text[], $2::text[], $3::{kind}[]) AS d(id, old, n0) "
            f"LEFT JOIN {self.relation} AS o ON o.{quote(self.id.name)} = "
            f"nullif(d.old, '')::{self.id.type_name} ON CONFLICT DO NOTHING "
            f"RETURNING {quote(self.id.name)}::text"
        )

    def _wrapped(self) -> list[tuple[str, str]]:
        """What the columns of the wrapped DEK get, column by column."""
        texts = zip(columns_of(self.field), assignments([self.field], "o"), strict=True)
        return [(quote(name), text.removeprefix(f"{quote(name)} = ")) for name, text in texts]


async def find_records(connection: Connection, job: Job, section: DekSection, *, writing: bool) -> Records:
    """The table of DEK records. Raises SchemaMismatch or UnsafeTarget where it is not what the job says."""
    subject = f'table "{section.table}"'
    with translated(subject):
        oid = await find_table(connection, section.table)
        if oid is None:
            raise SchemaMismatch(
                f"{subject} of DEKs does not exist in this database", hint="check deks.*.table"
            )
        columns = await described(connection, oid)
        relation = await connection.fetchrow(_RELATION, oid)
    if relation["relkind"] not in ("r", "p"):
        raise UnsafeTarget(f"{subject} is not a table", hint="name the table that stores the records")
    if relation["rls_active"]:
        raise UnsafeTarget(
            f"{subject} has row-level security that applies to this role: records would stay hidden",
            hint="use the table's owner or a role with BYPASSRLS",
        )
    (found,), aad_columns = find_fields(job, columns, section.target, subject, writing=False)
    (key,) = await find_key(connection, oid, columns, section.target, subject)
    if key.type_name not in _ID_TYPES:
        raise UnsafeTarget(
            f'{subject}: ids of DEKs are in column "{key.name}" of type {key.type_name}',
            hint=f"types are {', '.join(_ID_TYPES)}",
        )
    own = {section.id, *(part.column for part in found.parts), *section.copied, *section.given}
    for name in sorted(own):
        if name not in columns:
            raise SchemaMismatch(
                f'{subject} has no column "{name}"',
                hint=f"correct deks.*; its columns are {', '.join(list(columns)[:20])}",
            )
    if writing:
        await _check_insert(connection, oid, sorted(own), subject)
    given = tuple(
        (name, str(value).lower() if isinstance(value, bool) else str(value), columns[name]["declared"])
        for name, value in section.given.items()
    )
    name = f"{quote(relation['nspname'])}.{quote(relation['relname'])}"
    return Records(name, key, found, aad_columns, tuple(section.copied), given)


async def _check_insert(connection: Connection, oid: int, columns: Sequence[str], subject: str) -> None:
    with translated(subject):
        lacking = await connection.fetchval(_NO_INSERT, oid, list(columns))
    if lacking is not None:
        raise no_privilege(subject, lacking, "INSERT")


class PostgresDeks:
    """The records of one `[deks.NAME]`: a `DekStore`.

    Its commits wait for the log: nothing is sealed with a DEK whose record a crash could lose.
    """

    def __init__(self, job: Job, section: DekSection, address: Address) -> None:
        self._job = job
        self._section = section
        self._address = address
        self._connection: Connection | None = None
        self._records: dict[bool, Records] = {}
        # shards ask side by side: a connection does one thing at a time
        self._turn = anyio.Lock()

    @property
    def _subject(self) -> str:
        return f'table "{self._section.table}"'

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(
                self._address,
                application_name="rewrap deks",
                synchronous_commit="on",
                lock_timeout=LOCK_TIMEOUT,
            )
            await identify(self._connection, f"database {self._address.shown}")
        return self._connection

    async def _found(self, *, writing: bool) -> Records:
        if writing not in self._records:
            connection = await self._connected()
            self._records[writing] = await find_records(connection, self._job, self._section, writing=writing)
        return self._records[writing]

    async def find(self, ids: Sequence[str]) -> dict[str, DekRecord]:
        async with self._turn:
            records = await self._found(writing=False)
            asked = [one for one in ids if _may_be(one, records.id)]
            connection = await self._connected()
            with translated(self._subject):
                rows = await connection.fetch(records.find(), asked) if asked else []
        # what the column's collation takes for the same is not the same id
        wanted = set(asked)
        return {row.id: row for row in _rows(rows) if row.id in wanted}

    async def add(self, records: Sequence[NewRecord]) -> set[str]:
        async with self._turn:
            found = await self._found(writing=True)
            connection = await self._connected()
            with translated(self._subject):
                made = await connection.fetch(
                    found.add(),
                    [record.id for record in records],
                    [record.like for record in records],
                    [record.wrapped for record in records],
                )
        return {row[0] for row in made}

    def spent(self) -> dict[str, float]:
        return {}

    async def sample(self, prefix: Prefix, count: int) -> list[DekRecord]:
        async with self._turn:
            found = await self._found(writing=False)
            connection = await self._connected()
            with translated(self._subject):
                return list(_rows(await connection.fetch(found.sample(prefix), count)))

    async def close(self) -> None:
        if self._connection is not None:
            await close(self._connection)
            self._connection = None


def _rows(rows: Iterable[Any]) -> Iterable[DekRecord]:
    for row in rows:
        wrapped: Value | None = row[1]
        yield DekRecord(row[0], wrapped, tuple(row[2:]))


def _may_be(dek_id: str, column: KeyColumn) -> bool:
    """Whether a column of ids can hold one, as it is written."""
    if column.type_name != "uuid":
        return is_text(dek_id)
    try:
        return str(uuid.UUID(dek_id)) == dek_id
    except ValueError:
        return False


_RELATION = """
SELECT n.nspname, c.relname, c.relkind::text AS relkind,
       (c.relrowsecurity AND row_security_active(c.oid)) AS rls_active
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1::int8::oid
"""

_NO_INSERT = """
SELECT a.attname::text FROM pg_attribute a
 WHERE a.attrelid = $1::int8::oid AND a.attname = ANY ($2::text[])
   AND NOT has_column_privilege(a.attrelid, a.attnum, 'INSERT') ORDER BY 1 LIMIT 1
"""
