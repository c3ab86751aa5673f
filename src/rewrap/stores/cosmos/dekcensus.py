"""Verify's own look at DEKs in Cosmos DB: every record, and every id that some place names."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from rewrap.deks import DekRecord
from rewrap.envelopes import DekSection, ReferenceSection
from rewrap.job import Job
from rewrap.pace.gate import Gate
from rewrap.stores.cosmos.client import Account, Query
from rewrap.stores.cosmos.deks import by_ids, record_of, records_shape
from rewrap.stores.cosmos.shape import Shape

EVERY = Query("SELECT * FROM c WHERE true")


class CosmosDekCensus:
    """A `DekCensus` over one database. There is no snapshot: what is not there yet is looked up again."""

    def __init__(self, job: Job, environ: Mapping[str, str] = os.environ, gate: Gate | None = None) -> None:
        self._job = job
        self._account = Account(job, environ, gate)
        self._shapes: dict[str, Shape] = {}

    async def records(self, section: DekSection) -> AsyncIterator[list[DekRecord]]:
        shape = await self._shape(section)
        async for page in self._account.container(section.table).every(EVERY):
            yield [record_of(document, shape) for document in page]

    async def find(self, section: DekSection, ids: Sequence[str]) -> list[DekRecord]:
        shape = await self._shape(section)
        container = self._account.container(section.table)
        return [record_of(document, shape) async for document in by_ids(container, ids)]

    async def references(self, place: ReferenceSection) -> AsyncIterator[list[str]]:
        container = self._account.container(place.table)
        # whether it is there at all: a query of a container that is not would only say so of its first page
        await container.properties()
        before, inside = _to_array((place.column, *place.steps))
        there = f"c{''.join(f'[{json.dumps(step)}]' for step in before)}"
        kind = "IS_STRING" if inside is None else "IS_ARRAY"
        async for page in container.every(Query(f"SELECT VALUE {there} FROM c WHERE {kind}({there})")):
            if inside is None:
                yield [one for one in page if one]
            else:
                elements = (_inside(element, inside) for value in page for element in value)
                yield [one for one in elements if isinstance(one, str) and one]

    async def _shape(self, section: DekSection) -> Shape:
        if section.table not in self._shapes:
            self._shapes[section.table] = await records_shape(self._account, self._job, section)
        return self._shapes[section.table]

    async def close(self) -> None:
        await self._account.close()


def _to_array(steps: Sequence[str | int | None]) -> tuple[Sequence[Any], Sequence[Any] | None]:
    """The steps to an array, and those inside its elements; all steps and None where there is no array."""
    if None not in steps:
        return steps, None
    at = steps.index(None)
    return steps[:at], steps[at + 1 :]


def _inside(value: Any, steps: Sequence[Any]) -> Any:
    """What is at the end of a path; None where it is not there. A text in its way is none of its ids."""
    for step in steps:
        if isinstance(value, dict) and isinstance(step, str):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and -len(value) <= step < len(value):
            value = value[step]
        else:
            return None
    return value
