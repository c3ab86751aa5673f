"""The `[deks.NAME]` of a job file: where the records of DEKs are, and what refers to them.

A document's fields are sealed with a DEK, and name it; its record, elsewhere, holds the DEK wrapped under a
version of the job's keys. So the record alone says which version a document is under.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from rewrap.crypto.layout import Layout
from rewrap.model import Path
from rewrap.targets import CosmosName, FieldSection, Name, PathText, Section, TargetSection, parse_path

UUID = "{uuid}"
"""Stands in `new_id` for what makes a new record's id its own."""


class PlacedSection(Section):
    """What stands in one table of a Postgres store, or in one container of a Cosmos store.

    `table` is the name of either, however the file calls it.
    """

    table: Name
    container: CosmosName | None = None
    store: Name | None = None

    @model_validator(mode="before")
    @classmethod
    def _named(cls, told: Any) -> Any:
        if isinstance(told, dict) and "container" in told:
            if "table" in told:
                raise ValueError("names both a table and a container")
            return {**told, "table": told["container"]}
        return told

    @property
    def in_container(self) -> bool:
        """Whether it is a container of a Cosmos store."""
        return self.container is not None


class ReferenceSection(PlacedSection):
    """A place that names DEKs: every id there must have a record."""

    column: Name
    path: PathText | None = None

    @property
    def name(self) -> str:
        """What it is called in reports."""
        return f"{self.table}.{self.column}" + (f".{self.path}" if self.path else "")

    @property
    def steps(self) -> Path:
        return parse_path(self.path) if self.path else ()


class DekSection(PlacedSection):
    """`[deks.NAME]`: the records of DEKs, one each.

    `wrapped` is where a record holds its DEK, and how it is wrapped; `holds` what that opens to. A record
    made for a document gets the id `new_id`, the old record's values of `copied`, and `given`.
    """

    id: Name = "id"
    wrapped: FieldSection | None = None
    holds: Literal["raw", "base64", "hex"] = "raw"
    copied: list[Name] = Field(default_factory=list)
    given: dict[Name, str | int | bool] = Field(default_factory=dict)
    new_id: Annotated[str, StringConstraints(min_length=1, max_length=80)] = UUID
    referenced_by: list[ReferenceSection] = Field(default_factory=list)

    @property
    def target(self) -> TargetSection:
        """The records as a target: rows with one encrypted field each."""
        assert self.wrapped is not None
        named = {"container": self.container} if self.in_container else {"table": self.table, "key": self.id}
        return TargetSection.model_validate({**named, "store": self.store, "fields": [self.wrapped]})

    @property
    def identity(self) -> dict[str, Any]:
        """What of it is part of a job's identity: not what is only looked at."""
        return self.model_dump(exclude={"referenced_by"}, exclude_defaults=True)


StoreOf = Callable[[TargetSection | PlacedSection], str]
"""The name of the store that something is in."""


def _refused_records(section: DekSection, aad_columns: tuple[str, ...]) -> tuple[str, str] | None:
    """Why records cannot be made as a section says, and what to do; None when they can."""
    if section.new_id.count(UUID) != 1:
        return f'"{section.new_id}" does not hold {UUID} once', f'write new_id = "{UUID}", or text around it'
    entry = section.wrapped
    if entry is None:
        return None
    if entry.many:
        return "a record holds one DEK", "name the property that holds it by a path without [*]"
    if entry.to_layout is not None or entry.indexes or entry.dek_id is not None:
        return "a wrapped DEK is in one layout, without indexes", "leave to_layout, indexes and dek_id out"
    written = {place.column for _, place in entry.places} | {section.id}
    twice = written.intersection([*section.copied, *section.given]) or set(section.copied) & set(
        section.given
    )
    # a document of jsonb is copied as a whole, and changed along its paths
    twice -= {place.column for _, place in entry.places if place.path and not section.in_container}
    if twice:
        return f'"{min(twice)}" is written already', "name in copied and given what a new record has besides"
    lacking = [name for name in aad_columns if name not in (section.id, *section.copied, *section.given)]
    if lacking:
        return (
            f'the wrapping is bound to "{lacking[0]}", which a new record would not have',
            f'add "{lacking[0]}" to copied, or to given',
        )
    return None


