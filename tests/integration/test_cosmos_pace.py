"""What a run takes of an account's throughput: never more than it may, and it says so."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from rewrap.errors import UnsafeTarget
from rewrap.interfaces import Claim
from rewrap.job import Job
from rewrap.stores.cosmos.census import CosmosCensus
from rewrap.stores.cosmos.deks import CosmosDeks
from rewrap.stores.cosmos.guard import CosmosGuard
from rewrap.stores.cosmos.store import CosmosContainers
from rewrap.stores.open import Stores
from tests.support.containers import JOB as NOTES_UNDER_DEKS
from tests.support.cosmos import CosmosDatabase
from tests.support.cosmosbench import LIMITS, NOTES, CosmosBench, expected
from tests.support.proxy import FaultProxy, throttled

RUN = ("run", "--from", "v1", "--to", "v2", "--allow-unseen-target", "--json")

COUNT = 30

PATCH, QUERY, READ = 10.0, 5.0, 1.0
"""Request units that the proxy charges."""

CHARGES = {"patch": PATCH, "query": QUERY, "read": READ, "replace": PATCH, "create": PATCH, "container": READ}


@pytest.fixture
def notes(cosmos: CosmosDatabase, cosmos_proxy: FaultProxy, tmp_path: Path) -> CosmosBench:
    """A container of notes at v1, and a job over it through a proxy that charges for requests."""
    bench = CosmosBench(tmp_path, cosmos, cosmos_proxy)
    bench.job()
    bench.fill(COUNT)
    cosmos_proxy.charges = dict(CHARGES)
    return bench


def link_of(database: CosmosDatabase, container: str = "") -> str:
    """What an offer names the container by, or the database."""
    path = f"dbs/{database.name}" + (f"/colls/{container}" if container else "")
    found, _ = database.account.request("GET", path)
    return str(found["_self"])


def patches_of(proxy: FaultProxy) -> list[float]:
    """When each patch came in that was carried out."""
    return sorted(one.at for one in proxy.seen if one.kind == "patch" and one.status == 200)


@pytest.mark.parametrize(
    ("store", "said"),
    [
        ("max_rus = 100", "max_rus of 100 RU/s"),
        ("share = 0.25", "share of 100 RU/s, 25% of 400"),
    ],
)
def test_a_run_keeps_to_its_request_units(
    notes: CosmosBench, cosmos_proxy: FaultProxy, store: str, said: str
) -> None:
    """By what requests cost in truth, whoever sends them; and the progress says what holds it back."""
    notes.job(more=LIMITS, store=store)
    cosmos_proxy.throughput = {link_of(notes.database, "notes"): {"offerThroughput": 400}}
    ran = notes.rewrap(*RUN)
    assert ran.code == 0, ran.err
    assert notes.opened() == expected(COUNT)
    sent = patches_of(cosmos_proxy)
    between = [one for one in cosmos_proxy.seen if sent[0] <= one.at < sent[-1]]
    # a quarter of a second's worth may go at once, and so may what was under way before costs were known
    burst = 0.25 * 100 + 16 * PATCH
    assert sent[-1] - sent[0] >= (sum(one.charge for one in between) - burst) / 100
    assert said in {event["waiting_for"] for event in ran.events if event["type"] == "progress"}


def test_a_server_of_request_units_is_used_and_not_stormed(
    notes: CosmosBench, cosmos_proxy: FaultProxy
) -> None:
    """It serves 200 RU a second and throttles beyond: all of it is written, and every charge is counted."""
    cosmos_proxy.capacity = 200.0
    ran = notes.rewrap(*RUN)
    assert ran.code == 0, ran.err
    assert notes.opened() == expected(COUNT)
    refused = [one for one in cosmos_proxy.seen if one.status == 429]
    assert refused
    # a 429 stops those that wait: what comes back throttled were under way together, second by second
    assert len(refused) < len(patches_of(cosmos_proxy))
    spent = ran.event("run_ended")["spent"]["request_units"]
    assert COUNT * PATCH < spent <= cosmos_proxy.charged


def test_check_and_plan_say_what_is_provisioned(notes: CosmosBench, cosmos_proxy: FaultProxy) -> None:
    """And what a run would take of it; where nothing is, that too."""

    def told() -> tuple[str, dict[str, Any]]:
        checked = notes.rewrap("check", "--json")
        (one,) = [event for event in checked.events if event.get("code") == "throughput"]
        planned = notes.rewrap("plan", "--from", "v1", "--to", "v2", "--json")
        assert planned.code == 0, planned.err
        return one["reason"], planned.event("plan")

    reason, planned = told()
    assert reason.startswith("no provisioned throughput can be read")
    assert not [line for line in planned["notices"] if "RU/s" in line]
    cosmos_proxy.throughput = {
        link_of(notes.database): {"offerThroughput": -1, "offerAutopilotSettings": {"maxThroughput": 4000}}
    }
    notes.job(store="share = 0.02")
    reason, planned = told()
    assert reason == (
        f"database {notes.database.name}, all its containers: up to 4,000 RU/s; a run takes at most 80 RU/s"
    )
    # so that it cannot be over before so many units may have been taken
    forecast = planned["forecast"]
    assert "share of 80 RU/s, 2% of 4,000" in forecast["derived_from"]["seconds"]
    assert forecast["seconds"]["low"] >= forecast["request_units"]["low"] / 80 - 1.01
    assert [line for line in planned["notices"] if line.endswith(reason)]
    cosmos_proxy.throughput = {}
    checked = notes.rewrap("check", "--json")
    assert checked.code == 1
    assert [event["severity"] for event in checked.events if event.get("code") == "no-throughput"] == [
        "error"
    ]
    refused = notes.rewrap(*RUN)
    assert refused.code == 2
    assert "share" in refused.err
    assert "max_rus" in refused.err


Work = Callable[[CosmosContainers, Stores], Awaitable[None]]


def opened(notes: CosmosBench, work: Work, store: str = "", targets: str = NOTES) -> None:
    """Does some work with a store, as a run opens it."""
    notes.job(targets, store=store)
    job = Job.load(notes.folder / "rewrap.toml", environ=notes.environ)

    async def main() -> None:
        stores = Stores(job, notes.environ)
        one = stores.store()
        assert isinstance(one, CosmosContainers)
        try:
            await work(one, stores)
        finally:
            await one.close()

    anyio.run(main)


def test_the_least_that_is_provisioned_is_shared_out(notes: CosmosBench, cosmos_proxy: FaultProxy) -> None:
    """One gate stands before all containers: the smallest of their throughputs bounds it."""
    notes.database.container("others")
    both = NOTES + NOTES.replace("notes", "others")
    database, own = link_of(notes.database), link_of(notes.database, "notes")

    async def work(store: CosmosContainers, _stores: Stores) -> None:
        await store.identity()
        assert store.account.gate.rate == 300.0

    async def refused(store: CosmosContainers, _stores: Stores) -> None:
        with pytest.raises(UnsafeTarget, match="provisioned"):
            await store.identity()

    share = "share = 0.5\n"
    cosmos_proxy.throughput = {database: {"offerThroughput": 600}, own: {"offerThroughput": 1_000}}
    opened(notes, work, share, both)
    cosmos_proxy.throughput = {}
    opened(notes, refused, share)
    cosmos_proxy.throughput = None
    opened(notes, refused, share)


async def _told(store: CosmosContainers, said: str) -> None:
    """Waits until the store says this, for long at most."""
    with anyio.fail_after(60):
        while said not in store.waiting_for:
            await anyio.sleep(0.01)


@pytest.mark.parametrize(
    ("store", "retry_after_ms", "said"),
    [
        ("", 20_000, "throttling by the account, for"),
        ("", None, "throttling by the account, for"),
        ("", 86_400_000, "throttling by the account, for 30 s more"),
        ("in_flight = 1", 0, "1 under way in the account"),
        ("max_rus = 50", 0, "max_rus of 50 RU/s"),
    ],
)
def test_the_account_says_what_it_waits_for(
    notes: CosmosBench, cosmos_proxy: FaultProxy, store: str, retry_after_ms: int | None, said: str
) -> None:
    """While something waits; nothing, when nobody does. A day's pause is cut to half a minute."""

    async def work(one: CosmosContainers, _stores: Stores) -> None:
        container = one.account.container("notes")
        await container.read("n00001", "o1")
        assert one.waiting_for == ""
        if retry_after_ms != 0:
            cosmos_proxy.add(throttled(retry_after_ms), "read")
        async with anyio.create_task_group() as group, one.account.gate.passed(0):
            # as after a page that was dearer than it was taken for
            one.account.gate.accepted(0.0, 1_000.0)
            group.start_soon(container.read, "n00001", "o1")
            await _told(one, said)
            group.cancel_scope.cancel()
        assert one.waiting_for == ""

    opened(notes, work, store)


