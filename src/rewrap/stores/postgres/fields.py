"""Which columns a job's fields are, checked: their types, their privileges, what makes up one value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rewrap.crypto.encodings import RAW
from rewrap.errors import SchemaMismatch, StoreError, UnsafeTarget
from rewrap.job import Job
from rewrap.model import FieldColumn, KeyColumn, Location, Place, Role
from rewrap.stores.postgres.connection import Connection
from rewrap.stores.postgres.places import quote
from rewrap.targets import FieldSection, TargetSection

TEXT_TYPES = ("text", "varchar")

FIELD_TYPES = (*TEXT_TYPES, "bytea", "jsonb")
"""Types of columns that a payload, a nonce or a tag is stored in, and domains over them."""

VERSION_TYPES = (*TEXT_TYPES, "jsonb", "int2", "int4", "int8", "uuid")

Columns = Mapping[str, Connection]
"""A table's columns by name, as the catalog describes them."""


def find_fields(
    job: Job, columns: Columns, target: TargetSection, subject: str, *, writing: bool
) -> tuple[tuple[FieldColumn, ...], tuple[str, ...]]:
    """A target's fields and the columns that feed associated data; raises what speaks against them."""
    fields, bound = [], []
    for entry in target.fields:
        layout = job.old_layout(entry)
        parts = tuple(_locate(entry, role, place, columns, subject) for role, place in entry.places)
        for part in parts:
            _check_part(entry, layout.encoding == RAW, part, columns[part.column], subject, writing=writing)
        aad_columns = _aad_columns(job, entry, columns, subject)
        bound += [name for name in aad_columns if name not in bound]
        payload = columns[entry.column]
        binary = len(parts) == 1 and parts[0].base == "bytea"
        fields.append(
            FieldColumn(
                entry.name,
                payload["declared"],
                not payload["attnotnull"] or entry.path is not None,
                parts,
                aad_columns,
                binary,
            )
        )
    return tuple(fields), tuple(bound)


def attributes_of(
    columns: Columns, key: Sequence[KeyColumn], fields: Sequence[FieldColumn], aad_columns: Sequence[str]
) -> tuple[tuple[str, int], ...]:
    """The columns that statements name, with their numbers in the catalog."""
    names = [*(column.name for column in key), *(p.column for f in fields for p in f.parts), *aad_columns]
    return tuple((name, columns[name]["attnum"]) for name in dict.fromkeys(names))


def written_columns(target: TargetSection) -> list[str]:
    """The columns that resealing a target's fields writes."""
    return list(dict.fromkeys(place.column for entry in target.fields for _, place in entry.places))


def _locate(entry: FieldSection, role: Role, place: Place, columns: Columns, subject: str) -> Location:
    column = named(columns, place.column, f"targets.fields.{role}", subject)
    return Location(role, place.column, column["declared"], column["base"], place.path)


def _check_part(
    entry: FieldSection, raw: bool, part: Location, column: Connection, subject: str, *, writing: bool
) -> None:
    what = f'{subject}: column "{part.column}" is {column["declared"]}'
    if part.base == "json":
        raise UnsafeTarget(
            f"{what}, which cannot be changed path by path",
            hint=f"ALTER TABLE … ALTER COLUMN {quote(part.column)} TYPE jsonb",
        )
    allowed = VERSION_TYPES if part.role is Role.VERSION else FIELD_TYPES
    if part.base not in allowed:
        raise UnsafeTarget(
            f"{what}, which this version does not rewrite",
            hint=f"column types are {', '.join(sorted(allowed))}, and domains over them",
        )
    if (part.base == "jsonb") != bool(part.path):
        raise SchemaMismatch(
            f"{what}, and the job names {'a path' if part.path else 'no path'} in it",
            hint=f'a path leads into a column of jsonb: {{ column = "{part.column}", path = "patient.ssn" }}'
            if not part.path
            else "only columns of jsonb have paths; leave path out",
        )
    stored_raw = part.base == "bytea"
    if part.role not in (Role.VERSION, Role.INDEX) and stored_raw != raw:
        raise SchemaMismatch(
            f'{what}, and layout "{entry.layout}" stores {"bytes" if raw else "text"}',
            hint='encoding = "raw" is for columns of type bytea, and others are for text; '
            f"set layouts.{entry.layout}.encoding",
        )
    if column["attgenerated"] or column["attidentity"]:
        raise UnsafeTarget(
            f'{subject}: column "{part.column}" is generated: the server writes it itself',
            hint="name the column that it is generated from",
        )
    if not column["may_select"]:
        raise no_privilege(subject, part.column, "SELECT")
    if writing and not column["may_update"]:
        raise no_privilege(subject, part.column, "UPDATE")


def _aad_columns(job: Job, entry: FieldSection, columns: Columns, subject: str) -> tuple[str, ...]:
    """The columns that feed the associated data of a field, in its old layout or in its new one."""
    found: list[str] = []
    for name in dict.fromkeys((entry.layout, entry.to_layout or entry.layout)):
        aad = job.layout(name).aad
        for feeding in aad.columns if aad else ():
            column = named(columns, feeding, f"layouts.{name}.aad", subject)
            if not column["may_select"]:
                raise no_privilege(subject, feeding, "SELECT")
            if feeding not in found:
                found.append(feeding)
    return tuple(found)


def named(columns: Columns, name: str, where: str, subject: str) -> Connection:
    """A column by its name; raises SchemaMismatch when the table has none."""
    if name not in columns:
        raise SchemaMismatch(
            f'{subject} has no column "{name}"',
            hint=f"correct {where}; its columns are {', '.join(list(columns)[:20])}",
        )
    return columns[name]


def no_privilege(subject: str, column: str, privilege: str) -> StoreError:
    return StoreError(
        f'{subject}: this role lacks {privilege} on column "{column}"',
        hint=f"GRANT {privilege} ({quote(column)}) ON … TO the role (see docs/privileges.md)",
        sqlstate="42501",
    )
