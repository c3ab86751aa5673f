"""What runs have measured, as the ledger keeps it: the last few runs of each figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence, Set
from contextlib import AbstractAsyncContextManager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from rewrap.learned import RUNS, Figure
from rewrap.ledgers.records import now
from rewrap.ledgers.tables import measured


class Measurements:
    """The figures of one job. A run has one of each name and table: what it measures later replaces it."""

    def __init__(
        self,
        job: str,
        writing: Callable[[], AbstractAsyncContextManager[AsyncConnection]],
        rows: Callable[[sa.Select[Any]], Awaitable[Sequence[sa.Row[Any]]]],
    ) -> None:
        self._job = job
        self._writing = writing
        self._rows = rows

    async def figures(self) -> list[Figure]:
        """Those of all runs that are kept, the newest first."""
        found = await self._rows(
            sa.select(measured)
            .where(measured.c.job == self._job)
            .order_by(measured.c.measured_at.desc(), measured.c.run_id)
        )
        return [
            Figure(row.relation, row.name, row.run_id, row.value, row.samples, row.measured_at)
            for row in found
        ]

    async def keep(self, figures: Iterable[Figure]) -> None:
        """Keeps what a run has measured; a resumed one's larger sample outweighs a smaller one after it.

        A table may have a thousand partitions, each with figures: they are written all at once.
        """
        mine = measured.c.job == self._job
        async with self._writing() as connection:
            found = await connection.execute(
                sa.select(measured.c.relation, measured.c.name, measured.c.run_id, measured.c.samples)
                .where(mine)
                .order_by(measured.c.measured_at.desc())
            )
            kept = {(row.relation, row.name, row.run_id): row.samples for row in found}
            fresh, larger = [], []
            for one in figures:
                samples = kept.get((one.relation, one.name, one.run_id))
                row = {
                    "of_relation": one.relation, "of_name": one.name, "of_run": one.run_id,
                    "value": one.value, "samples": one.samples, "measured_at": now(),
                }  # fmt: skip
                if samples is None:
                    fresh.append(row)
                elif samples <= one.samples:
                    larger.append(row)
            same = sa.and_(
                mine,
                measured.c.relation == sa.bindparam("of_relation"),
                measured.c.name == sa.bindparam("of_name"),
                measured.c.run_id == sa.bindparam("of_run"),
            )
            if larger:
                await connection.execute(measured.update().where(same), larger)
            if not fresh:
                return
            await connection.execute(
                measured.insert().values(
                    job=self._job,
                    relation=sa.bindparam("of_relation"),
                    name=sa.bindparam("of_name"),
                    run_id=sa.bindparam("of_run"),
                ),
                fresh,
            )
            # a server changes, and so does its pace: what is older than the last few runs is dropped
            old = _surplus(kept, {(one["of_relation"], one["of_name"]) for one in fresh})
            if old:
                await connection.execute(measured.delete().where(same), old)


def _surplus(kept: Iterable[tuple[str, str, str]], fresh: Set[tuple[Any, Any]]) -> list[dict[str, str]]:
    """Of what was there, the newest first, what has no place beside a fresh figure of its name."""
    runs: Counter[tuple[str, str]] = Counter()
    old = []
    for relation, name, run_id in kept:
        runs[relation, name] += 1
        if (relation, name) in fresh and runs[relation, name] >= RUNS:
            old.append({"of_relation": relation, "of_name": name, "of_run": run_id})
    return old
