"""The gate of remote keys, by a clock that only the test moves."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest

from rewrap.keys.pacing import BACKOFF_S, Gate


class Clock:
    """Seconds that pass when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await anyio.lowlevel.checkpoint()


def gate(clock: Clock, per_s: float = 50.0, in_flight: int = 16) -> Gate:
    return Gate(per_s, in_flight, "a limit", clock=clock, sleep=clock.sleep)


async def calls(one: Gate, clock: Clock, count: int, took_s: float = 0.0) -> list[float]:
    """When each of some calls was let through."""
    times = []
    for _ in range(count):
        async with one.turn():
            times.append(clock.now)
            clock.now += took_s
        one.accepted()
    return times


def test_calls_keep_to_the_budget_but_for_a_short_burst() -> None:
    """Over ten seconds at 50 a second: 500 calls, and a quarter of a second's worth at once at first."""

    async def work() -> None:
        clock = Clock()
        times = await calls(gate(clock), clock, 513)
        assert times[12] == times[0]
        assert times[-1] - times[0] == pytest.approx(10.0, abs=0.05)

    anyio.run(work)


def test_a_pause_holds_for_every_caller_and_the_pace_falls_after_it() -> None:
    """Nothing passes before Retry-After is over; then what the service had accepted is the pace."""

    async def work() -> None:
        clock = Clock()
        one = gate(clock, per_s=100.0)
        await calls(one, clock, 60, took_s=0.05)
        began = clock.now
        assert one.throttled(7.0) == 7.0
        assert one.throttled(7.0) == 7.0
        times = await calls(one, clock, 30)
        assert times[0] >= began + 7.0
        # 20 a second were accepted before: a little less follows, and is not doubled within seconds
        assert 15 <= 29 / (times[-1] - times[0] + 1e-9) <= 30

    anyio.run(work)


def test_the_pace_grows_back_to_the_budget() -> None:
    """A service that accepts everything again is used up again, within a minute."""

    async def work() -> None:
        clock = Clock()
        one = gate(clock, per_s=100.0)
        await calls(one, clock, 20, took_s=0.1)
        one.throttled(1.0)
        began = clock.now
        await calls(one, clock, 3_000)
        assert clock.now - began < 60
        times = await calls(one, clock, 201)
        assert times[-1] - times[0] == pytest.approx(2.0, abs=0.1)

    anyio.run(work)


def test_without_a_time_to_wait_the_pauses_double() -> None:
    """1, 2, 4, 8, 16 and no more; a call that is accepted begins anew."""

    async def work() -> None:
        clock = Clock()
        one = gate(clock)
        waited = []
        for _ in range(7):
            async with one.turn():
                pass
            before = clock.now
            one.throttled(None)
            async with one.turn():
                waited.append(clock.now - before)
        assert waited == pytest.approx([*BACKOFF_S, 16.0, 16.0], abs=0.7)
        one.accepted()
        assert one.throttled(None) == pytest.approx(1.0)

    anyio.run(work)


def test_calls_that_come_back_together_are_one_event() -> None:
    """Sixteen answers of 429 from before a pause do not make it sixteen pauses."""
    clock = Clock()
    one = gate(clock)
    assert {one.throttled(None) for _ in range(16)} == {1.0}


def test_how_long_a_service_was_no_use_is_counted_from_its_last_answer() -> None:
    """That is what a run's patience is compared with."""
    clock = Clock()
    one = gate(clock)
    assert one.failed("a vault that answers 503") == 1.0
    clock.now += 1.0
    assert one.failed("a vault that answers 503", 10.0) == 11.0
    one.accepted()
    assert one.failed("a vault that answers 503") == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (lambda one: one.throttled(20.0), "the vault's throttling, for 20 s more"),
        (lambda one: one.failed("a vault that answers 503", 5.0), "a vault that answers 503, for 5 s more"),
        (lambda one: None, "1 calls under way"),
    ],
)
def test_the_gate_knows_why_it_waits(trouble: Callable[[Gate], object], said: str) -> None:
    """While somebody waits it says for what; otherwise nothing."""

    async def work() -> None:
        clock = Clock()
        one = Gate(50.0, 1, "a limit", clock=clock, sleep=_forever)
        assert one.reason == ""
        async with one.turn():
            trouble(one)
            async with anyio.create_task_group() as group:
                group.start_soon(_pass, one)
                await anyio.wait_all_tasks_blocked()
                assert one.reason == said
                group.cancel_scope.cancel()
        assert one.reason == ""

    anyio.run(work)


def test_a_paced_gate_says_its_pace() -> None:
    """And where it comes from."""

    async def work() -> None:
        clock = Clock()
        one = Gate(2.0, 16, "the limit for RSA-4096 software keys", clock=clock, sleep=_forever)
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(_pass, one)
            await anyio.wait_all_tasks_blocked()
            assert one.reason == "the pace of 2 calls/s (the limit for RSA-4096 software keys)"
            group.cancel_scope.cancel()

    anyio.run(work)


async def _pass(one: Gate) -> None:
    async with one.turn():
        pass


async def _forever(_seconds: float) -> None:
    await anyio.sleep_forever()
