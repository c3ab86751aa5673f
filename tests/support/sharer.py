"""A process that uses up a shared budget as fast as it may, and prints when: one line for each attempt.

`python -m tests.support.sharer NAME RATE COST`, with REWRAP_LEDGER_URL; it goes on until it is killed. Times
are of the machine's monotonic clock, which all its processes share.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import anyio

from rewrap.ledgers.sql import Ledger
from rewrap.pace.gate import Gate
from rewrap.pace.shared import Drawn, Shared


async def main(name: str, rate: float, cost: float) -> None:
    ledger = await Ledger.open(f"sharer-{os.getpid()}", Path("rewrap.toml"), os.environ)
    assert ledger is not None
    await ledger.buckets.declare(name, "rows", rate)

    async def draw(units: float) -> Drawn:
        drawn = await ledger.buckets.draw(name, units)
        assert drawn is not None
        return drawn

    share = Shared(name, "rows", rate, draw, said=lambda said: print(f"# {said}", flush=True))
    gate = Gate("db", "rows", 4)
    gate.share = share

    async def use() -> None:
        while True:
            async with gate.passed(cost) as passage:
                print(time.monotonic(), cost, flush=True)
                passage.accepted()

    async with anyio.create_task_group() as group:
        group.start_soon(share.run)
        for _ in range(3):
            group.start_soon(use)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))
