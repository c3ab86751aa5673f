"""The records of DEKs in a container of Cosmos DB: read by id, and made beside the ones that are there."""

from __future__ import annotations

import copy
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import anyio

from rewrap.deks import DekRecord, NewRecord
from rewrap.envelopes import DekSection
from rewrap.errors import ResealMismatch, SchemaMismatch, StoreError, Unaddressed, UnsafeTarget
from rewrap.interfaces import Prefix
from rewrap.job import Job
from rewrap.model import Role, is_text
from rewrap.pace.gate import Gate
from rewrap.stores.cosmos.client import Account, Container, Document, Query
from rewrap.stores.cosmos.documents import changed, changes_of, merged, part_steps, value_of
from rewrap.stores.cosmos.faults import Changed
from rewrap.stores.cosmos.reader import ContainerReader
from rewrap.stores.cosmos.shape import Shape
from rewrap.stores.cosmos.survey import identify, survey_one

T = TypeVar("T")

IDS_A_QUERY = 100
"""Ids that one query asks for, where a document cannot be read by its id alone."""

LOOKS = 3
"""Times that a record is looked for, `settle_s` apart, where a replica that lags may answer."""

GONE_KEPT = 100_000
"""Ids that are known to have no record: they are looked for once, and nobody waits for them again."""


class CosmosDeks:
    """The records of one `[deks.NAME]`: a `DekStore`. What it made is durable when it was acknowledged."""

    def __init__(
        self,
        job: Job,
        section: DekSection,
        environ: Mapping[str, str] = os.environ,
        gate: Gate | None = None,
    ) -> None:
        self._job = job
        self._section = section
        self.account = Account(job, environ, gate)
        self._shape: Shape | None = None
        self._turn = anyio.Lock()
        self._gone: set[str] = set()

    @property
    def _container(self) -> Container:
        return self.account.container(self._section.table)

    async def _found(self) -> Shape:
        async with self._turn:
            if self._shape is None:
                self._shape = await records_shape(self.account, self._job, self._section)
        return self._shape

    async def find(self, ids: Sequence[str]) -> dict[str, DekRecord]:
        shape = await self._found()
        found = await self._settled(shape, ids)
        return {name: record_of(document, shape) for name, document in found.items()}

    async def add(self, records: Sequence[NewRecord]) -> set[str]:
        shape = await self._found()
        wanted = sorted({record.like for record in records} - {""})
        likes = await self._settled(shape, wanted)
        if len(likes) < len(wanted):
            # what is copied from it would be missing in the new one, and nobody would know
            raise StoreError(
                f"{self._container.subject}: a record is not there any more that a new one is made like",
                hint="somebody deletes records that documents name; then rewrap resume",
            )
        new = [_new(record, likes.get(record.like, {}), shape, self._section) for record in records]
        made: set[str] = set()

        async def create(document: Document) -> None:
            try:
                await self._container.create(document)
                made.add(document["id"])
            except Changed:
                # it is there: from an earlier attempt, or from this one, whose answer was lost
                return

        await self._each(new, create)
        return made

    def spent(self) -> dict[str, float]:
        return self.account.spent()

    async def sample(self, prefix: Prefix, count: int) -> list[DekRecord]:
        shape = await self._found()
        name = shape.table.fields[0].name
        rows = await ContainerReader(self._container, shape, self._job, _no_restart).sample(
            count, {name: prefix}
        )
        return [
            DekRecord(row[0] if shape.by_id else row[0][0], row[1], tuple(row[2:])) for row in rows
        ]  # fmt: skip

    async def _settled(self, shape: Shape, ids: Sequence[str]) -> dict[str, Document]:
        """The documents of some ids; below Strong consistency those that are not found are looked for again.

        A record that the application made just now may not have reached the replica that answers.
        """
        found = await self._documents(shape, ids)
        strong = (await self.account.region()).consistency == "Strong"
        for _ in range(0 if strong else LOOKS - 1):
            missing = [name for name in ids if name not in found and name not in self._gone]
            if not missing:
                break
            await anyio.sleep(self._job.cosmos.settle_s)
            found |= await self._documents(shape, missing)
        if len(self._gone) > GONE_KEPT:
            self._gone.clear()
        self._gone.update(name for name in ids if name not in found)
        return found

    async def _documents(self, shape: Shape, ids: Sequence[str]) -> dict[str, Document]:
        out: dict[str, Document] = {}

        async def read(name: str) -> None:
            try:
                document = await self._container.read(name, name)
            except Unaddressed:
                found = await self._container.look_for(name)
                document = found[0] if found else None
            if document is not None:
                out[name] = document

        if shape.by_id:
            await self._each([name for name in ids if is_text(name)], read)
            return out
        async for document in by_ids(self._container, ids):
            name = document["id"]
            if name in out:
                raise UnsafeTarget(
                    f"{self._container.subject} has two records with one id, in different partitions",
                    hint="a document that names this id does not say which of them it means",
                )
            out[name] = document
        return out

    async def _each(self, items: Sequence[T], work: Callable[[T], Awaitable[None]]) -> None:
        """Does something with each item, some of them at a time."""
        left = iter(items)

        async def worker() -> None:
            for item in left:
                await work(item)

        try:
            async with anyio.create_task_group() as group:
                for _ in range(min(len(items), self._job.cosmos.in_flight)):
                    group.start_soon(worker)
        except BaseExceptionGroup as errors:
            error: BaseException = errors
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from None

    async def close(self) -> None:
        await self.account.close()


