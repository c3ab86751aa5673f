"""Where a field's values are, as SQL: one expression to read one, and what to assign for a new one.

A value that is stored in parts is read as one text and taken apart again when it is written:

    version ␞ nonce ␞ tag ␞ payload ␞ index      U+001E between them, bytes in hex

What is not stored apart is left out; a part that is NULL is the empty text, and without a payload there is
no value. A text where the object with the parts should be is the payload itself, from before it was sealed;
an object with all parts then takes its place. Documents are changed where they are, path by path, and never
built by the client: what else the application writes into one meanwhile stays.

The elements of an array (`cards[*].number`) are one field of a row: their values with U+001D between them,
those left out that have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rewrap.model import FieldColumn, Location, Path, Role
from rewrap.packed import ELEMENT, PART, SEPARATOR


def quote(identifier: str) -> str:
    """An SQL identifier, quoted."""
    return '"' + identifier.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A string literal that means the same whatever standard_conforming_strings says."""
    escaped = text.replace("\\", "\\\\").replace("'", "''")
    return f"E'{escaped}'"


_PART_SQL, _ELEMENT_SQL, _SEPARATOR_SQL = (f"chr({ord(char)})" for char in (PART, ELEMENT, SEPARATOR))

_ODD_SQL = "chr(2)"
"""Stands where a value cannot be what it should be: no layout has it in a marker or in a payload."""

_NOWHERE_SQL = literal("(no place for it)")
"""Stands for the version of a value in a document that has no object to write a version to."""


_TEXT_TYPES = ("text", "varchar", "jsonb")


def value_of(field: FieldColumn, alias: str = "") -> str:
    """The expression of a field's value: of type text, or bytea if the field is binary."""
    before = f"{alias}." if alias else ""
    if not field.many:
        return _joined(field.parts, before)
    array = _path(_array_of(field.parts[0]))
    elements = f"{before}{quote(field.parts[0].column)} #> {array}"
    return (
        f"(SELECT string_agg(v, {_ELEMENT_SQL} ORDER BY n) FROM (SELECT {_of_element(field)} AS v, e.n "
        f"FROM {_elements(elements)}) AS x)"
    )


def sha256_of(field: FieldColumn, alias: str = "") -> str:
    """The expression of the SHA-256 of a field's value, in hex."""
    value = value_of(field, alias)
    raw = value if field.binary else f"convert_to({value}, getdatabaseencoding())"
    return f"encode(sha256({raw}), 'hex')"


def columns_of(field: FieldColumn) -> tuple[str, ...]:
    """The columns that hold a field's value, each once."""
    return tuple(dict.fromkeys(part.column for part in field.parts))


def assignments(fields: Sequence[FieldColumn], alias: str = "t") -> list[str]:
    """`column = expression` for each column of some fields, in order.

    The new value of the field at a place is `d.n{place}`, which is NULL to leave the field alone.
    """
    news: dict[str, _News] = {}
    holders: dict[str, _Holders] = {}
    arrays: dict[str, dict[Path, list[tuple[str, FieldColumn]]]] = {}
    for at, field in enumerate(fields):
        holder = None if field.many else _holder_of(field.parts)
        if holder is not None:
            holders.setdefault(holder.column, {}).setdefault(holder.path, []).append(f"d.n{at}")
        if field.many:
            steps = _array_of(field.parts[0])
            columns = arrays.setdefault(field.parts[0].column, {})
            columns.setdefault(steps, []).append((f"d.n{at}", field))
            news.setdefault(field.parts[0].column, {})
        for part, new in [] if field.many else _taken_apart(field.parts, f"d.n{at}"):
            # values may share a version: then it is the same in each of their texts
            news.setdefault(part.column, {}).setdefault(part.path, (part, []))[1].append(new)
    return [
        f"{quote(name)} = "
        f"{_assigned(f'{alias}.{quote(name)}', parts, arrays.get(name, {}), holders.get(name, {}))}"
        for name, parts in news.items()
    ]


_News = dict[Path, tuple[Location, list[str]]]
"""What a column's parts are to be, by path: the expressions of their new texts, NULL to leave one alone."""

_Holders = dict[Path, list[str]]
"""Objects that values in parts stand in, by path: the expressions of those values' new texts."""


