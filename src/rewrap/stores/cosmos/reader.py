"""Reads a container page by page within a feed range.

A continuation token is a hint of where to go on, and nothing else: it is kept with a digest of the query that
it belongs to, and whatever is wrong with it, the feed range is read from its start.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rewrap.errors import Rewound
from rewrap.interfaces import Page, Prefix, Row, Scope
from rewrap.job import Job
from rewrap.model import ShardRange, key_text
from rewrap.packed import ELEMENT, HELD_BACK, listed
from rewrap.stores.cosmos.client import EVERYTHING, Container, Query
from rewrap.stores.cosmos.faults import BadRequest, lost_place
from rewrap.stores.cosmos.finding import document_of
from rewrap.stores.cosmos.queries import named, page_query, sample_query
from rewrap.stores.cosmos.shape import ETAG, Seen, Shape

Restart = Callable[[int], Awaitable[None]]
"""Sets a shard's checkpoint to its start."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where reading stands: the query's digest, the token to go on with, the digest of the first key.

    A range that is read from its start again, because the token meant nothing, shows by its first key.
    """

    query: str
    token: str | None = None
    first: str = ""

    @property
    def text(self) -> str:
        return json.dumps({"query": self.query, "token": self.token, "first": self.first})

    @classmethod
    def of(cls, text: str) -> Place | None:
        """The place in a cursor; None when it is no place."""
        try:
            told = json.loads(text)
            return cls(told["query"], told["token"], told["first"])
        except (ValueError, KeyError, TypeError):
            return None


class ContainerReader:
    """Reads one container. A page is one request, and nothing stays open between two of them."""

    def __init__(self, container: Container, shape: Shape, job: Job, restart: Restart) -> None:
        self._container = container
        self._shape = shape
        self._pace = job.pace
        self._restart = restart
        self._limit = job.pace.batch_size

    async def fetch(self, shard: ShardRange, after: str | None, limit: int, scope: Scope) -> Page:
        query = page_query(self._shape, scope)
        digest = _digest(query, shard)
        place = Place(digest) if after is None else Place.of(after)
        if place is None or place.query != digest:
            raise await self._rewound(shard, "its cursor is of another query")
        limit = max(1, min(limit, self._limit))
        try:
            answer = await self._container.query(
                query, limit=limit, token=place.token, scope=_feed_range(shard)
            )
        except (BadRequest, ValueError):
            # ValueError: the SDK sees by itself that a token is another query's
            if place.token is None:
                raise
            raise await self._rewound(
                shard, "the server does not take its continuation token any more"
            ) from None
        documents = [named(self._shape, found) for found in answer.found]
        first = place.first
        if documents:
            begins = _short(key_text(self._shape.key_of(documents[0])))
            if place.token is not None and begins == first:
                raise await self._rewound(shard, "its continuation token led to the start")
            first = first or begins
        page = self._page([one for one in documents if self._wanted(one, scope)])
        self._adapt(page)
        here = place.text
        if answer.token is None:
            # nothing follows; should this page be lost, it is where to go on
            return replace(page, last=None, cursor=here)
        there = Place(digest, answer.token, first).text
        return replace(page, last=there, cursor=there)

    async def fetch_large(self, key: Any) -> Row | None:
        document = await document_of(self._container, self._shape, key)
        return None if document is None else self._shape.large_row_of(document, self._pace.max_value_bytes)

    async def sample(self, count: int, prefixes: dict[str, Prefix]) -> list[Row]:
        """Rows from the start of every feed range; the server has no way to draw some at random."""
        query, scope = sample_query(self._shape, prefixes), Scope({n: (p,) for n, p in prefixes.items()})
        found: dict[Any, Row] = {}
        ranges = await self._container.feed_ranges()
        share = max(1, -(-count // max(1, len(ranges))))
        rest: list[tuple[dict[str, Any], str | None]] = [(one, None) for one in ranges]
        begun_anew = 0
        while rest and len(found) < count:
            feed_range, token = rest.pop(0)
            try:
                answer = await self._container.query(query, limit=share, token=token, scope=feed_range)
            except BadRequest:
                if token is None:
                    raise
                if begun_anew == len(ranges):
                    raise lost_place(self._container.subject) from None
                begun_anew += 1
                rest.append((feed_range, None))
                continue
            for one in (named(self._shape, each) for each in answer.found):
                if self._wanted(one, scope):
                    found[self._shape.key_of(one)] = self._row(one)
            if answer.token is not None:
                rest.append((feed_range, answer.token))
        return list(found.values())[:count]

    async def close(self) -> None:
        """Nothing stays open; the client is the store's."""

    def _page(self, documents: Sequence[Mapping[str, Any]]) -> Page:
        page = Page.of([self._row(one) for one in documents], self._shape.table)
        return replace(page, stamps=[Seen(one[ETAG], one) for one in documents])

    def _row(self, document: Mapping[str, Any]) -> Row:
        return self._shape.row_of(document, self._pace.max_value_bytes)

    def _wanted(self, document: Mapping[str, Any], scope: Scope) -> bool:
        """Whether a document that the query found is in scope: a query says so of arrays only roughly."""
        if scope.markers is None:
            return True
        values = self._row(document)[1:]
        for column, value in zip(self._shape.table.fields, values, strict=False):
            prefixes, marked = scope.markers.get(column.name, ()), scope.unmarked.get(column.name)
            if _in_scope(value, prefixes, marked):
                return True
        return False

    def _adapt(self, page: Page) -> None:
        """Shorter pages where values are large: a page holds about `batch_bytes` at most."""
        if not page.keys:
            return
        size = sum(len(value) for column in page.fields for value in listed(column) if value is not None)
        if size > self._pace.batch_bytes:
            self._limit = max(1, len(page) * self._pace.batch_bytes // size)

    async def _rewound(self, shard: ShardRange, why: str) -> Rewound:
        await self._restart(shard.shard)
        return Rewound(why)


def _in_scope(value: str | None, prefixes: Sequence[Prefix], marked: str | None) -> bool:
    if value is None:
        return False
    if value.startswith(HELD_BACK):
        return True
    for one in value.split(ELEMENT):
        if any(one.startswith(str(prefix)) for prefix in prefixes):
            return True
        if marked is not None and not _matches(marked, one):
            return True
    return False


def _matches(regex: str, value: str) -> bool:
    try:
        return re.search(regex, value) is not None
    except re.error:
        # written for another engine: the value is looked at
        return False


def _feed_range(shard: ShardRange) -> dict[str, Any]:
    found: dict[str, Any] = EVERYTHING if shard.lower is None else json.loads(shard.lower)
    return found


def _digest(query: Query, shard: ShardRange) -> str:
    """What a token belongs to: a query's text, its parameters, and the range."""
    told = json.dumps([query.text, query.parameters, shard.lower], ensure_ascii=False)
    return _short(told)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
