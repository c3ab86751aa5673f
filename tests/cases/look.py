"""What a database holds, in numbers that can be compared: row versions, other columns, writes."""

from __future__ import annotations

import re
from typing import Any

from tests.cases.session import Session
from tests.support.workbench import wait_for

GUARD = "rewrap"
"""The schema of rewrap's own table, which a run makes."""

Marks = dict[str, tuple[int, int]]
"""table → (rows, the sum of their hashes)."""


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def stored_tables(session: Session) -> dict[int, str]:
    """Every table that stores rows, by oid, but for the guard's."""
    found = session.sql(
        "SELECT c.oid::int8 AS oid, quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name "
        "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE c.relkind IN ('r', 'm') AND n.nspname !~ '^pg_' "
        "AND n.nspname NOT IN ('information_schema', $1) ORDER BY 1",
        GUARD,
    )
    return {row["oid"]: row["name"] for row in found}


def guard_records(session: Session) -> list[str] | None:
    """What rewrap keeps in the database, row by row; None before it keeps anything."""
    if session.value("SELECT to_regclass('rewrap.shard') IS NULL"):
        return None
    return [row["record"] for row in session.sql("SELECT s::text AS record FROM rewrap.shard AS s")]


def stamps(session: Session) -> Marks:
    """Which row versions there are: any write changes the sum, one that writes the same too."""
    return {
        name: _mark(session, f"SELECT ctid::text || ' ' || xmin::text AS hashed FROM ONLY {name}")
        for name in stored_tables(session).values()
    }


def fingerprints(session: Session, spared: dict[int, dict[str, list[str]]]) -> Marks:
    """Everything but what a rotation may write: `spared` is table → column → paths in it, none for all."""
    found = {}
    for oid, name in stored_tables(session).items():
        if "*" not in spared.get(oid, {}):
            columns = ", ".join(_others(session, oid, spared))
            found[name] = _mark(session, f"SELECT ROW({columns})::text AS hashed FROM ONLY {name}")
    return found


def _others(session: Session, oid: int, spared: dict[int, dict[str, list[str]]]) -> list[str]:
    columns = session.sql(
        "SELECT attname::text AS name FROM pg_attribute "
        "WHERE attrelid = $1::int8::oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        oid,
    )
    out = []
    for row in columns:
        paths = spared.get(oid, {}).get(row["name"])
        if paths is None:
            out.append(quoted(row["name"]))
        elif paths:
            out += _rest_of(quoted(row["name"]), [_steps(path) for path in paths])
    return out


def _rest_of(column: str, paths: list[list[str]]) -> list[str]:
    """A document without some places in it, and the elements of an array without some in each."""
    arrays: dict[str, str] = {}
    rest = column
    for steps in paths:
        if "*" in steps:
            at = steps.index("*")
            array = _array(steps[:at])
            arrays[array] = f"{arrays.get(array, 'e')} #- {_array(steps[at + 1 :])}"
            rest += f" #- {array}"
        else:
            rest += f" #- {_array(steps)}"
    elements = [
        f"CASE jsonb_typeof({column} #> {array}) WHEN 'array' THEN (SELECT jsonb_agg({left} ORDER BY n) "
        f"FROM jsonb_array_elements({column} #> {array}) WITH ORDINALITY AS x(e, n)) "
        f"ELSE {column} #> {array} END"
        for array, left in arrays.items()
    ]
    # a document that is but a number or a text has no paths to leave out
    scalar = f"jsonb_typeof({column}) NOT IN ('object', 'array')"
    return [f"CASE WHEN {scalar} THEN {column} ELSE {rest} END", *elements]


def _steps(path: str) -> list[str]:
    """The steps of `patient."a.b"[0].number`."""
    found = re.findall(r'"((?:[^"\\]|\\.)*)"|([^.\[\]"]+)', path)
    return [named or bare for named, bare in found]


def _array(steps: list[str]) -> str:
    return "ARRAY[" + ", ".join("'" + step.replace("'", "''") + "'" for step in steps) + "]::text[]"


def _mark(session: Session, rows: str) -> tuple[int, int]:
    # two sums of 64 bits each: equal by chance once in 2^64 at most
    (row,) = session.sql(
        "SELECT count(*) AS n, coalesce(sum(hashtextextended(hashed, 7)::numeric), 0) AS total "
        f"FROM ({rows}) AS everything"
    )
    return row["n"], int(row["total"])


def oids_of(session: Session, table: str) -> list[int]:
    """A job's table and its partitions: by its exact name, else with its schema before the first dot."""
    schema, _, name = table.partition(".")
    found: Any = session.value("SELECT to_regclass(quote_ident($1::text))::oid::int8", table)
    if found is None and name:
        found = session.value(
            "SELECT to_regclass(quote_ident($1::text) || '.' || quote_ident($2::text))::oid::int8",
            schema,
            name,
        )
    if found is None:
        found = session.value("SELECT to_regclass($1::text)::oid::int8", table)
    if found is None:
        return []
    parts = session.sql(
        "SELECT relid::oid::int8 AS oid FROM pg_partition_tree($1::int8::oid::regclass)", found
    )
    return sorted({found, *(row["oid"] for row in parts)})


def written_rows(session: Session, table: str) -> int:
    """How often rows of a table were updated, as the server counts it; waits for the last session's count."""
    wait_for(
        lambda: (
            not session.value(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                "AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
        )
    )
    return int(
        session.value(
            "SELECT coalesce(sum(n_tup_upd), 0) FROM pg_stat_user_tables "
            "WHERE relid::int8 = ANY ($1::int8[])",
            oids_of(session, table),
        )
    )