def _taken_apart(parts: Sequence[Location], new: str) -> list[tuple[Location, str]]:
    if len(parts) == 1:
        return [(parts[0], new)]
    return [
        (part, _from_text(part, f"split_part({new}, {_PART_SQL}, {number:d})"))
        for number, part in enumerate(parts, 1)
    ]


def _assigned(
    current: str, news: _News, arrays: dict[Path, list[tuple[str, FieldColumn]]], holders: _Holders
) -> str:
    if () in news:
        return f"coalesce({', '.join(news[()][1])}, {current})"
    given = [f"{new} IS NOT NULL" for _, texts in news.values() for new in texts]
    out = _changed(current, current, news, holders)
    for steps, fields in arrays.items():
        changes = " OR ".join(f"{new} IS NOT NULL" for new, _ in fields)
        given.append(changes)
        path = _path(steps)
        elements = (
            f"coalesce({_changed_elements(f'{current} #> {path}', fields)}, {current} #> {path}, 'null')"
        )
        # an array that is the whole document has no path
        where = f"CASE WHEN {changes} THEN {path} ELSE '{{}}' END"
        out = f"jsonb_set({out}, {where}, {elements}, false)" if steps else elements
    return f"CASE WHEN {' OR '.join(given)} THEN {out} ELSE {current} END"


def _changed(document: str, current: str, news: _News, holders: _Holders) -> str:
    """A document with some parts changed; `current` is what they are now."""
    for steps, given in holders.items():
        path, some = _path(steps), " OR ".join(f"{new} IS NOT NULL" for new in given)
        empty = f"jsonb_set({document}, {path}, '{{}}', false)" if steps else "'{}'::jsonb"
        document = f"CASE WHEN ({some}) AND {_is_text(current, steps)} THEN {empty} ELSE {document} END"
    for part, texts in news.values():
        new = texts[0] if len(texts) == 1 else f"coalesce({', '.join(texts)})"
        path = _path(part.path)
        stored, text, make = f"({current} #> {path})", f"to_jsonb({new})", "false"
        if part.role is Role.VERSION:
            # a number stays a number; and a value that had no version gets one
            text = f"CASE jsonb_typeof{stored} WHEN 'number' THEN to_jsonb(({new})::numeric) ELSE {text} END"
        if part.role in (Role.VERSION, Role.NONCE, Role.TAG):
            make = "true"
        elif part.path and part.path[:-1] in holders:
            make = _is_text(current, part.path[:-1])
        if not part.path:
            document = f"coalesce({text}, {current})"
            continue
        # without a new value there is nothing to set, and an empty path sets nothing: along the path there
        # may be what cannot be gone through
        where = f"CASE WHEN {new} IS NOT NULL THEN {path} ELSE '{{}}' END"
        document = f"jsonb_set({document}, {where}, coalesce({text}, 'null'), {make})"
    return document


def _is_text(current: str, steps: Path) -> str:
    """The condition that a text stands at a path."""
    return f"coalesce(jsonb_typeof({current} #> {_path(steps)}) = 'string', false)"


def _changed_elements(array: str, fields: Sequence[tuple[str, FieldColumn]]) -> str:
    """An array in which each element that has a new value holds it; the others stay as they are."""
    columns: list[str] = []
    joins: list[str] = []
    news: _News = {}
    holders: _Holders = {}
    for at, (new, field) in enumerate(fields):
        value = _of_element(field)
        columns += [f"{value} AS old{at}", f"count({value}) OVER (ORDER BY e.n) AS at{at}"]
        # taken apart once, and not once for each element
        texts = f"unnest(string_to_array({new}, {_ELEMENT_SQL})) WITH ORDINALITY AS m{at}(v, n)"
        joins.append(f" LEFT JOIN {texts} ON m{at}.n = x.at{at} AND x.old{at} IS NOT NULL")
        fresh = f'CASE WHEN x.old{at} <> m{at}.v COLLATE "C" THEN m{at}.v END'
        parts = [_in_element(part) for part in field.parts]
        holder = _holder_of(parts)
        if holder is not None:
            holders.setdefault(holder.path, []).append(fresh)
        for part, text in _taken_apart(parts, fresh):
            news.setdefault(part.path, (part, []))[1].append(text)
    # an element without any value stays as it is: it may be a scalar, which nothing can be set in
    given = f"coalesce({', '.join(f'x.old{at}' for at in range(len(fields)))}) IS NOT NULL"
    changed = f"CASE WHEN {given} THEN {_changed('x.v', 'x.v', news, holders)} ELSE x.v END"
    return (
        f"(SELECT jsonb_agg({changed} ORDER BY x.n) "
        f"FROM (SELECT e.v, e.n, {', '.join(columns)} FROM {_elements(array)}) AS x{''.join(joins)})"
    )


