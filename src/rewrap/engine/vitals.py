"""Watches the servers of a run beside its work, and tells their gates to go slower, or to wait."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence

import anyio
from anyio.abc import TaskGroup

from rewrap.errors import StoreError, StoreUnavailable
from rewrap.events import Notice
from rewrap.interfaces import Monitor, Monitored, Sink, Store
from rewrap.model import Table
from rewrap.pace.foreground import Foreground
from rewrap.pace.gate import Cap, Gate
from rewrap.pace.health import Brake, Judge, Verdict, left_at
from rewrap.pace.pacer import Pacer
from rewrap.pace.section import Pace
from rewrap.pace.thresholds import LoadProbe
from rewrap.pace.vitals import Vitals
from rewrap.probes.load import NoNumber, ask_url, number_of
from rewrap.stores.fleet import FleetStore

LOOK_S = 0.25
"""Seconds between two looks."""

PROBE_S = 0.05
"""Seconds between two timed commits while others are at work."""

AWAY_S = 1.0
"""Seconds to wait where a server does not answer: who works there says so."""

SPEED_LOOKS = 5
"""Looks over which the speed of the run is measured: a second."""


class Governor:
    """Turns verdicts of one kind on one store's work into a cap or a hold on its gate."""

    def __init__(self, who: str, pacer: Pacer) -> None:
        self._who = who
        self._pacer = pacer
        self._brake = Brake()
        self._why = ""
        self._rows: deque[tuple[float, int]] = deque(maxlen=SPEED_LOOKS)

    def apply(self, verdict: Verdict, now: float) -> None:
        self._rows.append((now, self._pacer.rows))
        gate = self._pacer.gate
        if verdict.left <= 0:
            gate.hold(self._who, verdict.why)
            return
        gate.let_go(self._who)
        (then, before), (_, rows) = self._rows[0], self._rows[-1]
        speed = (rows - before) / (now - then) if now > then else 0.0
        cap = self._brake.apply(verdict.left, speed, now)
        self._why = verdict.why if verdict.left < 1 else self._why
        gate.cap(self._who, None if cap is None else Cap(cap, self._why))

    def free(self) -> None:
        self._pacer.gate.let_go(self._who)
        self._pacer.gate.cap(self._who, None)


class Watch:
    """One store's server, and the pacer of its work."""

    def __init__(self, monitor: Monitor, pacer: Pacer, pace: Pace, sink: Sink) -> None:
        self._monitor = monitor
        self._sink = sink
        self._told = False
        self._pacer = pacer
        self._yields = pace.health.yield_to_others
        self._judge = Judge(pace.health)
        self._governor = Governor("health", pacer)
        self._foreground = Foreground(time.monotonic())
        self._others = Others(pacer)

    async def begin(self) -> None:
        """The first look: before the first write."""
        try:
            await self._look()
        except StoreError as exc:
            self._blind(exc)

    async def run(self) -> None:
        try:
            while True:
                try:
                    await self._round()
                except StoreError as exc:
                    self._blind(exc)
                    await anyio.sleep(AWAY_S)
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(3):
                await self._monitor.close()

    def _blind(self, error: StoreError) -> None:
        """Nothing is known of the server: nothing is held back for what was known."""
        self._governor.free()
        self._free_of_others(self._pacer.gate)
        if not (self._told or isinstance(error, StoreUnavailable)):
            self._told = True
            text = (
                f"the health of {self._pacer.store} cannot be looked at, and is not heeded: {error.message}"
            )
            self._sink(Notice(level="warning", message=text, hint=error.hint))

    async def _round(self) -> None:
        until = time.monotonic() + LOOK_S
        while (now := time.monotonic()) < until:
            if not self._foreground.present:
                await anyio.sleep(until - now)
                continue
            self._foreground.probed(await self._monitor.probe(), time.monotonic())
            self._yield()
            await anyio.sleep(PROBE_S)
        await self._look()

    async def _look(self) -> None:
        vitals = await self._monitor.look(LOOK_S)
        self._governor.apply(self._judge.judge(vitals), vitals.at)
        if self._yields:
            self._foreground.seen(self._others.busy(vitals), vitals.at)
            self._yield()

    def _yield(self) -> None:
        gate, found = self._pacer.gate, self._foreground
        if not found.present:
            self._free_of_others(gate)
            return
        if found.calm:
            gate.hold("others", "others are at work on the server: seeing how fast they are alone")
        else:
            gate.let_go("others")
        allowed = found.allowance(self._pacer.row_s)
        self._pacer.ease(allowed.batch_size)
        gate.cap("others", Cap(allowed.rows_per_s, "others are at work on the server"))

    def _free_of_others(self, gate: Gate) -> None:
        gate.let_go("others")
        gate.cap("others", None)
        self._pacer.ease(None)


