"""The throughput of an account's containers: what is provisioned, and how much of it a run may take."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rewrap.errors import StoreError, StoreUnavailable, UnsafeTarget
from rewrap.pace.gate import Cap, Gate
from rewrap.storage import CosmosStore
from rewrap.stores.cosmos.faults import Missing


class Asked(Protocol):
    """Whoever sends requests until one is answered."""

    async def __call__(self, attempt: Callable[[], Awaitable[Any]], subject: str) -> Any: ...


@dataclass(frozen=True, slots=True)
class Provisioned:
    """Request units a second that were bought, and for what: a container, or all those of a database.

    With `autoscale` they are what it grows to.
    """

    units: float
    whose: str
    autoscale: bool = False

    @property
    def said(self) -> str:
        grows = "up to " if self.autoscale else ""
        return f"{self.whose}: {grows}{self.units:,.0f} RU/s"


def account_gate(section: CosmosStore) -> Gate:
    """The gate that every request to a store's account passes, with the cap that the job sets."""
    gate = Gate("the account", "RU", section.in_flight)
    gate.cap("max_rus", own_cap(section))
    return gate


def own_cap(section: CosmosStore) -> Cap | None:
    """The cap that the job names."""
    rate = section.max_rus
    return None if rate is None else Cap(rate, f"max_rus of {rate:,.0f} RU/s")


async def provisioned(ask: Asked, database: Any, containers: Sequence[str]) -> list[Provisioned]:
    """What some containers have, each its own or their database's; empty where there is none.

    Raises StoreError where this identity may not know, or the account cannot say.
    """
    found: list[Provisioned] = []
    sharing = False
    for name in containers:
        container = database.get_container_client(name)
        own = await _read(ask, container, f"container {name}")
        sharing = sharing or own is None
        found += [own] if own is not None else []
    if sharing:
        common = await _read(ask, database, f"database {database.id}, all its containers")
        found += [common] if common is not None else []
    return found


async def _read(ask: Asked, owner: Any, whose: str) -> Provisioned | None:
    async def offered() -> Any:
        try:
            return await owner.get_throughput()
        except (IndexError, AttributeError):
            # what the SDK (4.17) makes of a container that has none: its database may have
            return None

    try:
        offer = await ask(offered, f"the throughput of {whose}")
    except Missing:
        return None
    if offer is None:
        return None
    most = offer.auto_scale_max_throughput
    units = offer.offer_throughput if most is None else most
    return None if units is None else Provisioned(float(units), whose, most is not None)


def share_of(section: CosmosStore, found: Sequence[Provisioned], subject: str) -> Cap:
    """The rate of a job's share: of the least there is, since one gate stands before all containers.

    Raises UnsafeTarget where nothing is provisioned that it could be a share of.
    """
    assert section.share is not None
    if not found:
        raise UnsafeTarget(
            f"{subject} has no provisioned throughput, and stores.*.share is a share of it",
            hint="set stores.*.max_rus, in request units a second, in its place",
        )
    least = min(one.units for one in found)
    rate = section.share * least
    return Cap(rate, f"share of {rate:,.0f} RU/s, {section.share:.0%} of {least:,.0f}")


def said(found: Sequence[Provisioned], cap: Cap | None) -> str:
    """What is provisioned, and what a run takes of it."""
    what = "what it gets until it is throttled" if cap is None else f"at most {cap.rate:,.0f} RU/s"
    return "; ".join([*(one.said for one in found), f"a run takes {what}"])


def unknown(subject: str, why: StoreError) -> StoreError:
    """The error of a share of what cannot be read. What may pass by itself stays what it is."""
    if isinstance(why, StoreUnavailable):
        return why
    return UnsafeTarget(
        f"{subject}: its provisioned throughput cannot be read, and stores.*.share is a share of it",
        hint="an identity of the data plane may not, and a serverless account has none: use the account's "
        "key, or set stores.*.max_rus in its place",
    )