def _elements(array: str) -> str:
    # what is no array has no elements, and is no error
    only = f"CASE jsonb_typeof({array}) WHEN 'array' THEN {array} END"
    return f"jsonb_array_elements({only}) WITH ORDINALITY AS e(v, n)"


def _of_element(field: FieldColumn) -> str:
    """The value of one element `e.v`; a text that would come apart is one that is never written."""
    value = _joined([_in_element(part) for part in field.parts], "e.")
    return f"translate({value}, {_ELEMENT_SQL} || {_SEPARATOR_SQL}, {_ODD_SQL} || {_ODD_SQL})"


def _array_of(part: Location) -> Path:
    """The steps to the array whose elements a path goes through."""
    return part.path[: part.path.index(None)]


def _in_element(part: Location) -> Location:
    """Where a part is within an element, which stands in column v."""
    return replace(part, column="v", path=part.path[part.path.index(None) + 1 :], base="jsonb")


def _joined(parts: Sequence[Location], before: str) -> str:
    if len(parts) == 1:
        return _read(parts[0], before)
    texts = [
        _as_text(part, before) if part.role is Role.PAYLOAD else f"coalesce({_as_text(part, before)}, '')"
        for part in parts
    ]
    joined = f"({f' || {_PART_SQL} || '.join(texts)})"
    holder = _holder_of(parts)
    if holder is None:
        return joined
    above, text = (f"({before}{quote(holder.column)} {way} {_path(holder.path)})" for way in ("#>", "#>>"))
    bare = [
        text
        if part.role is Role.PAYLOAD
        else "''"
        if _beneath(part, holder)
        else f"coalesce({_as_text(part, before)}, '')"
        for part in parts
    ]
    whole = f" || {_PART_SQL} || ".join(bare)
    return f"(CASE jsonb_typeof{above} WHEN 'string' THEN {whole} ELSE {joined} END)"


def _holder_of(parts: Sequence[Location]) -> Location | None:
    """The object that a value in parts stands in, where a text may be in its place; None where it is none."""
    payload = next(part for part in parts if part.role is Role.PAYLOAD)
    if (
        len(parts) == 1
        or payload.base != "jsonb"
        or not payload.path
        or not isinstance(payload.path[-1], str)
    ):
        return None
    return replace(payload, path=payload.path[:-1])


def _beneath(part: Location, holder: Location) -> bool:
    """Whether a part stands in an object."""
    return part.column == holder.column and part.path[: len(holder.path)] == holder.path


def _read(part: Location, before: str) -> str:
    column = before + quote(part.column)
    if part.base != "jsonb":
        # as a type that the catalog itself has functions and operators for: for any other somebody may have
        # made a better match
        exact = part.type_name == "text" or part.base == "bytea"
        return column if exact else f"{column}::text"
    stored, text = f"({column} #> {_path(part.path)})", f"({column} #>> {_path(part.path)})"
    if part.role is Role.VERSION:
        return f"CASE WHEN {_can_stand(part, column)} THEN {text} ELSE {_NOWHERE_SQL} END"
    # what is no text is no sealed value, though its text might look like one
    return f"CASE jsonb_typeof{stored} WHEN 'string' THEN {text} ELSE {_ODD_SQL} || {text} END"


def _can_stand(part: Location, column: str) -> str:
    """The condition that a version can be written at its path: it is there, or its object is."""
    *parent, last = part.path
    if isinstance(last, int):
        return f"({column} #> {_path(part.path)}) IS NOT NULL"
    return f"jsonb_typeof({column} #> {_path(tuple(parent))}) = 'object'"


def _as_text(part: Location, before: str) -> str:
    read = _read(part, before)
    if part.base in _TEXT_TYPES:
        return read
    return f"encode({read}, 'hex')" if part.base == "bytea" else f"{read}::text"


def _from_text(part: Location, new: str) -> str:
    if part.base in _TEXT_TYPES:
        return new
    return f"decode({new}, 'hex')" if part.base == "bytea" else f"({new})::{part.type_name}"


def _path(path: Path) -> str:
    return f"ARRAY[{', '.join(literal(str(step)) for step in path)}]::text[]"
