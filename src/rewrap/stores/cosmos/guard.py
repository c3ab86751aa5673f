"""The guard: a lease document for each container, and a checkpoint document for each of its shards.

They are kept in a container of rewrap's own in the same database, one logical partition for each container
that is rotated, and every write of one compares its etag first. A claim raises the lease's fence and rewrites
the shards, so that whoever held it before finds each of them changed.

No session shows whether a holder lives: its lease lasts `lease_s` from its last beat, by the clock of the
server that stamps the beat. A holder stops by itself before that, by a clock that counts sleep
(`still_held`), and who takes over waits until nothing can be on its way any more.
"""

from __future__ import annotations

from typing import Any

import anyio

from rewrap.errors import Rewound, RewrapError, StoreError, StoreUnavailable
from rewrap.interfaces import Checkpoint, Claim
from rewrap.job import Job
from rewrap.model import ShardLease, ShardRange
from rewrap.stores.claims import dump_tally, lease_lost, load_tally
from rewrap.stores.cosmos.claiming import ATTEMPTS, Claiming, Hold, Home, at_start, shard_id, timeout_s
from rewrap.stores.cosmos.client import REQUEST_TIMEOUT_S, guarded
from rewrap.stores.cosmos.holder import elapsed_s
from rewrap.stores.cosmos.records import LEASE, Record, Records


