"""What runs have measured, as the ledger keeps it: the last few runs of each figure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
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
        """Keeps what a run has measured; a resumed one's larger sample outweighs a smaller one after it."""
        async with self._writing() as connection:
            for one in figures:
                same = sa.and_(
                    measured.c.job == self._job,
                    measured.c.relation == one.relation,
                    measured.c.name == one.name,
                )
                mine = sa.and_(same, measured.c.run_id == one.run_id)
                values = {"value": one.value, "samples": one.samples, "measured_at": now()}
                changed = await connection.execute(
                    measured.update().where(mine, measured.c.samples <= one.samples).values(**values)
                )
                if changed.rowcount or await connection.scalar(
                    sa.select(sa.func.count()).select_from(measured).where(mine)
                ):
                    continue
                await connection.execute(
                    measured.insert().values(
                        job=self._job, relation=one.relation, name=one.name, run_id=one.run_id, **values
                    )
                )
                await self._forget(connection, same)

    @staticmethod
    async def _forget(connection: AsyncConnection, same: sa.ColumnElement[bool]) -> None:
        """Drops what is older than the last few runs: a server changes, and so does its pace."""
        kept = await connection.execute(
            sa.select(measured.c.run_id).where(same).order_by(measured.c.measured_at.desc()).limit(RUNS)
        )
        await connection.execute(
            measured.delete().where(same, measured.c.run_id.not_in([row.run_id for row in kept]))
        )
