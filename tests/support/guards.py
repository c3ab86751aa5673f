"""A guard of either store, opened as a run opens it, and a process that holds one until it is ended."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewrap.errors import LeaseHeld, LeaseLost, StoreUnavailable
from rewrap.interfaces import Checkpoint, Claim, Guard, Store
from rewrap.job import Job
from rewrap.model import ShardLease, ShardRange, Table
from rewrap.stores.cosmos.guard import CosmosGuard
from rewrap.stores.open import Stores
from tests.support.workbench import WAIT_S


@dataclass
class Opened:
    """A store with one table, and a guard of it."""

    store: Store
    guard: Guard
    table: Table

    @property
    def relation(self) -> str:
        return self.table.relation

    def asking(self, run_id: str, owner: str, **more: Any) -> Claim:
        """A claim on the table in two shards, from v1 to v2 unless told otherwise."""
        asked: dict[str, Any] = {
            "run_id": run_id,
            "owner": owner,
            "from_versions": ("v1",),
            "to_version": "v2",
            "ranges": {self.relation: [ShardRange(0, None, "5"), ShardRange(1, "5", None)]},
            "ttl_s": 30.0,
        }
        return Claim(**{**asked, **more})

    async def claim(self, run_id: str, owner: str, **more: Any) -> list[ShardLease]:
        leases = await self.guard.claim(self.asking(run_id, owner, **more))
        return leases[self.relation]

    async def claim_in_time(self, run_id: str, owner: str, **more: Any) -> list[ShardLease]:
        """Claims once the lease of whoever holds it has run out."""
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                return await self.claim(run_id, owner, **more)
            except LeaseHeld:
                assert time.monotonic() < deadline, "waited in vain"
            await asyncio.sleep(0.2)

    async def save(self, lease: ShardLease, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint the way that the store's writer does."""
        if isinstance(self.guard, CosmosGuard):
            await self.guard.save(lease, checkpoint)
            return
        writer = self.store.writer(self.table)
        try:
            await writer.checkpoint(lease, checkpoint)
        finally:
            await writer.close()


@asynccontextmanager
async def opened(path: Path, environ: dict[str, str]) -> AsyncIterator[Opened]:
    stores = Stores(Job.load(path, environ), environ)
    store = stores.store()
    try:
        (table,) = await store.tables()
        guard = await stores.guard(store)
        try:
            yield Opened(store, guard, table)
        finally:
            await guard.close()
    finally:
        await store.close()


async def hold(path: Path, ttl_s: float) -> None:
    """Claims, says so, and beats and saves until it is ended; then says why it could not."""
    async with opened(path, dict(os.environ)) as place:
        lease, _ = await place.claim("held", f"process {os.getpid()}", ttl_s=ttl_s)
        print("held", lease.fence, flush=True)
        try:
            while True:
                await place.save(lease, Checkpoint("1", lease.rows + 1, {}))
                await asyncio.sleep(0.05)
                if lease.seq % 4 == 0:
                    await place.guard.beat()
        except (LeaseLost, StoreUnavailable) as exc:
            print(type(exc).__name__, flush=True)
            try:
                await place.guard.beat()
            except LeaseLost as lost:
                print(type(lost).__name__, flush=True)


if __name__ == "__main__":
    asyncio.run(hold(Path(sys.argv[1]), float(sys.argv[2])))
