"""The seams: what the engine asks of a store, of a ledger and of whoever listens.

An adapter implements a Protocol by having its methods; nothing registers itself anywhere.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from rewrap.events import Event
from rewrap.forms import Forms
from rewrap.model import (
    Activity,
    Fault,
    ServerIdentity,
    ShardLease,
    ShardRange,
    StoredValue,
    Table,
    Tally,
)
from rewrap.pace.vitals import Vitals
from rewrap.packed import Column, Packed, listed, picked
from rewrap.untouched import Witnessed

Sink = Callable[[Event], None]
"""Takes events; must not block and must not raise."""

Prefix = str | bytes
"""What a value under a version begins with."""

Row = Sequence[Any]
"""One stored row: (key, value of each field, text of each AAD column), in the table's order.

A value is None (SQL NULL), text, bytes, or `OversizeMark`: the store held it back for its size.
"""


@dataclass(frozen=True, slots=True)
class OversizeMark:
    """Stands in a row for a value over the limit: its length in bytes, its beginning, its SHA-256 in hex."""

    size: int
    head: str | bytes = field(repr=False)
    sha256: str = field(default="", repr=False)

    @property
    def stands_for(self) -> str:
        """What is digested in the value's place: another value of the same length is another value."""
        return f"{self.size} bytes {self.sha256}"


@dataclass(frozen=True, slots=True)
class Page:
    """Consecutive rows of a shard in key order, column by column: keys, fields, texts of AAD columns.

    `stamps`, where the store has them, change whenever anything of a row does. `last` is what the next page
    is fetched after, None at the end. `cursor` is what the shard's checkpoint says once the page is settled;
    None for the text of its last key. A value over the page's size limit is held back: in its place stands
    text or bytes that begin with U+0001 (`rewrap.packed.HELD_BACK`).
    """

    keys: list[Any]
    fields: tuple[Column, ...]
    tokens: tuple[Column, ...]
    last: str | None = None
    stamps: list[Any] | None = None
    cursor: str | None = None

    @classmethod
    def of(cls, rows: Sequence[Row], table: Table) -> Page:
        """The same rows as a page, none of it packed."""
        width = len(table.fields)
        columns = [[row[at] for row in rows] for at in range(1 + width + len(table.aad_columns))]
        return cls(columns[0], tuple(columns[1 : 1 + width]), tuple(columns[1 + width :]))

    def __len__(self) -> int:
        return len(self.keys)

    def row(self, place: int) -> Row:
        """One of its rows."""
        columns = (*self.fields, *self.tokens)
        return (self.keys[place], *(listed(column)[place] for column in columns))

    def part(self, places: Sequence[int]) -> Page:
        """The same page, restricted to some rows."""
        return Page(
            [self.keys[i] for i in places],
            tuple(picked(column, places) for column in self.fields),
            tuple(picked(column, places) for column in self.tokens),
            self.last,
            _some(self.stamps, places),
            self.cursor,
        )


@dataclass(frozen=True, slots=True)
class Scope:
    """What a sweep reads: every row (`markers` None), or rows with a value under one of the markers.

    `unmarked` adds values that carry no marker at all. Both are by field name.
    """

    markers: dict[str, tuple[Prefix, ...]] | None = None
    unmarked: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class SwapBatch:
    """New values of one batch, by row: parallel columns of equal length in key order.

    `olds[field]` and `news[field]` belong to `keys`, row by row; a new value of None leaves that field of
    that row alone. `tokens` are the texts of the AAD columns that the new values are bound to.

    With `stamps` a row is swapped while it is the very row that was read; without them, while it holds the
    old values and the tokens, whatever else of it has changed.
    """

    keys: list[Any]
    olds: dict[str, Column]
    news: dict[str, Column]
    tokens: tuple[Column, ...] = ()
    stamps: list[Any] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def written(self, column: str) -> int:
        """How many values of a column it writes."""
        news = self.news[column]
        return len(news) if isinstance(news, Packed) else len(news) - news.count(None)

    def unpacked(self) -> SwapBatch:
        """The same batch with a list for every column."""
        return SwapBatch(
            self.keys,
            {name: listed(olds) for name, olds in self.olds.items()},
            {name: listed(news) for name, news in self.news.items()},
            tuple(listed(tokens) for tokens in self.tokens),
            self.stamps,
        )

    def part(self, places: Sequence[int]) -> SwapBatch:
        """The same batch, restricted to some rows."""
        return SwapBatch(
            [self.keys[i] for i in places],
            {name: picked(olds, places) for name, olds in self.olds.items()},
            {name: picked(news, places) for name, news in self.news.items()},
            tuple(picked(tokens, places) for tokens in self.tokens),
            _some(self.stamps, places),
        )

    def only(self, columns: Sequence[str]) -> SwapBatch:
        """The same batch, which writes some columns only."""
        nothing: list[Any] = [None] * len(self)
        return SwapBatch(
            self.keys,
            self.olds,
            {name: news if name in columns else nothing for name, news in self.news.items()},
            self.tokens,
            self.stamps,
        )


