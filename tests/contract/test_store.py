"""One suite over every store: tables in Postgres and containers in Cosmos DB keep the same promises.

With COSMOS_TEST_ENDPOINT and COSMOS_TEST_KEY it runs against that account instead of the emulator.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest

from rewrap.errors import SchemaMismatch
from rewrap.interfaces import (
    Checkpoint,
    Claim,
    Guard,
    OversizeMark,
    Page,
    Scope,
    ShardReader,
    Store,
    SwapBatch,
)
from rewrap.job import Job
from rewrap.model import ShardLease, Table, key_text
from rewrap.packed import HELD_BACK, listed
from rewrap.stores.open import Stores
from tests.support.cosmos import CosmosDatabase
from tests.support.values import box
from tests.support.workbench import Workbench

T = TypeVar("T")

COSMOS_JOB = """
name = "test"
[stores.main]
kind = "cosmos"
endpoint = "${{COSMOS_ENDPOINT}}"
key = "env:COSMOS_KEY"
database = "${{COSMOS_DATABASE}}"
[keys.versions.v1]
material = "env:KEY_V1"
[keys.versions.v2]
material = "env:KEY_V2"
[layouts.aead]
marker = "{{version}}:"
version = "v[0-9]+"
encoding = "base64"
cipher = "aes-256-gcm"
aad = "{{owner}}"
[[targets]]
container = "notes"
fields = [{{ column = "body", layout = "libsodium-token" }}, {{ column = "title", layout = "aead" }}]
{more}
"""

TABLE = """
[[targets]]
table = "notes"
fields = [{ column = "body", layout = "libsodium-token" }, { column = "title", layout = "aead" }]
"""


@dataclass(frozen=True)
class Note:
    """A row: what it holds besides the encrypted fields must stay as it is."""

    name: str
    body: str | None
    title: str | None = None
    owner: str | None = "me"
    other: str = "same"

    @property
    def held(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Place(Protocol):
    """A store with one table of notes, and the application's own hand on it."""

    folder: Path
    environ: dict[str, str]

    def job(self, more: str = "") -> Job: ...

    def write(self, *notes: Note) -> None: ...

    def delete(self, name: str) -> None: ...

    def notes(self) -> dict[str, Note]: ...


class Tabled:
    """The notes in Postgres."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self.folder, self.environ = bench.folder, {**bench.environ}
        bench.sql("CREATE TABLE notes (name text PRIMARY KEY, body text, title text, owner text, other text)")

    def job(self, more: str = "") -> Job:
        text = self._bench.job(TABLE, more).read_text().replace("{account_id}", "{owner}")
        return Job.parse(text, path=self.folder / "rewrap.toml", environ=self.environ)

    def write(self, *notes: Note) -> None:
        for note in notes:
            self._bench.sql(
                "INSERT INTO notes VALUES ($1, $2, $3, $4, $5) ON CONFLICT (name) DO UPDATE SET "
                "(body, title, owner, other) = "
                "(excluded.body, excluded.title, excluded.owner, excluded.other)",
                *note.held.values(),
            )

    def delete(self, name: str) -> None:
        self._bench.sql("DELETE FROM notes WHERE name = $1", name)

    def notes(self) -> dict[str, Note]:
        return {row["name"]: Note(**dict(row)) for row in self._bench.sql("SELECT * FROM notes")}


class Contained:
    """The notes in Cosmos DB, partitioned by their id or by another property."""

    def __init__(self, database: CosmosDatabase, folder: Path, path: str = "/id") -> None:
        self.database, self.folder = database, folder
        self.environ = {**database.environ, "KEY_V1": bytes(32).hex(), "KEY_V2": bytes(range(32)).hex()}
        database.container("notes", path)

    def job(self, more: str = "") -> Job:
        text = COSMOS_JOB.format(more=more)
        return Job.parse(text, path=self.folder / "rewrap.toml", environ=self.environ)

    def write(self, *notes: Note) -> None:
        for note in notes:
            held = {"id": note.name, "tenant": f"of {note.name}", **note.held}
            self.database.upsert("notes", {name: one for name, one in held.items() if one is not None})

    def delete(self, name: str) -> None:
        self.database.delete("notes", self.database.document("notes", name))

    def notes(self) -> dict[str, Note]:
        names = [field.name for field in dataclasses.fields(Note)]
        found = self.database.documents("notes")
        return {one["id"]: Note(**{name: one.get(name) for name in names}) for one in found}


@pytest.fixture(params=["postgres", "cosmos", "cosmos by tenant"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Notes in either store; in Cosmos DB partitioned by id, and by a property of their own."""
    if request.param == "postgres":
        return Tabled(request.getfixturevalue("bench"))
    path = "/id" if request.param == "cosmos" else "/tenant"
    return Contained(request.getfixturevalue("cosmos"), tmp_path, path)


