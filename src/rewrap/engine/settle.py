"""Writes one batch until every value in it has an outcome: swapped, lost and judged again, or put off.

A failure of the database is sorted by SQLSTATE: serialization and deadlock are tried again, a locked row is
gone around, a refused value is found by halving, a lost connection is asked what it had done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

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
from rewrap.errors import StoreError, StoreUnavailable
from rewrap.interfaces import Checkpoint, Row, ShardReader, ShardWriter, SwapBatch
from rewrap.model import Fault, Outcome, Reason, ShardLease, Tally, merge_tally

_TRY_AGAIN = frozenset({"40001", "40P01"})
_DISCONNECTS_BEFORE_HALVING = 2


class Interrupted(Exception):
    """The run was told to stop while a batch could not be written; nothing of it is settled."""


def refuses_value(sqlstate: str) -> bool:
    """Whether the database refused what was written: data, constraint or trigger, not circumstances."""
    return sqlstate[:2] in ("22", "23") or sqlstate in ("P0001", "54000", "44000")


@dataclass(slots=True)
class Settled:
    """The outcomes of a batch; `opened` counts values opened again after a lost swap, by version."""

    tally: Tally = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    opened: Counter[str] = field(default_factory=Counter)

    def add(self, column: str, outcome: Outcome, count: int = 1) -> None:
        self.tally.setdefault(column, Counter())[outcome] += count

    def absorb(self, other: Settled) -> None:
        merge_tally(self.tally, other.tally)
        self.faults += other.faults
        self.opened += other.opened


class Settler:
    """Settles batches of one shard, in order, with one writer. `stopping` says that the run shall end."""

    def __init__(
        self,
        writer: ShardWriter,
        reader: ShardReader,
        reseal: Reseal,
        lease: ShardLease,
        patience_s: float,
        say: Callable[[str], None],
        stopping: Callable[[], bool] = lambda: False,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._reseal = reseal
        self._lease = lease
        self._patience_s = patience_s
        self._say = say
        self._stopping = stopping
        self._sleep = sleep

    async def settle(self, batch: SwapBatch, checkpoint: Checkpoint) -> Settled:
        """Every value of the batch with its final outcome; faults are not yet recorded anywhere."""
        done = Settled()
        losses = disconnects = 0
        skip_locked = False
        while len(batch):
            try:
                written = await self._writer.swap(self._lease, batch, checkpoint, skip_locked=skip_locked)
                if written == len(batch):
                    self._count_swapped(batch, range(len(batch)), done)
                    return done
                lost = await self._writer.unsettled(batch)
            except StoreUnavailable:
                disconnects += 1
                await self._reconnect()
                if disconnects >= _DISCONNECTS_BEFORE_HALVING:
                    # the same batch broke two connections: one of its values may be what breaks them
                    done.absorb(await self._halve(batch, checkpoint))
                    return done
                lost = await self._landed(batch)
                losses -= 1
            except StoreError as exc:
                if refuses_value(exc.sqlstate):
                    done.absorb(await self._halve(batch, checkpoint))
                    return done
                if exc.sqlstate == LOCKED and skip_locked:
                    # no row is waited for any more: somebody holds the whole table (an index build)
                    await self._wait_for_table()
                    continue
                if exc.sqlstate == LOCKED:
                    skip_locked = True
                    self._say("row locks")
                elif exc.sqlstate not in _TRY_AGAIN:
                    raise
                lost = await self._landed(batch)
            losses += 1
            batch = await self._judge_again(batch, lost, done)
            if losses >= MAX_LOSSES and len(batch):
                self._defer(batch, done)
                return done
            if len(batch) and losses > 0:
                await self._sleep(CONTENTION_PAUSES_S[min(losses, len(CONTENTION_PAUSES_S)) - 1])
        return done

    async def _wait_for_table(self) -> None:
        self._say(TABLE_LOCKED)
        if self._stopping():
            raise Interrupted
        await self._sleep(TABLE_LOCK_PAUSE_S)

    async def _landed(self, batch: SwapBatch) -> list[tuple[int, Row | None]]:
        return await until_reachable(
            lambda: self._writer.unsettled(batch),
            self._patience_s,
            lambda: self._say("reconnecting"),
        )

    async def _reconnect(self) -> None:
        self._say("reconnecting")
        await until_reachable(
            lambda: self._writer.reconnect(self._lease), self._patience_s, lambda: self._say("reconnecting")
        )

    async def _halve(self, batch: SwapBatch, checkpoint: Checkpoint) -> Settled:
        if len(batch) == 1:
            done = Settled()
            # it may have been the acknowledgement that failed, not the write
            lost = await self._landed(batch)
            if not lost:
                self._count_swapped(batch, [0], done)
                return done
            for column, news in batch.news.items():
                old = batch.olds[column][0]
                if news[0] is not None and old is not None:
                    self._put_off(batch, 0, column, Reason.REJECTED, done)
            return done
        middle = len(batch) // 2
        done = await self.settle(batch.part(range(middle)), checkpoint)
        done.absorb(await self.settle(batch.part(range(middle, len(batch))), checkpoint))
        return done

    async def _judge_again(
        self, batch: SwapBatch, lost: list[tuple[int, Row | None]], done: Settled
    ) -> SwapBatch:
        """Counts what was swapped, and judges the rows that were not by what they hold now."""
        missing = {place for place, _ in lost}
        self._count_swapped(batch, [i for i in range(len(batch)) if i not in missing], done)
        again: list[SwapBatch] = []
        for place, row in sorted(lost, key=lambda entry: entry[0]):
            written = frozenset(column for column, news in batch.news.items() if news[place] is not None)
            if row is not None:
                row = await self._whole(row)
            if row is None:
                for column in written:
                    done.add(column, Outcome.GONE)
                continue
            judged = self._reseal.judge_whole(row, written)
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
        if any(isinstance(row[at], str) and row[at][:1] == "\x01" for at in columns):
            return await self._reader.fetch_large(row[0])
        return row

    def _defer(self, batch: SwapBatch, done: Settled) -> None:
        for place in range(len(batch)):
            for column, news in batch.news.items():
                if news[place] is not None:
                    self._put_off(batch, place, column, Reason.CONTENDED, done)

    def _put_off(self, batch: SwapBatch, place: int, column: str, reason: Reason, done: Settled) -> None:
        row_id = str(batch.keys[place])
        digest = self._reseal.digest(column, row_id, batch.olds[column][place] or "")
        done.faults.append(Fault(row_id, column, reason, digest))
        put_off = reason is Reason.CONTENDED
        done.add(column, Outcome.DEFERRED if put_off else Outcome.QUARANTINED)

    @staticmethod
    def _count_swapped(batch: SwapBatch, places: range | list[int], done: Settled) -> None:
        for column, news in batch.news.items():
            if len(places) == len(batch):
                count = len(news) - news.count(None)
            else:
                count = sum(1 for place in places if news[place] is not None)
            if count:
                done.add(column, Outcome.RESEALED, count)


def _concatenated(parts: list[SwapBatch], like: SwapBatch) -> SwapBatch:
    whole = like.part([])
    for part in parts:
        whole.keys += part.keys
        for column in whole.olds:
            count = len(part)
            whole.olds[column] += part.olds.get(column) or [None] * count
            whole.news[column] += part.news.get(column) or [None] * count
        if whole.tokens is not None and part.tokens is not None:
            whole.tokens += part.tokens
    return whole
