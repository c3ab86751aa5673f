"""What the gate of a service keeps: its pauses and its budget, by a clock that only the test moves."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack

import anyio
import pytest

from rewrap.pace.gate import BACKOFF_S, Cap, Gate
from rewrap.storage import CosmosStore
from rewrap.stores.cosmos.meter import FIRST_UNITS, Meter, kind_of
from rewrap.stores.cosmos.throughput import Provisioned, account_gate, said, share_of


class Clock:
    """Seconds that pass when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await anyio.lowlevel.checkpoint()


def gate(clock: Clock, in_flight: int = 16, rate: float | None = None) -> Gate:
    budget = None if rate is None else Cap(rate, f"the pace of {rate:.0f} calls/s")
    return Gate(
        "the vault", "calls", in_flight, budget=budget,
        clock=clock, sleep=clock.sleep, chance=lambda: 0.0,
    )  # fmt: skip


async def calls(one: Gate, clock: Clock, count: int) -> list[float]:
    """When each of some calls was let through."""
    times = []
    for _ in range(count):
        async with one.passed() as passage:
            times.append(clock.now)
            passage.accepted()
    return times


def test_calls_keep_to_the_budget_but_for_a_short_burst() -> None:
    """Over ten seconds at 50 a second: 500 calls, and a quarter of a second's worth more at first."""

    async def work() -> None:
        clock = Clock()
        times = await calls(gate(clock, rate=50.0), clock, 513)
        assert times[-1] - times[0] == pytest.approx(10.0, abs=0.3)

    anyio.run(work)


def test_a_pause_holds_for_those_that_wait_for_a_place() -> None:
    """They waited before it began: none passes in the middle of it, however many places fall free."""

    async def work() -> None:
        clock = Clock()
        one = gate(clock, in_flight=1)
        passed: list[float] = []

        async def call() -> None:
            async with one.passed():
                passed.append(clock.now)

        async with anyio.create_task_group() as group, one.passed() as passage:
            for _ in range(3):
                group.start_soon(call)
            await anyio.wait_all_tasks_blocked()
            assert passage.throttled(7.0) == 7.0
        assert min(passed) >= 107.0

    anyio.run(work)


def test_what_goes_ahead_waits_for_a_pause_alone() -> None:
    """Neither for a turn, nor for a place, nor for who holds the gate; its charge is paid by the others."""

    async def work() -> None:
        clock = Clock()
        one = gate(clock, in_flight=1, rate=10.0)
        one.accepted(0.0, 10_000.0)
        one.hold("operator", "paused")
        async with one.ahead() as passage:
            assert clock.now == 100.0
            assert not one.idle
            passage.accepted(5.0)
        assert one.idle
        assert one.spent == 10_005.0
        one.pause(3.0, "throttling")
        async with one.ahead():
            assert clock.now == 103.0

    anyio.run(work)


def test_without_a_time_to_wait_the_pauses_double() -> None:
    """1, 2, 4, 8, 16 and no more; a call that is accepted begins anew."""

    async def work() -> None:
        clock = Clock()
        one = gate(clock)
        waited = []
        for _ in range(7):
            async with one.passed() as passage:
                before = clock.now
                passage.throttled(None)
            async with one.passed():
                waited.append(clock.now - before)
        assert waited == pytest.approx([*BACKOFF_S, 16.0, 16.0], abs=0.7)
        async with one.passed() as passage:
            passage.accepted()
        async with one.passed() as passage:
            assert passage.throttled(None) == pytest.approx(1.0)

    anyio.run(work)


def test_calls_that_come_back_together_are_one_event() -> None:
    """Sixteen answers of 429 from before a pause do not make it sixteen pauses."""

    async def work() -> None:
        clock = Clock()
        one = gate(clock)
        async with AsyncExitStack() as entered:
            passages = [await entered.enter_async_context(one.passed()) for _ in range(16)]
            clock.now += 0.1
            assert {passage.throttled(None) for passage in passages} == {1.0}

    anyio.run(work)


