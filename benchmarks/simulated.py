"""Services that throttle, and workers that ask them, by a clock that jumps: an hour passes in seconds.

What is simulated is the service and the network alone. The workers' gates are the program's own, and wait and
run as they do in a run, on an event loop of their own.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import anyio

from rewrap.errors import LedgerUnavailable
from rewrap.pace.gate import BACKOFF_S, Gate
from rewrap.pace.shared import AHEAD_S, Drawn, Shared

Capacity = Callable[[float], float]
"""Units a second that a service has to give at a moment."""


class _Jumping(selectors.SelectSelector):
    """Where a loop would sleep, its clock jumps."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everybody waits, and nothing will ever happen")
        self.now += max(0.0, timeout)
        return super().select(0)


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only while everybody sleeps."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def run(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work` returns, on such a loop."""
    return anyio.run(work, *arguments, backend_options={"loop_factory": JumpingLoop})


class Service(Protocol):
    """Says whether it does what costs so much, at a moment; if not, in how many seconds to ask again."""

    def ask(self, now: float, cost: float) -> float | None: ...


@dataclass
class WindowService:
    """So many units in each window of the clock, and none beyond them until the next.

    The last one of a window may be dearer than what is left, at the expense of the next window.
    """

    capacity: Capacity
    width_s: float = 1.0
    _window: int = -1
    _left: float = 0.0

    def ask(self, now: float, cost: float) -> float | None:
        window = int(now / self.width_s)
        if window != self._window:
            self._window, self._left = window, self.capacity(now) * self.width_s + min(self._left, 0.0)
        if self._left <= 0:
            return (window + 1) * self.width_s - now
        self._left -= cost
        return None


@dataclass
class BucketService:
    """A bucket that fills all the time, and holds what comes in `depth_s` seconds."""

    capacity: Capacity
    depth_s: float = 1.0
    _at: float = 0.0
    _level: float = 1e12

    def ask(self, now: float, cost: float) -> float | None:
        capacity = self.capacity(now)
        self._level = min(self._level + (now - self._at) * capacity, self.depth_s * capacity)
        self._at = now
        if self._level < cost:
            return (cost - self._level) / capacity
        self._level -= cost
        return None


def steady(per_s: float) -> Capacity:
    """Always the same."""
    return lambda now: per_s


def step(before: float, after: float, at_s: float) -> Capacity:
    """Another capacity from a moment on."""
    return lambda now: before if now < at_s else after


def moving(per_s: float, taken: float = 0.3, every_s: float = 20.0) -> Capacity:
    """Others take a share of it for a while, and nothing of it for as long, by turns."""
    return lambda now: per_s * (1 - taken if int(now / every_s) % 2 else 1)


class Line:
    """A shared budget as the ledger keeps it, that takes a while to answer and may be away."""

    def __init__(self, rate: float, answers_in_s: float = 0.01) -> None:
        self.rate = rate
        self.answers_in_s = answers_in_s
        self.taken_until = 0.0
        self.draws = 0
        self.away = False
        self.silent = False

    async def draw(self, units: float) -> Drawn:
        self.draws += 1
        if self.silent:
            await anyio.sleep(3600)
        if self.away:
            raise LedgerUnavailable("away")
        now = anyio.current_time()
        begins = max(self.taken_until, now)
        ends = begins + units / self.rate
        if ends > now + AHEAD_S:
            return Drawn(0.0, 0.0, self.rate)
        self.taken_until = ends
        await anyio.sleep(self.answers_in_s)
        return Drawn(units, begins - now, self.rate)

    def shared(self, said: Callable[[str], None] = lambda _: None) -> Shared:
        """A process's part of it."""
        return Shared("db", "rows", self.rate, self.draw, said=said, clock=anyio.current_time)


@dataclass(frozen=True)
class World:
    """What is simulated: a service, and workers with a gate each. Costs are from half to one and a half."""

    service: Callable[[Capacity], Service]
    capacity: Capacity
    seconds: int
    workers: int = 1
    joining_s: float = 0.0
    """Seconds after which each further worker begins."""

    cost: float = 10.0
    round_trip_s: float = 0.01
    callers: int = 32
    """Of each worker, at once: more than it may have under way."""

    names_times: bool = True
    """Whether the service says when to ask again."""

    backoff: Sequence[float] = BACKOFF_S
    shared: float | None = None
    """Units a second of a budget that all workers draw on; None: they know nothing of each other."""

    seed: int = 1


