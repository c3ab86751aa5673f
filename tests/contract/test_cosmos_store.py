"""What only Cosmos DB has: tokens, etags, partitions, patches, charges; and what goes wrong on the line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
from aiohttp import web
from azure.identity.aio import DefaultAzureCredential

from rewrap.errors import (
    JobError,
    LeaseLost,
    Rewound,
    RewrapError,
    SchemaMismatch,
    StoreError,
    StoreUnavailable,
    UnsafeTarget,
    ValueRefused,
)
from rewrap.interfaces import Checkpoint, Claim, Page, Scope, SwapBatch
from rewrap.job import Job
from rewrap.model import ShardLease, ShardRange, Table
from rewrap.packed import ELEMENT, PART, listed
from rewrap.stores.cosmos.client import Account, Query, guarded
from rewrap.stores.cosmos.documents import ODD
from rewrap.stores.cosmos.faults import Missing, NoContainer, of_status
from rewrap.stores.cosmos.guard import CosmosGuard
from rewrap.stores.cosmos.store import MOST_RESTARTS, CosmosContainers
from rewrap.stores.open import Stores
from tests.support.cosmos import CosmosDatabase
from tests.support.proxy import REFUSED_TOKEN, Answer, Drop, FaultProxy, Meanwhile, throttled

T = TypeVar("T")

JOB = """
name = "test"
[stores.main]
kind = "cosmos"
endpoint = "${{COSMOS_ENDPOINT}}"
key = "env:COSMOS_KEY"
database = "${{COSMOS_DATABASE}}"
{store}
[keys.versions.v1]
material = "env:KEY_V1"
[keys.versions.v2]
material = "env:KEY_V2"
[layouts.apart]
version = "v[0-9]+"
encoding = "base64"
cipher = "aes-256-gcm"
[[targets]]
container = "notes"
fields = [{fields}]
{more}
"""

BODY = '{ column = "body", layout = "libsodium-token" }'

ENVELOPE = """{ column = "body", path = "ct", layout = "apart", version = { path = "kid" },
  nonce = { path = "iv" }, tag = { path = "tag" } }""".replace("\n", " ")

KEYS = {"KEY_V1": bytes(32).hex(), "KEY_V2": bytes(range(32)).hex()}


class Run:
    """A store with one container, claimed."""

    def __init__(self, store: CosmosContainers, guard: CosmosGuard, table: Table, lease: ShardLease) -> None:
        self.store, self.guard, self.table, self.lease = store, guard, table, lease

    async def page(self, limit: int = 100, after: str | None = None, scope: Scope = Scope()) -> Page:  # noqa: B008 - frozen
        return await self.store.reader(self.table).fetch(self.lease.range, after, limit, scope)

    async def swap(self, batch: SwapBatch) -> int:
        before = Checkpoint(self.lease.cursor, self.lease.rows, self.lease.tally)
        return await self.store.writer(self.table).swap(self.lease, batch, before, skip_locked=False)


def job_of(fields: str = BODY, store: str = "", more: str = "", **environ: str) -> Job:
    return Job.parse(JOB.format(fields=fields, store=store, more=more), environ=environ)


def running(
    database: CosmosDatabase,
    work: Callable[[Run], Awaitable[T]],
    fields: str = BODY,
    *,
    endpoint: str = "",
    store: str = "",
    more: str = "",
    lease_s: float = 30.0,
) -> T:
    """What `work` gives over the container `notes`, claimed as a run does; nothing beats meanwhile."""
    environ = {**KEYS, **database.environ}
    if endpoint:
        environ["COSMOS_ENDPOINT"] = endpoint
    job = job_of(fields, store, more, **environ)

    async def main() -> T:
        stores = Stores(job, environ)
        opened = stores.store()
        assert isinstance(opened, CosmosContainers)
        try:
            (table,) = await opened.tables()
            guard = await stores.guard(opened)
            assert isinstance(guard, CosmosGuard)
            ranges = {table.relation: await opened.split(table, 4)}
            leases = await guard.claim(Claim("run", "me", ("v1",), "v2", ranges, lease_s))
            try:
                return await work(Run(opened, guard, table, leases[table.relation][0]))
            finally:
                # or the next claim waits until nothing of this one can be on its way
                with contextlib.suppress(RewrapError):
                    await guard.release(finished=False)
        finally:
            await opened.close()

    return asyncio.run(main())


def renewed(
    page: Page, new: Callable[[str], str] = lambda old: f"new {old}", name: str = "body"
) -> SwapBatch:
    """The values of a page's one field made new."""
    names = ["f"] * len(page.fields)
    (column,) = page.fields
    assert names
    olds = listed(column)
    name = "body"
    return SwapBatch(
        page.keys, {name: olds}, {name: [None if old is None else new(old) for old in olds]},
        page.tokens, page.stamps,
    )  # fmt: skip


def renewed_as(table: Table, page: Page, new: Callable[[str], str]) -> SwapBatch:
    """The first field's values made new, under its own name."""
    made = renewed(page, new)
    name = table.fields[0].name
    return SwapBatch(
        made.keys, {name: made.olds["body"]}, {name: made.news["body"]}, made.tokens, made.stamps
    )


