"""Fingerprints of documents: what a rotation must leave as it is, in Cosmos DB."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from rewrap.errors import SchemaMismatch
from rewrap.fingerprint import Difference, compared
from rewrap.job import Job
from rewrap.stores.cosmos.census import CosmosCensus
from tests.support.cosmos import STORE_AND_KEYS, CosmosDatabase
from tests.support.envelopes import Sealed, b64, open_all, require_node, seal_all, unb64
from tests.support.values import KEYS, aead
from tests.support.workbench import Result, Workbench

JOB = (
    STORE_AND_KEYS
    + """
[layouts.wrap]
encoding = "base64"
cipher = "aes-256-gcm"
[[targets]]
container = "deks"
untouched = ["*"]
fields = [{ column = "keys", path = "[*].wrapped", layout = "wrap", version = { path = "[*].v" } }]
"""
)

NOTES = """
[[untouched]]
container = "notes"
"""


def entries_of(cosmos: CosmosDatabase, more: str = NOTES, at: int = -1) -> list[bytes]:
    """The entries of the last thing that a job wants witnessed, or of another."""
    environ = {
        **os.environ, **cosmos.environ,
        **{f"KEY_{version.upper()}": key.hex() for version, key in KEYS.items()},
    }  # fmt: skip
    job = Job.parse(JOB + more, environ=environ)

    async def main() -> list[bytes]:
        census = CosmosCensus(job, environ)
        try:
            settled = await census.settled(job.witnessed[at])
            return [page async for page in census.entries(settled)]
        finally:
            await census.close()

    return asyncio.run(main())


def difference(before: list[bytes], now: list[bytes]) -> Difference:
    async def each(pages: list[bytes]) -> AsyncIterator[bytes]:
        for page in pages:
            yield page

    return asyncio.run(compared(each(before), each(now)))


def told(found: Difference) -> tuple[int, int, int, int]:
    return found.unchanged, found.changed, found.inserted, found.deleted


def note(i: int, **more: Any) -> dict[str, Any]:
    return {"id": f"n{i}", "workspaceId": f"w{i % 3}", "body": {"ct": f"{i}", "iv": [i, 1.5, None]}, **more}


def test_a_document_is_what_the_application_wrote_of_it(cosmos: CosmosDatabase) -> None:
    """Written again with the same content it is the same, whatever the server stamps it with."""
    cosmos.container("notes", "/workspaceId")
    cosmos.upsert("notes", *(note(i) for i in range(40)))
    before = entries_of(cosmos)
    cosmos.upsert("notes", *(note(i) for i in range(20)), dict(reversed(note(21).items())))
    again = difference(before, entries_of(cosmos))
    assert again.same
    assert told(again) == (40, 0, 0, 0)
    cosmos.upsert("notes", note(3, body={"ct": "3", "iv": [3, 1.5, ""]}), note(4, more=None), note(50))
    cosmos.delete("notes", note(7))
    assert told(difference(before, entries_of(cosmos))) == (37, 2, 1, 1)


def test_documents_of_one_id_are_told_by_their_partition(cosmos: CosmosDatabase) -> None:
    """The key is the id and the partition key, whether it is there, null, or absent."""
    cosmos.container("notes", "/workspaceId")
    cosmos.upsert("notes", *({"id": "x", "workspaceId": f"w{i}", "n": i} for i in range(3)))
    before = entries_of(cosmos)
    cosmos.upsert("notes", {"id": "x", "workspaceId": "w1", "n": 2}, {"id": "x", "workspaceId": "w2", "n": 1})
    assert told(difference(before, entries_of(cosmos))) == (1, 2, 0, 0)


def test_only_the_properties_named_are_compared(cosmos: CosmosDatabase) -> None:
    """Paths, elements, and what is absent, null or empty are told apart."""
    cosmos.container("notes", "/workspaceId")
    more = NOTES + 'columns = ["body.ct", "parts[*].ct", "parts[0].n"]\n'
    cosmos.upsert("notes", *(note(i, parts=[{"ct": "a", "n": 1}, {"x": 1}], seen=0) for i in range(9)))
    before = entries_of(cosmos, more)
    cosmos.upsert("notes", *(note(i, parts=[{"ct": "a", "n": 1}, {"x": 2}], seen=1) for i in range(9)))
    assert difference(before, entries_of(cosmos, more)).same
    cosmos.upsert(
        "notes",
        note(0, parts=[{"ct": "b", "n": 1}, {"x": 1}]),
        note(1, parts=[{"ct": "a", "n": 1}, {"ct": None}]),
        note(2, parts=[{"ct": "a", "n": 1}]),
        note(3, parts=[{"ct": "a", "n": 2}, {}]),
        note(4, parts=None),
        note(5),
        note(6, parts=[{"ct": "a", "n": 1}, {}], body={}),
    )
    assert told(difference(before, entries_of(cosmos, more))) == (2, 7, 0, 0)


def test_what_a_rewrap_writes_is_left_out_of_the_whole(cosmos: CosmosDatabase) -> None:
    """Of a target's documents it is everything but the fields, to the element."""
    cosmos.container("deks")

    def record(i: int, wrapped: str, version: str | None, label: str = "x") -> dict[str, Any]:
        named = {} if version is None else {"v": version}
        return {"id": f"d{i}", "keys": [{"wrapped": wrapped, "label": label, **named}, 7], "created": 1}

    cosmos.upsert("deks", *(record(i, "old", "v1") for i in range(5)), record(9, "old", None))
    before = entries_of(cosmos, "")
    cosmos.upsert("deks", *(record(i, "new", "v2") for i in (0, 1, 2, 9)))
    assert difference(before, entries_of(cosmos, "")).same
    cosmos.upsert("deks", record(1, "new", "v2", "y"), {**record(2, "new", "v2"), "created": 2})
    assert told(difference(before, entries_of(cosmos, ""))) == (4, 2, 0, 0)


