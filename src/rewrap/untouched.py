"""What a job says that a rotation must leave as it is: columns beside its fields, and whole other tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from pydantic import Field, model_validator

from rewrap.model import Place
from rewrap.targets import (
    CosmosName,
    KeyNames,
    Name,
    PlaceText,
    Section,
    TargetSection,
    overlap,
    parse_place,
    table_named,
)

EVERYTHING = "*"
"""In a target's `untouched`: every column in which no field of the target is stored."""


class OfKind(Protocol):
    """A store's section, as far as it matters here."""

    @property
    def kind(self) -> str: ...


class UntouchedSection(Section):
    """`[[untouched]]`: a table that is no target, and what of it is proved to stay as it is.

    `table` is the name of a container, too. Without `columns` it is whole rows, or whole documents.
    """

    table: Name
    container: CosmosName | None = None
    store: Name | None = None
    key: KeyNames | None = None
    columns: list[PlaceText] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, told: Any) -> Any:
        return table_named(told)


@dataclass(frozen=True, slots=True)
class Witnessed:
    """What is fingerprinted of one table: its key's columns, and places as the job writes them.

    Without `key` it is the table's own. Without `places`, or with one that is `*`, it is everything but
    what lies at `written`.
    """

    store: str
    table: str
    key: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    written: tuple[str, ...] = ()

    @property
    def parsed(self) -> tuple[Place, ...]:
        """The places that are named one by one."""
        return tuple(parse_place(text) for text in self.places if text != EVERYTHING)

    @property
    def whole(self) -> bool:
        """Whether everything is meant, and not only what is named."""
        return not self.places or EVERYTHING in self.places

    @property
    def text(self) -> str:
        """The same as JSON, for the ledger."""
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_text(cls, text: str) -> Witnessed:
        read = json.loads(text)
        return cls(read["store"], read["table"], *(tuple(read[n]) for n in ("key", "places", "written")))


def witnessed(
    targets: Iterable[TargetSection], sections: Iterable[UntouchedSection], stores: Iterable[str]
) -> tuple[Witnessed, ...]:
    """Everything that a job wants fingerprinted, table by table."""
    first = next(iter(stores))
    beside = [
        Witnessed(
            target.store or first,
            target.table,
            tuple(target.key or ()),
            tuple(target.untouched),
            tuple(dict.fromkeys(place_text(place) for entry in target.fields for _, place in entry.places)),
        )
        for target in targets
        if target.untouched
    ]
    others = [
        Witnessed(section.store or first, section.table, tuple(section.key or ()), tuple(section.columns))
        for section in sections
    ]
    return (*beside, *others)


def refused_untouched(
    targets: Sequence[TargetSection],
    sections: Sequence[UntouchedSection],
    stores: Mapping[str, OfKind],
) -> tuple[str, str, str] | None:
    """Where what is to stay as it is cannot be so, why, and what to do; None when it can."""
    for at, target in enumerate(targets):
        for place, text in enumerate(target.untouched):
            if text == EVERYTHING:
                continue
            for entry in target.fields:
                if any(overlap(parse_place(text), written) for _, written in entry.places):
                    return (
                        f"targets[{at}].untouched[{place}]",
                        f'"{text}" is, or holds, what field "{entry.name}" is written to',
                        "name what lies beside the field: another column, or a path in the same document",
                    )
    first = next(iter(stores))
    taken = {(target.store or first, target.table): "a target" for target in targets}
    for at, section in enumerate(sections):
        refused = _refused_store(section, stores, {store for store, _ in taken})
        if refused is not None:
            return (f"untouched[{at}].{refused[0]}", *refused[1:])
        named = (section.store or first, section.table)
        if named in taken:
            hint = "list its columns in one section"
            if taken[named] == "a target":
                hint = 'name what must stay as it is in the target itself: untouched = ["body"]'
            return f"untouched[{at}].table", f'table "{section.table}" is {taken[named]} already', hint
        taken[named] = "named as untouched"
    return None


def _refused_store(
    section: UntouchedSection, stores: Mapping[str, OfKind], used: set[str]
) -> tuple[str, str, str] | None:
    hint = f"stores are {', '.join(stores)}"
    if section.store is None and len(stores) > 1:
        return "store", "is missing: the job has more than one store", hint
    name = section.store or next(iter(stores))
    if name not in stores:
        return "store", f'there is no store "{name}"', hint
    if name not in used:
        return (
            "store",
            f'no target is in store "{name}": a run does not open it',
            "name what must stay as it is in stores that the job rotates",
        )
    in_cosmos = stores[name].kind == "cosmos"
    if in_cosmos != (section.container is not None):
        right, wrong = ("container", "table") if in_cosmos else ("table", "container")
        said = f'"{name}" is a store of kind {stores[name].kind}'
        return wrong, said, f'write {right} = "{section.table}"'
    if in_cosmos and section.key is not None:
        return "key", "a document is found by its id and its partition key", "leave key out"
    return None


def place_text(place: Place) -> str:
    """A place as a job would write it."""
    out = json.dumps(place.column)
    for step in place.path:
        out += f".{json.dumps(step)}" if isinstance(step, str) else f"[{'*' if step is None else step}]"
    return out
