"""The guard: a lease document for each container, and a checkpoint document for each of its shards.

They are kept in a container of rewrap's own in the same database, one logical partition for each container
that is rotated, and every write of one compares its etag first. A claim raises the lease's fence and rewrites
the shards, so that whoever held it before finds each of them changed.

No session shows whether a holder lives: its lease lasts `lease_s` from its last beat, by the clock of the
server that stamps the beat. A holder stops by itself before that, by a clock that counts sleep
(`still_held`), and who takes over waits until nothing can be on its way any more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import anyio

from rewrap.errors import LeaseHeld, Rewound, RewrapError, StoreError, StoreUnavailable
from rewrap.interfaces import Checkpoint, Claim
from rewrap.job import Job
from rewrap.model import ServerIdentity, ShardLease, ShardRange
from rewrap.stores.claims import (
    Standing,
    dump_tally,
    lease_lost,
    load_tally,
    may_go_on,
    origin_of,
    out_of_order,
    refuse_others,
)
from rewrap.stores.cosmos.client import REQUEST_TIMEOUT_S, Account, guarded
from rewrap.stores.cosmos.holder import Holder, elapsed_s, this_process
from rewrap.stores.cosmos.records import LEASE, Record, Records

_ATTEMPTS = 8
"""Times that a write is tried again after another one of ours: more than any retry sends."""

_STAMP_S = 1
"""Seconds by which `_ts` is coarse."""


class Home(Protocol):
    """The store that is guarded."""

    @property
    def account(self) -> Account: ...

    async def identity(self) -> ServerIdentity: ...


@dataclass
class _Hold:
    """What this process holds of one container: its lease and its shards, as last acknowledged."""

    relation: str
    fence: int
    lease: Record
    shards: dict[int, Record] = field(default_factory=dict)
    before: Record | None = None


class CosmosGuard:
    """Claims containers for one process, keeps its leases alive, and gives them back."""

    def __init__(self, job: Job, home: Home) -> None:
        self._home = home
        self._records = Records(home.account, job.cosmos.guard_container)
        self._claim: Claim | None = None
        self._holds: dict[str, _Hold] = {}
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
        return _timeout_s(self._claim.ttl_s) if self._claim else REQUEST_TIMEOUT_S

    async def claim(self, claim: Claim) -> dict[str, list[ShardLease]]:
        await self._records.ensure()
        self._lost = False
        relations = sorted(claim.ranges)
        # all are looked at before the first is taken: most refusals change nothing
        for relation in relations:
            found = await self._records.read(relation, LEASE)
            if found is not None:
                await self._judge(relation, found, claim)
        taken: dict[str, _Hold] = {}
        began = elapsed_s()
        quiet_at = 0.0
        try:
            for relation in relations:
                taken[relation], wait_s = await self._take(relation, claim)
                if wait_s:
                    self.notices.append(
                        f"container {relation} was not given back by its last holder; nothing is written for "
                        f"{wait_s:.0f} s, until nothing of its can be on the way any more"
                    )
                quiet_at = max(quiet_at, elapsed_s() + wait_s)
            for hold in taken.values():
                await self._take_shards(hold, claim)
        except BaseException:
            with anyio.CancelScope(shield=True), anyio.move_on_after(REQUEST_TIMEOUT_S):
                await self._give_back(taken)
            raise
        self._claim, self._holds, self._confirmed_at = claim, taken, began
        await self._wait_until(quiet_at)
        return {relation: self._leases(hold) for relation, hold in taken.items()}

    async def _judge(self, relation: str, found: Record, claim: Claim) -> float:
        """Raises when a container is somebody else's; else the seconds to wait once it is taken.

        Then nothing is on its way any more that its last holder sent before it stopped by itself.
        """
        holder = Holder.of(found.get("holder"))
        live, wait_s = False, 0.0
        if not found["released"] and not holder.gone:
            # a beat is stamped in whole seconds, rounded down; so is the clock it is compared with
            least = await self._records.now(relation) - found["_ts"] - _STAMP_S
            live = least < found["lease_s"]
            wait_s = max(0.0, found["lease_s"] + found["timeout_s"] - least)
        standing = Standing(
            run_id=found["run_id"],
            owner=found["owner"],
            from_versions=found["from_versions"],
            to_version=found["to_version"],
            origin=found["origin"],
            live=live,
            finished=found["finished"],
        )
        refuse_others("container", relation, standing, claim)
        return wait_s

    async def _take(self, relation: str, claim: Claim) -> tuple[_Hold, float]:
        """The lease of one container, and how long to wait before the first write to it."""
        identity = await self._home.identity()
        # one that was deleted and made anew is another, whatever its name
        container = await self._home.account.container(relation.partition("/")[2]).properties()
        database = f"{identity.origin} {container['_rid']}"
        mine: _Hold | None = None
        wait_s = 0.0
        for _ in range(_ATTEMPTS):
            found = await self._records.read(relation, LEASE)
            if mine is not None and found is not None and found["owner"] == claim.owner:
                # taken, and the acknowledgement lost
                mine.lease = found
                return mine, wait_s
            wait_s = 0.0 if found is None else await self._judge(relation, found, claim)
            # from the clock where there is no older one: a fence is never used twice
            last = found["fence"] if found else await self._records.now(relation) * 1_000_000
            kept = await self._kept(relation, found, claim, database)
            body = {
                "id": LEASE,
                "relation": relation,
                "run_id": claim.run_id,
                "owner": claim.owner,
                "origin": origin_of(database, claim, relation),
                "from_versions": ",".join(claim.from_versions),
                "to_version": claim.to_version,
                "fence": last + 1,
                "shards": len(kept) or len(claim.ranges[relation]),
                "lease_s": claim.ttl_s,
                "timeout_s": _timeout_s(claim.ttl_s),
                "holder": this_process().as_json(),
                "released": False,
                "finished": False,
                "beats": 0,
            }
            mine = _Hold(relation, last + 1, body, kept, found)
            wrote = await (self._records.write(body, found) if found else self._records.add(body))
            if wrote is not None:
                mine.lease = wrote
                return mine, wait_s
        raise LeaseHeld(
            f"container {relation} is being claimed by others at this moment",
            hint="see rewrap status on the other machines, then run again",
        )

    async def _kept(
        self, relation: str, found: Record | None, claim: Claim, database: str
    ) -> dict[int, Record]:
        """The shards of an earlier process of this run, if what they say still counts; else none."""
        if found is None or found["run_id"] != claim.run_id:
            return {}
        shards: dict[int, Record] = {}
        for at in range(found["shards"]):
            shard = await self._records.read(relation, _shard_id(at))
            # a crash may have come between the lease and its shards
            if shard is None or shard["of"] != found["shards"]:
                return {}
            shards[at] = shard
        standings = [
            Standing(one["run_id"], "", "", claim.to_version, one["origin"], live=False, finished=False)
            for one in shards.values()
        ]
        if not may_go_on(standings, claim, database):
            return {}
        moved = out_of_order("container", relation, standings, claim)
        if moved is None:
            return shards
        if moved not in self.notices:
            self.notices.append(moved)
        return {}

    async def _take_shards(self, hold: _Hold, claim: Claim) -> None:
        """Writes every shard anew, so that a checkpoint of whoever had it before finds it changed."""
        relation, kept = hold.relation, hold.shards
        hold.shards = {}
        for at, shard in kept.items():
            hold.shards[at] = await self._rewritten(hold, shard, {"fence": hold.fence})
        if kept:
            return
        ranges = claim.ranges[relation]
        for entry in ranges:
            body = {
                "id": _shard_id(entry.shard),
                "relation": relation,
                "shard": entry.shard,
                "of": len(ranges),
                "run_id": claim.run_id,
                "origin": hold.lease["origin"],
                "lower": entry.lower,
                "upper": entry.upper,
                "fence": hold.fence,
                "seq": 0,
                **_start(1),
            }
            found = await self._records.add(body)
            if found is None:
                old = await self._records.read(relation, body["id"])
                found = await self._rewritten(hold, old or {}, body)
            hold.shards[entry.shard] = found
        for at in range(len(ranges), hold.before["shards"] if hold.before else 0):
            await self._records.remove(relation, _shard_id(at))

    async def _rewritten(self, hold: _Hold, shard: Record, changes: dict[str, Any]) -> Record:
        """A shard that was somebody else's, with changes, over whatever they wrote to it last."""
        for _ in range(_ATTEMPTS):
            wrote = await self._records.write({**shard, **changes}, shard)
            if wrote is not None:
                return wrote
            now = await self._records.read(hold.relation, changes.get("id") or shard["id"])
            if now is None:
                raise self._records.gone(hold.relation)
            if now["fence"] > hold.fence:
                raise self._lose(hold.relation)
            shard = now
        raise StoreUnavailable(f"{self.subject}: the shards of {hold.relation} keep changing")

    async def _wait_until(self, quiet_at: float) -> None:
        """Waits out what a former holder may have sent, beating meanwhile."""
        assert self._claim is not None
        while (left := quiet_at - elapsed_s()) > 0:
            await anyio.sleep(min(left, self._claim.ttl_s / 3))
            await self.beat()

    async def _give_back(self, taken: dict[str, _Hold]) -> None:
        for hold in taken.values():
            before = {**(hold.before or hold.lease), "released": True, "fence": hold.fence}
            if hold.before is None:
                # no run of ours has begun: nobody shall be told to finish it
                before["finished"] = True
            await self._records.write({**before, "owner": hold.lease["owner"]}, hold.lease)

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

    async def beat(self) -> None:
        if self._claim is None:
            raise lease_lost(self.subject)
        async with self._turn:
            began = elapsed_s()
            with guarded(_ask_nobody, self.request_timeout_s):
                for hold in self._holds.values():
                    await self._beat(hold)
            self._confirmed_at = began

    async def confirm(self) -> None:
        """Beats when the last beat is no longer enough to write by."""
        try:
            self.still_held()
        except StoreUnavailable:
            await self.beat()

    async def _beat(self, hold: _Hold) -> None:
        for _ in range(_ATTEMPTS):
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
            await self._write_shard(hold, at, _start(sweep))
        return self._leases(hold)

    async def lease(self, relation: str, shard: int) -> ShardLease:
        hold = self._held(relation)
        hold.shards[shard] = self._ours(hold, await self._records.read(relation, _shard_id(shard)))
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
        await self._write_shard(self._held(lease.relation), lease.range.shard, _start(lease.sweep))

    async def _write_shard(self, hold: _Hold, at: int, changes: dict[str, Any]) -> None:
        for _ in range(_ATTEMPTS):
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

    async def _release(self, hold: _Hold, run_id: str, *, finished: bool) -> None:
        given = {"released": True, "finished": finished, "run_id": run_id}
        for _ in range(_ATTEMPTS):
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

    def _held(self, relation: str) -> _Hold:
        if self._lost or relation not in self._holds:
            raise lease_lost(self.subject)
        return self._holds[relation]

    def _ours(self, hold: _Hold, found: Record | None) -> Record:
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
    def _leases(hold: _Hold) -> list[ShardLease]:
        return [_lease(hold.shards[at]) for at in sorted(hold.shards)]


def _timeout_s(ttl_s: float) -> float:
    """Seconds that one request may take under a lease: three of them fit into it."""
    return min(REQUEST_TIMEOUT_S, ttl_s / 3)


def _ask_nobody() -> None:
    """What a beat asks before it is sent: it is how one finds out."""


def _shard_id(at: int) -> str:
    return f"shard-{at}"


def _start(sweep: int) -> dict[str, Any]:
    """A shard at the start of a sweep."""
    return {"sweep": sweep, "cursor": None, "rows": 0, "tally": "{}", "done": False}


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
