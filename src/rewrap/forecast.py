"""Forecast: what a rotation will cost, low and high, from what the catalog says and a sample showed.

The arithmetic of one UPDATE in Postgres. A new version of the row is written; on its own page if there is
room and no index holds a changed column (HOT), else elsewhere, and then each index gets another entry. Each
record goes to the write-ahead log, and the first change of a page after a checkpoint takes the whole page
there. All lengths are in bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

PAGE = 8192
_PAGE_HEADER, _LINE_POINTER, _TUPLE_HEADER = 24, 4, 24

_UPDATE_RECORD = 60
"""A log record of an UPDATE on one page without the row itself: headers 24 + 20, its own 14."""

_OTHER_PAGE = 16
"""What a second page adds to it."""

_INDEX_RECORD = 46
"""A log record of an entry in a b-tree without the entry itself."""

_CHUNK = 2_000
"""Bytes of a value that one TOAST chunk holds (TOAST_MAX_CHUNK_SIZE, about)."""

_CHUNK_RECORD, _CHUNK_DELETED = 60 + 40 + 64, 60
"""Log records of a chunk: its insertion with its index entry, and its deletion."""

_BATCH_RECORD = 900
"""Log bytes of a batch besides its rows: the checkpoint in the guard's table, and the commit."""

_FIXED_HIGH = 1_500_000
"""Log bytes of a run besides its batches at most: the guard's table made, catalog pages, its checkpoints."""

_WRITE_ROW_S = (3e-6, 1.2e-4)
"""Seconds that the server takes to write a row, without its indexes: assumed, a fast and a slow machine."""

_WRITE_ENTRY_S = (1e-6, 5e-5)
"""Seconds for one entry of an index: assumed likewise."""

_REHEARSED = 5
"""Rows that are written for trial and rolled back, at most."""

_FIXED_S = (0.2, 10.0)
"""Seconds of a run besides its rows: proofs, the drain, verify's first look."""


@dataclass(frozen=True, slots=True)
class Range:
    low: float
    high: float

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.high + other.high)

    def as_json(self) -> dict[str, int | float]:
        if self.high >= 100:
            return {"low": math.floor(self.low), "high": math.ceil(self.high)}
        return {"low": round(self.low, 3), "high": round(self.high, 3)}


NOTHING = Range(0, 0)


@dataclass(frozen=True, slots=True)
class IndexShape:
    """An index: its name, its size, and whether it holds a column that a rotation writes."""

    name: str
    bytes: int
    holds: bool


@dataclass(frozen=True, slots=True)
class TableShape:
    """A table as the catalog and a sample of its rows have it.

    `rows` are all of it, `row_bytes` the width of one as it is stored inline, its header included; `pages`
    those of the heap. `spread` is whether the order of keys is not that of the rows on disk. `autovacuum`
    is the number of dead rows at which the server clears them, None when it never does.
    """

    rows: int
    pages: int
    row_bytes: float
    indexes: tuple[IndexShape, ...]
    spread: bool
    autovacuum: float | None
    logical: bool
    identity_full: bool


@dataclass(frozen=True, slots=True)
class Server:
    """Settings that decide how much goes to the log."""

    max_wal_bytes: int
    checkpoint_s: float
    full_page_writes: bool


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a sample of real rows showed, opened and sealed in memory.

    Seconds a row to read it and to reseal it; the bytes of all its new values, and how many of these are
    larger than what a row holds inline. `read_units` is what a row costs to read where that is metered.
    """

    rows: int
    read_s: float
    reseal_s: float
    new_bytes: float
    read_units: float = 0.0


@dataclass(frozen=True, slots=True)
class Work:
    """What there is to do in a table: values in scope, and how many rows hold at least one.

    These are `rows` if the fields of a row go together, `rows_most` if not. `probed` are values that no
    marker names a version of: each is opened to find out.
    """

    values: int
    rows: int
    rows_most: int
    probed: int = 0


@dataclass(frozen=True, slots=True)
class Forecast:
    """A table's forecast, or that of all. `growth_bytes` is of table and indexes, until it is vacuumed."""

    seconds: Range
    wal_bytes: Range
    growth_bytes: Range
    dead_rows: Range
    opens: Range
    seals: Range
    remote_calls: Range = NOTHING
    request_units: Range = NOTHING

    def __add__(self, other: Forecast) -> Forecast:
        return Forecast(
            self.seconds + other.seconds,
            self.wal_bytes + other.wal_bytes,
            self.growth_bytes + other.growth_bytes,
            self.dead_rows + other.dead_rows,
            self.opens + other.opens,
            self.seals + other.seals,
            self.remote_calls + other.remote_calls,
            self.request_units + other.request_units,
        )


