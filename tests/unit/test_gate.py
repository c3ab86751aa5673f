"""The gate in front of an account: how many pass, when none does, and what it adds up."""

from __future__ import annotations

import anyio
import pytest

from rewrap.stores.cosmos.gate import DEFAULT_PAUSE_S, MAX_PAUSE_S, THROTTLED, Gate


class Clock:
    """A time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await anyio.lowlevel.checkpoint()


def gate(clock: Clock, in_flight: int = 2, chance: float = 0.0) -> Gate:
    return Gate(in_flight, clock=clock, sleep=clock.sleep, chance=lambda: chance)


def test_no_more_than_in_flight_are_under_way() -> None:
    """However many want to, and as many as may."""
    seen: list[int] = []
    under_way = 0

    async def request(passing: Gate) -> None:
        nonlocal under_way
        async with passing.passed():
            under_way += 1
            seen.append(under_way)
            await anyio.lowlevel.checkpoint()
            under_way -= 1

    async def main() -> None:
        passing = gate(Clock(), in_flight=3)
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(request, passing)

    anyio.run(main)
    assert max(seen) == 3
    assert len(seen) == 20


def test_one_throttled_request_stops_all() -> None:
    """For as long as the account asked for, whoever sends the next one."""

    async def main() -> Clock:
        clock = Clock()
        passing = gate(clock)
        passing.throttled(2.0)
        assert passing.waiting_for == THROTTLED
        async with passing.passed():
            assert clock.now == 102.0
        passing.answered(1.0)
        assert passing.waiting_for == ""
        async with passing.passed():
            assert clock.now == 102.0
        return clock

    assert anyio.run(main).slept == [2.0]


def test_waiting_is_spread() -> None:
    """What was throttled together does not come back together."""

    async def main() -> float:
        clock = Clock()
        passing = gate(clock, chance=0.5)
        passing.throttled(2.0)
        async with passing.passed():
            return clock.now

    assert anyio.run(main) == pytest.approx(100 + 2.0 * 1.125 + 0.05)


def test_a_429_without_a_time_is_waited_for_longer_each_time() -> None:
    """Doubled for each further one in a row, up to a limit; one that passes ends the row."""

    async def main() -> list[float]:
        clock = Clock()
        passing = gate(clock)
        for _ in range(9):
            passing.throttled(None)
            async with passing.passed():
                pass
        passing.answered(1.0)
        passing.throttled(None)
        async with passing.passed():
            pass
        return clock.slept

    slept = anyio.run(main)
    assert slept[:3] == [DEFAULT_PAUSE_S, DEFAULT_PAUSE_S * 2, DEFAULT_PAUSE_S * 4]
    assert max(slept) <= MAX_PAUSE_S
    assert slept[-1] == DEFAULT_PAUSE_S


def test_those_throttled_together_count_as_one() -> None:
    """Sixteen requests under way are one overload, not sixteen."""

    async def main() -> list[float]:
        clock = Clock()
        passing = gate(clock)
        for _ in range(16):
            passing.throttled(None)
        async with passing.passed():
            pass
        return clock.slept

    assert sum(anyio.run(main)) <= DEFAULT_PAUSE_S * 2


def test_a_time_beyond_reason_is_cut() -> None:
    """An hour's pause is no answer to a burst."""

    async def main() -> float:
        clock = Clock()
        passing = gate(clock)
        passing.throttled(3_600.0)
        async with passing.passed():
            return clock.now

    assert anyio.run(main) == 100 + MAX_PAUSE_S


def test_every_charge_is_added_up() -> None:
    """What came to nothing has its price too."""
    passing = gate(Clock())
    passing.answered(2.5)
    passing.charged(0.38)
    passing.throttled(1.0)
    passing.answered(10.0)
    assert passing.request_units == pytest.approx(12.88)
