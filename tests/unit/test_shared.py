"""A process's part of a shared budget, by a clock that jumps: what all use together, and who gets it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import anyio
import pytest
from benchmarks.simulated import JumpingLoop, Line

from rewrap.pace.gate import Gate, GivenUp, never
from rewrap.pace.shared import KEPT_S, Shared
from tests.support.budgets import busiest_second, jain

T = TypeVar("T")

Uses = list[tuple[float, float]]
"""When, and how many units."""


def simulated(work: Callable[[], Awaitable[T]]) -> T:
    return anyio.run(work, backend_options={"loop_factory": JumpingLoop})


async def worker(shared: Shared, cost: float, uses: Uses, busy_s: float = 0.0, tasks: int = 1) -> None:
    """Takes and uses units as long as it lives."""

    async def one() -> None:
        while True:
            assert await shared.take(cost, never)
            uses.append((anyio.current_time(), cost))
            await anyio.sleep(busy_s)

    async with anyio.create_task_group() as group:
        group.start_soon(shared.run)
        for _ in range(tasks):
            group.start_soon(one)


async def for_a_while(seconds: float, workers: Sequence[Awaitable[None]]) -> None:
    async def waited(one: Awaitable[None]) -> None:
        await one

    with anyio.move_on_after(seconds):
        async with anyio.create_task_group() as group:
            for one in workers:
                group.start_soon(waited, one)


def used(uses: Uses, since: float = 0.0, until: float = 1e9) -> float:
    return sum(cost for at, cost in uses if since <= at < until)


@pytest.mark.parametrize("count", [1, 4, 20])
@pytest.mark.parametrize("cost", [10.0, 37.0, 250.0])
def test_all_together_keep_to_the_budget_and_use_it(count: int, cost: float) -> None:
    """In any second at most the rate and what each had kept; and over a minute nearly all of it, fairly."""

    async def main() -> list[Uses]:
        line, each = Line(1_000.0), [Uses() for _ in range(count)]
        await for_a_while(60, [worker(line.shared(), cost, uses, tasks=4) for uses in each])
        return each

    each = simulated(main)
    together = [use for uses in each for use in uses]
    assert busiest_second(together) <= 1_000 + count * 250
    assert used(together) <= 60 * 1_000 + count * 250
    assert used(together, 10) >= 0.97 * 50 * 1_000
    assert jain([used(uses, 10) for uses in each]) >= 0.99


def test_workers_of_unlike_speed_leave_what_they_do_not_need() -> None:
    """One that takes little gets it, and the others get the rest."""

    async def main() -> tuple[Uses, Uses, Uses]:
        line = Line(1_000.0)
        slow, one, other = Uses(), Uses(), Uses()
        await for_a_while(
            60,
            [
                worker(line.shared(), 10.0, slow, busy_s=0.2),
                worker(line.shared(), 100.0, one),
                worker(line.shared(), 250.0, other),
            ],
        )
        return slow, one, other

    slow, one, other = simulated(main)
    assert used(slow, 10) >= 0.7 * 50 * 50
    assert used([*slow, *one, *other], 10) >= 0.9 * 50 * 1_000
    assert jain([used(one, 10), used(other, 10)]) >= 0.98


def test_one_that_dies_leaves_its_part_to_the_others() -> None:
    """What it had drawn passes unused; from then on nothing is kept for it."""

    async def main() -> tuple[Uses, Uses]:
        line, dies, lives = Line(1_000.0), Uses(), Uses()

        async def mortal() -> None:
            await for_a_while(20, [worker(line.shared(), 100.0, dies)])

        await for_a_while(40, [mortal(), worker(line.shared(), 100.0, lives)])
        return dies, lives

    dies, lives = simulated(main)
    assert used(dies, 10, 20) == pytest.approx(5_000, rel=0.1)
    assert used(lives, 10, 20) == pytest.approx(5_000, rel=0.1)
    assert used(lives, 21, 40) >= 0.97 * 19 * 1_000


def test_one_that_was_stopped_comes_back_with_nothing() -> None:
    """What it had drawn is expired: it does not use it beside what others have drawn since."""

    async def main() -> tuple[float, float]:
        line = Line(1_000.0)
        shared = line.shared()
        async with anyio.create_task_group() as group:
            group.start_soon(shared.run)
            assert await shared.take(1.0, never)
            shared.give_back(100.0)
            await anyio.sleep(KEPT_S / 2)
            before = anyio.current_time()
            assert await shared.take(50.0, never)
            kept = anyio.current_time() - before
            # without a step between: the clock goes on, the process does not
            await anyio.sleep(KEPT_S + 1.0)
            before = anyio.current_time()
            assert await shared.take(50.0, never)
            group.cancel_scope.cancel()
            return kept, anyio.current_time() - before

    kept, expired = simulated(main)
    assert kept == 0.0
    assert expired > 0.0


def test_another_rate_holds_from_the_next_piece_on() -> None:
    """The ledger says it, whatever the job began with."""

    async def main() -> tuple[Uses, Shared]:
        line, uses = Line(1_000.0), Uses()
        shared = line.shared()

        async def change() -> None:
            await anyio.sleep(20)
            line.rate = 200.0

        await for_a_while(60, [worker(shared, 10.0, uses, tasks=4), change()])
        return uses, shared

    uses, shared = simulated(main)
    assert used(uses, 10, 20) == pytest.approx(10_000, rel=0.03)
    assert used(uses, 22, 60) == pytest.approx(38 * 200, rel=0.05)
    assert shared.piece == 50.0


def test_what_costs_more_than_it_was_taken_for_is_paid_later() -> None:
    """The charges keep to the budget, whatever was assumed; a cheaper one leaves more for the others."""

    async def main(charge: float) -> float:
        line = Line(400.0)
        shared = line.shared()
        charged = 0.0

        async def spend() -> None:
            nonlocal charged
            while True:
                assert await shared.take(10.0, never)
                shared.charged(charge - 10.0)
                charged += charge

        await for_a_while(30, [shared.run(), spend()])
        return charged

    for charge in (5.0, 40.0, 1_000.0):
        assert simulated(lambda charge=charge: main(charge)) == pytest.approx(30 * 400, rel=0.1)


@pytest.mark.parametrize("trouble", ["away", "silent"])
def test_without_its_ledger_each_goes_on_at_its_last_share(trouble: str) -> None:
    """All together at what they had together, which is never more than the budget; and it is said."""

    async def main() -> tuple[list[Uses], list[str], list[str]]:
        line, each = Line(1_000.0), [Uses() for _ in range(4)]
        said: list[str] = []
        shares = [line.shared(said.append) for _ in each]
        reasons: list[str] = []

        async def change() -> None:
            await anyio.sleep(20)
            setattr(line, trouble, True)
            await anyio.sleep(20)
            reasons.append(shares[0].reason)
            setattr(line, trouble, False)
            await anyio.sleep(20)
            reasons.append(shares[0].reason)

        workers = [worker(one, 50.0, uses, tasks=2) for one, uses in zip(shares, each, strict=True)]
        await for_a_while(62, [*workers, change()])
        return each, said, reasons

    each, said, reasons = simulated(main)
    together = [use for uses in each for use in uses]
    assert busiest_second(together) <= 1_000 + 4 * 250
    assert used(together, 25, 40) <= 1_000 * 15 * 1.02
    assert used(together, 25, 40) >= 0.8 * 15 * 1_000
    assert used(together, 50, 60) >= 0.95 * 10 * 1_000
    assert jain([used(uses, 25, 40) for uses in each]) >= 0.95
    assert len([line for line in said if "is away; this process goes on with its last share, 2" in line]) == 4
    assert len([line for line in said if line == "shared budget db: the ledger is back"]) == 4
    assert reasons[0].startswith("its last share of db, 2")
    assert reasons[0].endswith(" rows/s: no ledger")
    assert reasons[1] == "shared budget db, 1,000 rows/s for all"


def test_a_last_share_takes_in_those_that_came_last() -> None:
    """One that had it all until a moment ago does not go on with all of it, when others wait beside it."""

    async def main() -> Uses:
        line, uses = Line(1_000.0), Uses()

        async def later() -> None:
            await anyio.sleep(20)
            await for_a_while(60, [worker(line.shared(), 250.0, uses) for _ in range(3)])

        async def change() -> None:
            await anyio.sleep(22.5)
            line.away = True

        await for_a_while(50, [worker(line.shared(), 250.0, uses), later(), change()])
        return uses

    uses = simulated(main)
    assert used(uses, 26, 46) <= 20 * 1_000 * 1.02


def test_without_a_ledger_and_a_share_it_waits() -> None:
    """Nobody knows how many there are: it goes on when the ledger is there."""

    async def main() -> tuple[Uses, str, list[str]]:
        line, uses = Line(1_000.0), Uses()
        line.away = True
        said: list[str] = []
        reason = ""
        shared = line.shared(said.append)

        async def change() -> None:
            nonlocal reason
            await anyio.sleep(20)
            reason = shared.reason
            line.away = False

        await for_a_while(30, [worker(shared, 50.0, uses), change()])
        return uses, reason, said

    uses, reason, said = simulated(main)
    assert used(uses, 0, 20) == 0
    assert used(uses, 21, 30) >= 8_000
    assert reason == "shared budget db: the ledger is away"
    assert said[0] == "shared budget db: the ledger is away; this process waits: it has had no share yet"


def test_more_than_the_line_has_room_for_wait_their_turn() -> None:
    """Some draw later; the budget is used all the same, and not passed."""

    async def main() -> list[Uses]:
        line, each = Line(100.0), [Uses() for _ in range(70)]
        await for_a_while(60, [worker(line.shared(), 25.0, uses) for uses in each])
        return each

    each = simulated(main)
    together = [use for uses in each for use in uses]
    assert busiest_second(together) <= 100 + 25 * 70
    assert used(together, 20) >= 0.95 * 40 * 100
    assert len([uses for uses in each if not uses]) <= 10


def test_the_ledger_is_asked_seldom() -> None:
    """Four times a second for the whole budget, however many share it; never while nobody wants anything."""

    async def main() -> tuple[int, int]:
        line = Line(10_000.0)
        await for_a_while(30, [worker(line.shared(), 500.0, Uses(), tasks=4) for _ in range(4)])
        drawn = line.draws
        await for_a_while(60, [line.shared().run()])
        return drawn, line.draws - drawn

    drawn, idle = simulated(main)
    assert drawn <= 30 * 4 + 40
    assert idle == 0


def test_a_gate_passes_what_its_share_has() -> None:
    """Turns that are paid for wait for nothing; who gives up waiting leaves the line."""

    async def main() -> None:
        line = Line(100.0)
        gate = Gate("db", "rows", 4, clock=anyio.current_time)
        gate.share = line.shared()
        tired = False
        async with anyio.create_task_group() as group:
            group.start_soon(gate.share.run)  # type: ignore[attr-defined]  # the protocol has no task
            for _ in range(100):
                async with gate.passed(10.0) as passage:
                    passage.accepted()
            assert anyio.current_time() >= 9.9
            await gate.wait(10.0)
            gate.give_back(10.0)
            async with gate.passed(0.0):
                pass

            async def rest() -> None:
                nonlocal tired
                await anyio.sleep(1.0)
                tired = True

            async def go_on() -> None:
                while True:
                    async with gate.passed(10.0, giving_up=lambda: tired) as passage:
                        passage.accepted()

            line.away = True
            group.start_soon(rest)
            with pytest.raises(GivenUp):
                await go_on()
            group.cancel_scope.cancel()

    simulated(main)