def hot_share(shape: TableShape) -> Range:
    """The share of rows whose new version stays on its page, and touches no index."""
    if any(index.holds for index in shape.indexes):
        return NOTHING
    if shape.spread:
        # a page is met again and again, and what is dead on it by then is cleared
        return Range(0, 1)
    each = _aligned(shape.row_bytes) + _LINE_POINTER
    used = shape.rows * each / max(1, shape.pages)
    room = max(0.0, PAGE - _PAGE_HEADER - used)
    fitting = min(1.0, room / max(1.0, used))
    # that a page has room on average does not say that each has: and dead rows are cleared on the way
    return Range(max(0.0, fitting * 0.5 - 0.05), min(1.0, fitting + 0.15))


def forecast(
    shape: TableShape, server: Server, sampled: Sampled, work: Work, *, batch_size: int, shards: int
) -> Forecast:
    """The cost of rotating one table."""
    least = _forecast(shape, server, sampled, work, batch_size, shards)
    most = _forecast(shape, server, sampled, replace(work, rows=work.rows_most), batch_size, shards)
    return Forecast(
        *(Range(getattr(least, entry.name).low, getattr(most, entry.name).high) for entry in fields(Forecast))
    )


def _forecast(
    shape: TableShape, server: Server, sampled: Sampled, work: Work, batch_size: int, shards: int
) -> Forecast:
    hot = hot_share(shape)
    seconds = _seconds(shape, sampled, work, hot, shards)
    again = batch_size * shards
    return Forecast(
        seconds=seconds,
        wal_bytes=_wal(shape, server, sampled, work, hot, seconds, batch_size),
        growth_bytes=_growth(shape, sampled, work, hot),
        dead_rows=Range(
            # rows that stayed on their page are cleared by whoever reads it next
            _uncleared(shape, work) * (1 - hot.high),
            float(work.rows + _REHEARSED),
        ),
        # each old value, and each new one before it is sent; a stop repeats at most a batch for each shard
        opens=Range(2 * work.values + work.probed, 2 * (work.values + again) + 2 * work.probed),
        seals=Range(work.values, work.values + again),
    )


@dataclass(frozen=True, slots=True)
class Calls:
    """How values are opened where a key is kept: how many calls a second at most, and what takes them.

    `reopen` is the share of new values that are opened again, `keys` those that a value without a version is
    tried under, `proof` the calls of a table besides its values.
    """

    per_s: float
    reopen: float
    keys: int
    proof: int


def with_calls(one: Forecast, work: Work, calls: Calls, *, batch_size: int, shards: int) -> Forecast:
    """A forecast with the calls that its values take: of each one, and of each new one that is opened again.

    At best they are made while rows are read and written; at worst they come on top of that.
    """
    again = min(work.values, batch_size * shards)
    made = Range(
        work.values * (1 + calls.reopen) + work.probed,
        (work.values + again) * (1 + calls.reopen) + 3 * work.probed * calls.keys + calls.proof,
    )
    seconds = Range(
        max(one.seconds.low, made.low / calls.per_s), one.seconds.high + made.high / calls.per_s
    )  # fmt: skip
    return replace(one, seconds=seconds, remote_calls=made)


def whole(each: Sequence[Forecast], fixed: bool = True) -> Forecast:
    """The forecast of a run over all tables."""
    total = Forecast(NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, NOTHING)
    for one in each:
        total = total + one
    if not fixed or not any(one.seals.low and not one.request_units.high for one in each):
        return total
    return total + Forecast(
        Range(*_FIXED_S), Range(0, _FIXED_HIGH), Range(0, 0), NOTHING, NOTHING, NOTHING
    )  # fmt: skip


def _seconds(shape: TableShape, sampled: Sampled, work: Work, hot: Range, shards: int) -> Range:
    read, reseal = shape.rows * sampled.read_s, work.rows * sampled.reseal_s
    entries = len(shape.indexes) * work.rows
    fast = work.rows * _WRITE_ROW_S[0] + entries * (1 - hot.high) * _WRITE_ENTRY_S[0]
    slow = work.rows * _WRITE_ROW_S[1] + entries * (1 - hot.low) * _WRITE_ENTRY_S[1]
    # at best the stages overlap and shards read side by side; at worst all is done in turn, and verify reads
    # the table twice more
    return Range(max(read / max(1, shards), reseal, fast), 3 * read + 2 * reseal + slow)


