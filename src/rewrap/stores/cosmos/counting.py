"""Pure: verify's questions to a container, as query texts. None of them is one that a run asks.

What decides a value's class is the place that its marker stands in: a property of its own, or the payload's
beginning. Comparisons of different types have no value in Cosmos DB, and a condition without a value counts
nothing: each type is asked for before anything is compared.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewrap.crypto.layout import MARKER_BYTES_MAX
from rewrap.forms import Forms, Named
from rewrap.model import FieldColumn, Location, Role
from rewrap.packed import PART
from rewrap.stores.cosmos.client import Query

ALL = Query("SELECT VALUE COUNT(1) FROM c WHERE true")
"""How many documents there are. The condition is there for servers that want one."""

SINCE = "SELECT VALUE COUNT(1) FROM c WHERE c._ts >= @since"
"""How many documents were written at a time or after it."""


Steps = tuple[str | int, ...]


def place(steps: Steps, root: str = "c") -> str:
    """Where something is in a document, or in an element, as a query has it."""
    return root + "".join(f"[{json.dumps(step)}]" for step in steps)


def steps_to(part: Location) -> Steps:
    """The steps from a document's root to a part that is in no array's elements."""
    return (part.column, *(step for step in part.path if step is not None))


def literal(value: Any) -> str:
    """A constant in a query's text."""
    return json.dumps(value)


Condition = tuple[str, tuple[tuple[str, Any], ...]]
"""A condition on documents `c`, and its parameters by name."""

EVERY: Condition = ("true", ())


@dataclass(frozen=True, slots=True)
class Classes:
    """The questions that tell one field's values apart. A document has one value of it, or none.

    `known` are counted by the forms that a marker names, in their order, the target's first. `unmarked` are
    values without any text where the marker would be, and a place for one; `nowhere` those without a place.
    `others` have another text there; `heads` reads it.
    `without` and `at_target` find the documents of values that none of these markers names, or the target's.
    """

    null: Query
    known: tuple[tuple[Named, Query], ...]
    unmarked: Query
    nowhere: Query | None
    others: Query
    heads: Query
    without: Condition
    at_target: Condition
    apart: bool

    def head_of(self, found: Any) -> str:
        """The text that names a version, from what `heads` found: as it stands at a value's beginning."""
        texts = [one for one in found if isinstance(one, str)] if isinstance(found, list) else []
        return texts[0] + PART if texts and self.apart else "".join(texts[:1])


def classes_of(field: FieldColumn, forms: Forms) -> Classes:
    """The questions about a field that is no array's elements."""
    payload = steps_to(_payload(field))
    there = present(payload)
    version = _version(field)
    places = [place(steps_to(version))] if version else _texts(payload)
    known = [
        (form, *_named(places, form, f"@p{at}", apart=version is not None))
        for at, form in enumerate(forms.named)
    ]
    before = tuple(parameter for _, _, parameter in known)
    texted = " OR ".join(f"IS_STRING({one})" for one in places)
    # a value under two markers, were there such a thing, counts for the first
    taken = "".join(f" AND NOT ({condition})" for _, condition, _ in known)
    others = f"{there} AND ({texted}){taken}"
    homeless = _homeless(payload, steps_to(version)) if version else None
    bare = f"{there} AND {_no_text(places)}"
    heads = ", ".join(f"LEFT({one}, {MARKER_BYTES_MAX})" for one in places)
    return Classes(
        null=_count(f"NOT {there}"),
        known=tuple(
            (
                form,
                _count(
                    f"{there} AND ({condition})"
                    + "".join(f" AND NOT ({other})" for _, other, _ in known[:at]),
                    before[: at + 1],
                ),
            )
            for at, (form, condition, _) in enumerate(known)
        ),
        unmarked=_count(f"{bare} AND NOT ({homeless})" if homeless else bare),
        nowhere=_count(f"{bare} AND {homeless}") if homeless else None,
        others=_count(others, before),
        heads=Query(f"SELECT VALUE [{heads}] FROM c WHERE {others}", before),
        without=(f"{there}{taken}", before),
        at_target=(f"{there} AND ({known[0][1]})", before[:1]) if known else ("false", ()),
        apart=version is not None,
    )


def selection(
    properties: Sequence[str], condition: Condition
) -> tuple[Query, Callable[[Mapping[str, Any]], dict[str, Any]]]:
    """What reads some properties of documents, and what gives a result their own names again."""
    listed = ", ".join(f"{place((name,))} AS v{at}" for at, name in enumerate(properties))
    where, parameters = condition

    def named(found: Mapping[str, Any]) -> dict[str, Any]:
        return {name: found[f"v{at}"] for at, name in enumerate(properties) if f"v{at}" in found}

    return Query(f"SELECT {listed} FROM c WHERE {where}", parameters), named