@dataclass
class Opened:
    """The place as a run has it: claimed, one lease a shard."""

    store: Store
    guard: Guard
    table: Table
    leases: list[ShardLease]

    async def pages(self, limit: int, scope: Scope = Scope(), after: str | None = None) -> list[Page]:  # noqa: B008 - frozen
        """Every page of every shard."""
        found = []
        reader = self.store.reader(self.table)
        try:
            for lease in self.leases:
                at = after
                while True:
                    page = await reader.fetch(lease.range, at, limit, scope)
                    found.append(page)
                    at = page.last
                    if at is None:
                        break
        finally:
            await reader.close()
        return found

    async def page(self, limit: int = 100) -> Page:
        (page,) = await self.pages(limit)
        return page

    async def swap(self, batch: SwapBatch) -> tuple[int, dict[str, Any]]:
        """Swaps a batch: how many rows it says were written, and those that are not, by key."""
        writer = self.store.writer(self.table)
        lease = self.leases[0]
        try:
            before = Checkpoint(lease.cursor, lease.rows, lease.tally)
            written = await writer.swap(lease, batch, before, skip_locked=False)
            return written, {name_of(batch.keys[at]): row for at, row in await writer.unsettled(batch)}
        finally:
            await writer.close()


def name_of(key: Any) -> str:
    """A note's name, of a row's key."""
    return str(key[0]) if isinstance(key, tuple) else str(key)


def names(pages: Sequence[Page]) -> list[str]:
    return [name_of(key) for page in pages for key in page.keys]


def with_place(place: Place, work: Callable[[Opened], Awaitable[T]], more: str = "") -> T:
    """What `work` gives over the opened and claimed place."""
    job = place.job(more)

    async def main() -> T:
        stores = Stores(job, place.environ)
        store = stores.store()
        try:
            (table,) = await store.tables()
            guard = await stores.guard(store)
            ranges = {table.relation: await store.split(table, 1)}
            claim = Claim("run", "me", ("v1",), "v2", ranges, 30.0, orders={table.relation: table.order})
            try:
                leases = await guard.claim(claim)
                return await work(Opened(store, guard, table, leases[table.relation]))
            finally:
                await guard.release(finished=False)
                await guard.close()
        finally:
            await store.close()

    return asyncio.run(main())


def renewed(page: Page, *, stamped: bool = True, only: Sequence[str] = ("body",)) -> SwapBatch:
    """A page's fields, each value with `new` before it."""
    columns = dict(zip(("body", "title"), page.fields, strict=True))
    olds = {name: listed(column) for name, column in columns.items()}
    news = {
        name: [None if old is None or name not in only else f"new {old}" for old in column]
        for name, column in olds.items()
    }
    return SwapBatch(page.keys, olds, news, page.tokens, page.stamps if stamped else None)


NOTES = [Note(f"n{at:03}", box(f"body {at}"), f"v1:title {at}") for at in range(25)]


@pytest.mark.parametrize("limit", [1, 7, 25, 100])
def test_pages_cover_every_row_exactly_once(place: Place, limit: int) -> None:
    """Whatever the size of a page, each row is on one of them, with its values and its associated data."""
    place.write(*NOTES)

    async def work(opened: Opened) -> None:
        pages = await opened.pages(limit)
        assert sorted(names(pages)) == sorted(note.name for note in NOTES)
        assert all(len(page) <= limit for page in pages)
        held = {note.name: [note.body, note.title, note.owner] for note in NOTES}
        for page in pages:
            for at in range(len(page)):
                key, *values = page.row(at)
                assert values == held[name_of(key)]

    with_place(place, work)


def test_an_empty_table_has_no_rows(place: Place) -> None:
    """There is a page, with nothing on it, and nothing follows."""

    async def work(opened: Opened) -> None:
        pages = await opened.pages(10)
        assert names(pages) == []
        assert [page.last for page in pages] == [None] * len(opened.leases)

    with_place(place, work)


@pytest.mark.parametrize("stamped", [True, False])
def test_a_swapped_row_holds_the_new_value_and_else_what_it_held(place: Place, *, stamped: bool) -> None:
    """Only the fields with a new value change; of no other row, and nothing else of these."""
    place.write(*NOTES)

    async def work(opened: Opened) -> None:
        page = await opened.page()
        batch = renewed(page, stamped=stamped).part([at for at in range(25) if at % 2])
        written, left = await opened.swap(batch)
        assert (written, left) == (12, {})

    with_place(place, work)
    expected = {
        note.name: dataclasses.replace(note, body=f"new {note.body}") if at % 2 else note
        for at, note in enumerate(NOTES)
    }
    assert place.notes() == expected