def test_more_documents_than_one_part_are_sorted(cosmos: CosmosDatabase) -> None:
    """Entries come in parts, in ascending order, each document once."""
    cosmos.container("notes", "/workspaceId")
    cosmos.upsert("notes", *({"id": str(i), "workspaceId": "w"} for i in range(9_000)))
    parts = entries_of(cosmos)
    assert len(parts) == 2
    joined = b"".join(parts)
    entries = [joined[at : at + 32] for at in range(0, len(joined), 32)]
    assert entries == sorted(set(entries))
    assert len(entries) == 9_000


def test_missing_container_is_told_before_anything(cosmos: CosmosDatabase) -> None:
    with pytest.raises(SchemaMismatch, match="notes"):
        entries_of(cosmos)


ENVELOPES = (
    STORE_AND_KEYS
    + """
[layouts.wrap]
encoding = "base64"
cipher = "aes-256-gcm"
aad = "dek-wrap"
[[targets]]
container = "deks"
untouched = ["*"]
fields = [{ column = "wrapped", layout = "wrap", version = { column = "mekVersion" }, \
nonce = { column = "iv" }, tag = { column = "tag" } }]
[[untouched]]
container = "notes"
"""
)


def compared_by(result: Result) -> dict[str, tuple[int, int, int, int]]:
    return {
        e["target"]: (e["unchanged"], e["changed"], e["inserted"], e["deleted"])
        for e in result.events
        if e["type"] == "untouched"
    }


def test_rewrapped_keys_open_the_notes_that_nobody_touched(bench: Workbench, cosmos: CosmosDatabase) -> None:
    """A whole run under a live application: its notes are told from those that were there, and all open."""
    require_node()
    bench.environ |= cosmos.environ
    (bench.folder / "rewrap.toml").write_text(ENVELOPES)
    deks = [os.urandom(32) for _ in range(60)]
    wrapped = seal_all([(KEYS["v1"], dek, "dek-wrap") for dek in deks])
    bodies = seal_all([(dek, f"note {i} ✓".encode(), "") for i, dek in enumerate(deks)])
    cosmos.container("deks")
    cosmos.container("notes", "/workspaceId")
    cosmos.upsert(
        "deks",
        *(
            {
                "id": f"d{i}",
                "wrapped": b64(one.ct),
                "iv": b64(one.iv),
                "tag": b64(one.tag),
                "mekVersion": "v1",
            }
            for i, one in enumerate(wrapped)
        ),
    )
    notes = [
        {"id": f"n{i}", "workspaceId": f"w{i % 4}", "body": body.texts, "dekId": f"d{i}"}
        for i, body in enumerate(bodies)
    ]
    cosmos.upsert("notes", *notes)
    before = {one["id"]: one for one in cosmos.documents("notes")}
    dry = bench.run("--dry-run")
    assert dry.code == 0, dry.err
    assert not bench.ledger.exists()
    ran = bench.run()
    assert ran.code == 0, ran.err
    assert {e["target"]: e["rows"] for e in ran.events if e["type"] == "fingerprint_taken"} == {
        "deks": 60,
        "notes": 60,
    }
    found = bench.rewrap("verify", "--deep", "--json", KEY_V1="")
    assert found.code == 0, found.out
    assert compared_by(found) == {"deks": (60, 0, 0, 0), "notes": (60, 0, 0, 0)}
    # down to the etag: nothing has written them
    assert {one["id"]: one for one in cosmos.documents("notes")} == before
    records = {one["id"]: one for one in cosmos.documents("deks")}
    assert {one["mekVersion"] for one in records.values()} == {"v2"}
    again = open_all(
        [
            (
                KEYS["v2"],
                Sealed(*(unb64(records[f"d{i}"][part]) for part in ("iv", "wrapped", "tag"))),
                "dek-wrap",
            )
            for i in range(60)
        ]
    )
    assert again == deks
    assert open_all([(dek, body, "") for dek, body in zip(deks, bodies, strict=True)]) == [
        f"note {i} ✓".encode() for i in range(60)
    ]
    # the application goes on, and somebody damages a note
    cosmos.upsert("notes", {**notes[0], "id": "new"}, {**notes[1], "body": "damaged"})
    cosmos.delete("notes", notes[2])
    late = bench.rewrap("verify", "--deep", "--json")
    assert compared_by(late)["notes"] == (58, 1, 1, 1)
    assert late.code == 0
    (bench.folder / "rewrap.toml").write_text(ENVELOPES + '[limits]\nchanged_payloads = "fail"\n')
    assert bench.rewrap("verify", "--deep", "--json").code == 3


