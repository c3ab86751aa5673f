"""Writes batches: one patch a document, several at once, each while the document has the etag that was read.

There is no transaction over documents and their checkpoint: the checkpoint is written after what it speaks
of. Documents of one logical partition could be patched by one transactional batch, at a fraction of the
client's time; no emulator has such batches, so nothing here is built on them. `_send` would be their place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import anyio

from rewrap.errors import LeaseLost, ResealMismatch, StoreError, StoreUnavailable, ValueRefused
from rewrap.interfaces import Checkpoint, Row, SwapBatch
from rewrap.job import Job
from rewrap.model import ShardLease, Table
from rewrap.packed import listed
from rewrap.stores.cosmos.client import Container, Document, guarded
from rewrap.stores.cosmos.documents import (
    Change,
    can_patch,
    changed,
    changes_of,
    differing,
    merged,
    pointer,
    value_of,
)
from rewrap.stores.cosmos.faults import Changed, Missing, Throttled
from rewrap.stores.cosmos.finding import document_of
from rewrap.stores.cosmos.shape import ETAG, Seen, Shape

PATCH_OPERATIONS = 10
"""Operations that one patch may have: the server's own limit."""

_TROUBLES = 4
"""Documents in a row that could not be written for a passing reason before the rest of a batch waits."""


class Guardian(Protocol):
    """What a writer asks of the guard of its store."""

    @property
    def request_timeout_s(self) -> float: ...

    @property
    def good_until(self) -> float: ...

    def still_held(self) -> None: ...

    async def save(self, lease: ShardLease, checkpoint: Checkpoint) -> None: ...

    async def lease(self, relation: str, shard: int) -> ShardLease: ...

    async def reset(self, lease: ShardLease) -> None: ...


class Sender(Protocol):
    """Who sends what is written: the container's own client, or worker processes."""

    async def patch(self, name: str, partition: Any, operations: list[Document], etag: str) -> str: ...

    async def replace(self, document: Document, etag: str) -> Document: ...


@dataclass
class _Sending:
    """One batch on its way: which of its rows are known to be written, and what went wrong."""

    batch: SwapBatch
    written: set[int] = field(default_factory=set)
    refused: ValueRefused | None = None
    trouble: StoreUnavailable | None = None
    troubles: int = 0
    lost: BaseException | None = None

    @property
    def over(self) -> bool:
        """Whether sending more of it is of no use now: one document may have trouble, not many in a row."""
        return self.troubles >= _TROUBLES or self.lost is not None

    def went_well(self, place: int) -> None:
        self.written.add(place)
        self.troubles = 0

    def went_wrong(self, trouble: StoreUnavailable) -> None:
        self.trouble = trouble
        self.troubles += 1


