"""What gates make of services that throttle, by a clock that jumps: nothing here depends on the machine."""

from __future__ import annotations

import anyio
import pytest
from benchmarks.simulated import (
    SERVICES,
    SHORT_BACKOFF_S,
    Seen,
    World,
    moving,
    run,
    simulate,
    steady,
    step,
)

from rewrap.pace.gate import BACKOFF_S, Gate

UNITS = 4_000.0
"""What the services give in a second: 400 attempts of 10 on average."""

NAMED = pytest.mark.parametrize("service", SERVICES)
SAYING = pytest.mark.parametrize("says", [True, False], ids=["says when", "does not say when"])


def world(service: str, capacity: object, seconds: int, says: bool = True, workers: int = 1) -> World:
    return World(
        SERVICES[service], capacity, seconds, workers,  # type: ignore[arg-type]  # a Capacity
        names_times=says, backoff=SHORT_BACKOFF_S,
    )  # fmt: skip


def capped_everywhere(seen: Seen) -> bool:
    """No second has more than what there was, what a bucket had kept, and what was on its way."""
    return all(seen.used(second, second + 1) < 2.1 for second in range(1, seen.world.seconds))


@NAMED
@SAYING
def test_a_steady_service_is_used_up_and_seldom_throttles(service: str, says: bool) -> None:
    """At least 97 % of what it gives, and at most 1 % of the attempts in vain."""
    seen = simulate(world(service, steady(UNITS), 45, says))
    assert seen.used(15) >= 0.97
    assert seen.refused(15) <= 0.01
    assert capped_everywhere(seen)


@NAMED
@SAYING
def test_half_the_capacity_is_found_within_seconds(service: str, says: bool) -> None:
    """95 % of it within 8 s, and not by being refused."""
    seen = simulate(world(service, step(UNITS, UNITS / 2, 20), 40, says))
    assert seen.recovery_s(20) <= 8
    assert seen.used(28) >= 0.95
    assert seen.refused(28) <= 0.02


@NAMED
@SAYING
def test_twice_the_capacity_is_found_within_seconds(service: str, says: bool) -> None:
    """95 % of it within 8 s."""
    seen = simulate(world(service, step(UNITS / 2, UNITS, 20), 40, says))
    assert seen.recovery_s(20) <= 8


@NAMED
def test_what_others_leave_is_used(service: str) -> None:
    """At least 92 %, where they take nothing and 30 % by turns, every 20 s."""
    assert simulate(world(service, moving(UNITS), 90)).used(10) >= 0.92


@NAMED
def test_four_workers_of_their_own_use_a_service_up_together(service: str) -> None:
    """As one does, without knowing of each other; and none of them is starved."""
    seen = simulate(world(service, steady(UNITS), 45, workers=4))
    assert seen.used(15) >= 0.97
    assert seen.refused(15) <= 0.01
    assert seen.fairness(15) >= 0.85


def test_long_pauses_cost_what_they_cost() -> None:
    """1, 2, 4 … seconds where nobody says when: slower, and it comes back."""
    seen = simulate(World(SERVICES["window of 1 s"], steady(UNITS), 45, names_times=False, backoff=BACKOFF_S))
    assert 0.6 <= seen.used(15) <= 1.0
    assert seen.refused(15) <= 0.01


def test_no_growth_for_what_nobody_asks_for() -> None:
    """A rate that is not made use of stays: how much the service would take is not known."""

    async def work() -> None:
        one = Gate("service", "units", 4, clock=anyio.current_time)
        for _ in range(100):
            async with one.passed(10.0) as passage:
                await anyio.sleep(0.01)
                passage.accepted()
        async with one.passed(10.0) as passage:
            passage.throttled(0.5)
        learned = one.learned
        assert learned is not None
        for _ in range(60):
            async with one.passed(10.0) as passage:
                await anyio.sleep(0.5)
                passage.accepted()
        assert one.learned == learned

    run(work)


def test_what_was_learned_bounds_what_is_under_way() -> None:
    """Twice what the rate needs and two more, of those that the job allows."""

    async def work() -> None:
        one = Gate("service", "units", 64, clock=anyio.current_time)
        for _ in range(100):
            async with one.passed(10.0) as passage:
                await anyio.sleep(0.01)
                passage.accepted()
        assert one.in_flight == 64
        async with one.passed(10.0) as passage:
            await anyio.sleep(0.001)
            passage.throttled(0.01)
        # 100 attempts in about a second, a hundredth of a second each: one under way, on average
        assert 4 <= one.in_flight <= 5

    run(work)


def test_a_rate_is_kept_whatever_attempts_cost() -> None:
    """Turns are assumed to cost 1, and cost 5: what was charged counts."""

    async def work() -> None:
        from rewrap.pace.gate import Cap

        one = Gate("service", "units", 8, budget=Cap(100.0, "a cap"), clock=anyio.current_time)
        began = anyio.current_time()
        for _ in range(200):
            async with one.passed(1.0) as passage:
                passage.accepted(5.0)
        assert one.spent == 1_000.0
        assert anyio.current_time() - began == pytest.approx(1_000.0 / 100.0, abs=0.5)

    run(work)


def test_a_throttled_gate_says_its_pace() -> None:
    """What it found the service to take, and that it was throttled."""

    async def work() -> None:
        one = Gate("orders", "RU", 8, clock=anyio.current_time, chance=lambda: 0.0)
        for _ in range(100):
            async with one.passed(10.0) as passage:
                await anyio.sleep(0.01)
                passage.accepted()
        async with one.passed(10.0) as passage:
            await anyio.sleep(0.001)
            passage.throttled(3.0)
        async with anyio.create_task_group() as group:
            group.start_soon(_many, one)
            await anyio.sleep(0.5)
            assert one.reason == "throttling by orders, for 2 s more"
            await anyio.sleep(4.0)
            assert one.limit is not None
            assert one.reason == one.limit.why
            assert one.reason.startswith("the pace of ")
            assert one.reason.endswith(" RU/s after throttling")
            group.cancel_scope.cancel()

    run(work)


async def _many(one: Gate) -> None:
    while True:
        async with one.passed(10.0) as passage:
            passage.accepted()


@pytest.mark.parametrize("says", [True, False], ids=["says when", "does not say"])
@pytest.mark.parametrize("service", SERVICES)
def test_four_workers_that_share_a_budget_get_equal_parts(service: str, says: bool) -> None:
    """A budget of a little less than the service gives: it is used up, and parted evenly."""
    world = World(
        SERVICES[service], steady(4_000.0), 40, 4, names_times=says, backoff=SHORT_BACKOFF_S, shared=3_900.0
    )
    seen = simulate(world)
    assert seen.used(10) >= 0.97
    assert seen.fairness(10) >= 0.95
    # at most the budget in any second, and a piece of a quarter of a second for each worker
    assert max(seen.done.values()) <= 3_900.0 * (1 + 4 * 0.25)