@dataclass
class Seen:
    """What was seen, second by second: attempts, throttled ones, units done, of all and of each worker."""

    world: World
    attempts: Counter[int] = field(default_factory=Counter)
    throttled: Counter[int] = field(default_factory=Counter)
    done: Counter[int] = field(default_factory=Counter)
    by_worker: list[Counter[int]] = field(default_factory=list)

    def used(self, since: int = 0, until: int | None = None) -> float:
        """The share of what there was that was made use of."""
        seconds = range(since, until or self.world.seconds)
        # as a window has it: by the capacity at its beginning, and a little past it
        there = sum(self.world.capacity(second + 1e-6) for second in seconds)
        return sum(self.done[second] for second in seconds) / there

    def refused(self, since: int = 0) -> float:
        """The share of attempts that were throttled."""
        seconds = range(since, self.world.seconds)
        return sum(self.throttled[s] for s in seconds) / max(1, sum(self.attempts[s] for s in seconds))

    def recovery_s(self, at_s: int, wanted: float = 0.95, over_s: int = 2) -> float:
        """Seconds from a moment until two seconds on end make use of so much."""
        for second in range(at_s, self.world.seconds - over_s):
            if self.used(second, second + over_s) >= wanted:
                return float(second - at_s)
        return float("inf")

    def fairness(self, since: int = 0) -> float:
        """Jain's index over what the workers got: 1 is the same for each, 1/n all for one."""
        got = [sum(n for second, n in done.items() if second >= since) for done in self.by_worker]
        return sum(got) ** 2 / (len(got) * sum(share**2 for share in got))


def simulate(world: World, gates: Callable[[World, random.Random], Gate] | None = None) -> Seen:
    """Lets the workers work against the service for so many seconds."""
    return run(_simulate, world, gates or gate)  # type: ignore[no-any-return]  # a Seen


def gate(world: World, chance: random.Random) -> Gate:
    """A gate as a service's client makes it: it knows of no limit."""
    return Gate(
        "service", "units", world.callers,
        clock=anyio.current_time, chance=chance.random, backoff=world.backoff,
    )  # fmt: skip


async def _simulate(world: World, gates: Callable[[World, random.Random], Gate]) -> Seen:
    chance = random.Random(world.seed)
    seen = Seen(world)
    service = world.service(world.capacity)
    line = None if world.shared is None else Line(world.shared)

    async def attempts(gate: Gate, mine: Counter[int]) -> None:
        while True:
            cost = world.cost * (0.5 + chance.random())
            async with gate.passed(None) as passage:
                way = world.round_trip_s * (0.4 + 0.2 * chance.random())
                await anyio.sleep(way)
                now = anyio.current_time()
                second = int(now)
                refusal = service.ask(now, cost)
                seen.attempts[second] += 1
                if refusal is None:
                    seen.done[second] += cost
                    mine[second] += cost
                else:
                    seen.throttled[second] += 1
                await anyio.sleep(way)
                if refusal is None:
                    passage.accepted(cost)
                else:
                    passage.throttled(refusal if world.names_times else None)

    with anyio.move_on_after(world.seconds):
        async with anyio.create_task_group() as group:
            for number in range(world.workers):
                mine: Counter[int] = Counter()
                seen.by_worker.append(mine)
                one = gates(world, chance)
                if line is not None:
                    one.share = share = line.shared()
                    group.start_soon(share.run)
                for _ in range(world.callers):
                    group.start_soon(attempts, one, mine)
                if world.joining_s and number + 1 < world.workers:
                    await anyio.sleep(world.joining_s)
    return seen


SERVICES: dict[str, Callable[[Capacity], Service]] = {
    "window of 1 s": WindowService,
    "window of 0.25 s": lambda capacity: WindowService(capacity, 0.25),
    "bucket of 1 s": BucketService,
    "bucket of 0.1 s": lambda capacity: BucketService(capacity, 0.1),
}
"""Ways to count what a service gives."""

SHORT_BACKOFF_S = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8)
"""Pauses for a service that does not say when to ask again, and does not mind to be asked."""
