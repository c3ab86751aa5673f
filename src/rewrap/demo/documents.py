"""The application's other half: documents in Cosmos DB under DEKs, whose records hold them wrapped.

    deks    {id, wrappedDek, mekVersion, lastUsed}   wrappedDek = base64( nonce12 ‖ ct ‖ tag16 ), AES-256-GCM
    notes   {id, dekId, body}                        body likewise, under the DEK of its record

It knows nothing of the bulk run. Only the records change in a rotation: no note is touched.
"""

import asyncio
import base64
import contextlib
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from rewrap.demo.application import Audit, Tally, quantile

DATABASE = "demo"

# How often each operation comes, out of 100. A mark and a new wrapping change the very document that a
# bulk run writes.
_WEIGHTS = {"insert": 15, "mark": 35, "wrap": 20, "edit": 15, "delete": 5, "read": 10}

# Requests at a time while documents are loaded.
_AT_ONCE = 16

# Attempts at a document that others change meanwhile.
_ATTEMPTS = 20


class Documents:
    """Concurrent writers over the two containers, and the truth about every document.

    Every write of a record that is there goes by its etag, and is tried again when the record changed
    meanwhile. `errors` collects everything the application should never see, without values.
    """

    def __init__(
        self,
        endpoint: str,
        account_key: str,
        keys: Mapping[str, bytes],
        current: str,
        *,
        writers: int = 3,
        seed: int = 0,
        operations_per_s: float = 80.0,
    ) -> None:
        self.errors: list[str] = []
        self.current = current
        self._endpoint, self._account_key = endpoint, account_key
        self._keys = {version: AESGCM(key) for version, key in keys.items()}
        self._interval_s = writers / operations_per_s
        self._writers = writers
        self._random = random.Random(seed)  # noqa: S311 - chooses documents, makes no keys
        self._deks: dict[str, bytes] = {}
        self._marks: dict[str, int] = {}
        self._notes: dict[str, str] = {}
        self._busy: set[str] = set()
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._counts = dict.fromkeys(_WEIGHTS, 0)
        self._latencies_s: list[float] = []
        self._tally_began = time.monotonic()
        self._client: Any = None
        self._made = 0

    async def create(self) -> None:
        """Creates the database and its containers; fails when they are there already."""
        # half a second that only this demonstration takes
        from azure.cosmos import PartitionKey
        from azure.cosmos.aio import CosmosClient

        self._client = CosmosClient(self._endpoint, self._account_key, enable_endpoint_discovery=False)
        database = await self._client.create_database(DATABASE)
        self.deks = await database.create_container("deks", PartitionKey("/id"))
        self.notes = await database.create_container("notes", PartitionKey("/id"))

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    async def load(self, count: int) -> None:
        """So many DEKs with a record each, and a note for every fourth."""
        left = iter(range(count))

        async def work() -> None:
            for position in left:
                dek_id = await self._new_dek()
                if position % 4 == 0:
                    await self._new_note(dek_id)

        await asyncio.gather(*(work() for _ in range(_AT_ONCE)))

    def start(self) -> None:
        self._stop.clear()
        self.tally()
        self._tasks = [asyncio.create_task(self._work()) for _ in range(self._writers)]

    async def stop(self) -> None:
        """Lets every writer finish what it is doing. Raises what a writer died of, if one did."""
        self._stop.set()
        tasks, self._tasks = self._tasks, []
        await asyncio.gather(*tasks)

    def switch(self, version: str) -> None:
        """Wraps under another version from now on. Both keys stay readable."""
        self.current = version

    def tally(self) -> Tally:
        """Counts and latencies since the tally before, or since the start."""
        now = time.monotonic()
        latencies = sorted(self._latencies_s)
        tally = Tally(
            inserts=self._counts["insert"],
            updates=self._counts["wrap"] + self._counts["edit"],
            annotations=self._counts["mark"],
            moves=0,
            deletes=self._counts["delete"],
            reads=self._counts["read"],
            seconds=now - self._tally_began,
            p50_ms=quantile(latencies, 0.50) * 1000,
            p99_ms=quantile(latencies, 0.99) * 1000,
        )
        self._counts = dict.fromkeys(_WEIGHTS, 0)
        self._latencies_s = []
        self._tally_began = now
        return tally

    async def versions(self) -> dict[str, int]:
        """How many DEKs are wrapped under each version now."""
        query = "SELECT VALUE COUNT(1) FROM c WHERE c.mekVersion = @version"
        counts = {}
        for version in self._keys:
            parameters = [{"name": "@version", "value": version}]
            counts[version] = sum([n async for n in self.deks.query_items(query, parameters=parameters)])
        return counts

    async def audit(self) -> Audit:
        """Opens every DEK and every note, and compares them with the truth. The writers must be stopped."""
        rows = lost = undecryptable = other_columns_wrong = 0
        by_version: dict[str, int] = {}
        missing = set(self._deks)
        async for record in self.deks.read_all_items(max_item_count=1_000):
            rows += 1
            truth = self._deks.get(record["id"])
            missing.discard(record["id"])
            dek = self._unwrapped(record)
            if dek is None:
                undecryptable += 1
                continue
            by_version[record["mekVersion"]] = by_version.get(record["mekVersion"], 0) + 1
            if dek != truth:
                lost += 1
            elif record["lastUsed"] != self._marks[record["id"]]:
                other_columns_wrong += 1
        unseen = set(self._notes)
        async for note in self.notes.read_all_items(max_item_count=1_000):
            unseen.discard(note["id"])
            body = _opened(AESGCM(self._deks[note["dekId"]]), note["body"])
            if body is None:
                undecryptable += 1
            elif body.decode() != self._notes.get(note["id"]):
                lost += 1
        return Audit(
            rows=rows,
            lost=lost + len(missing) + len(unseen),
            undecryptable=undecryptable,
            other_columns_wrong=other_columns_wrong,
            by_version=by_version,
        )

    async def _work(self) -> None:
        """One writer: operations at the pace until `stop`."""
        from azure.core.exceptions import AzureError

        operations: dict[str, Callable[[], Awaitable[None]]] = {
            "insert": self._insert,
            "mark": self._mark,
            "wrap": self._wrap,
            "edit": self._edit,
            "delete": self._delete,
            "read": self._read,
        }
        names, weights = list(_WEIGHTS), list(_WEIGHTS.values())
        due = time.monotonic()
        while not self._stop.is_set():
            name = self._random.choices(names, weights)[0]
            began = time.perf_counter()
            try:
                await operations[name]()
                self._latencies_s.append(time.perf_counter() - began)
                self._counts[name] += 1
            except AzureError as exc:
                self.errors.append(f"{name} in Cosmos DB: {type(exc).__name__}")
            due = max(due + self._interval_s, time.monotonic() - 1.0)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _insert(self) -> None:
        await self._new_note(await self._new_dek())

    async def _mark(self) -> None:
        """Another property of a record; its DEK is left as it is."""
        with self._chosen(self._deks) as dek_id:
            mark = self._random.randrange(1_000_000)
            await self._replaced(dek_id, lambda record: record | {"lastUsed": mark})
            self._marks[dek_id] = mark

    async def _wrap(self) -> None:
        """The same DEK, wrapped anew under the current version."""
        with self._chosen(self._deks) as dek_id:
            await self._replaced(dek_id, lambda record: record | self._wrapping(self._deks[dek_id]))

    async def _edit(self) -> None:
        """A note gets another body, under the same DEK."""
        with self._chosen(self._notes) as note_id:
            note = await self.notes.read_item(note_id, note_id)
            if _opened(AESGCM(self._deks[note["dekId"]]), note["body"]) != self._notes[note_id].encode():
                self.errors.append("notes: a read found what nobody wrote")
            body = self._random.randbytes(40).hex()
            await self.notes.upsert_item(
                note | {"body": _sealed(AESGCM(self._deks[note["dekId"]]), body.encode())}
            )
            self._notes[note_id] = body

    async def _delete(self) -> None:
        """A DEK that no note is under, after a while in which a bulk run may meet it."""
        dek_id, dek = self._new_id(), os.urandom(32)
        await self.deks.create_item({"id": dek_id, **self._wrapping(dek), "lastUsed": 0})
        await asyncio.sleep(0.2 * self._random.random())
        await self.deks.delete_item(dek_id, dek_id)

    async def _read(self) -> None:
        with self._chosen(self._deks) as dek_id:
            record = await self.deks.read_item(dek_id, dek_id)
            if self._unwrapped(record) != self._deks[dek_id]:
                self.errors.append("deks: a read found a DEK that does not unwrap")

    async def _replaced(self, dek_id: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        from azure.core import MatchConditions
        from azure.cosmos.exceptions import CosmosAccessConditionFailedError

        for _ in range(_ATTEMPTS):
            record = await self.deks.read_item(dek_id, dek_id)
            with contextlib.suppress(CosmosAccessConditionFailedError):
                await self.deks.replace_item(
                    dek_id,
                    change(record),
                    etag=record["_etag"],
                    match_condition=MatchConditions.IfNotModified,
                )
                return
        self.errors.append(f"deks: {_ATTEMPTS} attempts at one record were lost to others")

    def _new_id(self) -> str:
        self._made += 1
        return f"dek-{self._made}-{self._random.getrandbits(32):08x}"

    async def _new_dek(self) -> str:
        dek_id, dek = self._new_id(), os.urandom(32)
        await self.deks.create_item({"id": dek_id, **self._wrapping(dek), "lastUsed": 0})
        self._deks[dek_id], self._marks[dek_id] = dek, 0
        return dek_id

    async def _new_note(self, dek_id: str) -> None:
        body = self._random.randbytes(40).hex()
        note_id = f"note-of-{dek_id}"
        sealed = _sealed(AESGCM(self._deks[dek_id]), body.encode())
        await self.notes.create_item({"id": note_id, "dekId": dek_id, "body": sealed})
        self._notes[note_id] = body

    @contextlib.contextmanager
    def _chosen(self, among: Mapping[str, object]) -> Any:
        """The id of a document that no other writer of this process has in hand."""
        names = list(among)
        while (name := self._random.choice(names)) in self._busy:
            pass
        self._busy.add(name)
        try:
            yield name
        finally:
            self._busy.discard(name)

    def _wrapping(self, dek: bytes) -> dict[str, str]:
        return {"wrappedDek": _sealed(self._keys[self.current], dek), "mekVersion": self.current}

    def _unwrapped(self, record: Mapping[str, Any]) -> bytes | None:
        key = self._keys.get(record["mekVersion"])
        return None if key is None else _opened(key, record["wrappedDek"])


def _sealed(key: AESGCM, plain: bytes) -> str:
    nonce = os.urandom(12)
    return base64.b64encode(nonce + key.encrypt(nonce, plain, None)).decode()


def _opened(key: AESGCM, stored: str) -> bytes | None:
    try:
        sealed = base64.b64decode(stored, validate=True)
        return key.decrypt(sealed[:12], sealed[12:], None)
    except (ValueError, InvalidTag):
        return None
