"""A dry run: reads and opens everything a run would, seals it in memory, and writes nothing anywhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from rewrap.engine import quiescence
from rewrap.engine.compile import Rotation
from rewrap.engine.health import KeyHealth
from rewrap.engine.options import RunOptions
from rewrap.engine.pipeline import Budget, StopFlag
from rewrap.engine.proof import gather_proof, judge_sources, judge_target, judge_unnamed
from rewrap.errors import KeyRefused
from rewrap.events import Notice, Progress, RunEnded, RunStarted, SweepDone, SweepStarted
from rewrap.interfaces import Scope, Sink, Store
from rewrap.model import Outcome, Table, Tally, merge_tally
from rewrap.pace.pacer import GivenUp, Pacer


async def dry_run(
    rotation: Rotation,
    store: Store,
    sink: Sink,
    stop: StopFlag,
    options: RunOptions,
    check: Callable[[], Awaitable[None]],
) -> RunEnded:
    """What a run would find. No lock is taken, no ledger opened, no table or schema made.

    `check` raises what a run would be refused for beside its tables and keys.
    """
    started = time.monotonic()
    tables = await store.tables()
    for notice in [*store.notices, *quiescence.needed(rotation.job)]:
        sink(Notice(level="info", message=notice))
    for table in tables:
        await store.refuse_fenced(table, rotation.target_markers(table))
    versions = [*rotation.from_versions, rotation.to_version]
    sink(
        RunStarted(
            run_id="dry-run",
            job=rotation.job.name,
            from_versions=list(rotation.from_versions),
            to_version=rotation.to_version,
            targets=[table.name for table in tables],
            fingerprints={v: rotation.keyring.get(v).fingerprint for v in versions},
            resumed=False,
            dry_run=True,
            text_fingerprints=rotation.keyring.text_fingerprints(versions),
        )
    )
    health = await _prove(rotation, store, tables, sink, options)
    await check()
    outcomes: dict[str, dict[str, dict[str, int]]] = {}
    rows, probed = 0, Counter[str]()
    stopped = False
    for table in tables:
        if stop.requested:
            stopped = True
            break
        tally, read, tried = await _table(rotation, store, table, sink, stop, options, health)
        probed += tried
        outcomes[table.name] = {name: dict(+counts) for name, counts in tally.items()}
        rows += read
    odd = sum(
        counts.get(outcome, 0)
        for fields in outcomes.values()
        for counts in fields.values()
        for outcome in (Outcome.QUARANTINED, Outcome.UNMARKED, Outcome.OTHER_VERSION)
    )
    seconds = time.monotonic() - started
    reasons = [f"{odd} values would be left: see the classes above"] if odd else []
    if stopped or stop.requested:
        reasons.append(f"stopped by {stop.by}")
    return RunEnded(
        run_id="dry-run",
        state="dry-run",
        exit_code=4 if stop.requested else 3 if odd else 0,
        outcomes=outcomes,
        rows=rows,
        values=sum(sum(c.values()) for fields in outcomes.values() for c in fields.values()),
        resealed_late=0,
        sweeps=1,
        seconds=round(seconds, 3),
        rows_per_s=round(rows / seconds, 1),
        reasons=reasons,
        spent=rotation.spent(store),
        probed=dict(probed),
    )


async def _prove(
    rotation: Rotation, store: Store, tables: Sequence[Table], sink: Sink, options: RunOptions
) -> KeyHealth:
    proof = await gather_proof(store, tables, rotation)
    judge_sources(proof, rotation.from_versions, rotation.keyring)
    judge_unnamed(proof, rotation.from_versions, rotation.keyring)
    key = rotation.keyring.get(rotation.to_version)
    try:
        judge_target(
            proof,
            key,
            expected_fingerprint=options.to_fingerprint,
            allow_unseen=options.allow_unseen_target,
            allow_unopenable=options.allow_unopenable_target,
        )
    except KeyRefused as exc:
        if proof.count(key.version)[1] or options.to_fingerprint is not None:
            raise
        sink(Notice(level="warning", message=f"a run would stop here: {exc.message}", hint=exc.hint))
    limits = rotation.job.limits
    health = KeyHealth(limits.max_quarantine, limits.max_quarantine_share)
    proof.feed(health, rotation.from_versions)
    return health


async def _table(
    rotation: Rotation,
    store: Store,
    table: Table,
    sink: Sink,
    stop: StopFlag,
    options: RunOptions,
    health: KeyHealth,
) -> tuple[Tally, int, Counter[str]]:
    reseal = rotation.reseal(table)
    (whole,) = await store.split(table, 1)
    reader = store.reader(table)
    budget = Budget(options.sample)
    home = rotation.job.store_of(rotation.target(table))
    pacer = Pacer(home, rotation.job.pace, 1, lambda: stop.requested)
    tally: Tally = {}
    probed: Counter[str] = Counter()
    rows, after, started, said = 0, None, time.monotonic(), time.monotonic()
    sink(SweepStarted(target=table.name, sweep=1, rows_estimated=table.estimated_rows, rows_done=0))
    try:
        while not stop.requested and (limit := budget.take(pacer.batch_size)):
            try:
                await pacer.before_reading(limit)
            except GivenUp:
                break
            page = await reader.fetch(whole, after, limit, Scope())
            results = [await rotation.resolved(partial(reseal.page, page))]
            for key in results[0].large:
                row = await reader.fetch_large(key)
                if row is not None:
                    results.append(await rotation.resolved(partial(reseal.judge_whole, row)))
            for result in results:
                merge_tally(tally, result.tally)
                probed += result.probed
                for column in result.swap.news:
                    left = result.postponed.get(column, Counter())
                    resealed = result.swap.written(column) - left.total()
                    merge_tally(tally, {column: {**left, Outcome.RESEALED.value: resealed}})
                health.opened(table.relation, result.opened)
                health.failed(table.relation, result.faults)
            health.check()
            rows += len(page)
            after = page.last
            if time.monotonic() - said > 1:
                said = time.monotonic()
                sink(_progress(table, rows, tally, time.monotonic() - started))
            if after is None:
                break
    finally:
        await reader.close()
    sink(_progress(table, rows, tally, time.monotonic() - started))
    sink(
        SweepDone(
            target=table.name,
            sweep=1,
            rows_done=rows,
            found=sum(c.get(Outcome.RESEALED, 0) for c in tally.values()),
            outcomes={name: dict(+counts) for name, counts in tally.items()},
            seconds=round(time.monotonic() - started, 3),
            probed=dict(probed),
        )
    )
    return tally, rows, probed


def _progress(table: Table, rows: int, tally: Tally, seconds: float) -> Progress:
    rate = rows / seconds if seconds else 0.0
    left = max(0, table.estimated_rows - rows)
    return Progress(
        target=table.name,
        sweep=1,
        rows_done=rows,
        rows_estimated=max(rows, table.estimated_rows),
        resealed=sum(c.get(Outcome.RESEALED, 0) for c in tally.values()),
        quarantined=sum(c.get(Outcome.QUARANTINED, 0) for c in tally.values()),
        stale_left=None,
        rows_per_s=round(rate, 1),
        eta_s=round(left / rate, 1) if rate else None,
        waiting_for="reads",
    )