class Others:
    """How many others are at work; where a role may not see them, whether there are any at all.

    Then all that is known is how many transactions the server has ended, and how many of them were ours. A
    session reports its own a second late: what is left over then is no other's.
    """

    OVER_S = 5.0
    LATE_S = 1.5
    NOTICED_PER_S = 10.0

    def __init__(self, pacer: Pacer) -> None:
        self._pacer = pacer
        self._seen: deque[tuple[float, int, int]] = deque(maxlen=64)

    def busy(self, vitals: Vitals) -> int:
        if vitals.transactions is None:
            return vitals.busy
        now = vitals.at
        self._seen.append((now, vitals.transactions, self._pacer.statements))
        first = next(entry for entry in self._seen if entry[0] >= now - self.OVER_S)
        ours = next(entry for entry in self._seen if entry[0] >= first[0] - self.LATE_S)
        if now - first[0] < self.LATE_S:
            return 0
        others = vitals.transactions - first[1] - (self._pacer.statements - ours[2])
        return 1 if others > self.NOTICED_PER_S * (now - first[0]) else 0


class ProbeWatch:
    """One `[[pace.probe]]`, and all the run's work: it is for whoever wrote it to know what it measures."""

    def __init__(self, probe: LoadProbe, pacers: Sequence[Pacer], monitor: Monitor | None) -> None:
        self._probe = probe
        self._monitor = monitor
        self._governors = [Governor(f"probe {probe.name}", pacer) for pacer in pacers]

    async def begin(self) -> None:
        """The first answer: before the first write."""
        await self._ask()

    async def run(self) -> None:
        try:
            while True:
                await anyio.sleep(self._probe.every_s)
                await self._ask()
        finally:
            if self._monitor is not None:
                with anyio.CancelScope(shield=True), anyio.move_on_after(3):
                    await self._monitor.close()

    async def _ask(self) -> None:
        verdict = await self._verdict()
        for governor in self._governors:
            governor.apply(verdict, time.monotonic())

    async def _verdict(self) -> Verdict:
        subject = f"probe {self._probe.name}"
        try:
            with anyio.fail_after(self._probe.timeout_s):
                number = await self._number()
        except TimeoutError:
            return Verdict(0.0, f"{subject}: no answer in {self._probe.timeout_s:g} s")
        except NoNumber as exc:
            return Verdict(0.0, f"{subject} {exc}")
        except StoreError as exc:
            return Verdict(0.0, f"{subject}: the query failed [{exc.sqlstate or 'no answer'}]")
        except OSError as exc:
            return Verdict(0.0, f"{subject} cannot be asked: {exc.strerror or type(exc).__name__}")
        return Verdict(left_at(number, self._probe.threshold), f"{subject} is at {number:g}")

    async def _number(self) -> float:
        if self._probe.kind == "http":
            return await anyio.to_thread.run_sync(ask_url, self._probe, abandon_on_cancel=True)
        if self._monitor is None:
            raise NoNumber("has no Postgres store to ask")
        return number_of(await self._monitor.answer(self._probe.query or "", self._probe.timeout_s))


async def watch(
    group: TaskGroup,
    store: Store,
    tables: Sequence[Table],
    pacers: Mapping[str, Pacer],
    pace: Pace,
    sink: Sink,
) -> None:
    """Starts what watches a run's servers, each after a first look."""
    members = store.members if isinstance(store, FleetStore) else {next(iter(pacers)): store}
    monitored = {name: member for name, member in members.items() if isinstance(member, Monitored)}
    watches: list[Watch | ProbeWatch] = []
    for name, member in monitored.items():
        homed = [
            table
            for table in tables
            if not isinstance(store, FleetStore) or store.home_of(table.relation) == name
        ]
        watches.append(Watch(member.monitor(homed), pacers[name], pace, sink))
    for probe in pace.probe:
        asked = next(iter(monitored.values()), None) if probe.kind == "sql" else None
        monitor = None if asked is None else asked.monitor(())
        watches.append(ProbeWatch(probe, list(pacers.values()), monitor))
    for one in watches:
        await one.begin()
        group.start_soon(one.run)
