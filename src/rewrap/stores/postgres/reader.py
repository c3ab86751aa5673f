"""Reads a table page by page, a page as one row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import anyio

from rewrap.errors import StoreError
from rewrap.interfaces import OversizeMark, Page, Prefix, Row, Scope
from rewrap.job import Job
from rewrap.model import ShardRange, Table, key_parts, key_text
from rewrap.packed import HELD_BACK, Column, Packed, unpacked
from rewrap.stores.postgres.connection import Address, Connection, close, connect, translated
from rewrap.stores.postgres.keys import KeySql
from rewrap.stores.postgres.statements import Statements

SAMPLE_ROWS = 4_000
"""Rows a random sample aims to look at: enough for shard bounds within a few per cent of each other."""

_PAGE_BYTES = 300_000
"""Bytes of values that a page aims at. Larger ones are no faster, and some are in memory for each shard."""

_PROGRAM_LIMIT = "54000"
"""Postgres' program_limit_exceeded: what it aggregates may not be larger than 1 GB."""

_READER_FULL = {"enable_seqscan": "off", "enable_bitmapscan": "off", "enable_sort": "off"}
"""A keyset page walks the key's index. Left alone, the planner may sort a whole middling table for each."""


class PostgresReader:
    """Reads one table in key order. Keyset pages: no cursor stays open, so vacuum is never held up."""

    def __init__(
        self, address: Address, job: Job, table: Table, guard: str, lock_timeout_ms: int, *, full: bool
    ) -> None:
        self._address = address
        self._pace = job.pace
        self._lock_timeout_ms = lock_timeout_ms
        self._table = table
        self._key = KeySql(table.key)
        self._statements = Statements(table, guard)
        self._settings = _READER_FULL if full else {}
        self._connection: Connection | None = None
        # a large value is fetched while the next page is: a connection does one thing at a time
        self._turn = anyio.Lock()
        self._limit = job.pace.batch_size
        self._fetch: tuple[tuple[ShardRange, bool, int, Scope], str] | None = None

    async def connected(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(
                self._address,
                application_name="rewrap reader",
                lock_timeout=f"{self._lock_timeout_ms}ms",
                **self._settings,
            )
        return self._connection

    async def fetch(self, shard: ShardRange, after: str | None, limit: int, scope: Scope) -> Page:
        limit = max(1, min(limit, self._limit))
        while True:
            try:
                page = await self._fetch_page(shard, after, limit, scope)
            except StoreError as exc:
                if exc.sqlstate != _PROGRAM_LIMIT or limit == 1:
                    raise
                # columns of associated data are not bounded: a page of very large ones is over 1 GB
                limit = self._limit = max(1, limit // 4)
                continue
            self._adapt(page, limit)
            return page

    async def _fetch_page(self, shard: ShardRange, after: str | None, limit: int, scope: Scope) -> Page:
        # whatever the page holds, it holds at most batch_bytes for each encrypted column
        inline = min(self._pace.batch_bytes // limit, self._pace.max_value_bytes)
        arguments: list[Any] = [inline]
        start = after if after is not None else shard.lower
        for bound in (start, shard.upper):
            if bound is not None:
                arguments += key_parts(bound, self._key.width)
        async with self._turn:
            page = await self._fetch_packed(shard, after is None, limit, scope, arguments)
            if page is None:
                page = await self._fetch_rows(shard, after is None, limit, scope, arguments)
        return page

    async def _fetch_packed(
        self, shard: ShardRange, first: bool, limit: int, scope: Scope, arguments: list[Any]
    ) -> Page | None:
        """A page in packed columns; None when one of its values cannot be told from two, or from NULL."""
        connection = await self.connected()
        if self._fetch is None or self._fetch[0] != (shard, first, limit, scope):
            statement = self._statements.fetch(shard, first=first, limit=limit, scope=scope)
            self._fetch = (shard, first, limit, scope), statement
        with translated(self._table.relation):
            found = await connection.fetchrow(self._fetch[1], *arguments)
        at = self._key.width
        keys = self._key.keys(found[:at])
        stamps, pairs = found[at], list(zip(found[at + 1 :: 2], found[at + 2 :: 2], strict=True))
        width = len(self._table.fields)
        columns: list[Column] = []
        for at, (values, column) in enumerate(pairs):
            binary = at < width and self._table.fields[at].binary
            came = column or [] if binary else unpacked(column, len(keys), values)
            if came is None:
                return None
            columns.append(came)
        last = key_text(keys[-1]) if len(keys) == limit else None
        return Page(keys, tuple(columns[:width]), tuple(columns[width:]), last, stamps)

    async def _fetch_rows(
        self, shard: ShardRange, first: bool, limit: int, scope: Scope, arguments: list[Any]
    ) -> Page:
        connection = await self.connected()
        statement = self._statements.fetch_rows(shard, first=first, limit=limit, scope=scope)
        with translated(self._table.relation):
            rows = await connection.fetch(statement, *arguments)
        page = Page.of([self._key.folded(row) for row in rows], self._table)
        return replace(page, last=key_text(page.keys[-1]) if len(rows) == limit else None)

    def _adapt(self, page: Page, limit: int) -> None:
        """Shorter pages where rows are wide: they come in pages and not one by one, and memory stays flat."""
        if not page.keys:
            return
        held = widest = 0
        for column in (*page.fields, *page.tokens):
            if isinstance(column, Packed):
                held += column.text.count(HELD_BACK) if HELD_BACK in column.text else 0
                widest += len(column.text) // len(page)
                continue
            # a look at one row in sixteen is enough to notice, and costs nothing
            looked = column[::16]
            marks = (HELD_BACK, HELD_BACK.encode())
            held += 16 * sum(1 for value in looked if value and value[:1] in marks)
            widest += max(len(value or "") for value in looked)
        if held * 4 > len(page):
            self._limit = max(8, limit // 2)
        elif not held:
            fitting = min(_PAGE_BYTES, self._pace.batch_bytes // 4) // max(1, widest)
            self._limit = max(1, min(self._pace.batch_size, self._limit * 2, fitting))

    async def fetch_large(self, key: Any) -> Row | None:
        limit = self._pace.max_value_bytes
        async with self._turn:
            connection = await self.connected()
            with translated(self._table.relation):
                heads = await connection.fetchrow(self._statements.heads(), *self._key.one(key), limit)
                row = await connection.fetchrow(self._statements.fetch_large(), *self._key.one(key), limit)
        if row is None or heads is None:
            return None
        whole = list(self._key.folded(row))
        for at in range(len(self._table.fields)):
            size, head, sha256 = heads[3 * at : 3 * at + 3]
            if size is not None and size > limit:
                whole[1 + at] = OversizeMark(size, head, sha256)
        return whole

    async def sample(self, count: int, prefixes: dict[str, Prefix]) -> list[Row]:
        inline = self._pace.batch_bytes // count
        share = 100.0 * SAMPLE_ROWS / max(1, self._table.estimated_rows)
        connection = await self.connected()
        with translated(self._table.relation):
            rows: list[Row] = []
            if share < 100:
                rows = await connection.fetch(
                    self._statements.sample(prefixes, percent=share, limit=count), inline
                )
            if len(rows) < count:
                # few or none by chance: look everywhere before saying that there is none
                rows = await connection.fetch(
                    self._statements.sample(prefixes, percent=None, limit=count, mixed=share >= 100), inline
                )
        return [self._key.folded(row) for row in rows]

    async def close(self) -> None:
        if self._connection is not None:
            await close(self._connection)
            self._connection = None
