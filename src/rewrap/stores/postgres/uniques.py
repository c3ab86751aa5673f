"""The key that a table's rows are found by, chosen among its unique indexes, or why there is none.

A key is safe when each of its columns is NOT NULL and a unique index covers exactly these columns, in this
order, every row of the table, at every moment. Pages are read along that index, so its order must be the
order in which the server compares the key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rewrap.errors import UnsafeTarget
from rewrap.model import KeyColumn
from rewrap.stores.postgres.connection import Connection, translated
from rewrap.stores.postgres.fields import named, no_privilege
from rewrap.targets import TargetSection

_INEXACT = ("float4", "float8")

DEFAULT_KEY = "id"
"""The key of a table without a primary key, if the job names none."""

_FOUND_AGAIN = "rewrap finds each row again by its key"


@dataclass(frozen=True, slots=True)
class Unique:
    """A unique index. `flaw` is why rows cannot be paged through and found again by it, if they cannot."""

    columns: tuple[str, ...]
    primary: bool
    flaw: str | None

    @property
    def shown(self) -> str:
        """How a job names it."""
        names = ", ".join(f'"{name}"' for name in self.columns)
        kind = "the primary key" if self.primary else "a unique index"
        return f"key = {names if len(self.columns) == 1 else f'[{names}]'}, {kind}"


async def find_key(
    connection: Connection,
    oid: int,
    columns: Mapping[str, Connection],
    target: TargetSection,
    subject: str,
) -> tuple[KeyColumn, ...]:
    """The key of a table: the job's, or else its primary key, or else a unique column "id".

    Raises SchemaMismatch or UnsafeTarget; the hint names a key that would do, if there is one.
    """
    with translated(subject):
        version = _DATABASE_VERSION if connection.get_server_version().major >= 15 else _LIBC_VERSION
        types = {row["attname"]: row for row in await connection.fetch(_TYPES.format(version), oid)}
        uniques = [_unique(row, columns, types) for row in await connection.fetch(_UNIQUES, oid)]
    hint = _hint(uniques)
    names = target.key or _default(columns, uniques)
    if names is None:
        raise UnsafeTarget(f"{subject} has no primary key, and the job names no other", hint=hint)
    for name in names:
        column = named(columns, name, "targets.key", subject)
        flaw = _column_flaw(types[name])
        if flaw is not None:
            raise UnsafeTarget(f'{subject}: key column "{name}" is {column["declared"]}{flaw}', hint=hint)
        if not column["attnotnull"]:
            raise UnsafeTarget(
                f'{subject}: key column "{name}" may be NULL: such rows could not be found again', hint=hint
            )
        if not column["may_select"]:
            raise no_privilege(subject, name, "SELECT")
    there = [unique for unique in uniques if unique.columns == tuple(names)]
    if not there or all(unique.flaw for unique in there):
        raise _not_unique(names, there, subject, hint)
    written = {place.column for entry in target.fields for _, place in entry.places}
    if clash := written.intersection(names):
        raise UnsafeTarget(
            f'{subject}: encrypted column "{min(clash)}" is part of the key',
            hint=_hint([unique for unique in uniques if not written.intersection(unique.columns)]),
        )
    return tuple(
        KeyColumn(name, types[name]["base"], types[name]["native"], types[name]["ordered_by"] or "")
        for name in names
    )


def _default(columns: Mapping[str, Connection], uniques: Sequence[Unique]) -> tuple[str, ...] | None:
    primary = next((unique.columns for unique in uniques if unique.primary), None)
    return primary or ((DEFAULT_KEY,) if DEFAULT_KEY in columns else None)


def _hint(uniques: Sequence[Unique]) -> str:
    """What to name in place of a key that will not do."""
    usable = [unique for unique in uniques if unique.flaw is None]
    if usable:
        best = min(usable, key=lambda unique: (not unique.primary, len(unique.columns)))
        return f"{_FOUND_AGAIN}; in the target set {best.shown}"
    return (
        f"{_FOUND_AGAIN}, and this table has none that would do: make columns NOT NULL, CREATE UNIQUE INDEX "
        "CONCURRENTLY on them, and name them in targets.key"
    )


def _not_unique(names: Sequence[str], there: Sequence[Unique], subject: str, hint: str) -> UnsafeTarget:
    which = f'key column "{names[0]}" has' if len(names) == 1 else f"key columns {_listed(names)} have"
    flaws = sorted({unique.flaw for unique in there if unique.flaw})
    why = f": the one there is {' or '.join(flaws)}" if flaws else ""
    what = (
        "a unique index of its own" if len(names) == 1 else "a unique index of exactly these, in this order"
    )
    return UnsafeTarget(f"{subject}: {which} no{what.removeprefix('a')}{why}", hint=hint)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _column_flaw(column: Connection) -> str | None:
    """Why a column of this type is no part of a key."""
    if column["base_name"] in _INEXACT:
        return ", whose values are not exact: a row is not safely found again by one"
    if not column["has_order"]:
        return ", a type without an order that rows could be paged in"
    if not column["order_usual"]:
        return ", a type that cannot be compared by = and >"
    if not column["order_visible"]:
        return ", whose comparison is in a schema outside this role's search path"
    return None


def _unique(row: Connection, columns: Mapping[str, Connection], types: Mapping[str, Connection]) -> Unique:
    names = tuple(row["columns"])
    flaw = None
    if row["has_expressions"] or any(name is None for name in names):
        flaw = "on an expression"
    elif row["is_partial"]:
        flaw = "partial"
    elif not row["indisvalid"]:
        flaw = "not valid"
    elif not row["indimmediate"]:
        flaw = "deferrable"
    elif row["method"] != "btree" or not row["in_order"]:
        flaw = "in another order than the column's own"
    elif not all(columns[name]["attnotnull"] for name in names):
        flaw = "on a column that may be NULL"
    elif any(_column_flaw(types[name]) for name in names):
        flaw = "on a column of a type that keys cannot have"
    return Unique(tuple(name or "" for name in names), row["indisprimary"], flaw)


# what decides the order of the database's own collation; from Postgres 15 on it says so itself
_DATABASE_VERSION = """(SELECT pg_database_collation_actual_version(b.oid) FROM pg_database b
                    WHERE b.datname = current_database())"""

_LIBC_VERSION = """(SELECT pg_collation_actual_version(x.oid) FROM pg_collation x, pg_database b
                    WHERE b.datname = current_database() AND x.collprovider = 'c'
                      AND x.collcollate = b.datcollate LIMIT 1)"""

_TYPES = """
WITH RECURSIVE beneath AS (
  SELECT a.attnum, a.attname, t.oid, t.typbasetype
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
   WHERE a.attrelid = $1::int8::oid AND a.attnum > 0 AND NOT a.attisdropped
  UNION ALL
  SELECT d.attnum, d.attname, b.oid, b.typbasetype
    FROM beneath d JOIN pg_type b ON b.oid = d.typbasetype)