def test_container_without_which_nothing_is_proved_ends_the_run(
    bench: Workbench, cosmos: CosmosDatabase
) -> None:
    """The first write comes after the last fingerprint."""
    bench.environ |= cosmos.environ
    (bench.folder / "rewrap.toml").write_text(ENVELOPES)
    cosmos.container("deks")
    (one,) = sealed_by_python([b"k" * 32])
    cosmos.upsert("deks", {"id": "d", **one, "mekVersion": "v1"})
    checked = bench.rewrap("check", "--json")
    assert checked.code == 1
    assert [e["subject"] for e in checked.events if e.get("code") == "untouched"] == ["container notes"]
    refused = bench.run()
    assert refused.code == 2
    assert "notes" in refused.err
    assert cosmos.document("deks", "d")["mekVersion"] == "v1"


def sealed_by_python(deks: list[bytes]) -> list[dict[str, str]]:
    found = []
    for dek in deks:
        iv = os.urandom(12)
        raw = AESGCM(KEYS["v1"]).encrypt(iv, dek, b"dek-wrap")
        found.append({"wrapped": b64(raw[:-16]), "iv": b64(iv), "tag": b64(raw[-16:])})
    return found


BOTH = """
[stores.shop]
kind = "postgres"
url = "${DATABASE_URL}"
[[targets]]
store = "shop"
table = "accounts"
fields = [{ column = "secret", layout = "wrap-marked" }]
untouched = ["label"]
[[untouched]]
store = "shop"
table = "payloads"
[layouts.wrap-marked]
marker = "{version}:"
version = "v[0-9]+"
encoding = "base64"
cipher = "aes-256-gcm"
aad = "{account_id}"
"""


def test_one_job_proves_what_lies_in_both_stores(bench: Workbench, cosmos: CosmosDatabase) -> None:
    """Each store is asked about its own; a change in either is told, by name."""
    bench.environ |= cosmos.environ
    here = ENVELOPES.replace('container = "', 'store = "main"\ncontainer = "')
    (bench.folder / "rewrap.toml").write_text(here + BOTH)
    bench.sql("CREATE TABLE accounts (id int PRIMARY KEY, account_id text, secret text, label text)")
    rows = [(i, f"a{i}", aead(f"secret {i}", f"a{i}"), "x") for i in range(30)]
    bench.insert("accounts", ["id", "account_id", "secret", "label"], rows)
    bench.sql("CREATE TABLE payloads AS SELECT i AS id, md5(i::text) FROM generate_series(1, 40) AS i")
    bench.sql("ALTER TABLE payloads ADD PRIMARY KEY (id)")
    cosmos.container("deks")
    cosmos.container("notes", "/workspaceId")
    records = sealed_by_python([os.urandom(32) for _ in range(20)])
    cosmos.upsert("deks", *({"id": f"d{i}", **one, "mekVersion": "v1"} for i, one in enumerate(records)))
    cosmos.upsert("notes", *(note(i) for i in range(25)))
    ran = bench.run()
    assert ran.code == 0, ran.err
    cosmos.upsert("notes", note(3, body="x"))
    bench.sql("UPDATE accounts SET label = 'y' WHERE id < 2")
    found = bench.rewrap("verify", "--deep", "--json")
    assert found.code == 0, found.out
    assert compared_by(found) == {
        "deks": (20, 0, 0, 0),
        "notes": (24, 1, 0, 0),
        "accounts": (28, 2, 0, 0),
        "payloads": (40, 0, 0, 0),
    }
    assert found.event("verdict")["untouched"]["changed"] == 3