def refused_envelope(target: TargetSection) -> tuple[str, str] | None:
    """Why a target's fields cannot be under DEKs as it says, and what to do; None when they can."""
    for entry in target.fields:
        if target.dek is None:
            if entry.dek_id is not None:
                return f'field "{entry.name}" names a dek_id, and its target no dek', 'write dek = "NAME"'
            continue
        if entry.dek_id is None or entry.version is not None:
            return (
                f'field "{entry.name}" of a target with a dek names no dek_id, or a version besides',
                "write dek_id = { … } where the DEK's id is: its record says which version it is under",
            )
        if entry.dek_id.form is not None:
            return f'field "{entry.name}": a dek_id is the id itself', "leave form out"
        if entry.to_layout is not None or entry.indexes:
            return (
                f'field "{entry.name}" of a target with a dek has a to_layout, or indexes',
                "leave them out: fields are sealed again as they were",
            )
    if target.dek is not None and target.unmarked != "count":
        return "values that name no DEK cannot be opened", "leave unmarked out"
    if target.dek is None and target.plaintext != "count":
        return "plaintext is sealed in targets with a dek only", "leave plaintext out"
    return None


def with_wrapped(section: DekSection, targets: Sequence[TargetSection], store_of: StoreOf) -> DekSection:
    """A section with its `wrapped`: that of the target that is its records, where it says nothing of it."""
    records = _records_of(section, targets, store_of)
    if section.wrapped is not None or records is None:
        return section
    return section.model_copy(update={"wrapped": records.fields[0]})


def refused_deks(
    deks: Mapping[str, DekSection],
    targets: Sequence[TargetSection],
    store_of: StoreOf,
    layout_of: Callable[[FieldSection], Layout],
) -> tuple[str, str, str] | None:
    """What is wrong with a job's DEKs: where, why, and what to do; None when nothing is."""
    for name, section in deks.items():
        if section.wrapped is None:
            hint = "say where a record holds its DEK, and in which layout"
            return f"deks.{name}.wrapped", "is missing", hint
        layout = layout_of(section.wrapped)
        reason = _refused_records(section, layout.aad.columns if layout.aad else ())
        if reason is None and not (layout.versioned and layout.cipher.authenticated):
            reason = (
                "a wrapped DEK names no version, or is under a cipher that cannot tell a wrong key",
                "name the property that says the version: version = { … }",
            )
        if reason is not None:
            return f"deks.{name}", *reason
    for at, target in enumerate(targets):
        if target.dek is None:
            continue
        where = f"targets[{at}]"
        if target.dek not in deks:
            known = ", ".join(deks) or "none"
            return f"{where}.dek", f'there is no deks "{target.dek}"', f"known: {known}"
        if _records_of(deks[target.dek], targets, store_of) is not None:
            return (
                f"{where}.dek",
                f'the records of deks "{target.dek}" are a target of this job too',
                "rewrap DEKs in one job, and re-encrypt documents in another",
            )
        for place, entry in enumerate(target.fields):
            if not layout_of(entry).cipher.authenticated:
                return (
                    f"{where}.fields[{place}].layout",
                    f'field "{entry.name}" is under a cipher without authentication',
                    "a value that seems to open proves nothing: have the application seal it anew",
                )
    return None


def _records_of(
    section: DekSection, targets: Sequence[TargetSection], store_of: StoreOf
) -> TargetSection | None:
    """The target that is the records of a `[deks.NAME]`, in a job that rewraps them."""
    place = store_of(section), section.table
    return next((one for one in targets if (store_of(one), one.table) == place), None)