@pytest.fixture
def notes(cosmos: CosmosDatabase) -> CosmosDatabase:
    """Twelve documents in a container partitioned by id."""
    cosmos.container("notes")
    cosmos.upsert("notes", *({"id": f"n{at:02}", "body": f"v1:{at}", "n": at} for at in range(12)))
    return cosmos


def bodies(database: CosmosDatabase) -> dict[str, Any]:
    return {one["id"]: one.get("body") for one in database.documents("notes")}


# what is written


def test_only_the_changed_places_are_sent(cosmos: CosmosDatabase, cosmos_proxy: FaultProxy) -> None:
    """Parts beside the payload are patched where they are; the rest of the document is not on the line."""
    cosmos.container("notes", "/tenant")
    document = {
        "id": "a", "tenant": "t", "body": {"ct": "c1", "iv": "i1", "tag": "t1", "kid": "v1", "alg": "x"},
        "other": {"ct": 1.5, "list": [1, "two", None, True, {"x": "é"}]},
    }  # fmt: skip
    cosmos.upsert("notes", document)

    async def work(run: Run) -> None:
        page = await run.page()
        assert page.fields[0] == [PART.join(["v1", "i1", "t1", "c1"])]
        batch = renewed_as(run.table, page, lambda _: PART.join(["v2", "i2", "t2", "c2"]))
        assert await run.swap(batch) == 1

    running(cosmos, work, ENVELOPE, endpoint=cosmos_proxy.endpoint)
    after = cosmos.document("notes", "a")
    assert {name: one for name, one in after.items() if name in document} == {
        **document,
        "body": {"ct": "c2", "iv": "i2", "tag": "t2", "kid": "v2", "alg": "x"},
    }
    assert cosmos_proxy.counts()["patch"] == 1


def test_elements_of_an_array_are_patched_where_they_are(cosmos: CosmosDatabase) -> None:
    """An element without a value keeps its place, and what else an element holds stays."""
    cosmos.container("notes")
    cards = [{"n": "v1:a", "x": 1}, {"x": 2}, None, {"n": "v1:b"}]
    cosmos.upsert("notes", {"id": "a", "body": cards}, {"id": "b", "body": "no array"}, {"id": "c"})

    async def work(run: Run) -> None:
        page = await run.page()
        assert page.fields[0] == [ELEMENT.join(["v1:a", "v1:b"]), None, None]
        batch = renewed_as(run.table, page, lambda _: ELEMENT.join(["v1:a", "v2:b"]))
        assert await run.swap(batch.part([0])) == 1
        (name,) = batch.news
        found = await run.page(scope=Scope({name: ("v1:",)}))
        assert found.keys == ["a"]
        assert (await run.page(scope=Scope({name: ("v3:",)}))).keys == []

    running(cosmos, work, '{ column = "body", path = "[*].n", layout = "libsodium-token" }')
    assert cosmos.document("notes", "a")["body"] == [*cards[:3], {"n": "v2:b"}]
    assert cosmos.document("notes", "b")["body"] == "no array"


def test_more_places_than_a_patch_takes_are_written_as_one_document(
    cosmos: CosmosDatabase, cosmos_proxy: FaultProxy
) -> None:
    """Eleven elements: the document is replaced under its etag, all else in it as it was."""
    cosmos.container("notes")
    held = {"n": 0.1, "big": 2**53 - 1, "deep": {"a": [None, {"b": "\u2028é\U0001f512"}]}, "empty": {}}
    cosmos.upsert("notes", {"id": "a", "body": [f"v1:{at}" for at in range(11)], **held})

    async def work(run: Run) -> None:
        page = await run.page()
        batch = renewed_as(run.table, page, lambda old: old.replace("v1", "v2"))
        assert await run.swap(batch) == 1
        assert await run.swap(batch) == 0
        assert await run.store.writer(run.table).unsettled(batch) == []

    running(
        cosmos, work, '{ column = "body", path = "[*]", layout = "libsodium-token" }',
        endpoint=cosmos_proxy.endpoint,
    )  # fmt: skip
    after = cosmos.document("notes", "a")
    assert after["body"] == [f"v2:{at}" for at in range(11)]
    assert {name: after[name] for name in held} == held
    # the guard's own documents are replaced too
    assert cosmos_proxy.counts()["patch"] == 0


@pytest.mark.parametrize("name", ["a/b", "c~d", "0", "-", "q\"t'", "e f", "ü", "true", "c.d"])
def test_odd_names_are_written_where_they_are(cosmos: CosmosDatabase, name: str) -> None:
    """Slashes, tildes and quotes are escaped; a name that reads as an array's place is never patched."""
    cosmos.container("notes")
    cosmos.upsert("notes", {"id": "a", "body": {name: "v1:x", "other": 1}, name: "mine"})
    path = json.dumps(json.dumps(name))[1:-1]

    async def work(run: Run) -> None:
        page = await run.page()
        batch = renewed_as(run.table, page, lambda _: "v2:y")
        assert await run.swap(batch) == 1

    running(cosmos, work, f'{{ column = "body", path = "{path}", layout = "libsodium-token" }}')
    after = cosmos.document("notes", "a")
    assert after["body"] == {name: "v2:y", "other": 1}
    assert after[name] == "mine"