def present(payload: Steps, root: str = "c") -> str:
    """The condition that there is a value: something that is not null, be it in its payload's way."""
    whole = place(payload, root)
    found = [f"(IS_DEFINED({whole}) AND NOT IS_NULL({whole}))"]
    # what a document's root is, is known; an element may be anything
    for depth in range(1 if root == "c" else 0, len(payload)):
        above = place(payload[:depth], root)
        kind = "IS_ARRAY" if isinstance(payload[depth], int) else "IS_OBJECT"
        found.append(f"(IS_DEFINED({above}) AND NOT IS_NULL({above}) AND NOT {kind}({above}))")
    return f"({' OR '.join(found)})" if len(found) > 1 else found[0]


def _payload(field: FieldColumn) -> Location:
    return next(part for part in field.parts if part.role is Role.PAYLOAD)


def _version(field: FieldColumn) -> Location | None:
    first = field.parts[0]
    return first if first.role is Role.VERSION else None


def _texts(payload: Steps, root: str = "c") -> list[str]:
    """Where a payload's text may stand: at its place, or in the way to it."""
    least = 1 if root == "c" else 0
    return [place(payload[:depth], root) for depth in range(len(payload), least - 1, -1)]


def _named(places: Sequence[str], form: Named, name: str, *, apart: bool) -> tuple[str, tuple[str, Any]]:
    """The condition that a marker names a form, and its parameter."""
    prefix = str(form.prefix)
    if apart:
        (where,) = places
        return f"IS_STRING({where}) AND {where} = {name}", (name, prefix.removesuffix(PART))
    begins = [f"(IS_STRING({where}) AND STARTSWITH({where}, {name}))" for where in places]
    return " OR ".join(begins), (name, prefix)


def _homeless(payload: Steps, version: Steps) -> str | None:
    """The condition that there is no object to write a version to; None where there always is one.

    Where a text stands in the place of both, all of it is written anew.
    """
    if len(version) == 1:
        return None
    *above, last = version
    parent = place(tuple(above))
    home = f"IS_OBJECT({parent})"
    if isinstance(last, int):
        home = f"(IS_ARRAY({parent}) AND ARRAY_LENGTH({parent}) > {last:d})"
    shared = [depth for depth in range(1, len(payload)) if payload[:depth] == version[:depth]]
    texts = "".join(f" AND NOT IS_STRING({place(payload[:depth])})" for depth in shared)
    return f"(NOT {home}{texts})"


def _no_text(places: Sequence[str]) -> str:
    each = [f"(NOT IS_DEFINED({one}) OR IS_NULL({one}) OR NOT IS_STRING({one}))" for one in places]
    return f"({' AND '.join(each)})"


def _count(condition: str, parameters: tuple[tuple[str, Any], ...] = ()) -> Query:
    return Query(f"SELECT VALUE COUNT(1) FROM c WHERE {condition}", parameters)


def not_at(field: FieldColumn, forms: Forms) -> str:
    """For people to paste: counts the documents with a value that is not under the new version.

    A document whose version is missing, null or no string counts too; every document with a value, where no
    marker names versions.
    """
    target = next((form for form in forms.named if form.new and form.version == forms.versions[0]), None)
    payload, version = _payload(field), _version(field)
    if not field.many:
        condition = _not_at(steps_to(payload), steps_to(version) if version else None, target)
        return f"SELECT VALUE COUNT(1) FROM c WHERE {condition}"
    depth = payload.path.index(None)
    array = place(steps_to(payload)[: 1 + depth])
    within = [
        tuple(step for step in part.path[depth + 1 :] if step is not None) if part else None
        for part in (payload, version)
    ]
    condition = _not_at(within[0] or (), within[1], target, "e")
    return f"SELECT VALUE COUNT(1) FROM c WHERE EXISTS(SELECT VALUE e FROM e IN {array} WHERE {condition})"


def _not_at(payload: Steps, version: Steps | None, target: Named | None, root: str = "c") -> str:
    there = present(payload, root)
    if target is None:
        return there
    if version is None:
        begins, (name, prefix) = _named(_texts(payload, root), target, "@p", apart=False)
        return f"{there} AND NOT ({begins.replace(name, literal(prefix))})"
    where = place(version, root)
    new = literal(str(target.prefix).removesuffix(PART))
    return (
        f"{there} AND (NOT IS_DEFINED({where}) OR IS_NULL({where}) OR NOT IS_STRING({where}) "
        f"OR {where} != {new})"
    )
