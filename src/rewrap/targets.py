"""The `[[targets]]` of a job file: which tables, which fields in them, and where each part of one is."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

from rewrap.crypto.markers import GROUP
from rewrap.model import Path, Place, Role

Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]


NOT_IN_NAMES = "/\\?#"
"""What Cosmos DB takes in no name of a database or a container: it would lead to another path."""


def _cosmos_name(value: str) -> str:
    if value in (".", "..") or any(character in NOT_IN_NAMES for character in value):
        raise ValueError(f"is no name of a database or container: it holds none of {' '.join(NOT_IN_NAMES)}")
    return value


CosmosName = Annotated[Name, AfterValidator(_cosmos_name)]


class Section(BaseModel):
    """A table of a job file: no fields but the named ones, and no value in an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


_STEP = re.compile(r'(?:^|\.)(?:([^.\[\]"]+)|("(?:[^"\\]|\\.)*"))|\[(\*|[0-9]+)\]')


def parse_path(text: str) -> Path:
    """The steps of a path like `patient.ssn`, `cards[0].number`, `cards[*]."card no."`.

    Raises ValueError for what is no path.
    """
    steps: list[str | int | None] = []
    at = 0
    while at < len(text):
        found = _STEP.match(text, at)
        if found is None or found.end() == at:
            raise ValueError(
                f'"{text}" is not a path: write patient.ssn, cards[0].number or cards[*].number, and a key '
                "with dots or brackets in double quotes"
            )
        bare, quoted, index = found.groups()
        if index is not None:
            steps.append(None if index == "*" else int(index))
        else:
            steps.append(bare if bare is not None else json.loads(quoted))
        at = found.end()
    if not steps:
        raise ValueError("a path is not empty")
    if steps.count(None) > 1:
        raise ValueError(f'"{text}" has more than one [*]')
    return tuple(steps)


def _path_text(value: object) -> object:
    if isinstance(value, str):
        parse_path(value)
    return value


PathText = Annotated[str, BeforeValidator(_path_text)]


def parse_place(text: str) -> Place:
    """The column, and the path in it, of a text like `body`, `doc.patient.name`, `"odd.name".items[*].id`.

    Raises ValueError for what is no place.
    """
    column, *path = parse_path(text)
    if not isinstance(column, str):
        raise ValueError(f'"{text}" does not begin with a column')
    return Place(column, tuple(path))


def _place_text(value: object) -> object:
    if isinstance(value, str):
        parse_place(value)
    return value


PlaceText = Annotated[str, BeforeValidator(_place_text)]


class PartSection(Section):
    """Where a part of a value is stored: a column of its own, or a path in a column of jsonb.

    `form` says how a version is written there, with `{version}` in it.
    """

    column: Name | None = None
    path: PathText | None = None
    form: Name | None = None


class IndexSection(Section):
    """A blind index beside a value: where it is stored, and which `[indexes.NAME]` computes it."""

    column: Name
    index: Name


class FieldSection(Section):
    """One encrypted field: where it is stored and how.

    `path` leads into a column of jsonb: `patient.ssn`, `cards[0].number`, `cards[*].number`. `version`,
    `nonce` and `tag` are parts that are stored apart from the payload; `dek_id` is in the version's place,
    where values are under DEKs. With `to_layout`, new values are stored in another layout than old ones.
    """

    column: Name
    layout: Name
    path: PathText | None = None
    to_layout: Name | None = None
    version: PartSection | None = None
    dek_id: PartSection | None = None
    nonce: PartSection | None = None
    tag: PartSection | None = None
    indexes: list[IndexSection] = []

    @property
    def name(self) -> str:
        """What the field is called in every report: its column, and its path."""
        return self.column if self.path is None else f"{self.column}.{self.path}"

    @property
    def layouts(self) -> tuple[str, ...]:
        """The names of its layouts: the one that values are in, and where it differs that of new ones."""
        return tuple(dict.fromkeys((self.layout, self.to_layout or self.layout)))

    @property
    def places(self) -> tuple[tuple[Role, Place], ...]:
        """Where each part of a value is stored, in the order in which they are joined to one text."""
        before = [
            (role, Place(part.column or self.column, parse_path(part.path) if part.path else ()))
            for role, part in (
                (Role.VERSION, self.version or self.dek_id),
                (Role.NONCE, self.nonce),
                (Role.TAG, self.tag),
            )
            if part is not None
        ]
        payload = (Role.PAYLOAD, Place(self.column, parse_path(self.path) if self.path else ()))
        return (*before, payload, *((Role.INDEX, Place(index.column)) for index in self.indexes))

    @property
    def many(self) -> bool:
        """Whether a row has one value for each element of an array."""
        return any(None in place.path for _, place in self.places)

    @property
    def apart(self) -> tuple[str, ...]:
        """The parts stored apart from the payload, in the order in which they are joined to it."""
        return tuple(role.value for role, _ in self.places if role is not Role.PAYLOAD)