@pytest.mark.parametrize("stamped", [True, False])
def test_a_row_changed_meanwhile_is_not_overwritten(place: Place, *, stamped: bool) -> None:
    """What the application wrote in between stays, and the row is told with what it holds now."""
    place.write(*NOTES[:5])
    changed = dataclasses.replace(NOTES[2], body=box("written meanwhile"))

    async def work(opened: Opened) -> None:
        page = await opened.page()
        await asyncio.to_thread(place.write, changed)
        written, left = await opened.swap(renewed(page, stamped=stamped))
        assert written == 4
        assert list(left) == [changed.name]
        assert list(left[changed.name][1:]) == [changed.body, changed.title, changed.owner]

    with_place(place, work)
    assert place.notes()[changed.name] == changed


def test_a_row_whose_associated_data_changed_is_not_overwritten(place: Place) -> None:
    """A new value bound to another owner would never open."""
    place.write(*NOTES[:5])
    moved = dataclasses.replace(NOTES[1], owner="somebody else")

    async def work(opened: Opened) -> None:
        page = await opened.page()
        await asyncio.to_thread(place.write, moved)
        written, left = await opened.swap(renewed(page, stamped=False, only=("title",)))
        assert (written, list(left)) == (4, [moved.name])

    with_place(place, work)
    assert place.notes()[moved.name] == moved


def test_another_property_may_change_meanwhile(place: Place) -> None:
    """By what a row held and not by its stamp, it is swapped whatever else of it has changed."""
    place.write(*NOTES[:5])
    touched = dataclasses.replace(NOTES[3], other="touched")

    async def work(opened: Opened) -> None:
        page = await opened.page()
        await asyncio.to_thread(place.write, touched)
        assert (await opened.swap(renewed(page)))[0] == 4
        assert (await opened.swap(renewed(page, stamped=False)))[0] == 1

    with_place(place, work)
    assert place.notes()[touched.name] == dataclasses.replace(touched, body=f"new {touched.body}")


def test_a_row_that_is_gone_is_told(place: Place) -> None:
    """A deleted row is not written and not made anew."""
    place.write(*NOTES[:3])

    async def work(opened: Opened) -> None:
        page = await opened.page()
        await asyncio.to_thread(place.delete, "n001")
        written, left = await opened.swap(renewed(page))
        assert (written, left) == (2, {"n001": None})

    with_place(place, work)
    assert sorted(place.notes()) == ["n000", "n002"]


def test_unsettled_asks_the_store_and_not_its_memory(place: Place) -> None:
    """A writer that sent nothing itself finds what has landed, and what has not."""
    place.write(*NOTES[:4])

    async def work(opened: Opened) -> None:
        page = await opened.page()
        batch = renewed(page)
        await opened.swap(batch.part([0, 2]))
        writer = opened.store.writer(opened.table)
        left = await writer.unsettled(batch)
        await writer.close()
        assert [name_of(batch.keys[at]) for at, _ in left] == ["n001", "n003"]
        assert all(row is not None and row[1] == batch.olds["body"][at] for at, row in left)

    with_place(place, work)


def test_reading_goes_on_after_the_last_page(place: Place) -> None:
    """From a checkpoint's cursor, another reader has the rest of the rows, none twice."""
    place.write(*NOTES)

    async def work(opened: Opened) -> None:
        reader = opened.store.reader(opened.table)
        first = await reader.fetch(opened.leases[0].range, None, 10, Scope())
        await reader.close()
        cursor = first.cursor if first.cursor is not None else key_text(first.keys[-1])
        rest = await opened.pages(10, after=cursor)
        assert sorted(names([first, *rest])) == sorted(note.name for note in NOTES)

    with_place(place, work)


def test_a_sweep_reads_what_is_in_scope(place: Place) -> None:
    """Rows with a value under one of the markers, in whatever field; no others."""
    place.write(
        Note("old body", box("a")),
        Note("new body", "v2:x"),
        Note("old title", None, "v1:t"),
        Note("neither", None, None),
        Note("both", box("b"), "v1:u"),
        Note("close", "v11:x", "xv1:"),
    )
    scope = Scope({"body": ("v1:",), "title": ("v1:",)})

    async def work(opened: Opened) -> None:
        assert sorted(names(await opened.pages(2, scope))) == ["both", "old body", "old title"]
        unmarked = Scope({"body": ("v1:",), "title": ()}, {"body": "^(v[0-9]+):"})
        found = names(await opened.pages(2, unmarked))
        assert sorted(found) == ["both", "old body"]

    with_place(place, work)