def _wal(
    shape: TableShape, server: Server, sampled: Sampled, work: Work, hot: Range, seconds: Range, batch: int
) -> Range:
    if not work.rows:
        return NOTHING
    inline, chunks = _inline(shape, sampled)
    batches = _BATCH_RECORD * (work.rows / batch)
    whole_row = max(0.0, inline - _TUPLE_HEADER) + 5
    # what is the same at both ends of a row on one page is left out, but for subscribers
    changed = whole_row if shape.logical else min(whole_row, sampled.new_bytes * 0.5 + 8)
    low_row = hot.high * (_UPDATE_RECORD + changed) + (1 - hot.high) * (
        _UPDATE_RECORD + _OTHER_PAGE + whole_row
    )
    high_row = _UPDATE_RECORD + _OTHER_PAGE + 8 + whole_row + (inline if shape.identity_full else 0)
    toasted = chunks * (_CHUNK + _CHUNK_RECORD + _CHUNK_DELETED) if chunks else 0.0
    low = work.rows * (low_row + toasted * 0.9)
    high = work.rows * (high_row + toasted * 1.15)
    for index in shape.indexes:
        entry = _entry(index, shape)
        low += work.rows * (1 - hot.high) * (_INDEX_RECORD + min(entry, 16.0))
        # pages that fill up are split, and half of each goes to the log once more
        split = index.bytes
        high += work.rows * (1 - hot.low) * (_INDEX_RECORD + 16 + entry) + split
    if server.full_page_writes:
        high += _page_images(shape, server, work, high, seconds, chunks)
    # clearing what is dead afterwards: a record a page, and what it sets visible
    high += (shape.pages + sum(index.bytes for index in shape.indexes) / PAGE) * 300
    return Range(low * 0.9 + batches * 0.5, high * 1.1 + batches * 1.5)


def _page_images(
    shape: TableShape, server: Server, work: Work, wal: float, seconds: Range, chunks: float
) -> float:
    """Whole pages in the log: each once after each checkpoint that falls between two changes of it."""
    written = wal + shape.pages * PAGE
    checkpoints = (
        1 + math.ceil(written / max(1, server.max_wal_bytes / 2)) + seconds.high // server.checkpoint_s
    )
    index_pages = sum(index.bytes for index in shape.indexes) / PAGE
    # twice: a page of the old row, and what the new one is put into
    touched = 2.0 * shape.pages + 2.0 * index_pages
    if shape.spread:
        touched = min(touched * checkpoints, 2.0 * work.rows * (1 + len(shape.indexes)))
    toasted = chunks * work.rows * _CHUNK / PAGE * 2 * PAGE
    return touched * PAGE + toasted


def _growth(shape: TableShape, sampled: Sampled, work: Work, hot: Range) -> Range:
    """How much table and indexes grow until what is dead is cleared."""
    if not work.rows:
        return NOTHING
    inline, chunks = _inline(shape, sampled)
    each = _aligned(inline) + _LINE_POINTER
    kept = _uncleared(shape, work)
    low = 0.0 if shape.spread else kept * (1 - hot.high) * each * 0.8
    low += kept * chunks * _CHUNK * 0.8
    high = work.rows * (1 - hot.low) * each * 1.15 + work.rows * chunks * (_CHUNK + 200) * 1.2
    for index in shape.indexes:
        # an index may take twice its size in new entries, and half-full pages; or clear old ones as it goes
        share = work.rows / max(1, shape.rows)
        high += (1 - hot.low) * share * (
            1.3 * index.bytes + 2.0 * work.rows * _entry(index, shape)
        ) + 4 * PAGE
    # free space maps and the first pages of what was empty
    return Range(max(0.0, low - 4 * PAGE), high + 32 * PAGE)


def _uncleared(shape: TableShape, work: Work) -> float:
    """Rows that are dead at once, at least: the server may clear them while it goes on."""
    return float(work.rows) if shape.autovacuum is None else min(work.rows, shape.autovacuum)


def _inline(shape: TableShape, sampled: Sampled) -> tuple[float, float]:
    """The width of a row as it is stored, and the chunks of its values that are not stored in it."""
    outside = shape.row_bytes < 0.9 * sampled.new_bytes
    return shape.row_bytes, sampled.new_bytes / _CHUNK if outside else 0.0


def _entry(index: IndexShape, shape: TableShape) -> float:
    """Bytes of one entry of an index, from its size: a few entries that are alike may share one."""
    return min(2_000.0, max(16.0, index.bytes / max(1, shape.rows)))


def _aligned(size: float) -> float:
    return math.ceil(size / 8) * 8
