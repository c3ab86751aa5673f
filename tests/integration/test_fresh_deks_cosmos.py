"""Documents of Cosmos DB, re-encrypted with a fresh DEK each; made and read by Node's own crypto."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import require
from tests.support.cosmos import CosmosDatabase
from tests.support.documents import make, node, plain
from tests.support.values import KEYS
from tests.support.workbench import Workbench

JOB = """
name = "test"
[stores.main]
kind = "cosmos"
endpoint = "${COSMOS_ENDPOINT}"
key = "env:COSMOS_KEY"
database = "${COSMOS_DATABASE}"
settle_s = 0
[keys.versions.v1]
material = "env:KEY_V1"
[keys.versions.v2]
material = "env:KEY_V2"
[layouts.mek]
encoding = "base64"
cipher = "aes-256-gcm"
[layouts.field]
encoding = "base64"
cipher = "aes-256-gcm"
[deks.notes]
container = "dek_store"
copied = ["tenant"]
[deks.notes.wrapped]
column = "wrappedDek"
layout = "mek"
version = { column = "mekVersion" }
nonce = { column = "iv" }
tag = { column = "tag" }
[[targets]]
container = "notes"
dek = "notes"
PLAINTEXT
[[targets.fields]]
column = "body"
path = "ct"
layout = "field"
dek_id = { path = "dekId" }
nonce = { path = "iv" }
tag = { path = "tag" }
"""


class Containers:
    """A database with notes and their DEKs, and a folder with the job."""

    def __init__(self, cosmos: CosmosDatabase, folder: Path, partition: str = "/id") -> None:
        self.cosmos = cosmos
        cosmos.container("dek_store", partition)
        cosmos.container("notes", "/tenant")
        self.bench = Workbench("", folder)
        self.bench.environ |= cosmos.environ
        self.job()

    def job(self, plaintext: str = "") -> None:
        (self.bench.folder / "rewrap.toml").write_text(JOB.replace("PLAINTEXT", plaintext))

    def fill(self, first: int, count: int, version: str = "v1") -> None:
        documents = [
            {"id": i, "tenant": f"t{i % 3}", "fields": {"body": plain("body", i)}}
            for i in range(first, first + count)
        ]
        made = make(version, documents)
        self.cosmos.upsert("dek_store", *made["deks"])
        notes = [
            {"id": f"n{one['id']}", "tenant": one["tenant"], "kind": "note", **one["fields"]}
            for one in made["documents"]
        ]
        self.cosmos.upsert("notes", *notes)

    def read(self, *versions: str) -> dict[str, str | None]:
        """What Node reads of each note."""
        notes = {one["id"]: one["body"] for one in self.cosmos.documents("notes")}
        keys = {version: KEYS[version].hex() for version in versions}
        deks = [one for one in self.cosmos.documents("dek_store") if one.get("mekVersion") in keys]
        sealed = {name: body for name, body in notes.items() if isinstance(body, dict)}
        plains = node("open", {"keys": keys, "deks": deks, "values": list(sealed.values())})
        return dict(zip(sealed, plains, strict=True))


@pytest.fixture
def notes(cosmos: CosmosDatabase, tmp_path: Path) -> Containers:
    require("Node", "node")
    return Containers(cosmos, tmp_path)


def expected(count: int) -> dict[str, str | None]:
    return {f"n{i}": plain("body", i) for i in range(1, count + 1)}


def test_every_document_gets_a_dek_of_its_own(notes: Containers) -> None:
    """A dry run makes none; a run makes one for each document, and again none when it is done once more."""
    notes.fill(1, 40)
    old = {one["id"]: one for one in notes.cosmos.documents("dek_store")}
    assert notes.bench.run("--dry-run").code == 0
    assert {one["id"]: one for one in notes.cosmos.documents("dek_store")} == old
    ran = notes.bench.run()
    assert ran.code == 0, ran.err + ran.out
    assert ran.event("run_ended")["outcomes"]["notes"] == {
        # the rehearsed one was written in earnest
        "body.ct": {"resealed": 39, "current": 1}
    }
    new = {one["id"]: one for one in notes.cosmos.documents("dek_store")}
    assert len(new) == 80
    # etags and all
    assert {name: new[name] for name in old} == old
    assert {new[name]["tenant"] for name in new.keys() - old.keys()} == {"t0", "t1", "t2"}
    assert notes.read("v2") == expected(40)
    assert {one["kind"] for one in notes.cosmos.documents("notes")} == {"note"}
    assert notes.bench.rewrap("verify", "--deep").code == 0
    assert notes.bench.run().code == 0
    assert len(notes.cosmos.documents("dek_store")) == 80


def test_records_may_be_partitioned_otherwise(cosmos: CosmosDatabase, tmp_path: Path) -> None:
    """By a tenant, say: a new record is where the old one is."""
    require("Node", "node")
    notes = Containers(cosmos, tmp_path, "/tenant")
    notes.fill(1, 12)
    ran = notes.bench.run()
    assert ran.code == 0, ran.err + ran.out
    assert len(cosmos.documents("dek_store")) == 24
    assert notes.read("v2") == expected(12)
    assert notes.bench.rewrap("verify", "--deep").code == 0


def test_plaintext_from_before_encryption_is_counted_or_sealed(notes: Containers) -> None:
    """A text where the object should be: counted; or made the object, under a DEK of its own."""
    notes.fill(1, 3)
    legacy = [{"id": f"n{i}", "tenant": "t0", "kind": "note", "body": plain("body", i)} for i in (4, 5)]
    notes.cosmos.upsert("notes", *legacy, {"id": "n6", "tenant": "t0", "kind": "note", "body": 17})
    ran = notes.bench.run()
    assert ran.code == 0, ran.err + ran.out
    assert ran.event("run_ended")["outcomes"]["notes"] == {
        "body.ct": {"resealed": 2, "current": 1, "plaintext": 3}
    }
    notes.job('plaintext = "seal"')
    ran = notes.bench.run()
    assert ran.code == 3, ran.err + ran.out
    assert ran.event("run_ended")["outcomes"]["notes"] == {
        "body.ct": {"current": 4, "resealed": 1, "quarantined": 1}
    }
    assert notes.read("v2") == expected(5)
    assert len(notes.cosmos.documents("dek_store")) == 3 + 3 + 2


def test_ids_without_a_record_are_told_by_a_job_that_rewraps(notes: Containers) -> None:
    """The referential check: ids in use without a record, and records that nothing refers to."""
    notes.fill(1, 6)
    lost = str(notes.cosmos.document("notes", "n1")["body"]["dekId"])
    notes.cosmos.delete("dek_store", notes.cosmos.document("dek_store", lost))
    job = JOB[: JOB.index("[deks.notes]")] + REWRAP
    (notes.bench.folder / "rewrap.toml").write_text(job)
    ran = notes.bench.run()
    assert ran.code == 3, ran.err + ran.out
    (reason,) = ran.event("verdict")["reasons"]
    assert reason == f"notes.body.dekId: 1 DEKs that are in use there have no record in dek_store: {lost}"
    told = [one["message"] for one in ran.events if one["type"] == "notice"]
    assert 'deks "notes": 5 records, 0 of them referred to by nothing that the job names' in told


REWRAP = """
[deks.notes]
container = "dek_store"
referenced_by = [{ container = "notes", column = "body", path = "dekId" }]
[[targets]]
container = "dek_store"
[[targets.fields]]
column = "wrappedDek"
layout = "mek"
version = { column = "mekVersion" }
nonce = { column = "iv" }
tag = { column = "tag" }
"""
