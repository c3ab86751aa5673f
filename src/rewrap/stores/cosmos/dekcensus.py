"""Verify's own look at DEKs in Cosmos DB: every record, and every id that some place names."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence

from rewrap.deks import DekRecord
from rewrap.envelopes import DekSection, ReferenceSection
from rewrap.job import Job
from rewrap.model import FieldColumn, Location, Role
from rewrap.packed import ELEMENT
from rewrap.stores.cosmos.client import Account, Query
from rewrap.stores.cosmos.deks import by_ids, record_of, records_shape
from rewrap.stores.cosmos.documents import ODD, value_of
from rewrap.stores.cosmos.setup import JSON
from rewrap.stores.cosmos.shape import Shape

EVERY = Query("SELECT * FROM c WHERE true")


class CosmosDekCensus:
    """A `DekCensus` over one database. There is no snapshot: what is not there yet is looked up again."""

    def __init__(self, job: Job, environ: Mapping[str, str] = os.environ) -> None:
        self._job = job
        self._account = Account(job, environ)
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
        part = Location(Role.PAYLOAD, place.column, JSON, JSON, place.steps)
        column = FieldColumn(place.name, JSON, True, (part,))
        container = self._account.container(place.table)
        # whether it is there at all: a query of a container that is not would only say so of its first page
        await container.properties()
        query = Query(f"SELECT VALUE c[{json.dumps(place.column)}] FROM c WHERE true")
        async for page in container.every(query):
            found = (value_of({place.column: value}, column) for value in page)
            ids = [one for value in found if value is not None for one in value.split(ELEMENT)]
            # a text in place of the object that would name an id is no id
            yield [one for one in ids if one and not one.startswith(ODD)]

    async def _shape(self, section: DekSection) -> Shape:
        if section.table not in self._shapes:
            self._shapes[section.table] = await records_shape(self._account, self._job, section)
        return self._shapes[section.table]

    async def close(self) -> None:
        await self._account.close()
