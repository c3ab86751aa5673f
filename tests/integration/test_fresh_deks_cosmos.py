"""Documents of Cosmos DB, re-encrypted with a fresh DEK each; made and read by Node's own crypto."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import require
from tests.support.containers import JOB, Containers, expected
from tests.support.cosmos import CosmosDatabase
from tests.support.documents import Notes, make, node, plain
from tests.support.proxy import Answer, FaultProxy
from tests.support.values import KEYS
from tests.support.workbench import Workbench

ABSENT = Answer(404, body='{"code": "NotFound", "message": "made by the tests"}')
"""What a replica answers that a record has not reached yet."""


@pytest.fixture
def notes(cosmos: CosmosDatabase, tmp_path: Path) -> Containers:
    require("Node", "node")
    return Containers(cosmos, tmp_path)


def test_every_document_gets_a_dek_of_its_own(notes: Containers) -> None:
    """A dry run makes none; a run makes one for each document, and again none when it is done once more."""
    notes.fill(1, 40)
    old = {one["id"]: one for one in notes.cosmos.documents("dek_store")}
    assert notes.bench.run("--dry-run").code == 0
    checked = notes.bench.rewrap("check", "--from", "v1", "--to", "v2")
    assert checked.code == 0, checked.out + checked.err
    planned = notes.bench.rewrap("plan", "--from", "v1", "--to", "v2")
    assert planned.code == 0, planned.err
    assert 'table "notes": 40 DEKs will be made, as new records of dek_store' in planned.out + planned.err
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


def test_documents_and_records_may_be_in_stores_of_two_kinds(
    cosmos: CosmosDatabase, bench: Workbench
) -> None:
    """Notes in Postgres, their DEKs in Cosmos DB: the records first, and no snapshot over both."""
    require("Node", "node")
    notes = Notes(bench)
    notes.create()
    made = make("v1", [{"id": i, "tenant": "t", "fields": {"body": plain("body", i)}} for i in range(1, 9)])
    notes.insert({"deks": [], "documents": made["documents"]})
    cosmos.container("dek_store", "/id")
    cosmos.upsert("dek_store", *made["deks"])
    bench.environ |= cosmos.environ
    notes.job()
    job = (bench.folder / "rewrap.toml").read_text()
    section = JOB[JOB.index("[deks.notes]") : JOB.index("[[targets]]")]
    for old, new in (
        ("[keys.versions.v1]", STORE + "[keys.versions.v1]"),
        (job[job.index("[deks.notes]") : job.index('copied = ["tenant"]')], section.replace(
            'container = "dek_store"', 'container = "dek_store"\nstore = "records"').replace(
            'copied = ["tenant"]\n', "")),
        ('copied = ["tenant"]\n', ""),
        ('dek = "notes"', 'dek = "notes"\nstore = "main"'),
    ):  # fmt: skip
        assert old in job
        job = job.replace(old, new)
    (bench.folder / "rewrap.toml").write_text(job)
    ran = bench.run()
    assert ran.code == 0, ran.err + ran.out
    deks = cosmos.documents("dek_store")
    assert len(deks) == 16
    bodies = {i: document["body"] for i, document in notes.documents().items()}
    told = {"keys": {"v2": KEYS["v2"].hex()}, "deks": [one for one in deks if one["mekVersion"] == "v2"]}
    read = node("open", {**told, "values": list(bodies.values())})
    assert read == [plain("body", i) for i in bodies]
    assert bench.rewrap("verify", "--deep").code == 0


STORE = """
[stores.records]
kind = "cosmos"
endpoint = "${COSMOS_ENDPOINT}"
key = "env:COSMOS_KEY"
database = "${COSMOS_DATABASE}"
"""


def test_a_replica_that_lags_loses_no_record(notes: Containers, cosmos_proxy: FaultProxy) -> None:
    """Below Strong consistency a record that is not found once is looked for again."""
    notes.fill(1, 40)
    notes.bench.environ["COSMOS_ENDPOINT"] = cosmos_proxy.endpoint
    absent = cosmos_proxy.add(ABSENT, "read", path="dek_store", every=7)
    ran = notes.bench.run()
    assert absent.befallen > 10
    assert ran.code == 0, ran.err + ran.out
    cosmos_proxy.clear()
    assert notes.read("v2") == expected(40)
    # each new record has what is copied from the old one
    assert {one.get("tenant") for one in notes.cosmos.documents("dek_store")} == {"t0", "t1", "t2"}
    assert len(notes.cosmos.documents("dek_store")) == 80


def test_a_record_that_stays_away_is_none(notes: Containers, cosmos_proxy: FaultProxy) -> None:
    """It is looked for three times; the document is put aside, and the others are rotated."""
    notes.fill(1, 40)
    notes.bench.environ["COSMOS_ENDPOINT"] = cosmos_proxy.endpoint
    lost = str(notes.cosmos.document("notes", "n9")["body"]["dekId"])
    absent = cosmos_proxy.add(ABSENT, "read", path=lost)
    ran = notes.bench.run()
    assert ran.code == 3, ran.err + ran.out
    assert ran.event("run_ended")["outcomes"]["notes"]["body.ct"]["quarantined"] == 1
    assert absent.befallen >= 3
    (entry,) = notes.bench.rewrap("quarantine", "list", "--json").events
    assert (entry["row_id"], entry["reason"]) == ('["n9","\\"t0\\""]', "no_dek")


def test_a_new_record_that_is_not_there_is_told_in_the_words_of_its_store(
    notes: Containers, cosmos_proxy: FaultProxy
) -> None:
    """Nothing is sealed with its DEK; Cosmos DB has neither rules nor row-level security."""
    notes.fill(1, 5)
    old = "|".join(one["id"] for one in notes.cosmos.documents("dek_store"))
    before = notes.cosmos.documents("notes")
    notes.bench.environ["COSMOS_ENDPOINT"] = cosmos_proxy.endpoint
    cosmos_proxy.add(ABSENT, "read", path=f"dek_store/docs/(?!{old})")
    ran = notes.bench.run()
    assert ran.code == 1, ran.err + ran.out
    assert 'a new record of "dek_store" is not there after it was made' in ran.err
    assert "settle_s" in ran.err
    assert "row-level" not in ran.err
    assert notes.cosmos.documents("notes") == before


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