def test_documents_of_one_id_are_told_apart_by_their_partition(cosmos: CosmosDatabase) -> None:
    """An id is unique within a logical partition only; numbers, booleans and null are partition keys too."""
    cosmos.container("notes", "/owner")
    # the emulator takes 1 and "1" for the same
    keys: list[Any] = ["x", "1", 2, 1.5, True, None]
    cosmos.upsert("notes", *({"id": "a", "owner": key, "body": f"v1:{at}"} for at, key in enumerate(keys)))

    async def work(run: Run) -> None:
        assert [column.name for column in run.table.key] == ["id", "owner"]
        page = await run.page()
        assert sorted(page.keys) == sorted(("a", json.dumps(key)) for key in keys)
        batch = renewed(page)
        assert await run.swap(batch.part([0, 2, 4])) == 3
        assert [at for at, _ in await run.store.writer(run.table).unsettled(batch)] == [1, 3, 5]

    running(cosmos, work)
    written = [one["body"] for one in cosmos.documents("notes")]
    assert sorted(body.startswith("new") for body in written) == [False] * 3 + [True] * 3


def test_a_rehearsed_document_keeps_everything_else(notes: CosmosDatabase) -> None:
    """The row is written for good, and nothing else of it or of others changes."""

    async def work(run: Run) -> None:
        batch = renewed(await run.page())
        assert await run.store.rehearse(run.table, run.lease, batch.part([3]))
        # tried twice, as after a crash: it is not what was read any more
        assert not await run.store.rehearse(run.table, run.lease, batch.part([3]))

    running(notes, work)
    assert bodies(notes) == {f"n{at:02}": "new v1:3" if at == 3 else f"v1:{at}" for at in range(12)}


class Altering(FaultProxy):
    """Changes what is written on its way."""

    async def _forward(self, request: web.BaseRequest, body: bytes, kind: str) -> web.StreamResponse:
        altered = body.replace(b"new v1", b"odd v1") if kind == "patch" else body
        return await super()._forward(request, altered, kind)


def test_what_is_kept_differently_is_restored(notes: CosmosDatabase) -> None:
    """Something between us and the store changes what we write: the document gets its old content back."""

    async def work(run: Run) -> None:
        batch = renewed(await run.page())
        with pytest.raises(StoreError, match="keeps something else"):
            await run.store.rehearse(run.table, run.lease, batch.part([0]))

    with Altering(notes.endpoint) as proxy:
        running(notes, work, endpoint=proxy.endpoint)
        assert proxy.counts()["patch"] == 1
    after = notes.document("notes", "n00")
    assert (after["body"], after["n"]) == ("v1:0", 0)


def test_what_others_write_during_a_rehearsal_stays(notes: CosmosDatabase, cosmos_proxy: FaultProxy) -> None:
    """It is not what was meant, and yet nothing to undo."""

    def meanwhile(path: str) -> None:
        name = path.rsplit("/", 1)[1]
        beside = notes.beside()
        beside.replace("notes", {**beside.document("notes", name), "n": "theirs"})
        beside.account.close()

    async def work(run: Run) -> None:
        batch = renewed(await run.page())
        # between the write and the look at it
        cosmos_proxy.add(Meanwhile(meanwhile), "read", path="/n00$", skip=1, times=1)
        assert not await run.store.rehearse(run.table, run.lease, batch.part([0]))

    running(notes, work, endpoint=cosmos_proxy.endpoint)
    after = notes.document("notes", "n00")
    assert (after["body"], after["n"]) == ("new v1:0", "theirs")


# what a later sweep looks for

ODD_VALUES: list[Any] = [
    None, "", "v1:abc", "v2:zz", "v3:q", "v1", "plain", 5, 0, True, 1.5, {}, [], ["v1:x", "v2:y"],
    [None, 5, "v1:a"], {"ct": "v1:z"}, {"ct": None}, {"ct": 5}, {"x": "str"}, {"x": {"ct": "Q", "kid": "v1"}},
    {"x": {"ct": "Q"}}, {"x": {"ct": "Q", "kid": 5}}, {"x": [1]}, {"x": {"ct": "Q", "kid": "v11"}},
    {"l": [{"t": "a", "k": "v1"}, {"t": "b"}, 7, "s", {"k": "v1"}]}, {"l": "x"},
    {"l": [{"t": "a", "k": "v2"}]},
]  # fmt: skip

ODD_FIELDS = """
  { column = "a", layout = "libsodium-token" },
  { column = "b", path = "ct", layout = "libsodium-token" },
  { column = "d", path = "x.ct", layout = "apart", version = { path = "x.kid" } },
  { column = "e", layout = "apart", version = { column = "ver" } },
  { column = "f", path = "[*]", layout = "libsodium-token" },
  { column = "g", path = "l[*].t", layout = "apart", version = { path = "l[*].k" } },
"""