SELECT d.attname::text AS attname, t.typname::text AS base_name,
       -- with -1 for its modifier: without one "character" would be cast to a single character
       format_type(t.oid, -1) AS base,
       d.oid = a.atttypid AND t.typname = ANY (ARRAY['int2', 'int4', 'int8', 'uuid']) AS native,
       c.opfamily IS NOT NULL AS has_order,
       -- statements compare by = and >, which have to mean this order; a domain over an enum, a range or an
       -- array has neither
       coalesce(pg_operator_is_visible(c.equal) AND pg_operator_is_visible(c.greater), false)
         AS order_visible,
       coalesce((SELECT count(*) = 2 FROM pg_operator o
                  WHERE (o.oid, o.oprname) IN ((c.equal, '='), (c.greater, '>'))), false)
         AND NOT (d.oid <> a.atttypid AND (t.typtype IN ('e', 'r') OR t.typcategory = 'A')) AS order_usual,
       CASE WHEN a.attcollation = 0 THEN ''
            ELSE format('%s %s', l.collname, coalesce(
              CASE WHEN l.collprovider <> 'd' THEN pg_collation_actual_version(l.oid)
                   ELSE {} END, '')) END AS ordered_by
  FROM beneath d
  JOIN pg_attribute a ON a.attrelid = $1::int8::oid AND a.attnum = d.attnum
  JOIN pg_type t ON t.oid = d.oid
  LEFT JOIN pg_collation l ON l.oid = a.attcollation
  LEFT JOIN LATERAL (
    SELECT o.opcfamily AS opfamily,
           (SELECT m.amopopr FROM pg_amop m
             WHERE m.amopfamily = o.opcfamily AND m.amopstrategy = 3 AND m.amoplefttype = o.opcintype
               AND m.amoprighttype = o.opcintype) AS equal,
           (SELECT m.amopopr FROM pg_amop m
             WHERE m.amopfamily = o.opcfamily AND m.amopstrategy = 5 AND m.amoplefttype = o.opcintype
               AND m.amoprighttype = o.opcintype) AS greater
      FROM pg_opclass o JOIN pg_am m ON m.oid = o.opcmethod
     WHERE m.amname = 'btree' AND o.opcdefault
       AND (o.opcintype = t.oid
         OR o.opcintype = CASE WHEN t.typtype = 'e' THEN 'anyenum'::regtype
                               WHEN t.typtype = 'r' THEN 'anyrange'::regtype
                               WHEN t.typcategory = 'A' AND t.typelem <> 0 THEN 'anyarray'::regtype END
         OR EXISTS (SELECT FROM pg_cast c WHERE c.castsource = t.oid AND c.casttarget = o.opcintype
                       AND c.castmethod = 'b' AND c.castcontext = 'i'))
     ORDER BY o.opcintype = t.oid DESC, o.opcintype = 'text'::regtype DESC
     LIMIT 1) c ON true
 WHERE d.typbasetype = 0 ORDER BY d.attnum
"""

_UNIQUES = """
SELECT x.indisprimary, x.indisvalid, x.indimmediate, m.amname::text AS method,
       x.indpred IS NOT NULL AS is_partial, x.indexprs IS NOT NULL AS has_expressions,
       k.columns, k.in_order
  FROM pg_index x
  JOIN pg_class i ON i.oid = x.indexrelid
  JOIN pg_am m ON m.oid = i.relam
 CROSS JOIN LATERAL (
    SELECT array_agg(a.attname::text ORDER BY n) AS columns,
           -- a page is read forwards or backwards along the index, in each column's own order
           bool_and(coalesce(x.indcollation[n - 1] = a.attcollation, false)
             AND EXISTS (SELECT FROM pg_opclass d WHERE d.opcfamily = o.opcfamily AND d.opcdefault))
           AND count(DISTINCT x.indoption[n - 1]) = 1 AND min(x.indoption[n - 1]) IN (0, 3) AS in_order
      FROM generate_series(1, x.indnkeyatts) AS n
      LEFT JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = x.indkey[n - 1]
      LEFT JOIN pg_opclass o ON o.oid = x.indclass[n - 1]) AS k
 WHERE x.indrelid = $1::int8::oid AND x.indisunique
 ORDER BY NOT x.indisprimary, i.relname
"""