def _some(stamps: list[Any] | None, places: Sequence[int]) -> list[Any] | None:
    return None if stamps is None else [stamps[i] for i in places]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The settled prefix of a shard: its cursor, and the tally and row count up to there."""

    cursor: str | None
    rows: int
    tally: Tally
    done: bool = False


class ShardReader(Protocol):
    """Reads one table. A large value may be asked for while a page is on its way; pages come one by one."""

    async def fetch(self, shard: ShardRange, after: str | None, limit: int, scope: Scope) -> Page:
        """The next rows of the shard after a key, at most `limit`, in key order."""
        ...

    async def fetch_large(self, key: Any) -> Row | None:
        """One row with its values whole; None when it is gone. A value over the limit is a mark."""
        ...

    async def sample(self, count: int, prefixes: dict[str, Prefix]) -> list[Row]:
        """At most `count` rows from across the table that hold a value under one of the prefixes."""
        ...

    async def close(self) -> None: ...


class ShardWriter(Protocol):
    """Writes one table under a lease. Not for concurrent use."""

    async def swap(
        self, lease: ShardLease, batch: SwapBatch, checkpoint: Checkpoint, *, skip_locked: bool
    ) -> int:
        """Compare-and-swap of a batch; the number of rows written.

        The checkpoint, which speaks of what came before the batch, lands in the same transaction where the
        store has one, and after the rows where it has none. Raises LeaseLost when the fence was raised,
        Rewound when the store lost writes that it had acknowledged, ValueRefused when it takes everything of
        the batch but some value.
        """
        ...

    async def table_locked(self) -> bool:
        """Whether somebody holds, or waits for, a lock on the whole table that keeps writers out."""
        ...

    async def unsettled(self, batch: SwapBatch) -> list[tuple[int, Row | None]]:
        """The rows of a batch that do not hold its new values now: (index, row or None when gone)."""
        ...

    async def checkpoint(self, lease: ShardLease, checkpoint: Checkpoint) -> None:
        """Saves how far the shard is. Raises LeaseLost when the fence was raised."""
        ...

    async def reconnect(self, lease: ShardLease) -> None:
        """A fresh connection after the old one broke; what was not acknowledged may have landed.

        Raises Rewound when, on the contrary, acknowledged writes are gone.
        """
        ...

    async def close(self) -> None: ...


class Store(Protocol):
    """A database that holds encrypted values."""

    @property
    def notices(self) -> list[str]: ...

    async def identity(self) -> ServerIdentity: ...

    async def tables(self) -> list[Table]:
        """The job's tables as the database has them; refuses what cannot be done safely."""
        ...

    async def split(self, table: Table, shards: int) -> list[ShardRange]:
        """Ranges of about equal size that cover every key; bounds come from the server."""
        ...

    async def rehearse(self, table: Table, lease: ShardLease, batch: SwapBatch) -> bool:
        """Swaps, reads back byte for byte, and rolls back: what triggers do shows here."""
        ...

    async def activity(self, table: Table) -> Activity: ...

    @property
    def waiting_for(self) -> str:
        """What requests wait for just now, in words; empty when they do not wait."""
        ...

    def spent(self) -> dict[str, float]:
        """What was used up so far, by unit: `{"request_units": 1234.5}`; empty where nothing is metered."""
        ...

    async def drain(self, timeout_s: float) -> list[str]:
        """Waits for every write transaction that is open now to end; names those that did not."""
        ...

    async def flush(self) -> str:
        """Makes everything written so far durable; the position of the log, as text."""
        ...

    def reader(self, table: Table, *, full: bool = True) -> ShardReader:
        """A reader; `full` when it will read every row, false when it looks for few among many."""
        ...

    def writer(self, table: Table, *, full: bool = True) -> ShardWriter:
        """A writer; `full` when its batches are pages of consecutive rows, or parts of such pages."""
        ...

    async def refuse_fenced(self, table: Table, prefixes: dict[str, Prefix]) -> None:
        """Raises UnsafeTarget when a constraint on the table refuses values that begin like these."""
        ...

    async def close(self) -> None: ...


@runtime_checkable
class Logging(Protocol):
    """A store whose servers log what is written."""

    async def logged(self, table: Table) -> int | None:
        """Bytes that the table's server has logged so far, whoever caused them; None where none are."""
        ...


class Monitor(Protocol):
    """Looks at a server while a run is at work there."""

    async def look(self, window_s: float) -> Vitals:
        """One look; what others did in the last `window_s` seconds counts as now."""
        ...

    async def probe(self) -> float:
        """Seconds that a commit takes which writes nothing but itself."""
        ...

    async def answer(self, query: str, timeout_s: float) -> object:
        """The first value that a query of the job's own gives; it may write nothing."""
        ...

    async def close(self) -> None: ...