def test_a_lease_is_kept_while_units_are_owed(notes: CosmosBench, cosmos_proxy: FaultProxy) -> None:
    """A page of a query may cost minutes of what a run may take: beats do not wait for that."""

    async def work(store: CosmosContainers, stores: Stores) -> None:
        await store.tables()
        guard = await stores.guard(store)
        assert isinstance(guard, CosmosGuard)
        gate = store.account.gate
        await guard.claim(Claim("run", "me", ("v1",), "v2", {}, 30.0))
        gate.accepted(0.0, 100_000.0)
        await guard.beat()
        with anyio.move_on_after(0.3) as waited:
            await store.account.container("notes").read("n00001", "o1")
        assert waited.cancelled_caught
        await guard.release(finished=True)

    opened(notes, work, "max_rus = 100")


def test_everybody_in_a_process_passes_one_gate(tmp_path: Path) -> None:
    """Documents, the records of their DEKs, what verify counts: the account takes all of them for one."""
    environ = {"COSMOS_ENDPOINT": "https://a.documents.azure.com", "COSMOS_KEY": "", "COSMOS_DATABASE": "d"}
    job = Job.parse(NOTES_UNDER_DEKS.replace("PLAINTEXT", ""), environ=environ)
    stores = Stores(job, environ)
    store, (deks,) = stores.store(), stores.deks().values()
    assert isinstance(store, CosmosContainers)
    assert isinstance(deks, CosmosDeks)
    assert deks.account.gate is store.account.gate
    census = stores.census()
    assert isinstance(census, CosmosCensus)
    assert census.account.gate is store.account.gate
