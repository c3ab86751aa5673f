"""One shard: read → reseal → swap → checkpoint, three tasks over bounded streams.

Reading, sealing and writing overlap, each with one batch in hand, and one more waits to be written while
other shards keep the processor: memory stays flat. Batches are settled in key order by one writer: the
settled prefix is contiguous by construction, and the checkpoint that rides in a swap is the end of the batch
before it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from rewrap.engine.health import KeyHealth
from rewrap.engine.reseal import Reseal, Resealed
from rewrap.engine.retry import LOCKED, TABLE_LOCK_PAUSE_S, TABLE_LOCKED, until_reachable
from rewrap.engine.settle import Disturbed, Interrupted, Resolve, Settled, Settler
from rewrap.errors import AccountingError, StoreError
from rewrap.interfaces import (
    Checkpoint,
    Page,
    Quarantine,
    Scope,
    ShardReader,
    ShardWriter,
)
from rewrap.model import Fault, Outcome, ShardLease, Table, key_text, merge_tally, tally_total
from rewrap.pace.pacer import GivenUp, Pacer

T = TypeVar("T")

IDLE_CHECKPOINT_S = 1.0
"""A checkpoint of its own is written after this many seconds without a swap to carry one."""


@dataclass(slots=True)
class Gauge:
    """What a table's shards did so far in this sweep, for whoever watches. Seconds are busy seconds.

    `wait_s` are those in which a shard was made to wait before it read or wrote.
    `trouble` is what the pipeline waits for, `outside` what a store's or a vault's own gate waits for.
    """

    rows: int = 0
    resealed: int = 0
    quarantined: int = 0
    found: int = 0
    sealed: int = 0
    probed: Counter[str] = field(default_factory=Counter)
    read_s: float = 0.0
    cpu_s: float = 0.0
    write_s: float = 0.0
    wait_s: float = 0.0
    trouble: str = ""
    outside: str = ""

    @property
    def waiting_for(self) -> str:
        """What holds the table back: trouble if there is any, else the stage that takes longest.

        Before it has begun, that is its turn: other tables' shards are at work.
        """
        if self.trouble or self.outside:
            # a gate knows why, where a pipeline knows only that it waits
            return self.outside or self.trouble
        stages = {"its turn": 1e-9, "reads": self.read_s, "cpu": self.cpu_s, "writes": self.write_s}
        return max(stages, key=stages.__getitem__)


@dataclass(slots=True)
class Budget:
    """How many more rows may be read; None is no limit."""

    rows: int | None = None

    def take(self, wanted: int) -> int:
        """At most `wanted` rows of what is left; 0 when it is used up."""
        if self.rows is None:
            return wanted
        taken = min(wanted, self.rows)
        self.rows -= taken
        return taken

    def give_back(self, rows: int) -> None:
        if self.rows is not None:
            self.rows += rows


@dataclass(slots=True)
class StopFlag:
    """Set once, when the run is to end at the next batch's edge; `by` says who asked."""

    by: str = ""

    def set(self, by: str) -> None:
        self.by = self.by or by

    @property
    def requested(self) -> bool:
        return bool(self.by)


@dataclass(slots=True)
class ShardTask:
    """Everything one shard's pipeline needs. `known` are digests of values already put aside.

    `disturbed` is what to raise where nobody else may write; None where others may.
    """

    table: Table
    lease: ShardLease
    reader: ShardReader
    writer: ShardWriter
    reseal: Reseal
    resolved: Resolve
    scope: Scope
    known: Mapping[tuple[str, str], str]
    quarantine: Quarantine
    health: KeyHealth
    gauge: Gauge
    stop: StopFlag
    budget: Budget
    pacer: Pacer
    patience_s: float
    disturbed: Disturbed | None = None
    _saved_at: float = field(default_factory=time.monotonic)

    def reconnecting(self) -> None:
        """Called between two attempts at a server that is away; raises Interrupted on a stop."""
        self.gauge.trouble = "reconnecting"
        if self.stop.requested:
            raise Interrupted


