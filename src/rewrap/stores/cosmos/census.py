"""Verify's own look at Cosmos DB: its own client, its own queries, and no snapshot, for there is none.

A count is several questions, one after the other, while the application writes. What a document moves to
meanwhile is counted before what it moves from: it may be met twice, and is not missed on its way to an old
version. Counts that do not add up are asked again, and then every document is read instead, each once.

Below Strong consistency a replica that lags may answer. So a count that finds nothing left is made again
after a pause, and the worse one counts.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from hashlib import sha256
from typing import Any

import anyio

from rewrap.crypto.layout import MARKER_BYTES_MAX
from rewrap.errors import FenceError, StoreError
from rewrap.forms import Forms
from rewrap.interfaces import ClassCount, Prefix
from rewrap.job import Job
from rewrap.model import FieldColumn, ServerIdentity, StoredValue, Table, key_parts
from rewrap.pace.gate import Gate
from rewrap.packed import ELEMENT, PART
from rewrap.stores.cosmos.client import Account, Container, Query
from rewrap.stores.cosmos.counting import ALL, EVERY, SINCE, Classes, Condition, classes_of, selection
from rewrap.stores.cosmos.documents import NOWHERE, value_of
from rewrap.stores.cosmos.finding import document_of
from rewrap.stores.cosmos.fingerprints import entries, settle
from rewrap.stores.cosmos.shape import Shape
from rewrap.stores.cosmos.survey import identify, survey
from rewrap.untouched import Witnessed

_PAGE = 1_000
"""Results of a page at most; the server sends fewer where they are large."""

_COUNTS = 3
"""Times that a count is made before every document is read instead, and that this is done."""

_CLOCK_S = 2
"""Seconds by which the clocks of two servers of an account are taken to differ at most."""

Counted = tuple[int, dict[str, list[ClassCount]]]


class CosmosCensus:
    """Counts and reads values. Use as `async with census:` after `tables()`."""

    def __init__(self, job: Job, environ: Mapping[str, str] = os.environ, gate: Gate | None = None) -> None:
        self._job = job
        self.account = Account(job, environ, gate)
        self._shapes: dict[str, Shape] = {}
        self._rids: dict[str, str] = {}
        self._kept: list[Table] = []
        self._strong = False
        self._began: float | None = None
        self._counted = self._again = 0
        self.identity: ServerIdentity | None = None

    @property
    def manner(self) -> str:
        if not self._again:
            return "by queries"
        return "by queries, twice" if self._again == self._counted else "by queries, in part twice"

    async def tables(self) -> list[Table]:
        """The job's containers, as they are; refuses an account whose answers may lag without bound."""
        self.identity = await identify(self.account)
        self._strong = (await self.account.region()).consistency == "Strong"
        found = await survey(self.account, self._job)
        for entry in found:
            self._shapes[entry.table.relation] = entry.shape
            self._rids[entry.table.relation] = entry.properties["_rid"]
        return [entry.table for entry in found]

    async def tables_now(self, tables: Sequence[Table]) -> list[Table]:
        for table in tables:
            await self._check(table)
        self._kept = list(tables)
        return list(tables)

    async def check_kept(self) -> None:
        for table in self._kept:
            await self._check(table)

    async def _check(self, table: Table) -> None:
        found = await self._container(table).properties()
        if found["_rid"] != self._rids[table.relation]:
            raise StoreError(
                f"container {table.relation} was deleted and made anew while verify looked",
                hint="what it holds now is another matter: find out who did that, then verify again",
            )

    async def former(self, target: str, oid: int) -> Table | None:
        """None: a container has no parts to detach, and one that was made anew is another."""
        return None

    async def drain(self, timeout_s: float) -> list[str]:
        """Nothing: a write of one document is there or not, and no server says who is about to send one."""
        return []

    async def __aenter__(self) -> CosmosCensus:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._kept = []

    # counting

    async def count(self, table: Table, columns: Mapping[str, Forms]) -> Counted:
        """The documents of a container, and each field's values by class: of two counts, the worse.

        The second is no sooner than `settle_s` after the first one of all.
        """
        self._began = self._began or time.monotonic()
        self._counted += 1
        first = await self._count(table, columns)
        if self._strong or any(_left(counts, columns[name]) for name, counts in first[1].items()):
            return first
        self._again += 1
        await self._settle()
        rows, second = await self._count(table, columns)
        return rows, {
            name: max((second[name], first[1][name]), key=lambda counts: _badness(counts, forms))
            for name, forms in columns.items()
        }

    async def _settle(self) -> None:
        """Waits until the pause is over that began with the first count: one for all of a verification."""
        self._began = self._began or time.monotonic()
        await anyio.sleep(max(0.0, self._began + self._job.cosmos.settle_s - time.monotonic()))

    async def _count(self, table: Table, columns: Mapping[str, Forms]) -> Counted:
        """One count that adds up."""
        if not any(_field(table, name).many for name in columns):
            for attempt in range(_COUNTS):
                counted = await self._asked(table, columns, exactly=attempt + 1 < _COUNTS)
                if counted is not None:
                    return counted
        for _ in range(_COUNTS):
            counted = await self._read(table, columns)
            if counted is not None:
                return counted
        raise StoreError(
            f"container {table.relation}: what is read and what the server counts do not agree",
            hint="documents may be written and deleted faster than they are counted: verify again when it is "
            "quieter; if nobody writes, do not rely on this count, and report it",
        )

    async def _asked(self, table: Table, columns: Mapping[str, Forms], *, exactly: bool) -> Counted | None:
        """Counts by queries; None when they do not add up to the number of documents.

        Unless it must be exact, a difference is taken that documents written meanwhile explain.
        """
        container = self._container(table)
        since = 0 if exactly else await self._now()
        before = await container.count(ALL)
        found = {
            name: await self._classes(container, classes_of(_field(table, name), forms), forms)
            for name, forms in columns.items()
        }
        rows = await container.count(ALL)
        sums = [sum(number for _, _, number in counts) for counts in found.values()]
        touched = 0 if exactly else await self._touched(container, since)
        agree = all(_within(one, before, rows, touched) for one in sums)
        return (rows, found) if agree and (before == rows or not exactly) else None

    async def _touched(self, container: Container, since: int) -> int:
        return await container.count(Query(SINCE, (("@since", since),)))

    async def _classes(self, container: Container, classes: Classes, forms: Forms) -> list[ClassCount]:
        """One field's values by class. First where values go, last where they come from."""
        counts: list[ClassCount] = [("null", None, await container.count(classes.null))]
        for form, query in classes.known:
            counts.append(("marked" if form.new else "old", form.version, await container.count(query)))
        others: Counter[tuple[str, str | None]] = Counter()
        others["bare", None] = await container.count(classes.unmarked)
        if classes.nowhere is not None:
            others[_class_of(f"{NOWHERE}{PART}", forms)] += await container.count(classes.nowhere)
        left = await container.count(classes.others)
        if left and any(layout.versioned for layout in forms.layouts):
            async for page in container.every(classes.heads, limit=_PAGE):
                others.update(_class_of(classes.head_of(found), forms) for found in page)
        else:
            others["bare", None] += left
        return [*counts, *((kind, version, number) for (kind, version), number in others.items())]

    async def _read(self, table: Table, columns: Mapping[str, Forms]) -> Counted | None:
        """Counts by reading every document once; None when the server counts others than were read."""
        container = self._container(table)
        since = await self._now()
        before = await container.count(ALL)
        found: dict[str, Counter[tuple[str, str | None]]] = {name: Counter() for name in columns}
        rows = 0
        async for documents in self._documents(table, EVERY):
            rows += len(documents)
            for name, forms in columns.items():
                column = _field(table, name)
                found[name].update(
                    _class_of(_worst(value_of(one, column), forms), forms) for one in documents
                )
        after = await container.count(ALL)
        touched = 0 if before == rows == after else await self._touched(container, since)
        if not _within(rows, before, after, touched):
            return None
        return rows, {name: [(*key, number) for key, number in one.items()] for name, one in found.items()}

    # reading

    async def bare(self, table: Table, column: str, forms: Forms) -> AsyncIterator[list[Any]]:
        async for page in self._unmarked(table, column, forms):
            yield page

    async def unnamed(self, table: Table, column: str, forms: Forms) -> AsyncIterator[list[Any]]:
        if not self._strong:
            # what is opened now was written some while before it was counted
            await self._settle()
        async for page in self._unmarked(table, column, forms):
            yield page

    async def _unmarked(self, table: Table, column: str, forms: Forms) -> AsyncIterator[list[Any]]:
        field = _field(table, column)
        condition = EVERY if field.many else classes_of(field, forms).without
        async for page in self._rows(table, field, condition):
            rows = [row for row in page if _class_of(_worst(row[1], forms), forms)[0] == "bare"]
            if rows:
                yield rows

    async def marked(self, table: Table, column: str, forms: Forms) -> AsyncIterator[list[Any]]:
        field = _field(table, column)
        current = ("marked", forms.versions[0])
        condition = EVERY if field.many else classes_of(field, forms).at_target
        async for page in self._rows(table, field, condition):
            rows = [row for row in page if _class_of(_worst(row[1], forms), forms) == current]
            if rows:
                yield rows

    async def _rows(self, table: Table, field: FieldColumn, condition: Condition) -> AsyncIterator[list[Any]]:
        shape = self._shapes[table.relation]
        async for documents in self._documents(table, condition):
            yield [[shape.key_of(one), value_of(one, field), *shape.tokens_of(one)] for one in documents]

    async def _documents(self, table: Table, condition: Condition) -> AsyncIterator[list[dict[str, Any]]]:
        """Pages of documents, or of what of them a row is made of."""
        shape = self._shapes[table.relation]
        query, named = selection(shape.properties, condition)
        async for page in self._container(table).every(query, limit=_PAGE):
            yield [named(found) for found in page]

    async def value(self, table: Table, column: str, forms: Forms, row_id: str) -> StoredValue | None:
        try:
            parts = key_parts(row_id, len(table.key))
        except ValueError:
            # put aside when the container was partitioned otherwise
            return None
        key: Any = parts[0] if len(parts) == 1 else tuple(parts)
        document = await document_of(self._container(table), self._shapes[table.relation], key)
        if document is None:
            return None
        whole = value_of(document, _field(table, column))
        raw = (whole or "").encode(errors="surrogatepass")
        large = len(raw) > self._job.pace.max_value_bytes
        head = (_worst(whole, forms) or "")[:MARKER_BYTES_MAX]
        return StoredValue(head, whole, len(raw), sha256(raw).hexdigest() if large else "")

    async def settled(self, what: Witnessed) -> Witnessed:
        """What is to be fingerprinted; raises SchemaMismatch where there is no such container."""
        return await settle(self.account, what)

    async def entries(self, what: Witnessed) -> AsyncIterator[bytes]:
        """Its sorted entries, as the documents are read one after the other."""
        async for page in entries(self.account, what):
            yield page

    # the account

    async def position(self) -> str:
        """The server's time, and how far its partitions were, as it says itself."""
        heads = await self._heads()
        session = heads.get("x-ms-session-token", "")
        return " ".join(filter(None, (heads.get("date", ""), session)))

    async def _now(self) -> int:
        """The server's time in whole seconds, and a little earlier."""
        told = (await self._heads()).get("date", "")
        return int(parsedate_to_datetime(told).timestamp()) - _CLOCK_S

    async def _heads(self) -> dict[str, str]:
        """The headers of an answer about the first container, by their names in lower case."""
        heads: dict[str, str] = {}
        proxy = await self.account.proxy(self._job.targets[0].table)

        def keep(headers: Mapping[str, str], _: object) -> None:
            heads.update({name.lower(): value for name, value in headers.items()})

        await self.account.patiently(lambda: proxy.read(response_hook=keep), self.account.subject)
        return heads

    async def add_fence(self, table: Table, column: str, prefix: Prefix) -> bool:
        raise FenceError(
            f"no fence was added to {table.relation}: Cosmos DB has no constraints, and so takes old values",
            hint="what keeps the old key out is taking it from the application; verify again then, and "
            "disable the key only after that",
        )

    async def close(self) -> None:
        await self.account.close()

    def _container(self, table: Table) -> Container:
        return self.account.container(table.name)


