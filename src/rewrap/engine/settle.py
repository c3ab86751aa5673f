"""Writes one batch until every value in it has an outcome: swapped, lost and judged again, or put off.

A failure of the database is sorted by SQLSTATE: serialization and deadlock are tried again, a locked row is
gone around, a refused value is found by halving, a lost connection is asked what it had done.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import anyio

from rewrap.engine.reseal import Reseal
from rewrap.engine.retry import (
    CONTENTION_PAUSES_S,
    LOCKED,
    MAX_LOSSES,
    TABLE_LOCK_PAUSE_S,
    TABLE_LOCKED,
    until_reachable,
)
from rewrap.errors import StoreBusy, StoreError, StoreUnavailable, ValueRefused
from rewrap.interfaces import Checkpoint, Row, ShardReader, ShardWriter, SwapBatch
from rewrap.model import Fault, Outcome, Reason, ShardLease, Tally, key_text, merge_tally
from rewrap.pace.pacer import GivenUp, Pacer
from rewrap.packed import HELD_BACK, Column, listed, picked

T = TypeVar("T")


class Resolve(Protocol):
    """Gives what a pure computation over stored values gives, once all that it asks of vaults is answered."""

    async def __call__(self, attempt: Callable[[], T], /) -> T: ...


_TRY_AGAIN = frozenset({"40001", "40P01"})
_DISCONNECTS_BEFORE_HALVING = 2


Disturbed = Callable[[str], Exception]
"""What to raise when somebody else has written a row, which it is told how."""


class Interrupted(Exception):
    """The run was told to stop while a batch could not be written; nothing of it is settled."""


_CIRCUMSTANCES = frozenset(
    {"08", "0A", "25", "26", "28", "3D", "3F", "40", "42", "53", "55", "57", "58", "F0", "XX"}
)
"""SQLSTATE classes that speak of connections, privileges, names, locks and resources, not of a value."""


def refuses_value(sqlstate: str) -> bool:
    """Whether the database refused what was written: data, a constraint, or whatever a trigger raises."""
    return sqlstate != "" and sqlstate[:2] not in _CIRCUMSTANCES


@dataclass(slots=True)
class Settled:
    """The outcomes of a batch; `opened` counts values opened again, by column and version."""

    tally: Tally = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    opened: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, column: str, outcome: Outcome, count: int = 1) -> None:
        self.tally.setdefault(column, Counter())[outcome] += count

    def absorb(self, other: Settled) -> None:
        merge_tally(self.tally, other.tally)
        self.faults += other.faults
        self.opened += other.opened


class Settler:
    """Settles batches of one shard, in order, with one writer. `stopping` says that the run shall end.

    `waited_s` are the seconds in which batches were made to wait before they were written.
    """

    def __init__(
        self,
        writer: ShardWriter,
        reader: ShardReader,
        reseal: Reseal,
        resolved: Resolve,
        lease: ShardLease,
        pacer: Pacer,
        patience_s: float,
        say: Callable[[str], None],
        stopping: Callable[[], bool] = lambda: False,
        disturbed: Disturbed | None = None,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._reseal = reseal
        self._resolved = resolved
        self._lease = lease
        self._pacer = pacer
        self._patience_s = patience_s
        self._say = say
        self._stopping = stopping
        self._disturbed = disturbed
        self._sleep = sleep
        self.waited_s = 0.0

    async def settle(self, batch: SwapBatch, checkpoint: Checkpoint, *, skip_locked: bool = False) -> Settled:
        """Every value of the batch with its final outcome; faults are not yet recorded anywhere."""
        done = Settled()
        losses = disconnects = attempts = 0
        while len(batch):
            try:
                asked = time.perf_counter()
                async with self._pacer.writing(len(batch), again=attempts > 0):
                    self.waited_s += time.perf_counter() - asked
                    attempts += 1
                    written = await self._writer.swap(self._lease, batch, checkpoint, skip_locked=skip_locked)
                if written == len(batch):
                    self._count_swapped(batch, range(len(batch)), done)
                    return done
                lost = await self._landed(batch)
                self._refuse_others(batch, lost, swapped=not skip_locked)
            except GivenUp:
                raise Interrupted from None
            except StoreBusy:
                # no value is at fault, and none is put off for it, however long it lasts
                if self._stopping():
                    raise Interrupted from None
                lost = await self._landed(batch)
                losses -= 1
            except StoreUnavailable:
                disconnects += 1
                await self._reconnect()
                if disconnects >= _DISCONNECTS_BEFORE_HALVING:
                    # the same batch broke two connections: one of its values may be what breaks them
                    return await self._halve(batch, checkpoint, done)
                lost = await self._landed(batch)
                losses -= 1
            except StoreError as exc:
                if exc.sqlstate == LOCKED and await self._table_locked():
                    # an index build or the like: no value is at fault, and none is put off for it
                    await self._wait_for_table()
                    continue
                if exc.sqlstate == LOCKED and skip_locked and len(batch) > 1:
                    # no row of the table is waited for any more: a trigger of one of them waits elsewhere
                    return await self._halve(batch, checkpoint, done, skip_locked=True)
                if isinstance(exc, ValueRefused) or refuses_value(exc.sqlstate):
                    return await self._halve(batch, checkpoint, done)
                if exc.sqlstate == LOCKED:
                    skip_locked = True
                    self._say("row locks")
                elif exc.sqlstate not in _TRY_AGAIN:
                    raise
                lost = await self._landed(batch)
            losses += 1
            self._refuse_others(batch, lost, swapped=False)
            batch = await self._judge_again(batch, lost, done)
            if losses >= MAX_LOSSES and len(batch):
                self._defer(batch, done)
                return done
            if len(batch) and losses > 0:
                await self._sleep(CONTENTION_PAUSES_S[min(losses, len(CONTENTION_PAUSES_S)) - 1])
        return done

    def _refuse_others(self, batch: SwapBatch, lost: list[tuple[int, Row | None]], *, swapped: bool) -> None:
        """Raises where nobody else may write, and somebody has.

        `swapped`: all rows were there to be written, and those lost were not what they had been. Otherwise a
        row may only have been locked: then what it holds now tells.
        """
        if self._disturbed is None or not lost:
            return
        batch = batch if swapped else batch.unpacked()
        for place, row in lost:
            if row is None:
                raise self._disturbed("a row was deleted between reading and writing it")
            if swapped or not _as_read(batch, place, row):
                raise self._disturbed("somebody changed a row between reading and writing it")

    async def _table_locked(self) -> bool:
        return await until_reachable(self._writer.table_locked, self._patience_s, self._reconnecting)

    async def _wait_for_table(self) -> None:
        self._say(TABLE_LOCKED)
        if self._stopping():
            raise Interrupted
        await self._sleep(TABLE_LOCK_PAUSE_S)

    async def _landed(self, batch: SwapBatch) -> list[tuple[int, Row | None]]:
        """What of a batch has not landed, however long it takes to be told."""
        while True:
            try:
                return await until_reachable(
                    lambda: self._writer.unsettled(batch),
                    self._patience_s,
                    self._reconnecting,
                )
            except StoreError as exc:
                if exc.sqlstate != LOCKED:
                    raise
            await self._wait_for_table()

    async def _reconnect(self) -> None:
        # asked here too: the line may be up again at once, and fail again with the next attempt
        self._reconnecting()
        await until_reachable(
            lambda: self._writer.reconnect(self._lease), self._patience_s, self._reconnecting
        )

    def _reconnecting(self) -> None:
        """Called between two attempts at a server that is away; raises Interrupted on a stop."""
        self._say("reconnecting")
        if self._stopping():
            raise Interrupted

    async def _halve(
        self, batch: SwapBatch, checkpoint: Checkpoint, done: Settled, *, skip_locked: bool = False
    ) -> Settled:
        """Settles a batch in two parts, down to the one value that the database refuses."""
        parts = _halves(batch, self._reseal.table.linked)
        if parts is None:
            await self._reject(batch, done)
            return done
        for part in parts:
            done.absorb(await self.settle(part, checkpoint, skip_locked=skip_locked))
        return done

    async def _reject(self, batch: SwapBatch, done: Settled) -> None:
        # it may have been the acknowledgement that failed, not the write
        if not await self._landed(batch):
            self._count_swapped(batch, [0], done)
            return
        batch = batch.unpacked()
        for column in _written_at(batch, 0):
            self._put_off(batch, 0, column, Reason.REJECTED, done)

    async def _judge_again(
        self, batch: SwapBatch, lost: list[tuple[int, Row | None]], done: Settled
    ) -> SwapBatch:
        """Counts what was swapped, and judges the rows that were not by what they hold now."""
        batch = batch.unpacked()
        missing = {place for place, _ in lost}
        self._count_swapped(batch, [i for i in range(len(batch)) if i not in missing], done)
        there: list[tuple[Row, frozenset[str]]] = []
        for place, row in sorted(lost, key=lambda entry: entry[0]):
            written = frozenset(_written_at(batch, place))
            if row is not None:
                row = await self._whole(row)
            if row is not None:
                there.append((row, written))
                continue
            for column in written:
                done.add(column, Outcome.GONE)
        again: list[SwapBatch] = []
        for judged in await self._resolved(lambda: [self._reseal.judge_whole(*one) for one in there]):
            for column, counts in judged.tally.items():
                for outcome, count in counts.items():
                    # the application wrote the new version in between: it won, and that is as good
                    final = Outcome.CONVERGED if outcome == Outcome.CURRENT else Outcome(outcome)
                    done.add(column, final, count)
            done.faults += judged.faults
            done.opened += judged.opened
            if len(judged.swap):
                again.append(judged.swap)
        return _concatenated(again, batch)

    async def _whole(self, row: Row) -> Row | None:
        columns = range(1, 1 + len(self._reseal.fields))
        if any(_held_back(row[at]) for at in columns):
            return await self._reader.fetch_large(row[0])
        return row

    def _defer(self, batch: SwapBatch, done: Settled) -> None:
        batch = batch.unpacked()
        for place in range(len(batch)):
            for column in _written_at(batch, place):
                self._put_off(batch, place, column, Reason.CONTENDED, done)

    def _put_off(self, batch: SwapBatch, place: int, column: str, reason: Reason, done: Settled) -> None:
        row_id = key_text(batch.keys[place])
        old = listed(batch.olds[column])[place] or ""
        digest = self._reseal.digest(column, row_id, old)
        version = next(f.version_of(old) for f in self._reseal.fields if f.column == column)
        done.faults.append(Fault(row_id, column, reason, digest, version))
        put_off = reason is Reason.CONTENDED
        done.add(column, Outcome.DEFERRED if put_off else Outcome.QUARANTINED)

    @staticmethod
    def _count_swapped(batch: SwapBatch, places: range | list[int], done: Settled) -> None:
        for column, news in batch.news.items():
            if len(places) == len(batch):
                count = batch.written(column)
            else:
                count = sum(1 for new in picked(news, places) if new is not None)
            if count:
                done.add(column, Outcome.RESEALED, count)


def _halves(batch: SwapBatch, linked: Sequence[Sequence[str]]) -> list[SwapBatch] | None:
    """A batch in two: by rows, or the columns of one row; None when it cannot be divided.

    It cannot when it is a single value, or several that are `linked`.
    """
    if len(batch) > 1:
        middle = len(batch) // 2
        return [batch.part(range(middle)), batch.part(range(middle, len(batch)))]
    batch = batch.unpacked()
    written = _written_at(batch, 0)
    together = [tuple(name for name in names if name in written) for names in linked]
    bound = {name for names in together for name in names}
    parts = [*filter(None, together), *((name,) for name in written if name not in bound)]
    return [batch.only(part) for part in parts] if len(parts) > 1 else None


def _written_at(batch: SwapBatch, place: int) -> list[str]:
    """The columns that an unpacked batch writes in one row."""
    return [column for column, news in batch.news.items() if listed(news)[place] is not None]


def _as_read(batch: SwapBatch, place: int, row: Row) -> bool:
    """Whether a row holds what an unpacked batch compares it with, or something too large to tell."""
    olds = [listed(column)[place] for column in batch.olds.values()]
    bound = [listed(tokens)[place] for tokens in batch.tokens]
    return all(
        old is None or _held_back(now) or old == now
        for old, now in zip((*olds, *bound), row[1 : 1 + len(olds) + len(bound)], strict=True)
    )


def _held_back(value: Any) -> bool:
    return bool(value) and value[:1] in (HELD_BACK, HELD_BACK.encode())


def _concatenated(parts: list[SwapBatch], like: SwapBatch) -> SwapBatch:
    parts = [part.unpacked() for part in parts]

    def all_of(column: str, columns: Callable[[SwapBatch], dict[str, Column]]) -> list[Any]:
        return [value for part in parts for value in listed(columns(part)[column])]

    return SwapBatch(
        [key for part in parts for key in part.keys],
        {name: all_of(name, lambda part: part.olds) for name in like.olds},
        {name: all_of(name, lambda part: part.news) for name in like.news},
        tuple([text for part in parts for text in listed(part.tokens[at])] for at in range(len(like.tokens))),
    )
