"""Pure: the queries that read a container, as text and parameters.

Names are quoted; values are parameters, all of them. A query never orders: the server goes through a feed
range in an order of its own, which a continuation token stands for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewrap.interfaces import Prefix, Scope
from rewrap.model import FieldColumn, Location, Role
from rewrap.packed import PART
from rewrap.stores.cosmos.client import Query
from rewrap.stores.cosmos.documents import Steps, part_steps
from rewrap.stores.cosmos.shape import Shape

ALL = "true"
"""The condition of every document. The SDK wants one with a feed range."""

COUNT = Query(f"SELECT VALUE COUNT(1) FROM c WHERE {ALL}")


def page_query(shape: Shape, scope: Scope) -> Query:
    """What a sweep reads: of every document, or of those in scope, the properties that rows are made of."""
    conditions = _Conditions()
    where = ALL
    if scope.markers is not None:
        where = " OR ".join(_in_scope(shape, scope, conditions)) or "false"
    return Query(f"SELECT {_selected(shape)} FROM c WHERE {where}", tuple(conditions.parameters))


def sample_query(shape: Shape, prefixes: Mapping[str, Prefix]) -> Query:
    """Documents that hold a value under one of some prefixes, by field; and perhaps others."""
    return page_query(shape, Scope({name: (prefix,) for name, prefix in prefixes.items()}))


def written_since(seconds: int) -> Query:
    """Counts the documents that were written at or after a moment of the server's clock."""
    return Query(
        f"SELECT VALUE COUNT(1) FROM c WHERE {expression(('_ts',))} >= @since", (("@since", seconds),)
    )


def named(shape: Shape, found: Mapping[str, Any]) -> dict[str, Any]:
    """A result of `page_query` with its properties under their own names; what is not there stays away."""
    return {
        name: found[alias]
        for name, alias in zip(shape.properties, _aliases(shape), strict=True)
        if alias in found
    }


def expression(steps: Steps) -> str:
    """A place in a document: `c["body"]["ct"]`, `c["cards"][0]`."""
    return "c" + "".join(
        f"[{step:d}]" if isinstance(step, int) else f"[{json.dumps(step, ensure_ascii=False)}]"
        for step in steps
    )


@dataclass
class _Conditions:
    """Parameters of a query in the making."""

    parameters: list[tuple[str, Any]] = field(default_factory=list)

    def __call__(self, value: str) -> str:
        self.parameters.append((f"@p{len(self.parameters)}", value))
        return self.parameters[-1][0]


def _selected(shape: Shape) -> str:
    pairs = zip(shape.properties, _aliases(shape), strict=True)
    return ", ".join(f"{expression((name,))} AS {alias}" for name, alias in pairs)


def _aliases(shape: Shape) -> list[str]:
    return [f"p{at}" for at in range(len(shape.properties))]


def _in_scope(shape: Shape, scope: Scope, conditions: _Conditions) -> list[str]:
    """The conditions of which one holds for every document in scope; a few others may fulfil them too."""
    found: list[str] = []
    for column in shape.table.fields:
        prefixes = (scope.markers or {}).get(column.name, ())
        unmarked = column.name in scope.unmarked
        if column.many and (prefixes or unmarked):
            # its elements are looked at when they have come
            depth = column.parts[0].path.index(None)
            found.append(f"IS_ARRAY({_place(column.parts[0], depth)})")
            continue
        found += [_begins(column, str(prefix), conditions) for prefix in prefixes]
        if unmarked:
            found.append(_without_marker(column))
    return list(dict.fromkeys(found))


def _begins(column: FieldColumn, prefix: str, conditions: _Conditions) -> str:
    """The condition that a field's text begins with a prefix: whole parts of it, and the start of one."""
    payload = _payload(column)
    if not prefix:
        return f"({_any_text(payload)})"
    *whole, last = prefix.split(PART)
    parts = [_whole(part, text, conditions) for part, text in zip(column.parts, whole, strict=False)]
    if last:
        part = column.parts[len(whole)]
        starts = [f"STARTSWITH({expression(steps)}, {conditions(last)})" for steps in _places(part)]
        parts.append(f"({' OR '.join(starts)})" if len(starts) > 1 else starts[0])
    return f"({' AND '.join(parts)})"


def _whole(part: Location, text: str, conditions: _Conditions) -> str:
    place = expression(part_steps(part))
    if text == "":
        return _no_text(place)
    # not "=": with a feed range some servers take an equality for that of the partition key
    return f"{place} IN ({conditions(text)})"


def _without_marker(column: FieldColumn) -> str:
    version = next((part for part in column.parts if part.role is Role.VERSION), None)
    some = _any_text(_payload(column))
    return f"({some})" if version is None else f"({_no_text(expression(part_steps(version)))} AND ({some}))"


def _any_text(part: Location) -> str:
    return " OR ".join(f"IS_STRING({expression(steps)})" for steps in _places(part))


def _no_text(place: str) -> str:
    return f"(NOT IS_DEFINED({place}) OR IS_NULL({place}) OR NOT IS_STRING({place}))"


def _payload(column: FieldColumn) -> Location:
    return next(part for part in column.parts if part.role is Role.PAYLOAD)


def _places(part: Location) -> list[Steps]:
    """Where a part's text may stand: at its path; a payload's also where the object with it should be."""
    steps = part_steps(part)
    if part.role is not Role.PAYLOAD:
        return [steps]
    return [steps[:depth] for depth in range(len(steps), 0, -1)]


def _place(part: Location, depth: int) -> str:
    steps: Sequence[str | int] = [step for step in part.path[:depth] if step is not None]
    return expression((part.column, *steps))
