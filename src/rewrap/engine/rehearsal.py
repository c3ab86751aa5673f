"""One write to each table, swapped, read back and rolled back, before the first real one."""

from __future__ import annotations

from functools import partial

import anyio

from rewrap.engine.compile import Rotation
from rewrap.engine.course import Course
from rewrap.engine.pipeline import StopFlag
from rewrap.engine.proof import Proof
from rewrap.engine.retry import LOCKED, TABLE_LOCK_PAUSE_S, TABLE_LOCKED, until_reachable
from rewrap.engine.settle import refuses_value
from rewrap.engine.sweep import Heeding
from rewrap.errors import StoreError, StoreUnavailable, Unaddressed, ValueRefused
from rewrap.interfaces import Sink, Store, SwapBatch
from rewrap.pace.pacer import GivenUp

REHEARSED_ROWS = 5
"""Rows tried before the first write to a table, until one is written and reads back the same."""


async def rehearse(
    store: Store,
    rotation: Rotation,
    course: Course,
    proof: Proof,
    stop: StopFlag,
    sink: Sink,
    steering: Heeding,
) -> None:
    """Raises StoreError when the database keeps something else than was sent, or refuses every row tried.

    One refused row is no reason to stop: the run finds it again and sets it aside.
    """
    reseal, resolved = rotation.reseal(course.table, writes=True), steering.resolving(rotation)
    refused: list[StoreError] = []
    doubt: StoreError | None = None
    tried = 0
    for row in proof.rows.get(course.table.relation, []):
        if tried == REHEARSED_ROWS:
            break
        tried += 1
        try:
            batch = (await resolved(partial(reseal, [row]))).swap
        except GivenUp:
            return
        try:
            if not len(batch):
                continue
            written, missed = await steering.whole(
                partial(_written, store, rotation, course, batch, stop, sink)
            )
            if written:
                return
            doubt = missed or doubt
        except Unaddressed:
            # it says nothing of the others
            tried -= 1
        except StoreError as exc:
            if not (isinstance(exc, ValueRefused) or refuses_value(exc.sqlstate)):
                raise
            refused.append(exc)
    if doubt is not None:
        # it may be our own write that another attempt met, and nobody has read back what became of it
        raise doubt
    if len(refused) == REHEARSED_ROWS:
        raise StoreError(
            refused[0].message,
            hint="the database refuses the new values, not one of them only: see the constraint or "
            "trigger named; nothing was written",
            sqlstate=refused[0].sqlstate,
        )


async def _written(
    store: Store, rotation: Rotation, course: Course, batch: SwapBatch, stop: StopFlag, sink: Sink
) -> tuple[bool, StoreError | None]:
    """Whether the row was written, and what went wrong on the way.

    Waits while somebody holds the whole table, or while the store is away.
    """
    missed: StoreError | None = None

    def troubled(what: str) -> None:
        if not course.gauge.trouble:
            course.gauge.trouble = what
            sink(course.progress())

    async def attempt() -> bool:
        nonlocal missed
        try:
            return await store.rehearse(course.table, course.leases[0], batch)
        except StoreUnavailable as exc:
            missed = exc
            raise

    while not stop.requested:
        try:
            written = await until_reachable(
                attempt, rotation.job.limits.reconnect_s, lambda: troubled("reconnecting")
            )
        except StoreError as exc:
            if exc.sqlstate != LOCKED:
                raise
        else:
            return written, missed
        troubled(TABLE_LOCKED)
        await anyio.sleep(TABLE_LOCK_PAUSE_S)
    return True, None
