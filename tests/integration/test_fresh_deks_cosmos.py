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


@pytest.mark.parametrize("partition", ["/id", "/tenant"])
def test_ids_that_can_name_no_record_have_none(
    cosmos: CosmosDatabase, tmp_path: Path, partition: str
) -> None:
    """Ids that no request can name, and halves of characters, have no record; others are rotated."""
    require("Node", "node")
    notes = Containers(cosmos, tmp_path, partition)
    notes.fill(1, 12)
    odd = ["a/b", ".", "..", "../x", "a\\b", "/", "cut\ud83d", "x" * 2_000]
    for number, dek_id in enumerate(odd, 1):
        note = cosmos.document("notes", f"n{number}")
        cosmos.upsert("notes", {**note, "body": {**note["body"], "dekId": dek_id}})
    assert notes.bench.run("--dry-run").code == 3
    ran = notes.bench.run()
    assert ran.code == 3, ran.err + ran.out
    aside = [(one["row"], one["reason"]) for one in ran.events if one["type"] == "quarantined"]
    assert [reason for _, reason in aside] == ["no_dek"] * len(odd)
    verified = notes.bench.rewrap("verify", "--deep", "--json")
    assert verified.code == 3, verified.err
    (told,) = (one["classes"] for one in verified.events if one["type"] == "field_verdict")
    assert {name: count for name, count in told.items() if count} == {"current": 4, "quarantined": 8}
    shown = notes.bench.rewrap("quarantine", "list", "--json")
    assert (shown.code, len(shown.out.splitlines())) == (0, len(odd)), shown.err
    job = JOB[: JOB.index("[deks.notes]")] + REWRAP
    (notes.bench.folder / "rewrap.toml").write_text(job)
    again = notes.bench.run()
    assert again.code == 3, again.err + again.out
    assert "8 DEKs that are in use there have no record" in again.err + again.out
    for number in range(1, len(odd) + 1):
        note = cosmos.document("notes", f"n{number}")
        cosmos.upsert("notes", {**note, "body": {**note["body"], "dekId": "cut\ud83d"}})
    again = notes.bench.run()
    (reason,) = again.event("verdict")["reasons"]
    assert reason.endswith("1 DEKs that are in use there have no record in dek_store: …")


def test_a_record_with_an_odd_id_is_found(notes: Containers) -> None:
    """It cannot be asked for by its place, but it can be looked for: its document gets a fresh one."""
    notes.fill(1, 3)
    note = notes.cosmos.document("notes", "n1")
    record = notes.cosmos.document("dek_store", note["body"]["dekId"])
    notes.cosmos.upsert("dek_store", {**record, "id": "a/b"})
    notes.cosmos.upsert("notes", {**note, "body": {**note["body"], "dekId": "a/b"}})
    ran = notes.bench.run()
    assert ran.code == 0, ran.err + ran.out
    assert notes.read("v2") == expected(3)
    assert notes.bench.rewrap("verify", "--deep").code == 0


def test_records_that_the_server_does_not_know_by_their_place_are_looked_for(
    notes: Containers, cosmos_proxy: FaultProxy
) -> None:
    """400 to each request that names one: a query finds them all the same."""
    notes.fill(1, 4)
    notes.bench.environ["COSMOS_ENDPOINT"] = cosmos_proxy.endpoint
    rule = cosmos_proxy.add(Answer(400), "read", path="/dek_store/docs/")
    ran = notes.bench.run()
    assert ran.code == 0, ran.err + ran.out
    assert rule.befallen >= 4
    assert notes.read("v2") == expected(4)


def test_printed_queries_claim_no_more_than_they_count(notes: Containers) -> None:
    """No query joins containers: values are counted, and records by version, which says 0 only of the new."""
    notes.fill(1, 5)
    assert notes.bench.run().code == 0
    ran = notes.bench.rewrap("verify", "--print-queries")
    values, count_values, records, count_records = ran.out.strip().split("\n")
    assert values.startswith("-- notes.body.ct: documents with a value")
    assert records.startswith("-- dek_store.wrappedDek: records of DEKs that are not under v2")
    assert "must be 0" not in ran.out
    assert (asked(notes, "notes", count_values), asked(notes, "dek_store", count_records)) == (5, 5)
    for old in notes.cosmos.documents("dek_store"):
        if old["mekVersion"] == "v1":
            notes.cosmos.delete("dek_store", old)
    assert asked(notes, "dek_store", count_records) == 0


def asked(notes: Containers, container: str, query: str) -> int:
    """What a printed query counts."""
    body = {"query": query.replace("WHERE ", "WHERE true AND (", 1) + ")", "parameters": []}
    headers = {
        "Content-Type": "application/query+json", "x-ms-documentdb-isquery": "True",
        "x-ms-documentdb-query-enablecrosspartition": "True",
    }  # fmt: skip
    path = f"dbs/{notes.cosmos.name}/colls/{container}/docs"
    answer, _ = notes.cosmos.account.request("POST", path, body, headers=headers)
    (count,) = answer["Documents"]
    return int(count)


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