def test_a_sample_holds_values_under_the_prefix(place: Place) -> None:
    """Rows under a rare version are found, however few they are."""
    place.write(*NOTES, Note("rare", "v3:x"))

    async def work(opened: Opened) -> None:
        reader = opened.store.reader(opened.table, full=False)
        rows = await reader.sample(10, {"body": "v1:"})
        rare = await reader.sample(10, {"body": "v3:"})
        none = await reader.sample(10, {"body": "v9:"})
        await reader.close()
        assert len(rows) == 10
        assert all(row[1].startswith("v1:") and row[3] == "me" for row in rows)
        assert [name_of(row[0]) for row in rare] == ["rare"]
        assert none == []

    with_place(place, work)


def test_large_values_are_held_back_and_fetched_alone(place: Place) -> None:
    """Over the limit a page has a mark; fetched alone, the value is whole, or told by length and digest."""
    large, huge = "v1:" + "x" * 5_000, "v1:" + "ü" * 40_000
    place.write(Note("small", box("a")), Note("large", large), Note("huge", huge))

    async def fetched(opened: Opened) -> tuple[dict[str, str], dict[str, Any]]:
        page = await opened.page()
        reader: ShardReader = opened.store.reader(opened.table)
        bodies = {name_of(page.keys[at]): page.row(at)[1] for at in range(len(page))}
        whole = {name_of(key): (await reader.fetch_large(key)) for key in page.keys}
        await reader.close()
        return bodies, {name: row[1] for name, row in whole.items() if row is not None}

    bodies, whole = with_place(place, fetched, "[pace]\nmax_value_bytes = 10000")
    assert bodies["huge"].startswith(HELD_BACK)
    assert whole["large"] == large
    mark = whole["huge"]
    assert isinstance(mark, OversizeMark)
    assert mark.size == len(huge.encode())
    assert mark.sha256
    assert huge.startswith(str(mark.head))


def test_a_missing_row_fetched_alone_is_none(place: Place) -> None:
    """It was deleted after its page came."""
    place.write(*NOTES[:1])

    async def work(opened: Opened) -> None:
        (key,) = (await opened.page()).keys
        await asyncio.to_thread(place.delete, "n000")
        reader = opened.store.reader(opened.table)
        assert await reader.fetch_large(key) is None
        await reader.close()

    with_place(place, work)


def test_a_checkpoint_is_where_the_next_process_begins(place: Place) -> None:
    """Cursor, rows and tally are kept; the lease of the same run has them again."""
    place.write(*NOTES)

    async def work(opened: Opened) -> Checkpoint:
        writer = opened.store.writer(opened.table)
        reader = opened.store.reader(opened.table)
        page = await reader.fetch(opened.leases[0].range, None, 10, Scope())
        cursor = page.cursor if page.cursor is not None else key_text(page.keys[-1])
        kept = Checkpoint(cursor, len(page), {"body": Counter(resealed=10)})
        await writer.checkpoint(opened.leases[0], kept)
        await reader.close()
        await writer.close()
        return kept

    kept = with_place(place, work)

    async def again(opened: Opened) -> None:
        (lease,) = opened.leases
        assert (lease.cursor, lease.rows) == (kept.cursor, kept.rows)
        assert {name: dict(counts) for name, counts in lease.tally.items()} == {"body": {"resealed": 10}}
        rest = await opened.pages(10, after=lease.cursor)
        assert len(names(rest)) == len(NOTES) - kept.rows

    with_place(place, again)


def test_rehearsal_writes_what_was_meant_or_nothing(place: Place) -> None:
    """A row is tried: afterwards it holds the old value or the new one, and a changed one is left alone."""
    place.write(*NOTES[:2])

    async def work(opened: Opened) -> None:
        page = await opened.page()
        assert await opened.store.rehearse(opened.table, opened.leases[0], renewed(page).part([0]))
        await asyncio.to_thread(place.write, dataclasses.replace(NOTES[1], body="v1:meanwhile"))
        assert not await opened.store.rehearse(opened.table, opened.leases[0], renewed(page).part([1]))

    with_place(place, work)
    notes = place.notes()
    assert notes["n000"].body in (NOTES[0].body, f"new {NOTES[0].body}")
    assert notes["n000"] == dataclasses.replace(NOTES[0], body=notes["n000"].body)
    assert notes["n001"].body == "v1:meanwhile"


def test_a_missing_table_is_named(place: Place) -> None:
    """Neither a run nor a check begins on what is not there."""
    job = place.job()
    job = job.model_copy(update={"targets": [job.targets[0].model_copy(update={"table": "elsewhere"})]})

    async def main() -> None:
        store = Stores(job, place.environ).store()
        try:
            with pytest.raises(SchemaMismatch, match="elsewhere"):
                await store.tables()
        finally:
            await store.close()

    asyncio.run(main())