@pytest.mark.parametrize("unmarked", [False, True])
def test_a_sweep_misses_no_document_in_scope(cosmos: CosmosDatabase, *, unmarked: bool) -> None:
    """Whatever is in the places of values, a query finds each document that holds one in scope; no others."""
    cosmos.container("notes")
    chance = random.Random(7)
    for at in range(250):
        held = {name: chance.choice(ODD_VALUES) for name in "abdefg" if chance.random() < 0.8}
        version = chance.choice([{}, {"ver": "v1"}, {"ver": "v2"}, {"ver": None}, {"ver": 1}])
        cosmos.upsert("notes", {"id": f"n{at}", **held, **version})

    async def work(run: Run) -> None:
        full = await run.page(1_000)
        for at, column in enumerate(run.table.fields):
            apart = column.name in ("d.x.ct", "e", "g.l[*].t")
            prefix, marked = (f"v1{PART}", f"^(v[0-9]+){PART}") if apart else ("v1:", "^(v[0-9]+):")
            wanted = {
                key
                for key, value in zip(full.keys, listed(full.fields[at]), strict=True)
                for one in (value or "").split(ELEMENT)
                if value is not None
                and (one.startswith(prefix) or (unmarked and re.search(marked, one) is None))
            }
            scope = Scope({column.name: (prefix,)}, {column.name: marked} if unmarked else {})
            found = await run.page(1_000, scope=scope)
            missed = wanted.difference(found.keys)
            if unmarked:
                # what is no text can be no sealed value: a sweep need not meet it again
                values = dict(zip(full.keys, listed(full.fields[at]), strict=True))
                missed = {key for key in missed if ODD not in values[key]}
            assert not missed, (column.name, {k: values[k] for k in missed})
            assert set(found.keys) <= wanted
            assert wanted

    running(cosmos, work, " ".join(ODD_FIELDS.split()))


# tokens


def test_a_refused_token_starts_the_range_again(notes: CosmosDatabase, cosmos_proxy: FaultProxy) -> None:
    """The shard's checkpoint goes back to its start before anybody is told to go on from there."""

    async def work(run: Run) -> None:
        page = await run.page(5)
        await run.guard.save(run.lease, Checkpoint(page.cursor, 5, {}))
        cosmos_proxy.add(REFUSED_TOKEN, "query", token=True)
        with pytest.raises(Rewound):
            await run.page(5, page.last)
        kept = await run.guard.lease(run.table.relation, run.lease.range.shard)
        assert (kept.cursor, kept.rows, kept.tally) == (None, 0, {})
        assert len(await run.page(100, kept.cursor)) == 12

    running(notes, work, endpoint=cosmos_proxy.endpoint)


def test_a_range_is_not_begun_anew_for_ever(notes: CosmosDatabase, cosmos_proxy: FaultProxy) -> None:
    """A server that refuses every token is told, once it has been tried some times."""

    async def work(run: Run) -> None:
        page = await run.page(5)
        cosmos_proxy.add(REFUSED_TOKEN, "query", token=True)
        for _ in range(MOST_RESTARTS):
            with pytest.raises(Rewound):
                await run.page(5, page.last)
        with pytest.raises(StoreError, match="does not go on"):
            await run.page(5, page.last)

    running(notes, work, endpoint=cosmos_proxy.endpoint)


@pytest.mark.parametrize("cursor", ["n05", "[]", '{"query": "0", "token": "x", "first": ""}'])
def test_a_cursor_of_another_query_starts_the_range_again(notes: CosmosDatabase, cursor: str) -> None:
    """A token belongs to a query's text and parameters: with others it would skip documents."""

    async def work(run: Run) -> None:
        with pytest.raises(Rewound):
            await run.page(5, cursor)
        full = await run.page(5)
        with pytest.raises(Rewound):
            await run.page(5, full.last, Scope({"body": ("v1:",)}))

    running(notes, work)


def test_a_token_that_leads_to_the_start_is_noticed(notes: CosmosDatabase) -> None:
    """Some servers take a token that means nothing to them for none: pages would be counted twice."""

    async def work(run: Run) -> None:
        page = await run.page(5)
        assert page.last is not None
        broken = json.dumps({**json.loads(page.last), "token": "no token of this server"})
        with pytest.raises(Rewound):
            await run.page(5, broken)

    running(notes, work)


def test_the_last_page_leaves_the_cursor_where_it_began(notes: CosmosDatabase) -> None:
    """There is no token behind it; read again from there, it is the same page."""

    async def work(run: Run) -> None:
        first = await run.page(8)
        last = await run.page(8, first.last)
        assert last.last is None
        assert last.cursor is not None
        assert (await run.page(8, last.cursor)).keys == last.keys
        whole = await run.page(100)
        assert (await run.page(100, whole.cursor)).keys == whole.keys

    running(notes, work)


