"""The proxy makes the faults that it says, as the SDK sees them, and the server behind it agrees."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
from azure.core import MatchConditions
from azure.core.exceptions import IncompleteReadError, ServiceRequestError, ServiceResponseError
from azure.cosmos.aio import ContainerProxy, CosmosClient
from azure.cosmos.documents import ConnectionPolicy
from azure.cosmos.exceptions import (
    CosmosAccessConditionFailedError,
    CosmosHttpResponseError,
    CosmosResourceExistsError,
)

from tests.support.cosmos import CosmosDatabase
from tests.support.proxy import (
    REFUSED_TOKEN,
    Answer,
    CutShort,
    Delay,
    Drop,
    FaultProxy,
    Meanwhile,
    throttled,
)

T = TypeVar("T")

SET = [{"op": "set", "path": "/v", "value": "v2"}]


@pytest.fixture
def filled(cosmos: CosmosDatabase) -> CosmosDatabase:
    """Twenty notes."""
    cosmos.container("notes")
    cosmos.upsert("notes", *({"id": f"{i:02}", "v": "v1"} for i in range(20)))
    return cosmos


def through(proxy: FaultProxy, database: CosmosDatabase, work: Callable[[ContainerProxy], Awaitable[T]]) -> T:
    """Runs work with the SDK's client of container notes, which retries as little as it can be told."""
    policy = ConnectionPolicy()
    policy.RetryOptions._max_retry_attempt_count = 0

    async def run() -> T:
        async with CosmosClient(
            proxy.endpoint, database.key, enable_endpoint_discovery=False, connection_policy=policy
        ) as client:
            return await work(client.get_database_client(database.name).get_container_client("notes"))

    return asyncio.run(run())


async def ids(notes: ContainerProxy, size: int = 5) -> list[str]:
    pages = notes.query_items("SELECT * FROM c", max_item_count=size).by_page()
    return [each["id"] async for page in pages async for each in page]


def test_without_a_rule_everything_passes_and_is_counted(
    filled: CosmosDatabase, cosmos_proxy: FaultProxy
) -> None:
    """Reads, pages and patches arrive; the proxy knows which was which."""

    async def work(notes: ContainerProxy) -> list[str]:
        await notes.read_item("01", "01")
        await notes.patch_item("01", "01", SET)
        return await ids(notes)

    assert through(cosmos_proxy, filled, work) == [f"{i:02}" for i in range(20)]
    counts = cosmos_proxy.counts()
    assert (counts["read"], counts["patch"], counts["query"]) == (1, 1, 4)
    assert cosmos_proxy.faults().total() == 0
    assert filled.document("notes", "01")["v"] == "v2"


@pytest.mark.parametrize("status", [429, 503, 449, 408, 410])
def test_a_status_is_answered_in_the_server_s_place(
    filled: CosmosDatabase, cosmos_proxy: FaultProxy, status: int
) -> None:
    """The client gets the status, the server nothing."""
    answer = throttled(7) if status == 429 else Answer(status)
    cosmos_proxy.add(answer, "patch")

    async def work(notes: ContainerProxy) -> CosmosHttpResponseError:
        with pytest.raises(CosmosHttpResponseError) as raised:
            await notes.patch_item("01", "01", SET)
        return raised.value

    refused = through(cosmos_proxy, filled, work)
    assert refused.status_code == status
    if status == 429:
        assert refused.headers["x-ms-retry-after-ms"] == "7"
    assert filled.document("notes", "01")["v"] == "v1"
    assert cosmos_proxy.faults()["patch"] >= 1


def test_a_connection_dropped_before_the_write_changes_nothing(
    filled: CosmosDatabase, cosmos_proxy: FaultProxy
) -> None:
    """The client sees a connection lost, and the document is as it was."""
    cosmos_proxy.add(Drop(), "patch")

    async def work(notes: ContainerProxy) -> None:
        with pytest.raises((ServiceRequestError, ServiceResponseError)):
            await notes.patch_item("01", "01", SET)

    through(cosmos_proxy, filled, work)
    assert filled.document("notes", "01")["v"] == "v1"


def test_a_connection_dropped_after_the_write_leaves_it_applied(
    filled: CosmosDatabase, cosmos_proxy: FaultProxy
) -> None:
    """The SDK sends it again by itself: a create is then 409, a patch by etag 412, and both were ours."""
    etag = filled.etags("notes")["01"]
    cosmos_proxy.add(Drop(applied=True), "create", times=1)
    cosmos_proxy.add(Drop(applied=True), "patch", times=1)

    async def work(notes: ContainerProxy) -> None:
        with pytest.raises((CosmosResourceExistsError, ServiceResponseError)):
            await notes.create_item({"id": "new", "v": "v1"})
        with pytest.raises((CosmosAccessConditionFailedError, ServiceResponseError)):
            await notes.patch_item("01", "01", SET, etag=etag, match_condition=MatchConditions.IfNotModified)

    through(cosmos_proxy, filled, work)
    assert filled.document("notes", "01")["v"] == "v2"
    assert filled.document("notes", "new")["v"] == "v1"


