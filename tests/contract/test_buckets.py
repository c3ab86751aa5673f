"""Shared budgets in a ledger in Postgres: what is drawn, by whose clock, and by how many at once."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from rewrap.errors import LedgerError, UsageError
from rewrap.ledgers.sql import Ledger
from rewrap.pace.shared import AHEAD_S
from tests.support.workbench import Workbench

T = TypeVar("T")


def with_ledger(bench: Workbench, work: Callable[[Ledger], Awaitable[T]]) -> T:
    async def main() -> T:
        bench.environ["REWRAP_LEDGER_URL"] = bench.dsn
        ledger = await Ledger.open("test", bench.folder / "rewrap.toml", bench.environ)
        assert ledger is not None
        try:
            return await work(ledger)
        finally:
            await ledger.close()

    return asyncio.run(main())


def test_pieces_follow_one_another(bench: Workbench) -> None:
    """The first begins now, each further one when the one before it ends, whoever draws."""

    async def work(ledger: Ledger) -> None:
        await ledger.buckets.declare("db", "rows", 100.0)
        drawn = [await ledger.buckets.draw("db", 50.0) for _ in range(4)]
        starts = [one.starts_in_s for one in drawn if one is not None]
        assert len(starts) == 4
        assert starts[0] == 0.0
        # each is asked for a little later than the one before it; never more than half a second apart
        assert all(0 < later - earlier <= 0.5 for earlier, later in itertools.pairwise(starts))
        (bucket,) = await ledger.buckets.all()
        assert (bucket.name, bucket.unit, bucket.rate) == ("db", "rows", 100.0)
        assert 0 < bucket.ahead_s <= 2.0

    with_ledger(bench, work)


def test_no_piece_overlaps_another(bench: Workbench) -> None:
    """However many draw at once: all pieces end where the line does, and none was given twice."""

    async def work(ledger: Ledger) -> None:
        await ledger.buckets.declare("db", "rows", 100.0)
        drawn = await asyncio.gather(*(ledger.buckets.draw("db", 10.0) for _ in range(40)))
        assert sum(one.units for one in drawn if one) == 400.0
        (bucket,) = await ledger.buckets.all()
        # 4 s of the budget were given out, and less than that has passed: draws began at the first one
        assert bucket.ahead_s <= 4.0
        assert max(one.starts_in_s for one in drawn if one) <= 3.9

    with_ledger(bench, work)


def test_only_so_much_is_given_out_ahead(bench: Workbench) -> None:
    """Then nothing, until some of it has passed."""

    async def work(ledger: Ledger) -> None:
        await ledger.buckets.declare("db", "rows", 1.0)
        for _ in range(int(AHEAD_S)):
            drawn = await ledger.buckets.draw("db", 1.0)
            assert drawn is not None
            assert drawn.units == 1.0
        drawn = await ledger.buckets.draw("db", AHEAD_S)
        assert drawn is not None
        assert (drawn.units, drawn.rate) == (0.0, 1.0)
        (bucket,) = await ledger.buckets.all()
        assert bucket.ahead_s <= AHEAD_S

    with_ledger(bench, work)


@pytest.mark.parametrize("seconds", [3600, -3600])
def test_a_line_of_another_clock_stops_nobody(bench: Workbench, seconds: int) -> None:
    """A server's clock that was set back, or ahead: the line begins anew, and makes up for nothing."""

    async def declared(ledger: Ledger) -> None:
        await ledger.buckets.declare("db", "rows", 100.0)

    async def work(ledger: Ledger) -> None:
        drawn = await ledger.buckets.draw("db", 100.0)
        assert drawn is not None
        assert (drawn.units, drawn.starts_in_s) == (100.0, 0.0)
        (bucket,) = await ledger.buckets.all()
        assert bucket.ahead_s <= 1.0

    with_ledger(bench, declared)
    bench.sql(f"UPDATE rewrap_bucket SET taken_until = extract(epoch from clock_timestamp()) + ({seconds})")
    with_ledger(bench, work)


def test_the_last_rate_declared_is_everybodys(bench: Workbench) -> None:
    """It tells what it was before, and comes with the next piece; another unit is refused."""

    async def work(ledger: Ledger) -> None:
        assert await ledger.buckets.draw("db", 1.0) is None
        assert await ledger.buckets.declare("db", "rows", 100.0) is None
        assert await ledger.buckets.declare("db", "rows", 100.0) is None
        assert await ledger.buckets.declare("db", "rows", 40.0) == 100.0
        drawn = await ledger.buckets.draw("db", 1.0)
        assert drawn is not None
        assert drawn.rate == 40.0
        with pytest.raises(UsageError, match="is counted in rows, and not in request units"):
            await ledger.buckets.declare("db", "request units", 40.0)

    with_ledger(bench, work)


def test_a_file_shares_nothing(bench: Workbench) -> None:
    """A ledger beside the job is the job's own: budgets in it are refused, with what to do."""

    async def main() -> None:
        ledger = await Ledger.open("test", bench.folder / "rewrap.toml", {})
        assert ledger is not None
        try:
            with pytest.raises(LedgerError, match="no other process shares a budget in it") as refused:
                _ = ledger.buckets
            assert "REWRAP_LEDGER_URL" in (refused.value.hint or "")
        finally:
            await ledger.close()

    asyncio.run(main())