class Halved(FaultProxy):
    """Makes two partitions of the emulator's one, when it is told to: by the number in a document's id.

    Pages are cut after they were made, so that some are empty though more follows.
    """

    split = False
    odd_first = False
    whole: dict[str, Any] = {}  # noqa: RUF012 - set for the object when it is first seen

    async def _forward(self, request: web.BaseRequest, body: bytes, kind: str) -> web.StreamResponse:
        if kind == "ranges" and self.split and self.whole:
            return self._ranges(request)
        response = await super()._forward(request, body, kind)
        if (
            kind not in ("ranges", "query")
            or not isinstance(response, web.Response)
            or response.status != 200
        ):
            return response
        assert isinstance(response.body, bytes)
        told = json.loads(response.body)
        if kind == "ranges":
            self.whole = told
            return self._ranges(request) if self.split else response
        asked = request.headers["x-ms-documentdb-partitionkeyrangeid"]
        if not self.split:
            return response
        if asked == "0":
            return web.Response(status=410, headers={"x-ms-substatus": "1002"})
        if told["Documents"] and isinstance(told["Documents"][0], dict):
            rest = (int(asked) - 1) ^ self.odd_first
            own = [one for one in told["Documents"] if int(one["p0"][1:]) % 2 == rest]
            told |= {"Documents": own, "_count": len(own)}
        headers = {name: value for name, value in response.headers.items() if name != "Content-Length"}
        return web.Response(status=200, headers=headers, body=json.dumps(told).encode())

    def _ranges(self, request: web.BaseRequest) -> web.Response:
        if request.headers.get("If-None-Match") == "split":
            return web.Response(status=304, headers={"etag": "split"})
        (one,) = self.whole["PartitionKeyRanges"]
        halves = [
            {**one, "id": "1", "minInclusive": "", "maxExclusive": "7F", "parents": ["0"]},
            {**one, "id": "2", "minInclusive": "7F", "maxExclusive": "FF", "parents": ["0"]},
        ]
        told = {**self.whole, "PartitionKeyRanges": halves, "_count": 2}
        return web.Response(status=200, headers={"etag": "split"}, body=json.dumps(told).encode())


def test_every_feed_range_is_a_shard(notes: CosmosDatabase) -> None:
    """Each document is on one page of one of them, whatever pages are empty in between."""

    async def work(run: Run) -> None:
        shards = await run.store.split(run.table, 4)
        assert [shard.shard for shard in shards] == [0, 1]
        reader = run.store.reader(run.table)
        found: list[list[str]] = []
        for shard in shards:
            found.append([])
            after: str | None = None
            while True:
                page = await reader.fetch(shard, after, 1, Scope())
                found[-1] += page.keys
                after = page.last
                if after is None:
                    break
        assert found == [[f"n{at:02}" for at in range(12) if at % 2 == half] for half in (0, 1)]
        # a cursor of one range means nothing in the other
        page = await reader.fetch(shards[0], None, 1, Scope())
        with pytest.raises(Rewound):
            await reader.fetch(shards[1], page.last, 1, Scope())
        rows = await reader.sample(12, {"body": "v1:"})
        assert sorted(row[0] for row in rows) == [f"n{at:02}" for at in range(12)]
        whole = [await reader.fetch(ShardRange(0, None, None), None, 100, Scope())]
        while whole[-1].last is not None:
            whole.append(await reader.fetch(ShardRange(0, None, None), whole[-1].last, 100, Scope()))
        assert sorted(key for page in whole for key in page.keys) == [f"n{at:02}" for at in range(12)]

    with Halved(notes.endpoint) as proxy:
        proxy.split = True
        running(notes, work, endpoint=proxy.endpoint)


@pytest.mark.parametrize("odd_first", [False, True])
def test_a_partition_that_splits_is_read_anew(notes: CosmosDatabase, *, odd_first: bool) -> None:
    """Its range is gone in the middle of a sweep, and the SDK drops the token: that does not go unnoticed."""

    async def work(run: Run) -> None:
        reader = run.store.reader(run.table)
        page = await reader.fetch(run.lease.range, None, 5, Scope())
        found, begun_anew = list(page.keys), 0
        proxy.split = True
        while page.last is not None:
            try:
                page = await reader.fetch(run.lease.range, page.last, 5, Scope())
            except Rewound:
                found, begun_anew = [], begun_anew + 1
                page = await reader.fetch(run.lease.range, None, 5, Scope())
            found += page.keys
        assert begun_anew == 1
        assert sorted(found) == [f"n{at:02}" for at in range(12)]

    with Halved(notes.endpoint) as proxy:
        proxy.odd_first = odd_first
        running(notes, work, endpoint=proxy.endpoint)
        assert any(seen.kind == "query" and seen.status == 410 for seen in proxy.seen)


# the line


def test_throttling_is_waited_for_by_all(notes: CosmosDatabase, cosmos_proxy: FaultProxy) -> None:
    """429 with a time: nothing is sent meanwhile, every write lands, and the SDK retries nothing itself."""

    async def work(run: Run) -> None:
        batch = renewed(await run.page())
        cosmos_proxy.add(throttled(400), "patch", times=3)
        assert await run.swap(batch) == 12
        assert run.store.waiting_for == ""

    running(notes, work, endpoint=cosmos_proxy.endpoint, store="in_flight = 3")
    assert all(body.startswith("new") for body in bodies(notes).values())
    patches = [seen for seen in cosmos_proxy.seen if seen.kind == "patch"]
    assert len(patches) == 15
    refused = [seen.at for seen in patches if seen.status == 429]
    later = [seen.at for seen in patches if seen.at > max(refused)]
    assert min(later) - max(refused) >= 0.39


