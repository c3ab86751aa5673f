"""One write to each table, swapped, read back and rolled back, before the first real one."""

from __future__ import annotations

from functools import partial

import anyio

from rewrap.engine.compile import Rotation
from rewrap.engine.course import Course
from rewrap.engine.pipeline import StopFlag
from rewrap.engine.proof import Proof
from rewrap.engine.retry import LOCKED, TABLE_LOCK_PAUSE_S, TABLE_LOCKED
from rewrap.engine.settle import refuses_value
from rewrap.errors import StoreError, Unaddressed, ValueRefused
from rewrap.interfaces import Sink, Store, SwapBatch

REHEARSED_ROWS = 5
"""Rows tried before the first write to a table, until one is written and reads back the same."""


async def rehearse(
    store: Store, rotation: Rotation, course: Course, proof: Proof, stop: StopFlag, sink: Sink
) -> None:
    """Raises StoreError when the database keeps something else than was sent, or refuses every row tried.

    One refused row is no reason to stop: the run finds it again and sets it aside.
    """
    reseal = rotation.reseal(course.table, writes=True)
    refused: list[StoreError] = []
    tried = 0
    for row in proof.rows.get(course.table.relation, []):
        if tried == REHEARSED_ROWS:
            break
        tried += 1
        batch = (await rotation.resolved(partial(reseal, [row]))).swap
        try:
            if len(batch) and await _written(store, course, batch, stop, sink):
                return
        except Unaddressed:
            # it says nothing of the others
            tried -= 1
        except StoreError as exc:
            if not (isinstance(exc, ValueRefused) or refuses_value(exc.sqlstate)):
                raise
            refused.append(exc)
    if len(refused) == REHEARSED_ROWS:
        raise StoreError(
            refused[0].message,
            hint="the database refuses the new values, not one of them only: see the constraint or "
            "trigger named; nothing was written",
            sqlstate=refused[0].sqlstate,
        )


async def _written(store: Store, course: Course, batch: SwapBatch, stop: StopFlag, sink: Sink) -> bool:
    """Whether the row was written; waits while somebody holds the whole table."""
    while not stop.requested:
        try:
            return await store.rehearse(course.table, course.leases[0], batch)
        except StoreError as exc:
            if exc.sqlstate != LOCKED:
                raise
        if not course.gauge.trouble:
            course.gauge.trouble = TABLE_LOCKED
            sink(course.progress())
        await anyio.sleep(TABLE_LOCK_PAUSE_S)
    return True
