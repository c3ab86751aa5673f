"""Budgets that several processes share, as the ledger keeps them: one row each, on its server's clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from rewrap.errors import LedgerError, UsageError
from rewrap.ledgers.place import LEDGER_VARIABLE
from rewrap.ledgers.tables import buckets
from rewrap.pace.shared import AHEAD_S, Drawn

# the clock itself, not the transaction's: a draw may have waited for the row behind another one
_CLOCK: sa.ColumnElement[float] = sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Float)


def of_one_job(shown: str) -> LedgerError:
    """Why nothing is shared in a ledger that is a file."""
    return LedgerError(
        f"ledger {shown} is a file of this job alone: no other process shares a budget in it",
        hint=f"set {LEDGER_VARIABLE} to a Postgres URL, the same for every job that shares one; or leave "
        "pace.shared out, and set pace.max_rate",
    )


@dataclass(frozen=True, slots=True)
class Bucket:
    """One shared budget: `rate` units a second for all, and for how many seconds it is given out already."""

    name: str
    unit: str
    rate: float
    ahead_s: float


class Buckets:
    """The shared budgets in a ledger that several processes use, in Postgres.

    A budget is a line of time: whoever draws gets the next piece of it to himself, as long as his units take
    at the budget's rate. Pieces never overlap, and all are given out by one clock.
    """

    def __init__(
        self,
        writing: Callable[[], AbstractAsyncContextManager[AsyncConnection]],
        rows: Callable[[sa.Select[Any]], Awaitable[Sequence[sa.Row[Any]]]],
    ) -> None:
        self._writing = writing
        self._rows = rows

    async def declare(self, name: str, unit: str, rate: float) -> float | None:
        """Sets a budget's rate, for all who share it; the rate it had, if that was another one.

        Raises UsageError when others count it in another unit.
        """
        async with self._writing() as connection:
            # two that come first at once: the second finds the row that the first one made
            await connection.execute(
                insert(buckets)
                .values(name=name, unit=unit, rate=rate, taken_until=0.0)
                .on_conflict_do_nothing()
            )
            row = (
                await connection.execute(sa.select(buckets).where(buckets.c.name == name).with_for_update())
            ).one()
            if row.unit != unit:
                raise UsageError(
                    f'shared budget "{name}" is counted in {row.unit}, and not in {unit}',
                    hint="give the budget of another kind of store, or of a vault, another name",
                )
            await connection.execute(buckets.update().where(buckets.c.name == name).values(rate=rate))
        return float(row.rate) if row.rate != rate else None

    async def draw(self, name: str, units: float) -> Drawn | None:
        """The next piece of a budget: when it begins, and at what rate it comes. None: it is not declared.

        No units where so much is given out already that it would begin more than `AHEAD_S` from now.
        """
        # nobody was given more: a line that is longer is another clock's, set back since, or moved elsewhere
        astray = buckets.c.taken_until > _CLOCK + AHEAD_S + 1.0
        begins = sa.case((astray, _CLOCK), else_=sa.func.greatest(buckets.c.taken_until, _CLOCK))
        ends = begins + units / buckets.c.rate
        same = buckets.c.name == name
        async with self._writing() as connection:
            taken = await connection.execute(
                buckets.update()
                .where(same, ends <= _CLOCK + AHEAD_S)
                .values(taken_until=ends)
                .returning(buckets.c.taken_until, buckets.c.rate, _CLOCK.label("now"))
            )
            row = taken.first()
        if row is not None:
            starts_in_s = row.taken_until - units / row.rate - row.now
            return Drawn(units, max(0.0, starts_in_s), row.rate)
        found = await self._rows(sa.select(buckets.c.rate).where(same))
        return Drawn(0.0, 0.0, found[0].rate) if found else None

    async def all(self) -> list[Bucket]:
        """Every budget of the ledger, by name."""
        found = await self._rows(
            sa.select(buckets, (buckets.c.taken_until - _CLOCK).label("ahead_s")).order_by(buckets.c.name)
        )
        return [Bucket(row.name, row.unit, row.rate, max(0.0, row.ahead_s)) for row in found]
