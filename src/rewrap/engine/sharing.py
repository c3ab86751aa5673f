"""The shared budgets of a run: declared in the ledger, and handed to the gates that draw on them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import anyio
from anyio.abc import TaskStatus

from rewrap.engine.retry import quiet, until_reachable
from rewrap.errors import UsageError
from rewrap.events import Notice
from rewrap.interfaces import Sink
from rewrap.job import Job
from rewrap.ledgers.sql import Ledger
from rewrap.pace.gate import Gate
from rewrap.pace.shared import Drawn, Shared


class Sharing:
    """What a run draws on budgets that other processes use too.

    `gates` are those of its stores, by name: of one that has a gate for its account, that. `vault` is the
    gate of its keys, where they are remote.

    `begin` refuses what cannot be shared; `run` is a task beside the work.
    """

    def __init__(
        self, job: Job, ledger: Ledger, sink: Sink, gates: Mapping[str, Gate], vault: Gate | None
    ) -> None:
        self._job = job
        self._ledger = ledger
        self._sink = sink
        self._gates: dict[str, Gate] = {}
        for name, section in job.pace.shared.items():
            gate = vault if section.keys else gates[section.store or next(iter(job.stores))]
            assert gate is not None
            self._gates[name] = gate

    async def begin(self) -> None:
        """Raises LedgerError or UsageError where others cannot share a budget so."""
        if not self._gates:
            return
        buckets = self._ledger.buckets
        for bucket in await until_reachable(buckets.all, self._job.limits.reconnect_s, quiet):
            gate = self._gates.get(bucket.name)
            if gate is not None and bucket.unit != gate.unit:
                raise UsageError(
                    f'shared budget "{bucket.name}" is counted in {bucket.unit}, and {gate.name} in '
                    f"{gate.unit}",
                    hint="give the budget another name: those of other kinds of stores, and of vaults, are "
                    "counted in other units",
                )

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Declares the budgets, and draws on them while there is work. Never returns."""
        for name in self._gates:
            await until_reachable(partial(self._declare, name), self._job.limits.reconnect_s, quiet)
        try:
            async with anyio.create_task_group() as group:
                for name, gate in self._gates.items():
                    rate = self._job.pace.shared[name].rate
                    share = Shared(name, gate.unit, rate, partial(self._drawn, name), said=self._said)
                    group.start_soon(share.run)
                    gate.share = share
                task_status.started()
                await anyio.sleep_forever()
        finally:
            # what still passes a gate, to give a lease back, waits for nobody who draws no more
            for gate in self._gates.values():
                gate.share = None

    async def _declare(self, name: str) -> None:
        rate, unit = self._job.pace.shared[name].rate, self._gates[name].unit
        before = await self._ledger.buckets.declare(name, unit, rate)
        if before is not None:
            self._said(
                f"shared budget {name}: {rate:,.0f} {unit}/s for all from now on, as this job says; it was "
                f"{before:,.0f}"
            )

    async def _drawn(self, name: str, units: float) -> Drawn:
        while (drawn := await self._ledger.buckets.draw(name, units)) is None:
            # somebody has emptied the ledger meanwhile
            await self._declare(name)
        return drawn

    def _said(self, message: str) -> None:
        self._sink(Notice(level="warning", message=message))
