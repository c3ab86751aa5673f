"""What the tests take for granted of their Cosmos DB: each is told here by name when it is not so."""

from __future__ import annotations

import asyncio
import threading

import pytest
from azure.core import MatchConditions
from azure.cosmos.aio import CosmosClient
from azure.cosmos.exceptions import CosmosAccessConditionFailedError, CosmosResourceNotFoundError

from tests.support.cosmos import CosmosDatabase, CosmosEmulator, CosmosFailure

HALF = 25
"""Documents a page, half of what is there."""


def test_documents_are_read_as_written(cosmos: CosmosDatabase) -> None:
    """What is upserted is read again, with an etag that every write changes."""
    cosmos.container("notes")
    cosmos.upsert("notes", {"id": "a", "n": 1, "deep": {"x": [1, "é"]}}, {"id": "b", "n": 2})
    before = cosmos.etags("notes")
    cosmos.upsert("notes", {"id": "b", "n": 3})
    first, second = cosmos.documents("notes")
    assert (first["n"], first["deep"], second["n"]) == (1, {"x": [1, "é"]}, 3)
    assert before["a"] == first["_etag"]
    assert before["b"] != second["_etag"]


def test_etags_and_missing_documents_are_minded(cosmos: CosmosDatabase) -> None:
    """Another etag is 412, a missing document 404, a second database of the name 409."""
    cosmos.container("notes", "/owner/id")
    note = {"id": "a", "owner": {"id": "x"}, "n": 1}
    cosmos.upsert("notes", note)
    with pytest.raises(CosmosFailure, match="412"):
        cosmos.replace("notes", note, "another")
    cosmos.replace("notes", note | {"n": 2}, cosmos.etags("notes")["a"])
    assert cosmos.document("notes", "a")["n"] == 2
    cosmos.delete("notes", note)
    with pytest.raises(CosmosFailure, match="404"):
        cosmos.delete("notes", note)
    with pytest.raises(CosmosFailure, match="409"):
        cosmos.create()


def test_the_sdk_and_the_tests_own_client_see_the_same(cosmos: CosmosDatabase) -> None:
    """The async SDK pages through what the tests wrote, patches it by etag, and is refused by an old one."""
    cosmos.container("notes", "/owner")
    cosmos.upsert("notes", *({"id": f"{i:03}", "owner": f"o{i % 3}", "v": "v1"} for i in range(2 * HALF)))

    async def work() -> list[str]:
        async with CosmosClient(cosmos.endpoint, cosmos.key, enable_endpoint_discovery=False) as client:
            notes = client.get_database_client(cosmos.name).get_container_client("notes")
            query = "SELECT * FROM c WHERE c.v = @v"
            found = notes.query_items(query, parameters=[{"name": "@v", "value": "v1"}], max_item_count=HALF)
            pages = [[each["id"] async for each in page] async for page in found.by_page()]
            assert [len(page) for page in pages if page] == [HALF, HALF]
            read = await notes.read_item("007", partition_key="o1")
            operations = [{"op": "set", "path": "/v", "value": "v2"}]
            unchanged = {"etag": read["_etag"], "match_condition": MatchConditions.IfNotModified}
            await notes.patch_item("007", "o1", operations, **unchanged)
            with pytest.raises(CosmosAccessConditionFailedError):
                await notes.patch_item("007", "o1", operations, **unchanged)
            with pytest.raises(CosmosResourceNotFoundError):
                await notes.read_item("none", partition_key="o1")
            return [name for page in pages for name in page]

    assert sorted(asyncio.run(work())) == [f"{i:03}" for i in range(2 * HALF)]
    assert [each["id"] for each in cosmos.documents("notes") if each["v"] == "v2"] == ["007"]


def test_a_container_made_anew_has_another_rid(cosmos: CosmosDatabase) -> None:
    """Dropped and made again, a container is told apart from what it was."""
    cosmos.container("notes")
    cosmos.upsert("notes", {"id": "a"})
    before = cosmos.account.request("GET", f"dbs/{cosmos.name}/colls/notes")[0]["_rid"]
    cosmos.drop("notes")
    cosmos.container("notes")
    assert cosmos.account.request("GET", f"dbs/{cosmos.name}/colls/notes")[0]["_rid"] != before
    assert cosmos.documents("notes") == []


def test_twenty_writers_of_one_etag_have_one_winner(cosmos: CosmosDatabase) -> None:
    """Compare-and-swap by etag holds under concurrent writers."""
    cosmos.container("notes")
    cosmos.upsert("notes", {"id": "a", "by": -1})
    etag = cosmos.etags("notes")["a"]
    won: list[int] = []
    lost: list[int] = []

    def write(number: int) -> None:
        beside = cosmos.beside()
        try:
            beside.replace("notes", {"id": "a", "by": number}, etag)
            won.append(number)
        except CosmosFailure as refused:
            lost.append(refused.status)
        finally:
            beside.account.close()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [cosmos.document("notes", "a")["by"]] == won
    assert lost == [412] * 19


def test_an_emulator_restarted_is_empty_and_where_it_was(own_cosmos_emulator: CosmosEmulator) -> None:
    """A restart loses all data and keeps the address."""
    server = own_cosmos_emulator
    with CosmosDatabase(server.endpoint, server.key, "kept") as database:
        database.container("notes")
        database.upsert("notes", {"id": "a"})
        server.restart()
        with pytest.raises(CosmosFailure, match="404"):
            database.documents("notes")
        assert database.endpoint == server.endpoint


def test_two_thousand_documents_are_made(cosmos: CosmosDatabase) -> None:
    """Tests of whole runs fill containers: whatever is asked for is there."""
    cosmos.container("notes")
    cosmos.upsert("notes", *({"id": f"{i}", "text": "x" * 200} for i in range(2_000)))
    assert len(cosmos.documents("notes")) == 2_000