class CosmosGuard:
    """Claims containers for one process, keeps its leases alive, and gives them back."""

    def __init__(self, job: Job, home: Home) -> None:
        self._home = home
        self._records = Records(home.account, job.cosmos.guard_container)
        self._claim: Claim | None = None
        self._holds: dict[str, Hold] = {}
        # what was acknowledged last was sent no earlier than this
        self._confirmed_at = 0.0
        self._lost = False
        self._turn = anyio.Lock()
        self.notices: list[str] = []

    @property
    def subject(self) -> str:
        return self._records.subject

    @property
    def request_timeout_s(self) -> float:
        """How long one request may take while this lease is held: a third of it at most."""
        return timeout_s(self._claim.ttl_s) if self._claim else REQUEST_TIMEOUT_S

    async def exists(self) -> bool:
        """Whether the guard's container is there; looks, and changes nothing."""
        return await self._records.exists()

    async def claim(self, claim: Claim) -> dict[str, list[ShardLease]]:
        await self._records.ensure()
        self._lost = False
        began = elapsed_s()
        holds, quiet_at = await Claiming(self._records, self._home, self.notices).take_all(claim)
        self._claim, self._holds, self._confirmed_at = claim, holds, began
        await self._wait_until(quiet_at)
        return {relation: self._leases(hold) for relation, hold in holds.items()}

    async def _wait_until(self, quiet_at: float) -> None:
        """Waits out what a former holder may have sent, beating meanwhile."""
        assert self._claim is not None
        while (left := quiet_at - elapsed_s()) > 0:
            await anyio.sleep(min(left, self._claim.ttl_s / 3))
            await self.beat()

    # while it is held

    def still_held(self) -> None:
        """Raises when this process may not write now. Called right before every write; asks nobody.

        LeaseLost when another has taken over. StoreUnavailable while the last acknowledged beat is so old
        that a request sent now might arrive after the lease: a beat tells whether it is still ours.
        """
        if self._claim is None or self._lost:
            raise lease_lost(self.subject)
        age = elapsed_s() - self._confirmed_at
        if age > self._claim.ttl_s - self.request_timeout_s:
            raise StoreUnavailable(
                f"{self.subject}: the lease was confirmed {age:.0f} s ago, of {self._claim.ttl_s:.0f} s",
                hint="nothing is written until the server confirms it again",
            )

    @property
    def good_until(self) -> float:
        """Until when this process may write, as far as the last acknowledged beat goes, by `elapsed_s`."""
        if self._claim is None or self._lost:
            return float("-inf")
        return self._confirmed_at + self._claim.ttl_s - self.request_timeout_s

    async def beat(self) -> None:
        if self._claim is None:
            raise lease_lost(self.subject)
        async with self._turn:
            began = elapsed_s()
            # a page of a query may have spent more than a lease lasts
            with guarded(_ask_nobody, self.request_timeout_s, ahead=True):
                for hold in self._holds.values():
                    await self._beat(hold)
            self._confirmed_at = began

    async def _beat(self, hold: Hold) -> None:
        for _ in range(ATTEMPTS):
            body = {**hold.lease, "beats": hold.lease["beats"] + 1}
            wrote = await self._records.write(body, hold.lease)
            if wrote is not None:
                hold.lease = wrote
                return
            # perhaps an earlier beat of ours, whose acknowledgement was lost
            hold.lease = self._ours(hold, await self._records.read(hold.relation, LEASE))
        raise StoreUnavailable(f"{self.subject}: the lease of {hold.relation} keeps changing")

    async def begin_sweep(self, relation: str, sweep: int) -> list[ShardLease]:
        hold = self._held(relation)
        for at in hold.shards:
            await self._write_shard(hold, at, at_start(sweep))
        return self._leases(hold)

    async def lease(self, relation: str, shard: int) -> ShardLease:
        hold = self._held(relation)
        hold.shards[shard] = self._ours(hold, await self._records.read(relation, shard_id(shard)))
        return _lease(hold.shards[shard])

    async def save(self, lease: ShardLease, checkpoint: Checkpoint) -> None:
        """Writes how far a shard is. Raises LeaseLost when another has taken over, Rewound when the server
        has lost checkpoints that it had acknowledged, and with them perhaps what they speak of."""
        hold = self._held(lease.relation)
        changes = {
            "cursor": checkpoint.cursor,
            "rows": checkpoint.rows,
            "tally": dump_tally(checkpoint.tally),
            "done": checkpoint.done,
            "sweep": lease.sweep,
        }
        await self._write_shard(hold, lease.range.shard, changes)
        lease.seq = hold.shards[lease.range.shard]["seq"]

    async def reset(self, lease: ShardLease) -> None:
        """Sets one shard to the start of its sweep: what its checkpoint says means nothing any more."""
        await self._write_shard(self._held(lease.relation), lease.range.shard, at_start(lease.sweep))

    async def _write_shard(self, hold: Hold, at: int, changes: dict[str, Any]) -> None:
        for _ in range(ATTEMPTS):
            shard = hold.shards[at]
            with guarded(self.still_held, self.request_timeout_s):
                wrote = await self._records.write({**shard, **changes, "seq": shard["seq"] + 1}, shard)
            if wrote is not None:
                hold.shards[at] = wrote
                return
            now = self._ours(hold, await self._records.read(hold.relation, shard["id"]))
            hold.shards[at] = now
            if now["seq"] < shard["seq"]:
                raise Rewound("the server lost checkpoints that it had acknowledged")
        raise StoreUnavailable(f"{self.subject}: a shard of {hold.relation} keeps changing")

    async def release(self, *, finished: bool, void: bool = False) -> None:
        if self._claim is None:
            return
        claim = self._claim
        try:
            if self._lost:
                return
            for hold in self._holds.values():
                await self._release(hold, "void" if void else claim.run_id, finished=finished or void)
        finally:
            self._claim, self._holds = None, {}

    async def _release(self, hold: Hold, run_id: str, *, finished: bool) -> None:
        given = {"released": True, "finished": finished, "run_id": run_id}
        for _ in range(ATTEMPTS):
            if await self._records.write({**hold.lease, **given}, hold.lease) is not None:
                return
            now = await self._records.read(hold.relation, LEASE)
            if now is None:
                raise self._records.gone(hold.relation)
            if now["owner"] != hold.lease["owner"] or now["released"]:
                return
            hold.lease = now

    async def close(self) -> None:
        """Nothing of its own is open: the store's client is the store's."""

    # what is and what is not ours

    def _held(self, relation: str) -> Hold:
        if self._lost or relation not in self._holds:
            raise lease_lost(self.subject)
        return self._holds[relation]

    def _ours(self, hold: Hold, found: Record | None) -> Record:
        """A document as it is now, if it is under our fence."""
        if found is None:
            raise self._records.gone(hold.relation)
        if found["fence"] < hold.fence:
            raise StoreError(
                f"{self.subject}: the lease of {hold.relation} is an older one than this run took: the "
                "database was restored, or the guard's container",
                hint="what this run wrote may be gone too; run again, which reads everything from the start",
            )
        if found["fence"] > hold.fence:
            raise self._lose(hold.relation)
        return found

    def _lose(self, relation: str) -> RewrapError:
        self._lost = True
        return lease_lost(f"container {relation}")

    @staticmethod
    def _leases(hold: Hold) -> list[ShardLease]:
        return [_lease(hold.shards[at]) for at in sorted(hold.shards)]


def _ask_nobody() -> None:
    """What a beat asks before it is sent: it is how one finds out."""


def _lease(shard: Record) -> ShardLease:
    return ShardLease(
        relation=shard["relation"],
        range=ShardRange(shard["shard"], shard["lower"], shard["upper"]),
        fence=shard["fence"],
        sweep=shard["sweep"],
        cursor=shard["cursor"],
        done=shard["done"],
        rows=shard["rows"],
        tally=load_tally(shard["tally"]),
        seq=shard["seq"],
    )
