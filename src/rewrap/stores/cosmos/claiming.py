"""Taking containers: who may have them, what of the last holder's checkpoints counts, and when to begin.

A container is taken by one write of its lease, which compares the etag. After it, each shard is written anew,
over whatever its last holder has written meanwhile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

import anyio

from rewrap.errors import LeaseHeld, StoreUnavailable
from rewrap.interfaces import Claim
from rewrap.model import ServerIdentity
from rewrap.stores.claims import (
    Standing,
    lease_lost,
    may_go_on,
    origin_of,
    out_of_order,
    refuse_others,
    replaced,
)
from rewrap.stores.cosmos.client import REQUEST_TIMEOUT_S, Account
from rewrap.stores.cosmos.holder import Holder, elapsed_s, this_process
from rewrap.stores.cosmos.records import LEASE, Record, Records

ATTEMPTS = 8
"""Times that a write is tried again after another one of ours: more than any retry sends."""

_STAMP_S = 1
"""Seconds by which `_ts` is coarse."""


class Home(Protocol):
    """The store that is guarded."""

    @property
    def account(self) -> Account: ...

    async def identity(self) -> ServerIdentity: ...


@dataclass
class Hold:
    """What this process holds of one container: its lease and its shards, as last acknowledged."""

    relation: str
    fence: int
    lease: Record
    shards: dict[int, Record] = field(default_factory=dict)
    before: Record | None = None


@dataclass(frozen=True)
class Claiming:
    """Takes containers, all of a claim or none. `notices` is told what an operator should know."""

    records: Records
    home: Home
    notices: list[str]

    async def take_all(self, claim: Claim) -> tuple[dict[str, Hold], float]:
        """What is held now, and when, on this process's clock, the first write may be sent."""
        relations = sorted(claim.ranges)
        # all are looked at before the first is taken: most refusals change nothing
        for relation in relations:
            found = await self.records.read(relation, LEASE)
            if found is not None:
                await self._judge(relation, found, claim)
        taken: dict[str, Hold] = {}
        quiet_at = 0.0
        try:
            for relation in relations:
                taken[relation], wait_s = await self.take(relation, claim)
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
        return taken, quiet_at

    async def _judge(self, relation: str, found: Record, claim: Claim) -> float:
        """Raises when a container is somebody else's; else the seconds to wait once it is taken.

        Then nothing is on its way any more that its last holder sent before it stopped by itself.
        """
        holder = Holder.of(found.get("holder"))
        live, wait_s = False, 0.0
        if not found["released"] and not holder.gone:
            # a beat is stamped in whole seconds, rounded down; so is the clock it is compared with
            least = await self.records.now(relation) - found["_ts"] - _STAMP_S
            live = least < found["lease_s"]
            wait_s = max(0.0, found["lease_s"] + found["timeout_s"] - least)
        if found.get("quiet_until", 0) > found["_ts"]:
            # its last holder was itself waiting for the one before
            wait_s = max(wait_s, found["quiet_until"] - await self.records.now(relation))
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

    async def take(self, relation: str, claim: Claim) -> tuple[Hold, float]:
        """The lease of one container, and how long to wait before the first write to it."""
        identity = await self.home.identity()
        # one that was deleted and made anew is another, whatever its name
        container = await self.home.account.container(relation.partition("/")[2]).properties()
        database = f"{identity.origin} {container['_rid']}"
        mine: Hold | None = None
        wait_s = 0.0
        for _ in range(ATTEMPTS):
            found = await self.records.read(relation, LEASE)
            if mine is not None and found is not None and found["owner"] == claim.owner:
                # taken, and the acknowledgement lost
                mine.lease = found
                return mine, wait_s
            wait_s = 0.0 if found is None else await self._judge(relation, found, claim)
            # from the clock where there is no older one: a fence is never used twice
            last = found["fence"] if found else await self.records.now(relation) * 1_000_000
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
                "timeout_s": timeout_s(claim.ttl_s),
                "holder": this_process().as_json(),
                "quiet_until": await self.records.now(relation) + math.ceil(wait_s) if wait_s else 0,
                "released": False,
                "finished": False,
                "beats": 0,
            }
            mine = Hold(relation, last + 1, body, kept, found)
            wrote = await (self.records.write(body, found) if found else self.records.add(body))
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
            shard = await self.records.read(relation, shard_id(at))
            # a crash may have come between the lease and its shards
            if shard is None or shard["of"] != found["shards"]:
                return {}
            shards[at] = shard
        standings = [
            Standing(one["run_id"], "", "", claim.to_version, one["origin"], live=False, finished=False)
            for one in shards.values()
        ]
        if not may_go_on(standings, claim, database):
            if replaced(standings, database):
                self._say(
                    f"container {relation} was deleted and made anew since this run began, or its database "
                    "restored: it is read from the start, and what it held then may be gone"
                )
            return {}
        moved = out_of_order("container", relation, standings, claim)
        if moved is None:
            return shards
        self._say(moved)
        return {}

    def _say(self, notice: str) -> None:
        if notice not in self.notices:
            self.notices.append(notice)

    async def _take_shards(self, hold: Hold, claim: Claim) -> None:
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
                "id": shard_id(entry.shard),
                "relation": relation,
                "shard": entry.shard,
                "of": len(ranges),
                "run_id": claim.run_id,
                "origin": hold.lease["origin"],
                "lower": entry.lower,
                "upper": entry.upper,
                "fence": hold.fence,
                "seq": 0,
                **at_start(1),
            }
            found = await self.records.add(body)
            if found is None:
                old = await self.records.read(relation, body["id"])
                found = await self._rewritten(hold, old or {}, body)
            hold.shards[entry.shard] = found
        for at in range(len(ranges), hold.before["shards"] if hold.before else 0):
            await self.records.remove(relation, shard_id(at))

    async def _rewritten(self, hold: Hold, shard: Record, changes: dict[str, Any]) -> Record:
        """A shard that was somebody else's, with changes, over whatever they wrote to it last."""
        for _ in range(ATTEMPTS):
            wrote = await self.records.write({**shard, **changes}, shard)
            if wrote is not None:
                return wrote
            now = await self.records.read(hold.relation, changes.get("id") or shard["id"])
            if now is None:
                raise self.records.gone(hold.relation)
            if now["fence"] > hold.fence:
                raise lease_lost(f"container {hold.relation}")
            if all(now.get(name) == value for name, value in changes.items()):
                # written by an attempt of ours whose answer was lost: nobody else has this fence
                return now
            shard = now
        raise StoreUnavailable(f"{self.records.subject}: the shards of {hold.relation} keep changing")

    async def _give_back(self, taken: dict[str, Hold]) -> None:
        for hold in taken.values():
            before = {**(hold.before or hold.lease), "released": True, "fence": hold.fence}
            if hold.before is None:
                # no run of ours has begun: nobody shall be told to finish it
                before["finished"] = True
            await self.records.write({**before, "owner": hold.lease["owner"]}, hold.lease)


def timeout_s(ttl_s: float) -> float:
    """Seconds that one request may take under a lease: three of them fit into it."""
    return min(REQUEST_TIMEOUT_S, ttl_s / 3)


def shard_id(at: int) -> str:
    return f"shard-{at}"


def at_start(sweep: int) -> dict[str, Any]:
    """A shard at the start of a sweep."""
    return {"sweep": sweep, "cursor": None, "rows": 0, "tally": "{}", "done": False}
