"""Verify's counts of a container: every document in exactly one class, whatever its fields hold."""

from __future__ import annotations

import asyncio
import base64
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from rewrap.api import verify
from rewrap.errors import FenceError, StoreError
from rewrap.forms import Forms
from rewrap.job import Job
from rewrap.model import Table
from rewrap.stores.cosmos.census import CosmosCensus
from rewrap.stores.cosmos.client import Account, Query
from rewrap.stores.cosmos.counting import not_at
from rewrap.verify import Verification
from tests.support.cosmos import STORE_AND_KEYS, CosmosDatabase
from tests.support.values import KEYS, aead, box

T = TypeVar("T")

JOB = (
    STORE_AND_KEYS
    + """
[layouts.wrap]
encoding = "base64"
cipher = "aes-256-gcm"
version = "[A-Za-z0-9]+"
[[targets]]
"""
)

DEKS = """container = "deks"
fields = [{ column = "wrappedDek", layout = "wrap", version = { column = "mekVersion" } }]
"""

WRAPPED = base64.b64encode(bytes(60)).decode()

PUBLISHED = 'SELECT VALUE COUNT(1) FROM c WHERE c.mekVersion != "v2"'
"""The check of NoteLett's published runbook."""


def dek(name: str, *version: Any, wrapped: Any = WRAPPED) -> dict[str, Any]:
    """A DEK's record; without a version there is no such property."""
    document = {"id": name, "wrappedDek": wrapped}
    if version:
        document["mekVersion"] = version[0]
    return document


def with_census(
    cosmos: CosmosDatabase, work: Callable[[CosmosCensus, Table, Forms], Awaitable[T]], target: str = DEKS
) -> T:
    environ = {
        **os.environ, **cosmos.environ,
        **{f"KEY_{version.upper()}": key.hex() for version, key in KEYS.items()},
    }  # fmt: skip
    job = Job.parse(JOB + target, environ=environ)

    async def main() -> T:
        census = CosmosCensus(job, environ)
        try:
            (table,) = await census.tables()
            async with census:
                await census.tables_now([table])
                return await work(census, table, job.forms(job.targets[0].fields[0], "v2"))
        finally:
            await census.close()

    return asyncio.run(main())


def counted(cosmos: CosmosDatabase, target: str = DEKS) -> tuple[int, dict[tuple[str, str | None], int]]:
    """The documents, and the first field's classes that are not empty."""

    async def work(census: CosmosCensus, table: Table, forms: Forms) -> tuple[int, Any]:
        name = table.fields[0].name
        rows, classes = await census.count(table, {name: forms})
        total: Counter[tuple[str, str | None]] = Counter()
        for kind, version, number in classes[name]:
            total[kind, version] += number
        return rows, dict(+total)

    rows, classes = with_census(cosmos, work, target)
    assert sum(classes.values()) == rows
    return rows, classes


def asked(cosmos: CosmosDatabase, text: str) -> int:
    """What a query counts, asked as somebody would who pastes it."""

    async def work(census: CosmosCensus, table: Table, forms: Forms) -> int:
        # a server of the tests wants no bare comparison beside a range of partitions
        condition = text.replace("WHERE ", "WHERE true AND (", 1) + ")"
        return await Account.container(census.account, table.name).count(Query(condition))

    return with_census(cosmos, work)


def test_versions_that_are_absent_null_or_no_strings_are_counted(cosmos: CosmosDatabase) -> None:
    """Each is a value that nobody has rewrapped; none is null, none is at the new version."""
    cosmos.container("deks")
    cosmos.upsert(
        "deks",
        dek("a", "v1"), dek("b", "v2"), dek("c", "v2"), dek("d"), dek("e", None), dek("f", 2),
        dek("g", ["v2"]), dek("h", {"v": "v2"}), dek("i", ""), dek("j", "v9"), dek("k", "no version!"),
        dek("l", True), dek("m", "v2", wrapped=None), {"id": "n", "mekVersion": "v1"}, {"id": "o"},
        dek("p", "V2"), dek("q", "v2 "),
    )  # fmt: skip
    rows, classes = counted(cosmos)
    assert rows == 17
    assert classes == {
        ("marked", "v1"): 1,
        ("marked", "v2"): 2,
        ("marked", "v9"): 1,
        ("marked", "V2"): 1,
        ("marked", "v2 "): 1,
        ("marked", "no version!"): 1,
        # d to i, and l
        ("bare", None): 7,
        ("null", None): 3,
    }