def test_throttling_without_a_time_is_waited_for_too(notes: CosmosDatabase, cosmos_proxy: FaultProxy) -> None:
    """A default stands in for the time."""

    async def work(run: Run) -> None:
        batch = renewed(await run.page())
        cosmos_proxy.add(throttled(), times=2)
        assert await run.swap(batch) == 12

    running(notes, work, endpoint=cosmos_proxy.endpoint)
    refused = [seen for seen in cosmos_proxy.seen if seen.status == 429]
    assert len(refused) == 2


def test_questions_about_containers_pass_the_gate_too(
    notes: CosmosDatabase, cosmos_proxy: FaultProxy
) -> None:
    """Whatever the SDK asks by itself is paced, and retried by nobody else."""
    cosmos_proxy.add(throttled(300), "container", times=2)

    async def work(run: Run) -> None:
        assert len(await run.page()) == 12

    running(notes, work, endpoint=cosmos_proxy.endpoint)
    refused = [seen.at for seen in cosmos_proxy.seen if seen.status == 429]
    assert len(refused) == 2
    for at in refused:
        after = [seen.at for seen in cosmos_proxy.seen if seen.at > at]
        assert min(after) - at >= 0.29


class Listening(FaultProxy):
    """Keeps the headers of patches and of queries."""

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream)
        self.heard: dict[str, dict[str, str]] = {}

    async def _forward(self, request: web.BaseRequest, body: bytes, kind: str) -> web.StreamResponse:
        self.heard[kind] = {name.lower(): value for name, value in request.headers.items()}
        return await super()._forward(request, body, kind)


def test_low_priority_and_the_bucket_are_asked_for(notes: CosmosDatabase) -> None:
    """Of every request; and a patch asks for no document in return, and names the etag it was read under."""

    async def work(run: Run) -> None:
        await run.swap(renewed(await run.page()))

    with Listening(notes.endpoint) as proxy:
        running(notes, work, endpoint=proxy.endpoint, store="low_priority = true\nthroughput_bucket = 3")
        for kind in ("patch", "query"):
            assert proxy.heard[kind]["x-ms-cosmos-priority-level"] == "Low"
            assert proxy.heard[kind]["x-ms-cosmos-throughput-bucket"] == "3"
        assert proxy.heard["patch"]["prefer"] == "return=minimal"
        assert proxy.heard["patch"]["if-match"]


@pytest.mark.parametrize("status", [408, 410, 449, 500, 503])
def test_passing_failures_are_tried_again(
    notes: CosmosDatabase, cosmos_proxy: FaultProxy, status: int
) -> None:
    """Every third patch and every second query: nothing is lost, nothing is written twice."""
    cosmos_proxy.add(Answer(status), "patch", every=3)
    cosmos_proxy.add(Answer(status), "query", every=2)

    async def work(run: Run) -> None:
        batch = renewed(await run.page())
        assert await run.swap(batch) == 12

    running(notes, work, endpoint=cosmos_proxy.endpoint)
    assert set(bodies(notes).values()) == {f"new v1:{at}" for at in range(12)}


def test_a_lost_answer_is_told_from_a_lost_race(notes: CosmosDatabase, cosmos_proxy: FaultProxy) -> None:
    """The write had landed, and is refused when it is sent again: reading finds it to be our own."""

    async def work(run: Run) -> None:
        batch = renewed(await run.page())
        cosmos_proxy.add(Drop(applied=True), "patch", path="/n0[2-5]$", times=4)
        written = await run.swap(batch)
        assert written == 8
        assert await run.store.writer(run.table).unsettled(batch) == []

    running(notes, work, endpoint=cosmos_proxy.endpoint)
    assert set(bodies(notes).values()) == {f"new v1:{at}" for at in range(12)}


def test_a_live_writer_is_never_overwritten(notes: CosmosDatabase, cosmos_proxy: FaultProxy) -> None:
    """It writes each fourth document right before our patch arrives."""

    def meanwhile(path: str) -> None:
        beside = notes.beside()
        beside.upsert("notes", {"id": path.rsplit("/", 1)[1], "body": "v2:theirs"})
        beside.account.close()

    async def work(run: Run) -> None:
        batch = renewed(await run.page())
        cosmos_proxy.add(Meanwhile(meanwhile), "patch", every=4)
        assert await run.swap(batch) == 9
        left = await run.store.writer(run.table).unsettled(batch)
        assert [row[1] for _, row in left if row is not None] == ["v2:theirs"] * 3

    running(notes, work, endpoint=cosmos_proxy.endpoint)
    assert sorted(bodies(notes).values()).count("v2:theirs") == 3


def test_a_server_that_is_away_is_unavailable(notes: CosmosDatabase, cosmos_proxy: FaultProxy) -> None:
    """No answer to anything: the run may wait for it, and nothing is refused as a value."""

    async def work(run: Run) -> None:
        batch = renewed(await run.page())
        cosmos_proxy.add(Drop(), "patch")
        with pytest.raises(StoreUnavailable):
            await run.swap(batch)
        # one alone is left to a later sweep rather than put aside as refused
        assert await run.swap(batch.part([0])) == 0
        cosmos_proxy.add(Drop())
        with pytest.raises(StoreUnavailable):
            await run.page()

    running(notes, work, endpoint=cosmos_proxy.endpoint, store="in_flight = 2")
    assert set(bodies(notes).values()) == {f"v1:{at}" for at in range(12)}