def test_how_long_a_service_was_no_use_is_counted_from_its_last_answer() -> None:
    """That is what a run's patience is compared with."""
    clock = Clock()
    one = gate(clock)
    assert one.failed("a vault that answers 503") == 1.0
    clock.now += 1.0
    assert one.failed("a vault that answers 503", 10.0) == 11.0
    one.accepted(1.0, 1.0)
    assert one.failed("a vault that answers 503") == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("trouble", "why"),
    [
        (lambda one: one.throttled(20.0), "throttling by the vault, for 20 s more"),
        (lambda one: one.failed("a vault that answers 503", 5.0), "a vault that answers 503, for 5 s more"),
        (lambda one: one.hold("operator", "paused by ops"), "paused by ops"),
        (lambda one: one.accepted(0.0, 500.0), "the pace of 50 calls/s"),
        (lambda one: one.set_in_flight(1), "1 under way in the vault"),
    ],
)
def test_the_gate_knows_why_it_waits(trouble: Callable[[Gate], object], why: str) -> None:
    """While somebody waits it says for what; otherwise nothing."""

    async def forever(_seconds: float) -> None:
        await anyio.sleep_forever()

    async def work() -> None:
        clock = Clock()
        budget = Cap(50.0, "the pace of 50 calls/s")
        one = Gate("the vault", "calls", 16, budget=budget, clock=clock, sleep=forever)

        async def call() -> None:
            async with one.passed():
                pass

        assert one.reason == ""
        async with one.passed(0):
            clock.now += 1.0
            trouble(one)
            assert one.reason == ""
            async with anyio.create_task_group() as group:
                group.start_soon(call)
                await anyio.wait_all_tasks_blocked()
                assert one.reason == why
                group.cancel_scope.cancel()
        assert one.reason == ""

    anyio.run(work)


def test_a_request_is_expected_to_cost_what_its_kind_did() -> None:
    """Queries and patches, containers and containers: each by its own; and what was refused is only paid."""
    meter = Meter()
    patch = kind_of("PATCH", "/dbs/d/colls/notes/docs/n1", is_query=False)
    assert patch == kind_of("PATCH", "/dbs/d/colls/notes/docs/n2", is_query=False)
    query = kind_of("POST", "/dbs/d/colls/notes/docs", is_query=True)
    assert len({patch, query, kind_of("PATCH", "/dbs/d/colls/deks/docs/n1", is_query=False)}) == 3
    assert meter.expected(patch) == FIRST_UNITS
    meter.charged(patch, 30.0)
    meter.charged(query, 2.5)
    meter.refused(0.5)
    assert (meter.expected(patch), meter.expected(query)) == (30.0, 2.5)
    for _ in range(20):
        meter.charged(patch, 10.0)
    assert meter.expected(patch) == pytest.approx(10.0, abs=0.2)
    assert meter.request_units == 233.0


def store(**fields: object) -> CosmosStore:
    known = {"kind": "cosmos", "endpoint": "https://a.documents.azure.com", "database": "d"}
    return CosmosStore.model_validate(known | fields)


def test_the_lower_of_cap_and_share_is_kept() -> None:
    """Both may be set: a share of what is provisioned, and never more than so much."""
    found = [Provisioned(1_000.0, "container notes"), Provisioned(400.0, "database d", autoscale=True)]
    for max_rus, kept in ((150.0, 150.0), (300.0, 200.0)):
        section = store(max_rus=max_rus, share=0.5)
        one = account_gate(section)
        one.cap("share", share_of(section, found, "database d"))
        assert one.rate == kept
    assert said(found, Cap(200.0, "share")) == (
        "container notes: 1,000 RU/s; database d: up to 400 RU/s; a run takes at most 200 RU/s"
    )
    assert account_gate(store()).rate is None
