"""Plan: what a rotation would meet, before anything is read in earnest or written at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rewrap.engine.compile import Rotation
from rewrap.interfaces import Store
from rewrap.model import Table
from rewrap.verdict import FieldCount
from rewrap.verify import Verification


@dataclass(frozen=True, slots=True)
class Plan:
    """The tables of a job, their census by class and version, and what to know beforehand."""

    tables: tuple[Table, ...]
    fields: tuple[FieldCount, ...]
    notices: tuple[str, ...]
    in_scope: int


async def plan(rotation: Rotation, store: Store, census: Verification) -> Plan:
    """Puts the store's survey and a census side by side. Reads only."""
    tables = await store.tables()
    notices = list(store.notices)
    for table in tables:
        await store.refuse_fenced(table, rotation.target_markers(table))
        if table.estimated_rows == 0:
            notices.append(f'table "{table.name}" is empty')
    return Plan(
        tuple(tables),
        census.fields,
        tuple(notices),
        _in_scope(census.fields, rotation.from_versions),
    )


def _in_scope(fields: Sequence[FieldCount], from_versions: Sequence[str]) -> int:
    named = sum(one.versions[version] for one in fields for version in from_versions)
    return named + sum(one.in_old_layout for one in fields)