@runtime_checkable
class Monitored(Protocol):
    """A store whose server can be looked at."""

    def monitor(self, tables: Sequence[Table]) -> Monitor: ...


@dataclass(frozen=True, slots=True)
class Bystanders:
    """Who else is in a database, in words: `writing` to some tables, or with `sessions` of whatever kind."""

    writing: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()


@runtime_checkable
class Attended(Protocol):
    """A store that can say who else is there."""

    async def bystanders(self, tables: Sequence[Table]) -> Bystanders:
        """Everybody but rewrap itself. `writing` are open transactions that wrote one of the tables."""
        ...


class Guard(Protocol):
    """The lock and the checkpoints of a run, kept in the store itself."""

    @property
    def notices(self) -> list[str]: ...

    async def claim(self, claim: Claim) -> dict[str, list[ShardLease]]:
        """Takes every table of a run, or raises LeaseHeld; leases by relation, cursors as they stand."""
        ...

    async def begin_sweep(self, relation: str, sweep: int) -> list[ShardLease]:
        """Sets a table's shards to the start of a sweep."""
        ...

    async def lease(self, relation: str, shard: int) -> ShardLease:
        """One shard as the store has it now; raises LeaseLost when somebody else has it."""
        ...

    async def beat(self) -> None:
        """Extends the leases; raises LeaseLost when somebody else has them."""
        ...

    async def release(self, *, finished: bool, void: bool = False) -> None:
        """Gives the leases back; `void` also forgets the cursors, so that the next run starts over."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Claim:
    """What a run asks of the guard: itself, its versions, and how it would cut each table.

    `orders` says of each relation what its cursors depend on: those of another order mean nothing.
    """

    run_id: str
    owner: str
    from_versions: tuple[str, ...]
    to_version: str
    ranges: dict[str, list[ShardRange]]
    ttl_s: float
    restart: bool = False
    abandon: str | None = None
    orders: Mapping[str, str] = field(default_factory=dict)


ClassCount = tuple[str, str | None, int]
"""("null" | "bare" | "marked" | "old", version, number): "old" is marked in the layout that values leave."""


class Census(Protocol):
    """What verify asks of a store: counts and values, in one snapshot where the store has such a thing."""

    @property
    def identity(self) -> ServerIdentity | None: ...

    @property
    def manner(self) -> str:
        """How it has counted, for people: `in one snapshot`."""
        ...

    async def tables(self) -> list[Table]:
        """The job's tables, as they are; refuses what may lag behind."""
        ...

    async def tables_now(self, tables: Sequence[Table]) -> list[Table]:
        """The same tables as they are in the snapshot, and stay until it is left."""
        ...

    async def former(self, target: str, oid: int) -> Table | None:
        """A table that held rows of a target once, if it is still there and could hold its values."""
        ...

    async def drain(self, timeout_s: float) -> list[str]: ...

    async def __aenter__(self) -> Census: ...

    async def __aexit__(self, *exc: object) -> None: ...

    async def count(
        self, table: Table, columns: Mapping[str, Forms]
    ) -> tuple[int, dict[str, list[ClassCount]]]:
        """The rows of a table, and each field's values by class and version."""
        ...

    def bare(self, table: Table, column: str, forms: Forms) -> AsyncIterator[list[Any]]:
        """Pages of (key, value, AAD texts…) without a marker that could be a sealed payload."""
        ...

    def unnamed(self, table: Table, column: str, forms: Forms) -> AsyncIterator[list[Any]]:
        """Pages of (key, value, AAD texts…) of every value without a marker, but those over the limit."""
        ...

    def marked(self, table: Table, column: str, forms: Forms) -> AsyncIterator[list[Any]]:
        """Pages of (key, value, AAD texts…) marked as current, in no order."""
        ...

    async def value(self, table: Table, column: str, forms: Forms, row_id: str) -> StoredValue | None:
        """What a field of one row holds; None when the row is gone. A very large value stays there."""
        ...

    async def check_kept(self) -> None:
        """Raises StoreError when a table was altered while it was counted."""
        ...

    async def position(self) -> str: ...

    async def add_fence(self, table: Table, column: str, prefix: Prefix) -> bool:
        """Makes the store refuse values that do not begin so; False when it did already."""
        ...

    async def close(self) -> None: ...


@runtime_checkable
class Fingerprinting(Protocol):
    """A census that can say row by row what is stored, for the proof that it stayed as it was."""

    async def settled(self, what: Witnessed) -> Witnessed:
        """The same with its key and its places named one by one, as the table has them now.

        Raises SchemaMismatch or UnsafeTarget when they are not there, or cannot be read.
        """
        ...

    def entries(self, what: Witnessed) -> AsyncIterator[bytes]:
        """The sorted entries of what was settled, some thousands at a time (`rewrap.fingerprint`)."""
        ...


class Quarantine(Protocol):
    """Where faults are kept. Durable when a call returns."""

    async def record(self, relation: str, faults: Sequence[Fault]) -> None: ...
