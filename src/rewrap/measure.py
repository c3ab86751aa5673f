"""What a forecast measures: how fast rows are read, and how long it takes to open and seal real ones."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from rewrap.engine.compile import Rotation
from rewrap.engine.proof import gather_proof
from rewrap.engine.reseal import Reseal
from rewrap.forecast import Sampled, Work
from rewrap.interfaces import Page, Scope, Store, SwapBatch
from rewrap.model import ShardRange, Table
from rewrap.packed import Packed
from rewrap.verdict import FieldCount

VAULT_VALUES = 3
"""Rows whose values are resealed for a forecast, where that takes calls to a vault."""

MEASURE_S, MEASURE_PAGES = 1.5, 6
"""Seconds and pages after which enough has been read."""


async def measure(rotation: Rotation, store: Store, table: Table) -> Sampled:
    """Reads some pages of a table and reseals their values in memory; writes nothing."""
    pages, read_s, rows, units = await _read(rotation, store, table)
    reseal = rotation.reseal(table)
    proof = await gather_proof(store, [table], rotation)
    own = proof.rows.get(table.relation, [])
    batches: list[Page] = [*pages, *([Page.of(own, table)] if own else [])]
    best, new_bytes, sealed = 0.0, 0.0, 0
    if rotation.keyring.sources:
        # what a vault's calls take is known from its limits: a few values tell how long new ones are
        some = [page.part(range(min(len(page), VAULT_VALUES))) for page in batches[-1:]]
        for page in some:
            swap = (await rotation.resolved(partial(reseal.page, page))).swap
            new_bytes, sealed = new_bytes + _bytes_of(swap), sealed + len(swap)
        batches = []
    for page in batches:
        # the first time compiles what the others use
        timed = [await _timed(rotation, reseal, page) for _ in range(2)]
        seconds, swap = min(timed, key=lambda one: one[0])
        if not len(swap):
            continue
        best = max(best, seconds / len(swap)) if len(swap) >= 20 or not best else best
        new_bytes += _bytes_of(swap)
        sealed += len(swap)
    each = max(1, rows)
    return Sampled(rows, read_s / each, best, new_bytes / max(1, sealed), units / each)


async def _read(rotation: Rotation, store: Store, table: Table) -> tuple[list[Page], float, int, float]:
    """Some pages from the table's start, and the seconds, rows and request units of all but the first."""
    reader = store.reader(table)
    pages: list[Page] = []
    after, seconds, rows, units = None, 0.0, 0, 0.0
    try:
        while len(pages) < MEASURE_PAGES and seconds < MEASURE_S:
            started, spent = time.monotonic(), _units(store)
            page = await reader.fetch(
                ShardRange(0, None, None), after, rotation.job.pace.batch_size, Scope()
            )  # fmt: skip
            if pages or page.last is None:
                # the first one opens a connection and plans the statement
                seconds += time.monotonic() - started
                rows += len(page)
                units += _units(store) - spent
            if len(page):
                pages.append(page)
            if page.last is None:
                break
            after = page.last
    finally:
        await reader.close()
    return pages[:3], seconds, rows, units


def _units(store: Store) -> float:
    return store.spent().get("request_units", 0.0)


async def _timed(rotation: Rotation, reseal: Reseal, page: Page) -> tuple[float, SwapBatch]:
    started = time.perf_counter()
    swap = (await rotation.resolved(partial(reseal.page, page))).swap
    return time.perf_counter() - started, swap


def _bytes_of(swap: SwapBatch) -> int:
    total = 0
    for news in swap.news.values():
        if isinstance(news, Packed):
            total += len(news.text.encode()) - max(0, news.count - 1)
        else:
            total += sum(
                len(one.encode() if isinstance(one, str) else one) for one in news if one is not None
            )
    return total


def work_in(rotation: Rotation, table: Table, fields: Sequence[FieldCount]) -> Work:
    """What there is to do in a table, from verify's count of its fields."""
    adopts = rotation.adopts(table.target)
    mine = [one for one in fields if one.relation == table.relation]
    left = [one.left(rotation.from_versions, unmarked=adopts) for one in mine]
    named = {
        entry.name
        for entry in rotation.target(table).fields
        if rotation.job.old_layout(entry).versioned
    }  # fmt: skip
    probed = sum(one.values - one.classes["null"] for one in mine if one.column not in named)
    rows = max(left, default=0)
    return Work(
        values=sum(left),
        rows=rows,
        rows_most=max(rows, min(table.estimated_rows, sum(left))),
        probed=probed,
    )  # fmt: skip