def _within(number: int, before: int, after: int, touched: int) -> bool:
    """Whether a number agrees with the counts around it, when so many documents were written meanwhile."""
    return min(before, after) - touched <= number <= max(before, after) + touched


def _field(table: Table, column: str) -> FieldColumn:
    return next(field for field in table.fields if field.name == column)


def _class_of(head: str | None, forms: Forms) -> tuple[str, str | None]:
    """The class of a value by what it begins with."""
    if head is None:
        return "null", None
    named = forms.named_by(head)
    if named is None:
        return "bare", None
    return "marked" if named[1] else "old", named[0]


def _worst(value: str | None, forms: Forms) -> str | None:
    """A value; of many elements, the one that is farthest from done.

    That is one under a version that the job knows, then one under any other, then one without a marker.
    """
    if value is None or ELEMENT not in value:
        return value
    return min(value.split(ELEMENT), key=lambda one: _rank(_class_of(one, forms), forms))


def _rank(told: tuple[str, str | None], forms: Forms) -> int:
    kind, version = told
    if kind == "bare":
        return 2
    if told == ("marked", forms.versions[0]):
        return 3
    return 0 if version in forms.versions else 1


def _left(counts: Sequence[ClassCount], forms: Forms) -> int:
    """How many values are under a version, and not the new one."""
    current = ("marked", forms.versions[0])
    return sum(n for kind, version, n in counts if version is not None and (kind, version) != current)


def _badness(counts: Sequence[ClassCount], forms: Forms) -> tuple[int, int]:
    return _left(counts, forms), sum(n for kind, _, n in counts if kind == "bare")