async def records_shape(account: Account, job: Job, section: DekSection) -> Shape:
    """The container of DEK records; refuses what cannot be done safely."""
    await identify(account)
    if section.id != "id":
        raise SchemaMismatch(
            f'container {section.table}: a document is found by its id, not by "{section.id}"',
            hint="leave id out of the section of deks",
        )
    return (await survey_one(account, job, section.target)).shape


def record_of(document: Mapping[str, object], shape: Shape) -> DekRecord:
    """A document as the record that it is."""
    (field,) = shape.table.fields
    return DekRecord(str(document["id"]), value_of(document, field), tuple(shape.tokens_of(document)))


async def by_ids(container: Container, ids: Iterable[str]) -> AsyncIterator[Document]:
    """The documents of a container with some ids, in whatever partition they are."""
    # what is no text is no record's id, and no query's
    wanted = [name for name in ids if is_text(name)]
    for start in range(0, len(wanted), IDS_A_QUERY):
        some = wanted[start : start + IDS_A_QUERY]
        names = [f"@i{at}" for at in range(len(some))]
        query = Query(
            f"SELECT * FROM c WHERE c.id IN ({', '.join(names)})", tuple(zip(names, some, strict=True))
        )
        async for page in container.every(query):
            for document in page:
                yield document


def _new(record: NewRecord, like: Document, shape: Shape, section: DekSection) -> Document:
    """A record as a document: with what is copied from the old one, what is given, and the wrapped DEK."""
    (field,) = shape.table.fields
    kept = [*section.copied, *(path[0] for path in shape.partition)]
    # what holds parts of the wrapped DEK within it is there as in the old one, and then changed
    kept += [part.column for part in field.parts if part.path]
    base = {name: copy.deepcopy(like[name]) for name in dict.fromkeys(kept) if name in like}
    base |= {**section.given, "id": record.id}
    payload = next(part for part in field.parts if part.role is Role.PAYLOAD)
    if not payload.path:
        base[payload.column] = ""
    elif value_of(base, field) is None:
        raise StoreError(
            f"container {section.table}: a new record has no object at "
            f"{'.'.join(str(step) for step in part_steps(payload)[:-1])} to hold its DEK",
            hint="there is no old record to copy it from; have the application seal plaintext itself",
        )
    assert isinstance(record.wrapped, str)
    document = changed(base, merged(changes_of(base, field, record.wrapped)))
    if value_of(document, field) != record.wrapped:
        raise ResealMismatch(
            f"container {section.table}: a new record would not be read back as it is; it was not made",
            hint="see where the section of deks says that parts of a wrapped DEK are",
        )
    return document


async def _no_restart(_shard: int) -> None:
    """A sample is no sweep: there is nothing to begin anew."""