def test_nothing_is_sent_once_the_lease_is_lost(notes: CosmosDatabase, cosmos_proxy: FaultProxy) -> None:
    """It is asked after the gate and before each request: what waited there is not sent any more."""
    asked = 0

    async def work(run: Run) -> None:
        nonlocal asked
        batch = renewed(await run.page())
        held = run.guard.still_held

        def lose() -> None:
            nonlocal asked
            asked += 1
            if asked > 5:
                raise LeaseLost("another run took over")
            held()

        run.guard.still_held = lose  # type: ignore[method-assign]  # stands in for a lease lost
        with pytest.raises(LeaseLost):
            await run.swap(batch)

    running(notes, work, endpoint=cosmos_proxy.endpoint, store="in_flight = 1")
    sent = sum(body.startswith("new") for body in bodies(notes).values())
    assert sent < 6
    assert cosmos_proxy.counts()["patch"] == sent


def test_charges_are_added_up(notes: CosmosDatabase, cosmos_proxy: FaultProxy) -> None:
    """What clients were told by the account is what a run says it spent, refused requests included."""
    cosmos_proxy.charges = {"patch": 10.29, "query": 3.5}
    cosmos_proxy.add(throttled(10), "patch", times=2)

    async def work(run: Run) -> None:
        await run.swap(renewed(await run.page()))
        assert run.store.spent() == {"request_units": pytest.approx(cosmos_proxy.charged, abs=0.02)}

    running(notes, work, endpoint=cosmos_proxy.endpoint)


def test_no_more_than_in_flight_are_sent(notes: CosmosDatabase, cosmos_proxy: FaultProxy) -> None:
    """The job's number bounds what is under way at once."""
    notes.upsert("notes", *({"id": f"m{at}", "body": f"v1:{at}"} for at in range(60)))

    async def work(run: Run) -> None:
        assert await run.swap(renewed(await run.page())) == 72

    running(notes, work, endpoint=cosmos_proxy.endpoint, store="in_flight = 4")
    assert 1 < cosmos_proxy.most_at_once["patch"] <= 4


# what is refused


@pytest.mark.parametrize(
    ("status", "says"), [(401, "refuses this key"), (403, "Cosmos DB Built-in Data Contributor")]
)
def test_a_right_that_is_lacking_is_named(
    notes: CosmosDatabase, cosmos_proxy: FaultProxy, status: int, says: str
) -> None:
    """With what to grant; and it is no value's fault."""

    async def work(run: Run) -> None:
        batch = renewed(await run.page())
        cosmos_proxy.add(Answer(status), "patch")
        with pytest.raises(StoreError) as raised:
            await run.swap(batch)
        assert not isinstance(raised.value, StoreUnavailable)
        assert says in f"{raised.value} {raised.value.hint}"

    running(notes, work, endpoint=cosmos_proxy.endpoint)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ('{ column = "id", layout = "libsodium-token" }', "server's own"),
        ('{ column = "_ts", layout = "libsodium-token" }', "server's own"),
        ('{ column = "tenant", layout = "libsodium-token" }', "partition key"),
        ('{ column = "body", layout = "lockbox-bytes" }', "stores bytes"),
    ],
)
def test_what_cannot_be_rewritten_is_refused(cosmos: CosmosDatabase, fields: str, says: str) -> None:
    """Before anything is read."""
    cosmos.container("notes", "/tenant")

    async def work(run: Run) -> None:
        pytest.fail("it was opened")

    with pytest.raises((UnsafeTarget, SchemaMismatch), match=says):
        running(cosmos, work, fields)


@pytest.mark.parametrize("mode", ["lazy", "none"])
def test_a_container_whose_index_lags_is_refused(cosmos: CosmosDatabase, mode: str) -> None:
    """A query that does not see what was written would say that nothing is stale."""
    cosmos.container("notes", indexingPolicy={"indexingMode": mode})

    async def work(run: Run) -> None:
        pytest.fail("it was opened")

    with pytest.raises(UnsafeTarget, match="index"):
        running(cosmos, work)


def test_a_container_with_a_time_to_live_is_told(cosmos: CosmosDatabase) -> None:
    """Each write moves _ts, and with it the end of a document."""
    cosmos.container("notes", defaultTtl=86_400)

    async def work(run: Run) -> list[str]:
        return run.store.notices

    assert any("expire" in notice for notice in running(cosmos, work))


def test_an_account_that_takes_writes_everywhere_is_refused(
    notes: CosmosDatabase, cosmos_proxy: FaultProxy
) -> None:
    """Of two writes to one document one is dropped, whatever their etags were."""
    account = {
        "id": "x",
        "writableLocations": [
            {"name": name, "databaseAccountEndpoint": cosmos_proxy.endpoint} for name in ("North", "South")
        ],
        "readableLocations": [
            {"name": name, "databaseAccountEndpoint": cosmos_proxy.endpoint} for name in ("North", "South")
        ],
        "enableMultipleWriteLocations": True,
        "userConsistencyPolicy": {"defaultConsistencyLevel": "Session"},
    }
    cosmos_proxy.add(Answer(200, body=json.dumps(account)), "account")

    async def work(run: Run) -> None:
        pytest.fail("it was opened")

    with pytest.raises(UnsafeTarget, match="several regions"):
        running(notes, work, endpoint=cosmos_proxy.endpoint)


