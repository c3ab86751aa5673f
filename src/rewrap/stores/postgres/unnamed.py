"""Versions that a table has beside a value, and a job does not name: a rotation leaves them as they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from rewrap.errors import StoreError
from rewrap.job import Job
from rewrap.labels import names_a_key
from rewrap.stores.postgres.connection import Connection, translated
from rewrap.stores.postgres.fields import VERSION_TYPES
from rewrap.stores.postgres.places import literal, quote
from rewrap.targets import FieldSection, TargetSection, parse_path

_LOOKED_AT_ROWS = 200
"""Rows whose documents are looked into for the keys beside a value."""


@dataclass(frozen=True, slots=True)
class Unnamed:
    """A field that names no version, and what looks like one beside it: columns, or paths in its own."""

    field: str
    columns: tuple[str, ...]
    paths: tuple[str, ...]

    @property
    def reason(self) -> str:
        named = " or ".join(f'"{name}"' for name in (*self.columns, *self.paths))
        return (
            f'field "{self.field}" names no version, in its marker or apart, and {named} beside it looks '
            "like one: if the application looks there for the key, it cannot read what a run writes"
        )

    @property
    def hint(self) -> str:
        part = f"column = {_toml(self.columns[0])}" if self.columns else f"path = {_toml(self.paths[0])}"
        return (
            f"name it in the field: version = {{ {part} }}; or make sure that the application does not "
            "look there"
        )


async def unnamed_versions(
    connection: Connection, job: Job, target: TargetSection, oid: int
) -> list[Unnamed]:
    """The fields of a target that no version is known of, though the table seems to have one.

    What this role may not read it says nothing about: that is found elsewhere.
    """
    bare = [
        entry
        for entry in target.fields
        if target.dek is None
        and entry.version is None
        and not (job.old_layout(entry).versioned and job.new_layout(entry).versioned)
    ]
    if not bare:
        return []
    with translated(f'table "{target.table}"'):
        rows = await connection.fetch(_COLUMNS, oid, list(VERSION_TYPES))
    names = [row["attname"] for row in rows if names_a_key(row["attname"])]
    named = {
        entry.version.column: entry.column
        for entry in target.fields
        if entry.version is not None and entry.version.column is not None
    }
    found = []
    for entry in bare:
        # one that is named after another value is that value's own
        columns = [name for name in names if not (name in named and _after(name, named[name]))]
        columns = [name for name in columns if name not in {place.column for _, place in entry.places}]
        paths = await _paths_beside(connection, target, entry, oid)
        if columns or paths:
            found.append(Unnamed(entry.name, tuple(columns), tuple(paths)))
    return found


def _after(name: str, column: str) -> bool:
    """Whether a column is named after another: by their first word."""
    return name.split("_")[0].lower() in column.lower().split("_")


async def _paths_beside(
    connection: Connection, target: TargetSection, entry: FieldSection, oid: int
) -> Sequence[str]:
    """Keys of texts or numbers in the object that a value stands in, which look like a version's."""
    if entry.path is None:
        return []
    steps = parse_path(entry.path)[:-1]
    inside = "$" + "".join(
        f".{json.dumps(step)}" if isinstance(step, str) else f"[{'*' if step is None else step}]"
        for step in steps
    )
    statement = (
        f"SELECT DISTINCT k.key FROM (SELECT {quote(entry.column)}::jsonb AS document "
        f"FROM {{relation}} WHERE {quote(entry.column)} IS NOT NULL LIMIT {_LOOKED_AT_ROWS:d}) AS seen, "
        f"jsonb_path_query(seen.document, {literal(inside)}::jsonpath) AS beside, "
        "jsonb_each(CASE WHEN jsonb_typeof(beside) = 'object' THEN beside ELSE '{}' END) AS k "
        "WHERE jsonb_typeof(k.value) IN ('string', 'number') ORDER BY 1 LIMIT 1000"
    )
    try:
        with translated(f'table "{target.table}"'):
            relation = await connection.fetchval("SELECT $1::int8::oid::regclass::text", oid)
            rows = await connection.fetch(statement.replace("{relation}", relation))
    except StoreError:
        return []
    prefix = entry.path[: -len(_last(entry.path))]
    return [prefix + row["key"] for row in rows if names_a_key(row["key"])]


def _last(path: str) -> str:
    """The last step of a path as it is written, without the dot before it."""
    if path.endswith('"'):
        return path[path.rindex('"', 0, -1) :]
    return path.rpartition(".")[2]


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


_COLUMNS = """
WITH RECURSIVE beneath AS (
  SELECT t.oid AS type, t.typname AS base FROM pg_type t WHERE t.typtype <> 'd'
  UNION ALL
  SELECT t.oid, b.base FROM pg_type t JOIN beneath b ON b.type = t.typbasetype WHERE t.typtype = 'd')
SELECT a.attname::text FROM pg_attribute a JOIN beneath b ON b.type = a.atttypid
 WHERE a.attrelid = $1::int8::oid AND a.attnum > 0 AND NOT a.attisdropped AND b.base = ANY ($2::text[])
   AND b.base <> 'jsonb'
 ORDER BY a.attnum
"""
