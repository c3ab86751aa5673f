"""A container's requests: documents by id and partition key, and queries page by page."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rewrap.errors import StoreError, StoreUnavailable, Unaddressed
from rewrap.model import is_text
from rewrap.stores.cosmos.faults import BadRequest, Missing, expected

if TYPE_CHECKING:
    from rewrap.stores.cosmos.client import Account

EVERYTHING = {"Range": {"min": "", "max": "FF", "isMinInclusive": True, "isMaxInclusive": False}}
"""The feed range of a whole container."""

Document = dict[str, Any]

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Query:
    """A query's text and its parameters by name."""

    text: str
    parameters: tuple[tuple[str, Any], ...] = ()

    @property
    def sent(self) -> list[dict[str, Any]]:
        return [{"name": name, "value": value} for name, value in self.parameters]


@dataclass(frozen=True, slots=True)
class Answer:
    """One page of a query: what it found, and the token to go on with; None at the end."""

    found: list[Any] = field(repr=False)
    token: str | None = None


class Container:
    """One container: documents by id and partition key, and queries."""

    def __init__(self, account: Account, name: str) -> None:
        self.account = account
        self.name = name
        self.relation = f"{account.database}/{name}"

    @property
    def subject(self) -> str:
        return f"container {self.relation}"

    async def properties(self) -> Document:
        """How it is set up: its _rid, partition key, indexing, time to live. SchemaMismatch without it."""
        proxy = await self.account.proxy(self.name)
        with expected(f'container "{self.name}"', self.account.subject):
            return dict(await self.account.patiently(proxy.read, self.subject))

    async def date(self) -> str:
        """The server's time, as its answers are dated (RFC 9110)."""
        proxy = await self.account.proxy(self.name)
        heads: list[Mapping[str, str]] = []
        await self.account.patiently(
            lambda: proxy.read(response_hook=lambda headers, _: heads.append(headers)), self.subject
        )
        return heads[-1]["date"]

    async def feed_ranges(self) -> list[dict[str, Any]]:
        """The ranges that are one partition of the server's each, as it has them now."""
        proxy = await self.account.proxy(self.name)

        async def listed() -> list[dict[str, Any]]:
            return [one async for one in proxy.read_feed_ranges(force_refresh=True)]

        with expected(f'container "{self.name}"', self.account.subject):
            return await self.account.patiently(listed, self.subject)

    async def query(
        self, query: Query, *, limit: int, token: str | None = None, scope: Mapping[str, Any] = EVERYTHING
    ) -> Answer:
        """One page of at most `limit` results within a feed range."""
        proxy = await self.account.proxy(self.name)

        async def page() -> Answer:
            from rewrap.stores.cosmos.transport import ASKED, CONTINUATION

            # the SDK keeps the headers of the last answer in one place for all requests under way: only
            # those handed to this query's own hook are surely its own
            heads: list[Mapping[str, str]] = []
            pages = proxy.query_items(
                query.text,
                parameters=query.sent,
                feed_range=dict(scope),
                max_item_count=limit,
                response_hook=lambda headers, _: heads.append(headers),
            ).by_page(token)
            asked: list[bool] = []
            before = ASKED.set(asked)
            try:
                rows = await _first_page(pages)
            finally:
                ASKED.reset(before)
            if token is not None and not _of_several(token) and not all(asked):
                # a partition has split: the SDK drops such a token, and quietly begins at the start
                raise BadRequest(f"{self.subject}: the continuation token was dropped")
            # without any row the SDK has gone to the end
            return Answer(rows, heads[-1].get(CONTINUATION) if rows else None)

        with expected(f'container "{self.name}"', self.account.subject):
            return await self.account.patiently(page, self.subject)

    async def every(
        self, query: Query, *, limit: int = 1_000, scope: Mapping[str, Any] = EVERYTHING
    ) -> AsyncIterator[list[Any]]:
        """All pages of a query. StoreUnavailable when the server forgets where it was: ask once more."""
        token: str | None = None
        while True:
            try:
                answer = await self.query(query, limit=limit, token=token, scope=scope)
            except BadRequest:
                if token is None:
                    raise
                raise StoreUnavailable(
                    f"{self.subject}: the server does not go on where it was",
                    hint="it is asked from the start",
                ) from None
            yield answer.found
            token = answer.token
            if token is None:
                return

    async def count(self, query: Query) -> int:
        """The sum of what a `SELECT VALUE COUNT(1)` counts in each part of the container."""
        counts: list[Any] = []
        async for found in self.every(query):
            counts += found
        if not counts or not all(type(one) is int for one in counts):
            # a count of nothing is 0, and no answer is no count
            raise StoreError(
                f"{self.subject}: a count was answered with what is no number",
                hint="see what stands between this machine and the account; nothing can be concluded",
            )
        return sum(counts)

    async def read(self, name: str, partition: Any) -> Document | None:
        """A document; None when it is not there. Unaddressed when it cannot be asked for by its place."""
        self._check(name)
        proxy = await self.account.proxy(self.name)
        try:
            found = await self.account.patiently(lambda: proxy.read_item(name, partition), self.subject)
        except Missing:
            return None
        except BadRequest:
            raise self._unaddressed() from None
        return dict(found)

    async def look_for(self, name: str) -> list[Document]:
        """The documents with an id, by a query: of ids, too, that no request can have in its path."""
        # a query is text too
        head = _SURROGATE.split(name)[0]
        where = "c.id IN (@id)" if head == name else "STARTSWITH(c.id, @id)"
        query = Query(f"SELECT * FROM c WHERE {where}", (("@id", head),))
        return [one async for page in self.every(query) for one in page if one["id"] == name]

    def _check(self, name: str) -> None:
        if not addressable(name):
            raise self._unaddressed()

    def _unaddressed(self) -> Unaddressed:
        return Unaddressed(
            f"{self.subject}: a document's id or partition key is none that a request can name",
            hint="an id is a text without / and \\; have the application write it under another one",
        )

    async def create(self, document: Document) -> Document:
        """Writes a document that is not there; Changed when it is."""
        proxy = await self.account.proxy(self.name)
        return dict(
            await self.account.patiently(lambda: proxy.create_item(document), self.subject, writes=True)
        )

    async def replace(self, document: Document, etag: str) -> Document:
        """Writes over a document while it has this etag; Changed or Missing when it has not."""
        from azure.core import MatchConditions

        self._check(document["id"])
        proxy = await self.account.proxy(self.name)
        return dict(
            await self.account.patiently(
                lambda: proxy.replace_item(
                    document["id"], document, etag=etag, match_condition=MatchConditions.IfNotModified
                ),
                self.subject,
                writes=True,
            )
        )

    async def patch(self, name: str, partition: Any, operations: list[Document], etag: str) -> str:
        """Changes some places of a document while it has this etag; its new etag.

        Raises Changed or Missing when it has not, Unaddressed when no request can name it.
        """
        from azure.core import MatchConditions

        self._check(name)
        proxy = await self.account.proxy(self.name)
        answered = await self.account.patiently(
            lambda: proxy.patch_item(
                name,
                partition,
                operations,
                etag=etag,
                match_condition=MatchConditions.IfNotModified,
                # what is written is known: it need not come back
                no_response=True,
            ),
            self.subject,
            writes=True,
        )
        return str(answered.get_response_headers().get("etag", "")).strip('"')

    async def delete(self, name: str, partition: Any) -> None:
        """Removes a document, whatever it holds."""
        proxy = await self.account.proxy(self.name)
        try:
            await self.account.patiently(
                lambda: proxy.delete_item(name, partition), self.subject, writes=True
            )
        except Missing:
            return


def addressable(name: str) -> bool:
    """Whether an id can be the last segment of a request's path, and stays what it is on its way."""
    return name not in ("", ".", "..") and "/" not in name and "\\" not in name and is_text(name)


async def _first_page(pages: Any) -> list[Any]:
    async for found in pages:
        return [row async for row in found]
    return []


def _of_several(token: str) -> bool:
    """Whether a token is the SDK's own, over several partitions: of some it has not asked anything yet."""
    try:
        return isinstance(json.loads(base64.b64decode(token, validate=True)), dict)
    except ValueError:
        return False