def test_the_published_check_says_0_where_ours_does_not(cosmos: CosmosDatabase) -> None:
    """A record without a version is no match for `!=`: it would be lost with the old key, unseen."""
    cosmos.container("deks")
    cosmos.upsert("deks", dek("a", "v2"), dek("b", "v2"), dek("lost"))
    assert asked(cosmos, PUBLISHED) == 0

    async def work(_: CosmosCensus, table: Table, forms: Forms) -> str:
        return not_at(table.fields[0], forms)

    ours = with_census(cosmos, work)
    assert asked(cosmos, ours) == 1
    for part in (
        'NOT IS_DEFINED(c["mekVersion"])', 'IS_NULL(c["mekVersion"])', 'NOT IS_STRING(c["mekVersion"])',
        'c["mekVersion"] != "v2"',
    ):  # fmt: skip
        assert part in ours
    assert counted(cosmos)[1] == {("marked", "v2"): 2, ("bare", None): 1}


def test_markers_in_the_value_itself(cosmos: CosmosDatabase) -> None:
    """Text with a marker, text without one, and what is no text: by what a value begins with."""
    cosmos.container("notes")
    cosmos.upsert(
        "notes",
        *({"id": f"n{at}", "body": {"text": value}} for at, value in enumerate(
            [box("a"), box("b", "v2"), "v3:other", "plain", "", None, 7, ["v1:"], box("c", marker=False)]
        )),
        {"id": "before", "body": box("d", "v2")}, {"id": "scalar", "body": 5}, {"id": "list", "body": [1]},
        {"id": "none", "body": None}, {"id": "nothing"},
    )  # fmt: skip
    field = '{ column = "body", path = "text", layout = "libsodium-token" }'
    target = f'container = "notes"\nfields = [{field}]\n'
    rows, classes = counted(cosmos, target)
    assert rows == 14
    assert classes == {
        ("marked", "v1"): 1,
        ("marked", "v2"): 2,
        ("marked", "v3"): 1,
        ("bare", None): 7,
        ("null", None): 3,
    }


def test_of_an_arrays_elements_the_one_farthest_from_done_counts(cosmos: CosmosDatabase) -> None:
    """A document whose elements are not all new is not counted as new."""
    cosmos.container("notes")
    old, new = box("a"), box("b", "v2")
    cosmos.upsert(
        "notes",
        {"id": "1", "cards": [{"n": new}, {"n": old}, {"n": "plain"}]},
        {"id": "2", "cards": [{"n": new}, {"n": new}]},
        {"id": "3", "cards": [{"n": new}, {"n": "plain"}]},
        {"id": "4", "cards": []},
        {"id": "5", "cards": [{"n": new}, {"n": "v9:x"}, {"n": "plain"}]},
        {"id": "6", "cards": [{"n": None}, {}]},
    )
    target = (
        'container = "notes"\nfields = [{ column = "cards", path = "[*].n", layout = "libsodium-token" }]\n'
    )
    assert counted(cosmos, target) == (
        6,
        {
            ("marked", "v1"): 1,
            ("marked", "v2"): 1,
            ("bare", None): 1,
            ("marked", "v9"): 1,
            ("null", None): 2,
        },
    )


def test_what_no_marker_names_and_what_the_new_one_does_can_be_read(cosmos: CosmosDatabase) -> None:
    """Pages of key, value and what it is bound to; a value by its row; None for one that is gone."""
    cosmos.container("deks", "/tenant")
    for name, *version in (("a", "v1"), ("b", "v2"), ("c",), ("d", None)):
        cosmos.upsert("deks", {**dek(name, *version), "tenant": "t1"})

    async def work(census: CosmosCensus, table: Table, forms: Forms) -> None:
        bare = [row async for page in census.bare(table, "wrappedDek", forms) for row in page]
        assert sorted(row[0] for row in bare) == [("c", '"t1"'), ("d", '"t1"')]
        assert {row[1] for row in bare} == {f"\x1e{WRAPPED}"}
        marked = [row async for page in census.marked(table, "wrappedDek", forms) for row in page]
        assert [(row[0], row[1]) for row in marked] == [(("b", '"t1"'), f"v2\x1e{WRAPPED}")]
        found = await census.value(table, "wrappedDek", forms, '["a","\\"t1\\""]')
        assert found is not None
        assert (found.head, found.whole) == (f"v1\x1e{WRAPPED}", f"v1\x1e{WRAPPED}")
        assert await census.value(table, "wrappedDek", forms, '["z","\\"t1\\""]') is None
        assert await census.value(table, "wrappedDek", forms, "a") is None

    with_census(cosmos, work)