@dataclass(slots=True)
class _Work:
    page: Page
    resealed: Resealed


async def run_shard(task: ShardTask) -> bool:
    """Works a shard to its end, or to the stop flag; True when every row of it was settled."""
    pages_in, pages_out = anyio.create_memory_object_stream[Page](0)
    work_in, work_out = anyio.create_memory_object_stream[_Work](1)
    async with anyio.create_task_group() as group:
        group.start_soon(_read, task, pages_in)
        group.start_soon(_reseal, task, pages_out, work_in)
        finished = await _write(task, work_out)
    try:
        await _save(task, done=finished)
    except Interrupted:
        # the server is away: the checkpoint that it has is good, and a resume goes on from there
        return False
    task.lease.done = finished
    return finished


async def _read(task: ShardTask, pages: MemoryObjectSendStream[Page]) -> None:
    after = task.lease.cursor
    async with pages:
        while not task.stop.requested:
            limit = task.budget.take(task.pacer.batch_size)
            if limit == 0:
                return
            asked = time.perf_counter()
            try:
                await task.pacer.before_reading(limit)
            except GivenUp:
                return
            started = time.perf_counter()
            task.gauge.wait_s += started - asked
            with task.pacer.reading():
                page = await _fetch(task, after, limit)
            if page is None:
                return
            task.gauge.read_s += time.perf_counter() - started
            task.budget.give_back(limit - len(page))
            task.pacer.unread(limit - len(page))
            if not await _sent(pages, page):
                return
            after = page.last
            if after is None:
                return


async def _sent(stream: MemoryObjectSendStream[T], item: T) -> bool:
    """Whether the next stage took it: it takes nothing more once it was interrupted."""
    try:
        await stream.send(item)
    except anyio.BrokenResourceError:
        return False
    return True


async def _fetch(task: ShardTask, after: str | None, limit: int) -> Page | None:
    """The next page; None when the run is to stop before the table can be read."""
    try:
        return await _read_patiently(
            task, lambda: task.reader.fetch(task.lease.range, after, limit, task.scope)
        )
    except Interrupted:
        return None


async def _read_patiently(task: ShardTask, attempt: Callable[[], Awaitable[T]]) -> T:
    """A read's result, however long somebody keeps readers out of the table; raises Interrupted on a stop."""

    while True:
        try:
            return await until_reachable(attempt, task.patience_s, task.reconnecting)
        except StoreError as exc:
            if exc.sqlstate != LOCKED:
                raise
        task.gauge.trouble = TABLE_LOCKED
        if task.stop.requested:
            raise Interrupted
        await anyio.sleep(TABLE_LOCK_PAUSE_S)


async def _reseal(
    task: ShardTask,
    pages: MemoryObjectReceiveStream[Page],
    works: MemoryObjectSendStream[_Work],
) -> None:
    async with works, pages:
        async for page in pages:
            started = time.perf_counter()
            try:
                resealed = await task.resolved(partial(task.reseal.page, page))
            except GivenUp:
                return
            task.gauge.sealed += len(resealed.swap)
            task.gauge.probed += resealed.probed
            task.gauge.cpu_s += time.perf_counter() - started
            if not await _sent(works, _Work(page, resealed)):
                return


async def _write(task: ShardTask, works: MemoryObjectReceiveStream[_Work]) -> bool:
    def say(trouble: str) -> None:
        task.gauge.trouble = trouble

    settler = Settler(
        task.writer, task.reader, task.reseal, task.resolved, task.lease, task.pacer, task.patience_s, say,
        lambda: task.stop.requested, task.disturbed,
    )  # fmt: skip
    async with works:
        async for work in works:
            started, waited_s = time.perf_counter(), settler.waited_s
            try:
                settled = await _settle(task, settler, work)
                await _put_aside(task, settled)
                _advance(task, work.page, settled)
                if len(work.resealed.swap):
                    task._saved_at = time.monotonic()
                elif time.monotonic() - task._saved_at > IDLE_CHECKPOINT_S:
                    await _save(task, done=False)
            except (Interrupted, GivenUp):
                return False
            waited_s = settler.waited_s - waited_s
            task.gauge.write_s += time.perf_counter() - started - waited_s
            task.gauge.wait_s += waited_s
            task.gauge.trouble = ""
            if work.page.last is None:
                return True
    return False


