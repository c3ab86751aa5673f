"""The Cosmos DB store: containers of one database, read by feed range and patched document by document."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from rewrap.errors import StoreError
from rewrap.interfaces import Checkpoint, Prefix, SwapBatch
from rewrap.job import Job
from rewrap.model import Activity, ServerIdentity, ShardLease, ShardRange, Table
from rewrap.pace.gate import Cap, Gate
from rewrap.stores.cosmos.client import Account, Container, Document
from rewrap.stores.cosmos.documents import changed, differing
from rewrap.stores.cosmos.faults import Changed, lost_place
from rewrap.stores.cosmos.finding import document_of
from rewrap.stores.cosmos.queries import COUNT, written_since
from rewrap.stores.cosmos.reader import ContainerReader
from rewrap.stores.cosmos.setup import notices_of
from rewrap.stores.cosmos.shape import ETAG, SYSTEM, Seen, Shape
from rewrap.stores.cosmos.survey import identify, survey
from rewrap.stores.cosmos.throughput import said
from rewrap.stores.cosmos.workers import Workers
from rewrap.stores.cosmos.writer import ContainerWriter, Guardian

CLOCK_SLACK_S = 2
"""Seconds by which the clock that stamps documents may be behind the one that dates answers, and a bit."""

MOST_RESTARTS = 10
"""Times that a feed range is read from its start again before a run gives up: a split is one."""


@dataclass(slots=True)
class _Watched:
    """A container since it was first looked at: when that was, and how many documents there were.

    `patched` counts those that sweeps over everything have written since.
    """

    since: int
    documents: int
    patched: int = 0


class CosmosContainers:
    """One database of a job: its identity, its containers, and readers and writers for them.

    `guard` is set before anything is written: a writer asks it before each request.
    """

    def __init__(self, job: Job, environ: Mapping[str, str] = os.environ, gate: Gate | None = None) -> None:
        self.job = job
        self.account = Account(job, environ, gate)
        self.notices: list[str] = []
        self.guard: Guardian | None = None
        processes = job.cosmos.processes
        self.workers = Workers(self.account, processes) if processes > 1 else None
        self._shapes: dict[str, Shape] = {}
        self._watched: dict[str, _Watched] = {}
        self._begun_anew: Counter[tuple[str, int]] = Counter()
        self._identity: ServerIdentity | None = None

    @property
    def subject(self) -> str:
        return self.account.subject

    async def identity(self) -> ServerIdentity:
        if self._identity is None:
            self._identity = await identify(self.account)
        return self._identity

    async def tables(self) -> list[Table]:
        await self.identity()
        notices = await self._account_notices()
        found = await survey(self.account, self.job)
        for one in found:
            self._shapes[one.table.relation] = one.shape
            notices += notices_of(one.properties, one.table.name)
        self.notices = notices + await self._throughput_notices()
        return [one.table for one in found]

    async def _account_notices(self) -> list[str]:
        region = await self.account.region()
        if region.consistency in ("", "Strong"):
            return []
        return [
            f"{self.subject} reads with {region.consistency} consistency: what was just written elsewhere "
            f"may not be seen; counts are made twice, {self.job.cosmos.settle_s:g} s apart"
        ]

    async def _throughput_notices(self) -> list[str]:
        try:
            found = await self.account.provisioned()
        except StoreError:
            # it may be nobody's business here, and nothing depends on it: with a share it was read before
            return []
        return [f"{self.subject}: {said(found, self.account.cap)}"] if found else []

    async def split(self, table: Table, shards: int) -> list[ShardRange]:
        """One shard for each feed range, which its lower bound tells; they are the server's partitions."""
        ranges = await self._container(table).feed_ranges()
        return [ShardRange(at, json.dumps(one, sort_keys=True), None) for at, one in enumerate(ranges)]

    async def rehearse(self, table: Table, lease: ShardLease, batch: SwapBatch) -> bool:
        """Swaps one document and reads it back; False when somebody else has written it.

        Nothing can be rolled back here. What was meant stays, and is as good as any other write of the run;
        anything else is undone, unless somebody has written the document since.
        """
        container = self._container(table)
        writer = ContainerWriter(container, self._shape(table), self.job, self._guardian)
        one = batch.part([0]).unpacked()
        before = await document_of(container, self._shape(table), one.keys[0])
        if before is None or not writer.unchanged(before, one, 0):
            return False
        meant = changed(before, writer.changes(before, one, 0))
        # from here on it is this very document, and no other, that is written
        one.stamps = [Seen(before[ETAG], before)]
        checkpoint = Checkpoint(lease.cursor, lease.rows, lease.tally)
        if not await writer.swap(lease, one, checkpoint, skip_locked=True):
            return False
        after = await document_of(container, self._shape(table), one.keys[0])
        if after is None or after[ETAG].strip('"') != writer.last_etag:
            return False
        if all(path[0] in SYSTEM for path in differing(meant, after)):
            return True
        await _restore(container, before, after)
        raise StoreError(
            f"{container.subject} keeps something else than was written",
            hint="the document was restored; see what is between this machine and the account, or leave the "
            "container out",
        )

    async def activity(self, table: Table) -> Activity:
        """Upper bounds of the documents that came and went since the first look; none then.

        No server counts them. Documents written since that first look, less those that a run has written, are
        no fewer than the new ones. What the number of documents lacks then was deleted; one that came and
        went between two looks leaves no trace, so as many of those are allowed as others have written.
        """
        container = self._container(table)
        watched = self._watched.get(table.relation)
        if watched is None:
            now = await self._server_clock(container)
            self._watched[table.relation] = _Watched(now - CLOCK_SLACK_S, await container.count(COUNT))
            return Activity(0, 0)
        written = await container.count(written_since(watched.since))
        documents = await container.count(COUNT)
        inserted = max(0, written - watched.patched)
        deleted = max(0, watched.documents + inserted - documents)
        return Activity(inserted, deleted + inserted)

    async def _server_clock(self, container: Container) -> int:
        date = await container.date()
        return int(parsedate_to_datetime(date).timestamp())

    @property
    def waiting_for(self) -> str:
        return self.account.gate.reason

    def spent(self) -> dict[str, float]:
        return self.account.spent()

    @property
    def units_cap(self) -> Cap | None:
        """Request units a second that a run of the job takes at most; None where nothing bounds them."""
        return self.account.cap

    async def drain(self, timeout_s: float) -> list[str]:
        """Nothing: no transaction stays open in a store that speaks HTTP."""
        return []

    async def flush(self) -> str:
        """Nothing to wait for: what was acknowledged is durable."""
        return ""

    def reader(self, table: Table, *, full: bool = True) -> ContainerReader:
        async def restart(shard: int) -> None:
            if self.guard is None:
                # nothing was claimed, and nothing is kept: a dry run, or a look at some values
                raise lost_place(f"container {table.relation}")
            begun = self._begun_anew[table.relation, shard] = self._begun_anew[table.relation, shard] + 1
            if begun > MOST_RESTARTS:
                raise lost_place(f"container {table.relation}")
            await self.guard.reset(await self.guard.lease(table.relation, shard))

        return ContainerReader(self._container(table), self._shape(table), self.job, restart)

    def writer(self, table: Table, *, full: bool = True) -> ContainerWriter:
        def patched(documents: int) -> None:
            watched = self._watched.get(table.relation)
            if watched is not None and full:
                watched.patched += documents

        container = self._container(table)
        sender = container if self.workers is None else self.workers.container(container, self._guardian)
        return ContainerWriter(container, self._shape(table), self.job, self._guardian, patched, sender)

    async def refuse_fenced(self, table: Table, prefixes: dict[str, Prefix]) -> None:
        """Nothing: a container has no constraints."""

    async def close(self) -> None:
        if self.workers is not None:
            await self.workers.close()
        await self.account.close()

    @property
    def _guardian(self) -> Guardian:
        assert self.guard is not None, "nothing is written without a guard"
        return self.guard

    def _container(self, table: Table) -> Container:
        return self.account.container(table.name)

    def _shape(self, table: Table) -> Shape:
        return self._shapes[table.relation]


async def _restore(container: Container, before: Document, after: Document) -> None:
    try:
        await container.replace(before, after[ETAG])
    except Changed:
        # somebody has written it since, and what they wrote is theirs
        return