class ContainerWriter:
    """Writes one container under a lease. `patched` is told how many documents were written.

    `last_etag` is that of the document that was written last.
    """

    def __init__(
        self,
        container: Container,
        shape: Shape,
        job: Job,
        guard: Guardian,
        patched: Callable[[int], None] = lambda _: None,
        sender: Sender | None = None,
    ) -> None:
        self._container = container
        self._sender = sender or container
        self._shape = shape
        self._job = job
        self._guard = guard
        self._patched = patched
        self._last: _Sending | None = None
        # a batch in which one value is refused comes again in halves: what has landed is not sent twice
        self._landed: set[Any] = set()
        self.last_etag = ""

    @property
    def _table(self) -> Table:
        return self._shape.table

    async def swap(
        self, lease: ShardLease, batch: SwapBatch, checkpoint: Checkpoint, *, skip_locked: bool
    ) -> int:
        # what it speaks of is written and acknowledged; and whoever lost the lease learns it here
        await self._guard.save(lease, checkpoint)
        if self._landed.isdisjoint(batch.keys):
            self._landed.clear()
        unpacked = batch.unpacked()
        sending = self._last = _Sending(batch)
        sending.written.update(at for at, key in enumerate(batch.keys) if key in self._landed)
        places = iter([at for at in range(len(batch)) if at not in sending.written])
        before = len(sending.written)
        async with anyio.create_task_group() as group:
            for _ in range(min(len(batch), self._job.cosmos.in_flight)):
                group.start_soon(self._work, places, unpacked, sending)
        self._patched(len(sending.written) - before)
        if sending.lost is not None:
            raise sending.lost
        if sending.refused is not None:
            if batch.stamps is not None:
                self._landed.update(batch.keys[at] for at in sending.written)
            raise sending.refused
        if isinstance(sending.trouble, Throttled):
            raise sending.trouble
        if sending.trouble is not None and not sending.written and len(batch) > 1:
            raise sending.trouble
        # what was not written for a passing reason is told by `unsettled`, and tried again by the engine
        return len(sending.written)

    async def _work(self, places: Any, batch: SwapBatch, sending: _Sending) -> None:
        """Takes rows from a batch until none is left."""
        for place in places:
            if sending.over:
                return
            try:
                if await self._swap_one(batch, place):
                    sending.went_well(place)
            except (Changed, Missing):
                # another was faster, or an earlier attempt of this very patch was: reading tells
                continue
            except ValueRefused as exc:
                sending.refused = exc
            except StoreUnavailable as exc:
                sending.went_wrong(exc)
            except (LeaseLost, StoreError, ResealMismatch) as exc:
                sending.lost = exc

    async def _swap_one(self, batch: SwapBatch, place: int) -> bool:
        """Whether one row was written; what it held is as it was, or it is left alone."""
        stamp = batch.stamps[place] if batch.stamps is not None else None
        if stamp is None:
            document = await document_of(self._container, self._shape, batch.keys[place])
            if document is None or not self.unchanged(document, batch, place):
                return False
            stamp = Seen(document[ETAG], document)
        changes = self.changes(stamp.document, batch, place)
        if not changes:
            return True
        with guarded(self._guard.still_held, self._guard.request_timeout_s):
            return await self._send(batch.keys[place], stamp, changes)

    async def _send(self, key: Any, seen: Seen, changes: list[Change]) -> bool:
        name, partition = self._shape.place_of(key)
        if len(changes) <= PATCH_OPERATIONS and all(can_patch(change.path) for change in changes):
            operations = [
                {"op": "set", "path": pointer(change.path), "value": change.value} for change in changes
            ]
            self.last_etag = await self._sender.patch(name, partition, operations, seen.etag)
            return True
        return await self._replace(name, partition, seen, changes)

    async def _replace(self, name: str, partition: Any, seen: Seen, changes: list[Change]) -> bool:
        """Writes a whole document, all of which but the changes is what was read under the same etag."""
        whole = await self._container.read(name, partition)
        if whole is None or whole[ETAG] != seen.etag:
            return False
        after = changed(whole, changes)
        meant = [change.path for change in changes]
        for path in differing(whole, after):
            if not any(path[: len(one)] == one for one in meant):
                raise ResealMismatch(
                    f"{self._container.subject}: a document would change in more than its encrypted fields; "
                    "nothing was written",
                    hint="this is a defect in rewrap, please report it",
                )
        self.last_etag = (await self._sender.replace(after, seen.etag))[ETAG].strip('"')
        return True

    def changes(self, document: Mapping[str, Any], batch: SwapBatch, place: int) -> list[Change]:
        """What a row's new values change in its document."""
        changes: list[Change] = []
        for column in self._table.fields:
            new = listed(batch.news[column.name])[place]
            if new is not None:
                changes += changes_of(document, column, new)
        changes = merged(changes)
        after = changed(document, changes)
        for column in self._table.fields:
            new = listed(batch.news[column.name])[place]
            if new is not None and value_of(after, column) != new:
                raise ValueRefused(
                    f"{self._container.subject}: a new value would not be read back as it is",
                    hint="a document's parts contradict each other; have the application write it anew",
                )
        return changes

    def unchanged(self, document: Mapping[str, Any], batch: SwapBatch, place: int) -> bool:
        """Whether a document still holds all that decides how a row's new values will open."""
        linked = {name for names in self._table.linked for name in names}
        for column in self._table.fields:
            old = listed(batch.olds[column.name])[place]
            new = listed(batch.news[column.name])[place]
            if (new is not None or column.name in linked) and value_of(document, column) != old:
                return False
        tokens = self._shape.tokens_of(document)
        return all(text == listed(batch.tokens[at])[place] for at, text in enumerate(tokens))

    async def unsettled(self, batch: SwapBatch) -> list[tuple[int, Row | None]]:
        known = self._last.written if self._last is not None and self._last.batch is batch else set()
        asked = [place for place in range(len(batch)) if place not in known]
        unpacked = batch.unpacked()
        found: dict[int, Row | None] = {}
        places = iter(asked)

        async def look() -> None:
            for place in places:
                document = await document_of(self._container, self._shape, unpacked.keys[place])
                if document is None:
                    found[place] = None
                elif not self.holds(document, unpacked, place):
                    found[place] = self._shape.row_of(document, self._job.pace.max_value_bytes)

        try:
            async with anyio.create_task_group() as group:
                for _ in range(min(len(asked), self._job.cosmos.in_flight)):
                    group.start_soon(look)
        except BaseExceptionGroup as errors:
            raise _first(errors) from None
        return [(place, found[place]) for place in sorted(found)]

    def holds(self, document: Mapping[str, Any], batch: SwapBatch, place: int) -> bool:
        """Whether a document holds every new value of a row."""
        return all(
            new is None or value_of(document, column) == new
            for column in self._table.fields
            for new in (listed(batch.news[column.name])[place],)
        )

    async def table_locked(self) -> bool:
        """Nothing locks a container."""
        return False

    async def checkpoint(self, lease: ShardLease, checkpoint: Checkpoint) -> None:
        await self._guard.save(lease, checkpoint)

    async def reconnect(self, lease: ShardLease) -> None:
        # the account answers, and takes writes of whoever holds the lease
        self._guard.still_held()
        await self._guard.save(lease, Checkpoint(lease.cursor, lease.rows, lease.tally, lease.done))

    async def close(self) -> None:
        """Nothing of its own is open: the client is the store's."""


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            error = _first(error)
        if isinstance(error, StoreError | LeaseLost):
            return error
    return errors