async def _settle(task: ShardTask, settler: Settler, work: _Work) -> Settled:
    """Every value of a page with its outcome: the page's own, the swapped, and the large ones' alone."""
    before = Checkpoint(task.lease.cursor, task.lease.rows, task.lease.tally)
    settled = Settled(work.resealed.tally, work.resealed.faults, work.resealed.opened)
    settled.absorb(await settler.settle(work.resealed.swap, before))
    for key in work.resealed.large:
        row = await _read_patiently(task, partial(task.reader.fetch_large, key))
        if row is None:
            for column in task.table.field_names:
                settled.add(column, Outcome.GONE)
            continue
        alone = await task.resolved(partial(task.reseal.judge_whole, row))
        settled.absorb(Settled(alone.tally, alone.faults, alone.opened))
        settled.absorb(await settler.settle(alone.swap, before))
    values = len(work.page) * len(task.table.fields)
    if tally_total(settled.tally) != values:
        raise AccountingError(
            f"table {task.table.relation}: a page of {values} values came to "
            f"{tally_total(settled.tally)} outcomes",
            hint="nothing past this page was counted as done; this is a defect in rewrap, please report it",
        )
    return settled


async def _put_aside(task: ShardTask, settled: Settled) -> None:
    """Quarantines what failed, durably, before the checkpoint passes it; stops first on a wrong key."""
    known, new = _sorted_out(task, settled.faults)
    if task.scope.markers is not None:
        # a later sweep meets again what an earlier one counted
        for fault in known:
            settled.tally[fault.field][Outcome.QUARANTINED] -= 1
        # of a field whose values name no version it reads all of them: only what it settled is new
        for name in task.reseal.probed.intersection(settled.tally):
            for outcome in _LEFT_ALONE:
                settled.tally[name].pop(outcome, None)
    task.health.opened(task.table.relation, settled.opened)
    task.health.failed(task.table.relation, new)
    task.health.check()
    if new:
        await task.quarantine.record(task.table.relation, new)
    counts = _flat(settled)
    task.gauge.resealed += counts[Outcome.RESEALED]
    task.gauge.quarantined += len([f for f in new if f.reason != "contended"])
    task.gauge.found += sum(counts[outcome] for outcome in _WAS_IN_SCOPE)


_LEFT_ALONE = (
    Outcome.CURRENT, Outcome.NULL, Outcome.PLAINTEXT, Outcome.UNMARKED, Outcome.OTHER_VERSION,
)  # fmt: skip

_WAS_IN_SCOPE = (Outcome.RESEALED, Outcome.CONVERGED, Outcome.DEFERRED, Outcome.QUARANTINED)


def _sorted_out(task: ShardTask, faults: list[Fault]) -> tuple[list[Fault], list[Fault]]:
    known: list[Fault] = []
    new: list[Fault] = []
    for fault in faults:
        same = task.known.get((fault.field, fault.row_id)) == fault.digest
        (known if same and fault.reason != "contended" else new).append(fault)
    return known, new


def _flat(settled: Settled) -> Counter[str]:
    total: Counter[str] = Counter()
    for counts in settled.tally.values():
        total.update(counts)
    return total


def _advance(task: ShardTask, page: Page, settled: Settled) -> None:
    if page.cursor is not None:
        task.lease.cursor = page.cursor
    elif page.keys:
        task.lease.cursor = key_text(page.keys[-1])
    task.lease.rows += len(page)
    merge_tally(task.lease.tally, settled.tally)
    task.gauge.rows += len(page)


async def _save(task: ShardTask, *, done: bool) -> None:
    place = Checkpoint(task.lease.cursor, task.lease.rows, task.lease.tally, done)
    await until_reachable(
        lambda: task.writer.checkpoint(task.lease, place), task.patience_s, task.reconnecting
    )
    task._saved_at = time.monotonic()