def test_associated_data_come_along(cosmos: CosmosDatabase) -> None:
    """What a value is bound to is read with it, numbers as their text."""
    cosmos.container("accounts")
    cosmos.upsert("accounts", {"id": "1", "secret": aead("x", "7", "v2"), "account": 7})
    target = (
        'container = "accounts"\nfields = [{ column = "secret", layout = "bound" }]\n'
        '[layouts.bound]\nmarker = "{version}:"\nversion = "v[0-9]+"\nencoding = "base64"\n'
        'cipher = "aes-256-gcm"\naad = "{account}"\n'
    )

    async def work(census: CosmosCensus, table: Table, forms: Forms) -> list[Any]:
        return [row async for page in census.marked(table, "secret", forms) for row in page]

    ((key, _, text),) = with_census(cosmos, work, target)
    assert (key, text) == ("1", "7")


def test_a_count_is_repeated_where_a_replica_may_lag(
    cosmos: CosmosDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old value that only the second look sees is counted: of two looks the worse one is told."""
    cosmos.container("deks")
    cosmos.upsert("deks", dek("a", "v2"))
    pauses: list[float] = []

    async def late(seconds: float) -> None:
        pauses.append(seconds)
        cosmos.upsert("deks", dek("b", "v1"))

    monkeypatch.setattr("rewrap.stores.cosmos.census.anyio.sleep", late)
    assert counted(cosmos) == (2, {("marked", "v1"): 1, ("marked", "v2"): 1})
    assert pauses == [0]
    # what has something left is not looked at again
    assert counted(cosmos) == (2, {("marked", "v1"): 1, ("marked", "v2"): 1})
    assert pauses == [0]


def test_documents_that_keep_changing_are_counted_all_the_same(
    cosmos: CosmosDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are written between the questions: what they explain is no error, and the sum adds up."""
    cosmos.container("deks")
    cosmos.upsert("deks", *(dek(f"d{at}", "v2") for at in range(20)))
    asked_for = CosmosCensus._classes
    fresh = iter(range(1000))

    async def disturbed(self: CosmosCensus, *arguments: Any) -> Any:
        cosmos.upsert("deks", dek(f"new{next(fresh)}", "v2"))
        return await asked_for(self, *arguments)

    monkeypatch.setattr(CosmosCensus, "_classes", disturbed)

    async def work(census: CosmosCensus, table: Table, forms: Forms) -> tuple[int, Any]:
        return await census.count(table, {"wrappedDek": forms})

    rows, classes = with_census(cosmos, work)
    assert rows == 20 + next(fresh)
    assert ("marked", "v2", rows) in classes["wrappedDek"]


def test_counts_that_nothing_explains_are_an_error(
    cosmos: CosmosDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server counts one document more than it ever shows: no verdict is built on that."""
    from rewrap.stores.cosmos.client import Container
    from rewrap.stores.cosmos.counting import ALL

    cosmos.container("deks")
    cosmos.upsert("deks", *(dek(f"d{at}", "v2") for at in range(5)))
    count = Container.count

    async def one_more(self: Container, query: Query) -> int:
        # written long ago, as far as anybody can tell
        if "_ts" in query.text:
            return 0
        return await count(self, query) + (query == ALL)

    monkeypatch.setattr(Container, "count", one_more)
    with pytest.raises(StoreError, match="do not agree"):
        counted(cosmos)


def test_a_container_made_anew_while_verify_looks_is_an_error(cosmos: CosmosDatabase) -> None:
    """Its name is the same, and what was counted is gone."""
    cosmos.container("deks")
    cosmos.upsert("deks", dek("a", "v2"))

    async def work(census: CosmosCensus, _table: Table, _forms: Forms) -> None:
        await census.check_kept()
        cosmos.drop("deks")
        cosmos.container("deks")
        await census.check_kept()

    with pytest.raises(StoreError, match="made anew"):
        with_census(cosmos, work)


def test_there_is_no_fence_and_there_is_a_position(cosmos: CosmosDatabase) -> None:
    """A container takes whatever it is sent: a fence is refused with what to do in its place."""
    cosmos.container("deks")

    async def work(census: CosmosCensus, table: Table, _forms: Forms) -> str:
        with pytest.raises(FenceError, match="no constraints"):
            await census.add_fence(table, "wrappedDek", "v2\x1e")
        assert await census.drain(1) == []
        return await census.position()

    assert "GMT" in with_census(cosmos, work)


PLAIN = (
    STORE_AND_KEYS
    + """
[layouts.bare]
encoding = "base64"
cipher = "aes-256-gcm"
aad = "{owner.id}"
[layouts.named]
marker = "gcm:{version}:"
version = "v[0-9]+"
encoding = "base64"
cipher = "aes-256-gcm"
aad = "{owner.id}"
"""
)


def sealed(version: str, owner: str, marker: str = "") -> str:
    return marker + aead("secret", owner, version).partition(":")[2]


def verified(cosmos: CosmosDatabase, folder: Path, job: str, **options: Any) -> Verification:
    environ = {
        **os.environ, **cosmos.environ,
        **{f"KEY_{version.upper()}": key.hex() for version, key in KEYS.items()},
    }  # fmt: skip
    parsed = Job.parse(PLAIN + job, path=folder / "rewrap.toml", environ=environ)
    return asyncio.run(verify(parsed, to_version="v2", environ=environ, **options))


def test_values_that_name_no_version_are_opened_to_be_told(cosmos: CosmosDatabase, tmp_path: Path) -> None:
    """Each is tried under both keys, with what its document binds it to; plaintext is told from them."""
    cosmos.container("notes", "/owner/id")
    for at, version in enumerate(["v1", "v2", "v2"]):
        cosmos.upsert("notes", {"id": f"n{at}", "body": sealed(version, "u1"), "owner": {"id": "u1"}})
    cosmos.upsert("notes", {"id": "n3", "body": sealed("v2", "u2"), "owner": {"id": "u1"}})
    cosmos.upsert("notes", {"id": "n4", "body": "plain text", "owner": {"id": "u1"}}, {"id": "n5"})
    job = '[[targets]]\ncontainer = "notes"\nfields = [{ column = "body", layout = "bare" }]\n'
    (field,) = verified(cosmos, tmp_path, job).fields
    assert dict(+field.classes) == {
        "stale": 1, "current": 2, "other_version": 1, "plaintext": 1, "null": 1,
    }  # fmt: skip


def test_a_change_of_layout_is_counted_by_form(cosmos: CosmosDatabase, tmp_path: Path) -> None:
    """A value of the new version in the old layout is not done; and deep opens what is marked as done."""
    cosmos.container("notes")
    owner = {"owner": {"id": "u1"}}
    cosmos.upsert(
        "notes",
        {"id": "a", "body": sealed("v2", "u1", "gcm:v2:"), **owner},
        {"id": "b", "body": sealed("v2", "u2", "gcm:v2:"), **owner},
        {"id": "c", "body": sealed("v2", "u1"), **owner},
        {"id": "d", "body": sealed("v1", "u1"), **owner},
    )
    job = (
        '[[targets]]\ncontainer = "notes"\n'
        'fields = [{ column = "body", layout = "bare", to_layout = "named" }]\n'
    )
    found = verified(cosmos, tmp_path, job, deep=True)
    (field,) = found.fields
    assert dict(+field.classes) == {"current": 2, "stale": 2}
    assert (field.in_old_layout, field.unopenable) == (1, 1)
    assert found.exit_code == 3


def test_one_pause_is_enough_for_all_containers(
    cosmos: CosmosDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is counted twice, the second time no sooner than the pause after the first count of all."""
    slept: list[float] = []
    real = asyncio.sleep
    monkeypatch.setattr("rewrap.stores.cosmos.census.anyio.sleep", lambda s: (slept.append(s), real(s))[1])
    targets = ""
    for name in ("one", "two", "three"):
        cosmos.container(name)
        cosmos.upsert(name, {"id": "a", "body": sealed("v2", "u1", "gcm:v2:"), "owner": {"id": "u1"}})
        targets += f'[[targets]]\ncontainer = "{name}"\nfields = [{{ column = "body", layout = "named" }}]\n'
    job = targets
    monkeypatch.setattr(f"{__name__}.PLAIN", PLAIN.replace("settle_s = 0", "settle_s = 4"))
    assert verified(cosmos, tmp_path, job).exit_code == 0
    # the first one waits for what is left of the pause, the others find it over
    assert len(slept) == 3
    assert slept[0] <= 4
    assert slept[1:] == [0, 0]


ODD = [
    "v1:x", "v2:y", "v3:z", "V2:y", "v2", "", " v2:y", "plain", "v2:\u00e9", None, 0, 2, True, [], ["v2:y"],
    {}, {"text": "v1:x"}, {"text": "v2:y"}, {"text": None}, {"text": 7}, {"text": {"deep": "v1:x"}},
    {"other": 1}, {"text": ["v2:y"]}, {"text": {"deep": "z", "mark": "v2"}}, {"text": "z", "other": "v2"},
    {"text": {"deep": "z", "mark": 3}},
]  # fmt: skip


@pytest.mark.parametrize(
    "field",
    [
        '{ column = "body", layout = "libsodium-token" }',
        '{ column = "body", path = "text", layout = "libsodium-token" }',
        '{ column = "body", path = "text.deep", layout = "libsodium-token" }',
        '{ column = "body", path = "text[0]", layout = "libsodium-token" }',
        '{ column = "body", layout = "wrap", version = { column = "mark" } }',
        '{ column = "body", path = "text", layout = "wrap", version = { column = "mark", path = "text" } }',
        '{ column = "body", path = "text", layout = "wrap", version = { path = "other" } }',
        '{ column = "body", layout = "wrap", version = { column = "mark", path = "text[0]" } }',
        '{ column = "body", path = "text.deep", layout = "wrap", version = { path = "text.mark" } }',
    ],
)
def test_questions_and_reading_agree_on_odd_documents(cosmos: CosmosDatabase, field: str) -> None:
    """Whatever stands in a document, the server's answer and a look at the document say the same of it."""
    cosmos.container("notes")
    dice = random.Random(7)
    for at in range(120):
        document: dict[str, Any] = {"id": f"n{at}"}
        for name in ("body", "mark"):
            if dice.random() < 0.9:
                document[name] = dice.choice(ODD)
        cosmos.upsert("notes", document)

    async def work(census: CosmosCensus, table: Table, forms: Forms) -> None:
        name = table.fields[0].name
        asked = await census._asked(table, {name: forms}, exactly=True)
        read = await census._read(table, {name: forms})
        assert asked is not None
        assert read is not None
        counts = [Counter[Any](), Counter[Any]()]
        for one, (_, classes) in zip(counts, (asked, read), strict=True):
            for kind, version, number in classes[name]:
                one[kind, version] += number
        assert +counts[0] == +counts[1]
        assert asked[0] == read[0] == sum(counts[1].values()) == 120
        assert len(+counts[1]) >= 3

    with_census(cosmos, work, f'container = "notes"\nfields = [{field}]\n')


def test_a_value_with_no_place_for_a_version_is_not_taken_for_plaintext(
    cosmos: CosmosDatabase, tmp_path: Path
) -> None:
    """A run leaves it alone, for it could not say what it had become: verify does not call that complete."""
    cosmos.container("deks")
    cosmos.upsert("deks", {**dek("a"), "mek": "text"}, {**dek("b"), "mek": {"version": "v2"}})
    job = (
        '[[targets]]\ncontainer = "deks"\nfields = [{ column = "wrappedDek", layout = "bare", '
        'version = { column = "mek", path = "version" } }]\n'
    )
    found = verified(cosmos, tmp_path, job)
    assert dict(+found.fields[0].classes) == {"current": 1, "other_version": 1}
    assert found.exit_code == 3