def test_an_account_key_that_is_none_is_named(notes: CosmosDatabase) -> None:
    """Without showing it."""
    environ = {**KEYS, **notes.environ, "COSMOS_KEY": "not base64!"}
    account = Account(job_of(**environ), environ)

    async def main() -> None:
        try:
            with pytest.raises(JobError) as raised:
                await account.region()
            assert "not base64" not in f"{raised.value} {raised.value.hint}"
        finally:
            await account.close()

    asyncio.run(main())


def test_without_a_key_an_identity_is_looked_for() -> None:
    """azure-identity's default one; nobody is asked before the first request."""
    environ = {**KEYS, "COSMOS_ENDPOINT": "https://x.documents.azure.com/", "COSMOS_DATABASE": "d"}
    text = JOB.format(fields=BODY, store="", more="").replace('key = "env:COSMOS_KEY"\n', "")
    account = Account(Job.parse(text, environ=environ), environ)

    async def main() -> None:
        authority = await account._authority()
        assert isinstance(authority, DefaultAzureCredential)
        await account.close()

    asyncio.run(main())


def test_a_container_made_anew_is_another_one(notes: CosmosDatabase) -> None:
    """Its name is the same, and nothing that was kept of the first one holds."""

    async def work(run: Run) -> int:
        return run.table.oid

    first = running(notes, work)
    assert running(notes, work) == first
    notes.drop("notes")
    notes.container("notes")
    assert running(notes, work) != first


# how many came and went


def test_what_came_and_went_is_bounded(notes: CosmosDatabase) -> None:
    """Our own writes are nobody's inserts; others' are, and what is missing then was deleted."""

    async def work(run: Run) -> None:
        look = run.store.activity
        # whatever was written a moment before is counted with what came after
        await asyncio.sleep(3.1)
        assert await look(run.table) == await look(run.table)
        assert await run.swap(renewed(await run.page())) == 12
        quiet = await look(run.table)
        assert (quiet.inserted, quiet.deleted) == (0, 0)
        await asyncio.to_thread(notes.upsert, "notes", {"id": "x1", "body": "v2:a"}, {"id": "x2"})
        assert (await look(run.table)).inserted == 2
        await asyncio.to_thread(notes.delete, "notes", {"id": "n00"})
        assert (await look(run.table)).deleted >= 1

    running(notes, work)


def test_nothing_of_the_sdk_is_imported_before_it_is_needed() -> None:
    """A command that names no Cosmos store does not wait for it."""
    script = (
        "import sys, rewrap.cli, rewrap.stores.open, rewrap.stores.cosmos.store\n"
        "assert not [m for m in sys.modules if m.partition('.')[0] in ('azure', 'aiohttp')]\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_secrets_are_in_no_error_and_no_repr(notes: CosmosDatabase) -> None:
    """Neither the account's key nor what documents hold."""

    async def work(run: Run) -> str:
        page = await run.page()
        assert page.stamps is not None
        shown = [repr(run.store.account), repr(page.stamps), repr(run.store.account.gate)]
        with guarded(lambda: None, 5), pytest.raises(StoreError) as raised:
            await run.store.account.container("notes").query(Query("SELECT nonsense"), limit=1)
        return " ".join([*shown, str(raised.value), str(raised.value.hint)])

    said = running(notes, work)
    assert notes.key not in said
    assert "v1:" not in said


def test_one_refused_value_costs_the_others_nothing(notes: CosmosDatabase, cosmos_proxy: FaultProxy) -> None:
    """A document over the limit: it is told as refused, and what has landed is not sent again in halves."""

    async def work(run: Run) -> None:
        batch = renewed(await run.page())
        cosmos_proxy.add(Answer(413), "patch", path="/n05$")
        writer = run.store.writer(run.table)
        before = Checkpoint(None, 0, {})
        for part in (batch, batch.part(range(6)), batch.part(range(3, 6))):
            with pytest.raises(ValueRefused):
                await writer.swap(run.lease, part, before, skip_locked=False)
        for part in (batch.part(range(6, 12)), batch.part(range(3))):
            assert await writer.swap(run.lease, part, before, skip_locked=False) == len(part)

    running(notes, work, endpoint=cosmos_proxy.endpoint)
    assert cosmos_proxy.counts()["patch"] == 12 + 2
    assert bodies(notes) == {f"n{at:02}": f"v1:{at}" if at == 5 else f"new v1:{at}" for at in range(12)}


@pytest.mark.parametrize(
    ("status", "sub_status", "kind"),
    [
        (404, 1002, StoreUnavailable),
        (404, 1003, NoContainer),
        (403, 3, StoreUnavailable),
        (403, 5300, StoreError),
    ],
)
def test_an_answer_is_not_taken_for_another(status: int, sub_status: int, kind: type[StoreError]) -> None:
    """A lagging replica is no deleted document, a failover no lack of a right, a lost container no row."""
    found = of_status("container", status, sub_status, writes=True)
    assert type(found) is kind
    assert not isinstance(found, Missing)
