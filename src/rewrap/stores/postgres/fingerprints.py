"""Fingerprints of columns, computed by the server: what comes over the wire is 32 bytes a row, in order.

Every value goes in as the server's own text under fixed settings, bytea as its bytes, jsonb in the order in
which jsonb keeps it. The definition of an entry is in `rewrap.fingerprint`; this is the same in SQL.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace

from rewrap.errors import SchemaMismatch, StoreError, UnsafeTarget
from rewrap.fingerprint import ENTRY_BYTES, KEY_BYTES
from rewrap.model import Path, Place, Table
from rewrap.stores.postgres.connection import Connection, translated
from rewrap.stores.postgres.moment import as_seen
from rewrap.stores.postgres.places import literal, quote
from rewrap.stores.postgres.schema import find_table
from rewrap.stores.postgres.statements import byte_literal
from rewrap.targets import parse_place
from rewrap.untouched import EVERYTHING, Witnessed, place_text

_FETCH_ROWS = 8_192
"""Entries that the server hands over at a time: 256 KiB, which is also what the ledger keeps as one part."""

_DOCUMENTS = ("json", "jsonb")

_ABSENT, _THERE = byte_literal(b"\x00"), byte_literal(b"\x01")


async def settle(connection: Connection, what: Witnessed) -> Witnessed:
    """What is fingerprinted, with key and places named; raises SchemaMismatch or UnsafeTarget."""
    subject = f'table "{what.table}"'
    with translated(subject):
        oid = await find_table(connection, what.table)
        if oid is None:
            raise SchemaMismatch(
                f"{subject} does not exist in this database",
                hint="check untouched.table; a table outside the search path is written schema.table",
            )
        relation = await connection.fetchrow(_RELATION, oid)
        columns = {row["attname"]: row for row in await connection.fetch(_COLUMNS, oid)}
        primary = await connection.fetch(_PRIMARY, oid)
    if relation["relkind"] not in ("r", "p"):
        raise UnsafeTarget(f"{subject} is not a table", hint="name the table that stores the rows")
    if relation["rls_active"]:
        raise UnsafeTarget(
            f"{subject} has row-level security that applies to this role: rows would stay hidden",
            hint="use the table's owner or a role with BYPASSRLS",
        )
    key = what.key or tuple(row["attname"] for row in primary) or (("id",) if "id" in columns else ())
    if not key:
        raise UnsafeTarget(f"{subject} has no primary key to tell its rows by", hint='name one: key = "id"')
    places = list(what.parsed)
    if what.whole:
        stored = {parse_place(text).column for text in what.written}
        named = {place.column for place in places}
        # what the server computes from other columns is told with those
        places += [
            Place(name)
            for name, row in columns.items()
            if name not in stored and name not in named and not row["attgenerated"]
        ]
    for place in (*places, *(Place(name) for name in key)):
        _check(columns, place, subject)
    await _keep(connection, oid, subject)
    return replace(what, key=key, places=tuple(place_text(place) for place in places))


async def _keep(connection: Connection, oid: int, subject: str) -> None:
    """Keeps the table from being altered until the transaction ends; one that was rewritten looks empty."""
    with translated(subject):
        leaves = [
            Table(row["name"], row["name"], row["oid"], (), (), (), 0, 0)
            for row in await connection.fetch(_LEAVES, oid)
        ]
        # locks what it is made of, too
        await connection.execute(f"SELECT FROM {await connection.fetchval(_NAME, oid)} LIMIT 0")
        for leaf in leaves:
            if not await as_seen(connection, leaf):
                raise StoreError(
                    f"{subject} was altered while its fingerprint was taken",
                    hint="a migration seems to be at work (see pg_stat_activity); try again when it is "
                    "through",
                )


def _check(columns: Mapping[str, Connection], place: Place, subject: str) -> None:
    column = columns.get(place.column)
    if column is None:
        raise SchemaMismatch(
            f'{subject} has no column "{place.column}"', hint=f"its columns are {', '.join(columns)}"
        )
    if not column["may_select"]:
        raise UnsafeTarget(
            f'{subject}: this role lacks SELECT on column "{place.column}"',
            hint=f"GRANT SELECT ({quote(place.column)}) ON … TO the role (see docs/privileges.md)",
        )
    if place.path and column["base"] not in _DOCUMENTS:
        raise SchemaMismatch(
            f'{subject}: column "{place.column}" is {column["declared"]}, and has no paths in it',
            hint="name the column alone",
        )


async def entries(connection: Connection, what: Witnessed) -> AsyncIterator[bytes]:
    """The sorted entries of what was settled. To be asked within a transaction."""
    subject = f'table "{what.table}"'
    with translated(subject):
        oid = await find_table(connection, what.table)
        columns = {row["attname"]: row["base"] for row in await connection.fetch(_COLUMNS, oid)}
        name = await connection.fetchval(_NAME, oid)
        cursor = await connection.cursor(entries_query(name, what, columns))
        while rows := await cursor.fetch(_FETCH_ROWS):
            yield b"".join([row[0] for row in rows])


def entries_query(relation: str, what: Witnessed, bases: Mapping[str, str]) -> str:
    """The entries of a table in order; `bases` are the types of its columns beneath any domain."""
    key = [_part(Place(name), bases) for name in what.key]
    values = [_part(parse_place(text), bases) for text in what.places if text != EVERYTHING]
    keys = " || ".join(key)
    entry = (
        f"substring(sha256({keys}) from 1 for {KEY_BYTES:d}) || "
        f"substring(sha256({' || '.join((*key, *values))}) from 1 for {ENTRY_BYTES - KEY_BYTES:d})"
    )
    return f"SELECT {entry} AS entry FROM {relation} AS t ORDER BY entry"


def _part(place: Place, bases: Mapping[str, str]) -> str:
    column, base = f"t.{quote(place.column)}", bases[place.column]
    if not place.path:
        stored = column if base == "bytea" else _bytes(column)
        return f"CASE WHEN {column} IS NULL THEN {_ABSENT} ELSE {_THERE} || sha256({stored}) END"
    within = _within(column if base == "jsonb" else f"{column}::jsonb", place.path)
    # as a row of its own, so that it is taken out of the document once
    return (
        f"(SELECT CASE WHEN p.v IS NULL THEN {_ABSENT} ELSE {_THERE} || sha256({_bytes('p.v')}) END "
        f"FROM (SELECT {within} AS v OFFSET 0) AS p)"
    )


def _bytes(value: str) -> str:
    return f"convert_to({value}::text, getdatabaseencoding())"


def _within(document: str, path: Path) -> str:
    """What a document holds at a path: jsonb, or NULL. Through an array it is an array of its elements'."""
    if None not in path:
        return _at(document, path)
    at = path.index(None)
    array, rest = _at(document, path[:at]), path[at + 1 :]
    element = _within("e.v", rest) if rest else "e.v"
    # an element without it is another thing than one with null in it
    each = f"CASE WHEN {element} IS NULL THEN '[]'::jsonb ELSE jsonb_build_array({element}) END"
    of_array = (
        f"(SELECT coalesce(jsonb_agg({each} ORDER BY e.n), '[]') "
        f"FROM jsonb_array_elements(d.v) WITH ORDINALITY AS e(v, n))"
    )
    return (
        f"(SELECT CASE jsonb_typeof(d.v) WHEN 'array' THEN {of_array} ELSE d.v END "
        f"FROM (SELECT {array} AS v OFFSET 0) AS d)"
    )


