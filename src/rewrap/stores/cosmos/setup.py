"""How a container is set up, and what speaks against rotating it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewrap.crypto.encodings import RAW
from rewrap.errors import SchemaMismatch, UnsafeTarget
from rewrap.job import Job
from rewrap.model import FieldColumn, KeyColumn, Location, Role
from rewrap.stores.cosmos.documents import part_steps
from rewrap.stores.cosmos.shape import SYSTEM, aad_steps, partition_paths
from rewrap.targets import FieldSection, TargetSection

JSON = "json"
"""The type of everything in a document."""


def key_of(properties: Mapping[str, Any]) -> tuple[KeyColumn, ...]:
    """The key that documents are found by: the id, and the paths of the partition key unless that is /id."""
    paths = partition_paths(properties)
    names = ["id", *(".".join(path) for path in paths)] if paths != (("id",),) else ["id"]
    return tuple(KeyColumn(name, JSON, native=False) for name in names)


def fields_of(
    job: Job, target: TargetSection, properties: Mapping[str, Any], subject: str
) -> tuple[tuple[FieldColumn, ...], tuple[str, ...]]:
    """A target's fields, and what feeds their associated data; raises what speaks against them."""
    fields: list[FieldColumn] = []
    bound: list[str] = []
    paths = partition_paths(properties)
    for entry in target.fields:
        parts = tuple(Location(role, place.column, JSON, JSON, place.path) for role, place in entry.places)
        for part in parts:
            _check_part(entry, part, paths, subject)
        _check_layout(job, entry, subject)
        feeding = _aad_columns(job, entry, subject)
        bound += [name for name in feeding if name not in bound]
        fields.append(FieldColumn(entry.name, JSON, True, parts, feeding))
    return tuple(fields), tuple(bound)


def check_indexing(properties: Mapping[str, Any], subject: str) -> None:
    """Refuses a container whose queries may not see what was written, or see nothing at all."""
    mode = str(properties.get("indexingPolicy", {}).get("indexingMode", "consistent")).lower()
    if mode == "lazy":
        raise UnsafeTarget(
            f"{subject} is indexed lazily: a query may not see what was written before it",
            hint="set its indexing mode to consistent, and wait until the index is complete",
        )
    if mode != "consistent":
        raise UnsafeTarget(
            f"{subject} has no index (indexing mode {mode}), and nothing can be searched for in it",
            hint="set its indexing mode to consistent, and wait until the index is complete",
        )


def notices_of(properties: Mapping[str, Any], name: str) -> list[str]:
    """What an operator should know of a container."""
    found = []
    if properties.get("defaultTtl") is not None:
        found.append(f"container {name} lets documents expire: each write moves _ts, and with it their end")
    if len(properties["partitionKey"]["paths"]) > 1:
        found.append(f"container {name} has a hierarchical partition key, with which rewrap is untested")
    return found


def _check_part(
    entry: FieldSection, part: Location, partition: Sequence[tuple[str, ...]], subject: str
) -> None:
    if part.column in SYSTEM:
        raise UnsafeTarget(
            f'{subject}: property "{part.column}" is the server\'s own', hint="name the encrypted property"
        )
    if "" in (part.column, *part.path):
        raise SchemaMismatch(
            f'{subject}: a path of "{entry.name}" has an empty name', hint="correct targets.fields"
        )
    steps = part_steps(part)
    for path in partition:
        if steps[: len(path)] == path or path[: len(steps)] == steps:
            raise UnsafeTarget(
                f"{subject}: /{'/'.join(path)} is the partition key, and cannot be rewritten",
                hint="a document's partition key stays as it is; name the encrypted property",
            )


def _check_layout(job: Job, entry: FieldSection, subject: str) -> None:
    for layout in (job.old_layout(entry), job.new_layout(entry)):
        if layout.encoding == RAW:
            raise SchemaMismatch(
                f'{subject}: layout "{layout.name}" stores bytes, and a document holds text',
                hint=f'set layouts.{layout.name}.encoding, to "base64" for instance',
            )
    versions = [part for part, _ in entry.places if part is Role.VERSION]
    if versions and entry.many and entry.version is not None and entry.version.path is None:
        raise SchemaMismatch(
            f'{subject}: the version of "{entry.name}" is no part of its elements', hint="name it by a path"
        )


def _aad_columns(job: Job, entry: FieldSection, subject: str) -> tuple[str, ...]:
    found: list[str] = []
    for name in dict.fromkeys((entry.layout, entry.to_layout or entry.layout)):
        aad = job.layout(name).aad
        for feeding in aad.columns if aad else ():
            try:
                aad_steps(feeding)
            except ValueError as exc:
                raise SchemaMismatch(
                    f'{subject}: associated data name "{feeding}", which is no path',
                    hint=f"correct layouts.{name}.aad",
                ) from exc
            if feeding not in found:
                found.append(feeding)
    return tuple(found)