def test_a_page_fails_midway(filled: CosmosDatabase, cosmos_proxy: FaultProxy) -> None:
    """The third page breaks off in its body: an HTTP error of the SDK's without a status."""
    cosmos_proxy.add(CutShort(), "query", skip=2)

    async def work(notes: ContainerProxy) -> list[str]:
        read: list[str] = []
        pages = notes.query_items("SELECT * FROM c", max_item_count=5).by_page()

        async def read_all() -> None:
            async for page in pages:
                read.extend([each["id"] async for each in page])

        with pytest.raises(IncompleteReadError) as raised:
            await read_all()
        assert raised.value.status_code is None
        return read

    assert through(cosmos_proxy, filled, work) == [f"{i:02}" for i in range(10)]


def test_a_token_is_refused(filled: CosmosDatabase, cosmos_proxy: FaultProxy) -> None:
    """The first page, which needs no token, passes; the second is 400."""
    cosmos_proxy.add(REFUSED_TOKEN, token=True)

    async def work(notes: ContainerProxy) -> int:
        with pytest.raises(CosmosHttpResponseError) as raised:
            await ids(notes)
        return int(raised.value.status_code or 0)

    assert through(cosmos_proxy, filled, work) == 400
    assert cosmos_proxy.counts()["query"] == 2


def test_charges_are_the_tests_own(filled: CosmosDatabase, cosmos_proxy: FaultProxy) -> None:
    """Each kind of request costs what the test says, and the proxy has the sum."""
    cosmos_proxy.charges = {"patch": 10.29, "query": 3.5}
    told: list[float] = []

    async def work(notes: ContainerProxy) -> None:
        def hook(headers: dict[str, str], _body: object) -> None:
            told.append(float(headers["x-ms-request-charge"]))

        await notes.patch_item("01", "01", SET, response_hook=hook)
        await ids(notes, size=10)

    through(cosmos_proxy, filled, work)
    assert told == [10.29]
    others = sum(n for kind, n in cosmos_proxy.counts().items() if kind not in ("patch", "query"))
    assert cosmos_proxy.charged == pytest.approx(10.29 + 2 * 3.5 + others)


def test_a_writer_comes_between_at_every_third_patch(
    filled: CosmosDatabase, cosmos_proxy: FaultProxy
) -> None:
    """What the rule calls has happened before the request arrives: its etag is no longer the stored one."""
    beside = filled.beside()

    def write(path: str) -> None:
        name = path.split("/")[-1]
        beside.upsert("notes", {"id": name, "v": "live"})

    cosmos_proxy.add(Meanwhile(write), "patch", every=3)
    etags = filled.etags("notes")

    async def work(notes: ContainerProxy) -> list[str]:
        lost = []
        for name, etag in etags.items():
            try:
                await notes.patch_item(
                    name, name, SET, etag=etag, match_condition=MatchConditions.IfNotModified
                )
            except CosmosAccessConditionFailedError:
                lost.append(name)
        return lost

    assert through(cosmos_proxy, filled, work) == ["02", "05", "08", "11", "14", "17"]
    beside.account.close()
    assert filled.document("notes", "02")["v"] == "live"
    assert filled.document("notes", "03")["v"] == "v2"


def test_chance_is_seeded_and_requests_at_once_are_counted(
    filled: CosmosDatabase, cosmos_proxy: FaultProxy
) -> None:
    """Half of the reads fail, the same ones with the same seed; eight were under way together."""
    cosmos_proxy.add(Delay(0.05), "read", times=8)
    cosmos_proxy.add(Answer(503), "read", chance=0.5)

    async def work(notes: ContainerProxy) -> None:
        await asyncio.gather(*(notes.read_item(f"{i:02}", f"{i:02}") for i in range(8)))
        for i in range(20):
            try:
                await notes.read_item(f"{i:02}", f"{i:02}")
            except CosmosHttpResponseError as failed:
                assert failed.status_code == 503  # noqa: PT017 - which of them fail is chance's to say

    through(cosmos_proxy, filled, work)
    assert cosmos_proxy.most_at_once["read"] == 8
    unavailable = [each for each in cosmos_proxy.seen if each.status == 503]
    assert 3 <= len(unavailable) <= 40