def _at(document: str, path: Sequence[str | int | None]) -> str:
    if not path:
        return document
    return f"({document} #> ARRAY[{', '.join(literal(str(step)) for step in path)}]::text[])"


_RELATION = """
SELECT c.relkind::text AS relkind,
       (c.relrowsecurity AND row_security_active(c.oid)) AS rls_active
  FROM pg_class c WHERE c.oid = $1::int8::oid
"""

_NAME = """
SELECT format('%I.%I', n.nspname, c.relname)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1::int8::oid
"""

_LEAVES = """
SELECT c.oid::int8 AS oid, format('%I.%I', n.nspname, c.relname) AS name
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' AND (c.oid = $1::int8::oid OR c.oid IN (
       SELECT t.relid FROM pg_partition_tree($1::int8::oid::regclass) t WHERE t.isleaf))
"""

_COLUMNS = """
SELECT a.attname::text AS attname, a.attgenerated::text AS attgenerated,
       format_type(a.atttypid, a.atttypmod) AS declared,
       (WITH RECURSIVE beneath AS (
          SELECT t.oid, t.typname, t.typbasetype
          UNION ALL SELECT b.oid, b.typname, b.typbasetype
            FROM pg_type b JOIN beneath d ON b.oid = d.typbasetype)
        SELECT typname::text FROM beneath WHERE typbasetype = 0) AS base,
       has_column_privilege(a.attrelid, a.attnum, 'SELECT') AS may_select
  FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
 WHERE a.attrelid = $1::int8::oid AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attnum
"""

_PRIMARY = """
SELECT a.attname::text AS attname
  FROM pg_index x, unnest(x.indkey::int2[]) WITH ORDINALITY AS k(attnum, place)
  JOIN pg_attribute a ON a.attrelid = $1::int8::oid AND a.attnum = k.attnum
 WHERE x.indrelid = $1::int8::oid AND x.indisprimary ORDER BY k.place
"""