def _key_names(value: object) -> object:
    names = [value] if isinstance(value, str) else value
    if isinstance(names, list) and len({str(name) for name in names}) < len(names):
        raise ValueError("names a column twice")
    return names


KeyNames = Annotated[
    list[Name],
    Field(min_length=1),
    BeforeValidator(_key_names),
    # one column is written without brackets, and is part of a job's identity in that form
    PlainSerializer(lambda names: names[0] if len(names) == 1 else names),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
    ),
]


def table_named(told: Any) -> Any:
    """What a section says, with the name of its container as that of its table."""
    if isinstance(told, dict) and "container" in told:
        if "table" in told:
            raise ValueError("names both a table and a container")
        return {**told, "table": told["container"]}
    return told


class TargetSection(Section):
    """`[[targets]]`: one table of a Postgres store, or one container of a Cosmos store.

    `table` is the name of either, however the file calls it. `quiesced` says that whoever reads it knows one
    key only, so that nobody may be at work there while it is rotated.
    """

    table: Name
    container: CosmosName | None = None
    key: KeyNames | None = None
    fields: Annotated[list[FieldSection], Field(min_length=1)]
    store: Name | None = None
    unmarked: Literal["count", "reseal"] = "count"
    dek: Name | None = None
    plaintext: Literal["count", "seal"] = "count"
    acknowledge: list[Literal["triggers"]] = []
    quiesced: bool = False
    untouched: list[PlaceText] = []

    @model_validator(mode="before")
    @classmethod
    def _named(cls, told: Any) -> Any:
        return table_named(told)

    @property
    def in_container(self) -> bool:
        """Whether it is a container of a Cosmos store."""
        return self.container is not None

    @property
    def identity(self) -> dict[str, Any]:
        """What of it is part of a job's identity."""
        # what the operator has acknowledged changes no cursor, and may be needed to go on; nor does it matter
        # to a cursor who else is at work
        told = self.model_dump(exclude={"acknowledge", "quiesced"}, exclude_defaults=True)
        if told.get("key") == "id":
            # the default once, and left out then: an old file must not become another job
            del told["key"]
        return told


def elements_apart(entry: FieldSection) -> tuple[str, str] | None:
    """Why the parts of a field are not parts of one element each, and what to do; None when they are."""
    arrays = {
        (place.column, place.path[: place.path.index(None)]) if None in place.path else None
        for _, place in entry.places
    }
    if len(arrays) == 1 or arrays <= {None} or not entry.many:
        return None
    return (
        f'the parts of "{entry.name}" do not all stand in elements of the same array',
        "name version, nonce and tag by paths through it: cards[*].kid; a blind index has one value a row",
    )


def refused_places(target: TargetSection) -> tuple[str, str] | None:
    """Why a target's fields cannot stand where they are said to, and what to do; None when they can.

    No two of them may be written to one place, but for a version that several share.
    """
    key = target.key or ()
    taken: dict[Place, Role] = {}
    forms: dict[Place, str] = {}
    places = {entry.name: entry.places for entry in target.fields}
    for entry in target.fields:
        if places[entry.name] != entry.places:
            # another column, with a dot in its name
            return (
                f'two fields are both called "{entry.name}"',
                "rename the column that has a dot in its name",
            )
        for role, place in entry.places:
            if place.column in key:
                part = "part of " if len(key) > 1 else ""
                return (
                    f'column "{place.column}" is {part}the key',
                    "an encrypted column cannot be the key that rows are found by",
                )
            form = (entry.version.form or GROUP) if entry.version and role is Role.VERSION else ""
            if taken.get(place) is Role.VERSION is role:
                reason = _refused_share(entry, place, same=forms[place] == form)
                if reason is not None:
                    return reason
                continue
            clash = next((other for other in taken if overlap(other, place)), None)
            if clash is not None:
                what = "a column" if clash == place and not place.path else "a place in a column"
                return (
                    f'{what} is named twice: "{place.column}"',
                    "name each place once; only a version may be shared by several values",
                )
            taken[place], forms[place] = role, form
    return None


def _refused_share(entry: FieldSection, place: Place, *, same: bool) -> tuple[str, str] | None:
    if entry.many:
        return (
            f'fields share the version of elements, "{entry.name}" among them',
            "values in the elements of an array need a version each",
        )
    if not same:
        return (
            f'the version in column "{place.column}" is named with different forms',
            "write the same form in each field that names it",
        )
    return None


def overlap(one: Place, other: Place) -> bool:
    """Whether writing one place would write the other too."""
    if one.column != other.column:
        return False
    for a, b in zip(one.path, other.path, strict=False):
        if (a is None) != (b is None):
            # an array is written as a whole, and what another path changes in it would be lost
            return True
        if a != b and not (_is_index(a) and _is_index(b) and (str(a) == str(b) or "-" in f"{a}{b}")):
            return False
    return True


def _is_index(step: str | int | None) -> bool:
    """Whether a step may be taken for an array's index; from its end, if it is negative."""
    return isinstance(step, int) or (isinstance(step, str) and re.fullmatch("-?[0-9]+", step) is not None)
