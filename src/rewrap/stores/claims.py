"""Whose a relation is, and what of its checkpoints still counts: the rules that every guard goes by."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rewrap.errors import LeaseHeld, LeaseLost, UsageError
from rewrap.interfaces import Claim
from rewrap.model import Tally

_ORDER = " key "
"""Stands in an origin between the database and what the order of the relation's keys depends on."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What a store holds of an earlier claim: whose, from which versions to which, and whether it lasts.

    `live` while the holder may still be at work. `origin` is what its cursors belong to (`origin_of`).
    """

    run_id: str
    owner: str
    from_versions: str
    to_version: str
    origin: str
    live: bool
    finished: bool


def origin_of(database: str, claim: Claim, relation: str) -> str:
    """What the cursors of a claim belong to: a database on its history line, and an order of keys."""
    return f"{database}{_ORDER}{claim.orders.get(relation, '')}"


def refuse_others(noun: str, relation: str, standing: Standing, claim: Claim) -> None:
    """Raises when a relation is somebody else's: LeaseHeld while they work, UsageError when half done."""
    if standing.live and standing.owner != claim.owner:
        ends = "its lease ends limits.lease_s after the last sign of life"
        if standing.run_id == claim.run_id:
            raise LeaseHeld(
                f"{noun} {relation} is being worked on by run {standing.run_id} ({standing.owner}): "
                "this very run is at work already, in another process",
                hint=f"rewrap status --watch shows it; if that process has died, {ends}",
            )
        raise LeaseHeld(
            f"{noun} {relation} is being worked on by run {standing.run_id} ({standing.owner})",
            hint=f"wait for it, stop it with Ctrl-C where it runs, or watch it with rewrap status; {ends}",
        )
    if (
        standing.run_id != claim.run_id
        and not standing.finished
        and standing.to_version != claim.to_version
        and claim.abandon != standing.run_id
    ):
        raise UsageError(
            f"{noun} {relation} has an unfinished run {standing.run_id} from "
            f"{standing.from_versions} to {standing.to_version}",
            hint=f"finish it with --from {standing.from_versions} --to {standing.to_version}, or "
            f"give it up with --abandon {standing.run_id}; its rows stay readable under both keys",
        )


def may_go_on(standings: Sequence[Standing], claim: Claim, database: str) -> bool:
    """Whether the checkpoints there are this run's own, and of this very database."""
    return (
        bool(standings)
        and not claim.restart
        and all(
            one.run_id == claim.run_id and one.origin.partition(_ORDER)[0] == database for one in standings
        )
    )


def replaced(standings: Sequence[Standing], database: str) -> bool:
    """Whether the checkpoints there speak of another database, or of another container of the name."""
    return any(one.origin.partition(_ORDER)[0] != database for one in standings)


def out_of_order(noun: str, relation: str, standings: Sequence[Standing], claim: Claim) -> str | None:
    """What to tell when cursors do not mean what they meant: rows before them may not be before them now."""
    order = claim.orders.get(relation, "")
    if all(one.origin.partition(_ORDER)[2] == order for one in standings):
        return None
    return (
        f"{noun} {relation}: its key has changed since this run began, or the version of its collation: "
        "it is read from the start"
    )


def lease_lost(subject: str) -> LeaseLost:
    """The error of a process whose place another run has taken."""
    return LeaseLost(
        f"{subject}: another run took over while this one did not answer",
        hint="nothing was written after it did; see rewrap status",
    )


def dump_tally(tally: Tally) -> str:
    return json.dumps(tally, separators=(",", ":"))


def load_tally(text: str) -> Tally:
    return {name: Counter(counts) for name, counts in json.loads(text).items()}
