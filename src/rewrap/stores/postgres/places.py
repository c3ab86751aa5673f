"""Where a field's values are, as SQL: one expression to read one, and what to assign for a new one.

A value that is stored in parts is read as one text and taken apart again when it is written:

    version ␞ nonce ␞ tag ␞ payload ␞ index      U+001E between them, bytes in hex

What is not stored apart is left out; a part that is NULL is the empty text, and without a payload there is
no value. Documents are changed where they are, path by path, and never built by the client: what else the
application writes into one meanwhile stays.
"""

from __future__ import annotations

from collections.abc import Sequence

from rewrap.model import FieldColumn, Location, Path, Role
from rewrap.packed import PART


def quote(identifier: str) -> str:
    """An SQL identifier, quoted."""
    return '"' + identifier.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A string literal that means the same whatever standard_conforming_strings says."""
    escaped = text.replace("\\", "\\\\").replace("'", "''")
    return f"E'{escaped}'"


_PART_SQL = f"chr({ord(PART)})"

_TEXT_TYPES = ("text", "varchar")


def value_of(field: FieldColumn, alias: str = "") -> str:
    """The expression of a field's value: of type text, or bytea if the field is binary."""
    before = f"{alias}." if alias else ""
    if len(field.parts) == 1:
        return _read(field.parts[0], before)
    parts = [
        _as_text(part, before) if part.role is Role.PAYLOAD else f"coalesce({_as_text(part, before)}, '')"
        for part in field.parts
    ]
    return f"({f' || {_PART_SQL} || '.join(parts)})"


def columns_of(field: FieldColumn) -> tuple[str, ...]:
    """The columns that hold a field's value, each once."""
    return tuple(dict.fromkeys(part.column for part in field.parts))


def assignments(fields: Sequence[FieldColumn], alias: str = "t") -> list[str]:
    """`column = expression` for each column of some fields, in order.

    The new value of the field at a place is `d.n{place}`, which is NULL to leave the field alone.
    """
    columns: dict[str, dict[Path, tuple[Location, list[str]]]] = {}
    for at, field in enumerate(fields):
        for number, part in enumerate(field.parts, 1):
            new = f"d.n{at}"
            if len(field.parts) > 1:
                new = f"split_part({new}, {_PART_SQL}, {number:d})"
            # values may share a version: then it is the same in each of their texts
            columns.setdefault(part.column, {}).setdefault(part.path, (part, []))[1].append(
                _from_text(part, new) if len(field.parts) > 1 else new
            )
    return [
        f"{quote(name)} = {_assigned(f'{alias}.{quote(name)}', list(places.values()))}"
        for name, places in columns.items()
    ]


def _assigned(current: str, places: list[tuple[Location, list[str]]]) -> str:
    if not places[0][0].path:
        return f"coalesce({', '.join(places[0][1])}, {current})"
    out, given = current, []
    for part, news in places:
        new = news[0] if len(news) == 1 else f"coalesce({', '.join(news)})"
        given.append(f"{new} IS NOT NULL")
        path = _path(part)
        stored, text = f"({current} #> {path})", f"to_jsonb({new})"
        make = "false"
        if part.role is Role.VERSION:
            # a number stays a number; and a value that had no version gets one
            text = f"CASE jsonb_typeof{stored} WHEN 'number' THEN to_jsonb(({new})::numeric) ELSE {text} END"
            make = f"{new} IS NOT NULL"
        out = f"jsonb_set({out}, {path}, coalesce({text}, {stored}, 'null'), {make})"
    return f"CASE WHEN {' OR '.join(given)} THEN {out} ELSE {current} END"


def _read(part: Location, before: str) -> str:
    column = before + quote(part.column)
    return f"({column} #>> {_path(part)})" if part.path else column


def _as_text(part: Location, before: str) -> str:
    read = _read(part, before)
    if part.path or part.base in _TEXT_TYPES:
        return read
    return f"encode({read}, 'hex')" if part.base == "bytea" else f"{read}::text"


def _from_text(part: Location, new: str) -> str:
    if part.path or part.base in _TEXT_TYPES:
        return new
    return f"decode({new}, 'hex')" if part.base == "bytea" else f"({new})::{part.type_name}"


def _path(part: Location) -> str:
    return f"ARRAY[{', '.join(literal(str(step)) for step in part.path)}]"
