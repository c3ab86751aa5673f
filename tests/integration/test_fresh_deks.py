"""Documents under DEKs, re-encrypted with a fresh DEK each; made and read by Node's own crypto."""

from __future__ import annotations

import asyncio
import json
import os
from urllib.parse import urlsplit, urlunsplit

import pytest

from rewrap.engine.dekring import Document, FreshDek
from rewrap.engine.minting import Mint
from rewrap.rotations import close_all, rotation_of
from rewrap.stores.open import Stores
from tests.conftest import require
from tests.support.documents import BODY, DEKS, TARGET, Notes, make, node, plain
from tests.support.inprocess import load
from tests.support.values import KEYS
from tests.support.workbench import Workbench


@pytest.fixture
def notes(bench: Workbench) -> Notes:
    require("Node", "node")
    made = Notes(bench)
    made.create()
    made.job()
    return made


def test_every_document_gets_a_dek_of_its_own(notes: Notes) -> None:
    """New records under new ids, the old ones left; Node reads every note with the new key alone."""
    notes.fill(1, 300)
    before = {record["id"]: record for record in notes.deks()}
    ran = notes.bench.run()
    assert ran.code == 0, ran.err + ran.out
    assert ran.event("run_ended")["outcomes"]["notes"] == {"doc.body.ct": {"resealed": 300}}
    after = {record["id"]: record for record in notes.deks()}
    assert len(after) == 600
    assert {name: after[name] for name in before} == before
    assert notes.all_read(300, "v2")
    used = [doc["body"]["dekId"] for doc in notes.documents().values()]
    assert len(set(used)) == 300
    assert set(used).isdisjoint(before)
    assert {after[name]["mekVersion"] for name in used} == {"v2"}
    assert {after[name]["tenant"] for name in used} == {"t0", "t1", "t2"}
    assert notes.bench.rewrap("verify", "--deep").code == 0


def test_a_dek_that_documents_share_is_replaced_by_one_for_each(notes: Notes) -> None:
    """Three tenants' DEKs become as many as there are documents."""
    notes.fill(1, 60, shared=True)
    assert len(notes.deks()) == 3
    assert notes.bench.run().code == 0
    assert len(notes.deks()) == 63
    assert len({doc["body"]["dekId"] for doc in notes.documents().values()}) == 60
    assert notes.all_read(60, "v2")


def test_fields_of_a_document_share_its_fresh_dek(bench: Workbench) -> None:
    """Two fields that name the same DEK, each for itself, name the same fresh one afterwards."""
    require("Node", "node")
    notes = Notes(bench, ("body", "title"))
    notes.create()
    notes.job()
    notes.fill(1, 40)
    assert bench.run().code == 0
    assert len(notes.deks()) == 80
    assert all(doc["body"]["dekId"] == doc["title"]["dekId"] for doc in notes.documents().values())
    assert notes.all_read(40, "v2")
    assert bench.rewrap("verify", "--deep").code == 0


def test_nothing_but_a_run_makes_records(notes: Notes) -> None:
    """Check, plan and a dry run leave records and documents as they are; plan says how many will be made."""
    notes.fill(1, 50)
    before = notes.deks(), notes.documents()
    assert notes.bench.run("--dry-run").code == 0
    checked = notes.bench.rewrap("check", "--from", "v1", "--to", "v2")
    assert checked.code == 0, checked.out + checked.err
    assert "opens 70 of 70 stored values" in checked.out
    planned = notes.bench.rewrap("plan", "--from", "v1", "--to", "v2")
    assert planned.code == 0, planned.err
    assert 'table "notes": 50 DEKs will be made, as new records of deks' in planned.out + planned.err
    assert (notes.deks(), notes.documents()) == before


def test_a_key_that_opens_no_record_stops_before_the_first_write(notes: Notes) -> None:
    """All versions of the key are gone: exit 10, nothing made, nothing put aside."""
    notes.fill(1, 30)
    before = notes.deks(), notes.documents()
    ran = notes.bench.run(KEY_V1="00" * 32)
    assert ran.code == 10
    assert "opens none of" in ran.err
    assert (notes.deks(), notes.documents()) == before
    # and a new key that is not the application's
    notes.fill(31, 5, "v2")
    ran = notes.bench.run(KEY_V2="00" * 32)
    assert ran.code == 10
    assert len(notes.deks()) == 35


def test_every_kind_of_value_is_counted_as_what_it_is(notes: Notes) -> None:
    """Records decide: lost, of another version, damaged; values damaged, without a DEK, plaintext, null."""
    notes.fill(1, 100)
    notes.fill(101, 3, "v2")
    notes.fill(104, 2, "v3")
    sql = notes.bench.sql
    of = "(SELECT doc -> 'body' ->> 'dekId' FROM notes WHERE id = {})"
    sql(f"DELETE FROM deks WHERE id = {of.format(1)}")
    sql(f"UPDATE deks SET wrapped_dek = 'AAAA' || substr(wrapped_dek, 5) WHERE id = {of.format(2)}")
    sql(f"UPDATE deks SET mek_version = NULL WHERE id = {of.format(3)}")
    sql("""UPDATE notes SET doc = jsonb_set(doc, '{body,ct}', '"no base64!"') WHERE id = 4""")
    sql("UPDATE notes SET doc = doc #- '{body,dekId}' WHERE id = 5")
    sql("""UPDATE notes SET doc = jsonb_set(doc, '{body}', '{"ct": "plain as ever"}') WHERE id = 6""")
    sql("UPDATE notes SET doc = doc - 'body' WHERE id = 7")
    ran = notes.bench.run()
    assert ran.code == 3, ran.err
    assert ran.event("run_ended")["outcomes"]["notes"] == {
        "doc.body.ct": {
            "resealed": 93, "quarantined": 5, "plaintext": 1, "null": 1, "current": 3, "other_version": 2,
        }
    }  # fmt: skip
    put_aside = {one["row"]: one["reason"] for one in ran.events if one["type"] == "quarantined"}
    assert put_aside == {
        "1": "no_dek", "2": "unopenable", "3": "malformed", "4": "malformed", "5": "no_dek",
    }  # fmt: skip
    # no record was made for what was not written
    assert len(notes.deks()) == 104 + 93
    verified = notes.bench.rewrap("verify", "--deep", "--json")
    assert verified.code == 3
    assert verified.event("field_verdict")["classes"] == {
        "current": 96, "quarantined": 5, "plaintext": 1, "null": 1, "stale": 2,
    }  # fmt: skip
    assert verified.event("verdict")["unopenable"] == 0


def test_plaintext_from_before_encryption_is_counted_or_sealed(notes: Notes) -> None:
    """A text where the object should be: counted; or made the object, under a DEK of its own."""
    notes.fill(1, 3)
    insert = "INSERT INTO notes VALUES ($1, $2)"
    for i in (4, 5):
        notes.bench.sql(insert, i, json.dumps({"kind": "note", "body": plain("body", i), "last": [1]}))
    notes.bench.sql(insert, 6, json.dumps({"kind": "note"}))
    ran = notes.bench.run()
    assert ran.code == 0, ran.err
    assert ran.event("run_ended")["outcomes"]["notes"] == {
        "doc.body.ct": {"resealed": 3, "plaintext": 2, "null": 1}
    }
    assert ran.event("verdict")["plaintext"] == 2
    # nothing says of which tenant a new record would be
    notes.job('plaintext = "seal"', deks='given = { made = "2020-01-01" }\n')
    ran = notes.bench.run()
    assert ran.code == 1
    assert "[23502] (schema public, table deks, column tenant)" in ran.err
    notes.job('plaintext = "seal"')
    notes.bench.sql("ALTER TABLE deks ALTER COLUMN tenant SET DEFAULT 'nobody'")
    (notes.bench.folder / "rewrap.toml").write_text(
        (notes.bench.folder / "rewrap.toml").read_text().replace('copied = ["tenant"]', "")
    )
    ran = notes.bench.run("--abandon", ran.event("run_started")["run_id"])
    assert ran.code == 0, ran.err
    assert ran.event("run_ended")["outcomes"]["notes"] == {
        "doc.body.ct": {"current": 3, "resealed": 2, "null": 1}
    }
    opened = notes.opened("v2")["body"]
    assert opened == {i: plain("body", i) for i in range(1, 6)}
    assert notes.documents()[5]["last"] == [1]
    assert len(notes.deks()) == 3 + 3 + 2
    assert notes.bench.rewrap("verify", "--deep").code == 0


def test_elements_of_an_array_have_deks_each(bench: Workbench) -> None:
    """Elements under one DEK share the fresh one; an element that is a text is plaintext."""
    require("Node", "node")
    notes = Notes(bench)
    notes.create()
    elements = BODY.replace("body.", "cards[*].")
    bench.job(TARGET.format(fields=elements, more=""), DEKS)
    made = make("v1", [{"id": i, "tenant": "t", "fields": {"a": f"a{i}", "b": f"b{i}"}} for i in (1, 2)])
    for one in made["documents"]:
        one["fields"] = {"cards": [one["fields"]["a"], {"other": 1}, one["fields"]["b"]]}
    notes.insert(made)
    ran = bench.run()
    assert ran.code == 0, ran.err
    assert len(notes.deks()) == 4
    for i, document in notes.documents().items():
        first, other, last = document["cards"]
        assert other == {"other": 1}
        assert first["dekId"] == last["dekId"]
        keys = {"v2": KEYS["v2"].hex()}
        deks = [one for one in notes.deks() if one["mekVersion"] == "v2"]
        assert node("open", {"keys": keys, "deks": deks, "values": [first, last]}) == [f"a{i}", f"b{i}"]
    assert bench.rewrap("verify", "--deep").code == 0


def test_fields_that_name_one_dek_in_one_place_change_together(bench: Workbench) -> None:
    """Columns beside each other, a dek_id of type uuid that refers to the records: both values or none."""
    require("Node", "node")
    bench.sql(
        "CREATE TABLE deks (id uuid PRIMARY KEY, tenant text, wrapped_dek text, iv text, tag text, "
        "mek_version text)"
    )
    bench.sql(
        "CREATE TABLE notes (id bigint PRIMARY KEY, dek uuid REFERENCES deks, title text, title_iv text, "
        "title_tag text, body text, body_iv text, body_tag text)"
    )
    made = make("v1", [{"id": i, "tenant": "t", "fields": {"title": f"t{i}", "body": f"b{i}"}} for i in
                       range(1, 31)])  # fmt: skip
    columns = ["id", "tenant", "wrapped_dek", "iv", "tag", "mek_version"]
    names = ["id", "tenant", "wrappedDek", "iv", "tag", "mekVersion"]
    bench.insert("deks", columns, [tuple(record[name] for name in names) for record in made["deks"]])
    for one in made["documents"]:
        title, body = one["fields"]["title"], one["fields"]["body"]
        bench.sql(
            "INSERT INTO notes VALUES ($1, $2, $3, $4, $5, $6, $7, $8)", one["id"], title["dekId"],
            title["ct"], title["iv"], title["tag"], body["ct"], body["iv"], body["tag"],
        )  # fmt: skip
    # of one note the title is damaged: its body has to stay as it is
    bench.sql("UPDATE notes SET title = 'AAAAAAAA' WHERE id = 7")
    field = (
        '{{ column = "{0}", layout = "field", dek_id = {{ column = "dek" }}, '
        'nonce = {{ column = "{0}_iv" }}, tag = {{ column = "{0}_tag" }} }}'
    )
    bench.job(TARGET.format(fields=f"{field.format('title')}, {field.format('body')}", more=""), DEKS)
    ran = bench.run()
    assert ran.code == 3, ran.err
    assert ran.event("run_ended")["outcomes"]["notes"] == {
        "title": {"resealed": 29, "quarantined": 1}, "body": {"resealed": 29, "quarantined": 1},
    }  # fmt: skip
    reasons = {(one["field"], one["reason"]) for one in ran.events if one["type"] == "quarantined"}
    assert reasons == {("title", "unopenable"), ("body", "linked")}
    assert bench.value("SELECT count(*) FROM deks") == 30 + 29
    found = bench.sql(
        "SELECT n.*, d.mek_version, d.wrapped_dek, d.iv, d.tag FROM notes n JOIN deks d ON d.id = n.dek "
        "WHERE n.id <> 7"
    )
    deks = [
        {"id": str(row["dek"]), "wrappedDek": row["wrapped_dek"], "iv": row["iv"], "tag": row["tag"],
         "mekVersion": row["mek_version"]}
        for row in found
    ]  # fmt: skip
    values = [
        {"dekId": str(row["dek"]), "ct": row[name], "iv": row[f"{name}_iv"], "tag": row[f"{name}_tag"]}
        for name in ("title", "body")
        for row in found
    ]
    told = {"keys": {"v2": KEYS["v2"].hex()}, "deks": deks, "values": values}
    assert node("open", told) == [f"{name}{row['id']}" for name in "tb" for row in found]


def documents_of(notes: Notes, count: int) -> list[Document]:
    """Notes as documents that get a fresh DEK; what their old DEK is makes no difference here."""
    found = list(notes.documents().items())[:count]
    return [Document("notes", str(i), doc["body"]["dekId"], bytes([i] * 32), ()) for i, doc in found]


def minted(notes: Notes, documents: list[Document], *, to_version: str = "v2") -> list[FreshDek]:
    """What a mint of its own answers, as another process would."""

    async def work() -> list[FreshDek]:
        rotation = await rotation_of(load(notes.bench), "v1", to_version, notes.bench.environ)
        deks = Stores(rotation.job, notes.bench.environ).deks()
        try:
            return await Mint(rotation.wrapping("notes"), deks["notes"], 5.0).fresh(documents)
        finally:
            await close_all(*deks.values())

    return asyncio.run(work())


def test_a_second_attempt_finds_the_records_of_the_first(notes: Notes) -> None:
    """As after a kill between record and document: the same ids, the same DEKs, and no further record."""
    notes.fill(1, 5)
    documents = documents_of(notes, 5)
    first = minted(notes, documents)
    assert minted(notes, documents[:2]) == first[:2]
    assert len({fresh.id for fresh in first}) == len({fresh.dek for fresh in first}) == 5
    assert len(notes.deks()) == 10


def test_a_record_under_another_version_is_not_used(notes: Notes) -> None:
    """One that was left behind, and then rewrapped, or broken: the next id is taken, and that one stays."""
    notes.fill(1, 2)
    documents = documents_of(notes, 2)
    first = minted(notes, documents)
    rewrapped, broken = first
    notes.bench.sql("UPDATE deks SET mek_version = 'v3' WHERE id = $1", rewrapped.id)
    notes.bench.sql("UPDATE deks SET tag = iv WHERE id = $1", broken.id)
    second = minted(notes, documents)
    assert {fresh.id for fresh in second}.isdisjoint(fresh.id for fresh in first)
    assert {fresh.dek for fresh in second}.isdisjoint(fresh.dek for fresh in first)
    assert minted(notes, documents) == second
    assert len(notes.deks()) == 6
    # on the way to another version the ids are others, too
    assert {fresh.id for fresh in minted(notes, documents, to_version="v3")}.isdisjoint(
        fresh.id for fresh in (*first, *second)
    )


def test_a_record_that_is_not_kept_as_it_was_sent_ends_the_run(notes: Notes) -> None:
    """A trigger that drops new records, or bends them: no value is sealed with such a DEK."""
    notes.fill(1, 3)
    before = notes.documents()
    notes.bench.sql(
        "CREATE FUNCTION drop_it() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
        "CREATE TRIGGER dropping BEFORE INSERT ON deks FOR EACH ROW EXECUTE FUNCTION drop_it()"
    )
    ran = notes.bench.run()
    assert ran.code == 1
    assert "is not there after it was made" in ran.err
    notes.bench.sql(
        "DROP TRIGGER dropping ON deks;"
        "CREATE FUNCTION bend_it() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN NEW.tag = NEW.iv; RETURN NEW; END';"
        "CREATE TRIGGER bending BEFORE INSERT ON deks FOR EACH ROW EXECUTE FUNCTION bend_it()"
    )
    ran = notes.bench.rewrap("resume")
    assert ran.code == 1
    assert "does not open to what was wrapped; no value was sealed with it" in ran.err
    # not one for each id that could be tried
    assert len(notes.deks()) <= 3 + 3
    assert notes.documents() == before


def test_a_role_without_insert_is_told(notes: Notes) -> None:
    """Before the first document is written."""
    notes.fill(1, 3)
    role = f"envelope_{os.getpid()}"
    notes.bench.sql(
        f"CREATE ROLE {role} LOGIN PASSWORD 'x'; CREATE SCHEMA rewrap AUTHORIZATION {role};"
        f"GRANT SELECT, UPDATE ON notes TO {role}; GRANT SELECT ON deks TO {role}"
    )
    try:
        parts = urlsplit(notes.bench.dsn)
        dsn = urlunsplit(parts._replace(netloc=f"{role}:x@{parts.netloc.rpartition('@')[2]}"))
        ran = notes.bench.run(DATABASE_URL=dsn)
        assert ran.code == 1
        assert "lacks INSERT on column" in ran.err
        granted = "id, tenant, wrapped_dek, iv, tag, mek_version"
        notes.bench.sql(f"GRANT INSERT ({granted}) ON deks TO {role}")
        ran = notes.bench.rewrap("resume", DATABASE_URL=dsn)
        assert ran.code == 0, ran.err
    finally:
        notes.bench.sql(f"DROP OWNED BY {role}; DROP ROLE {role}")
    assert notes.all_read(3, "v2")


def test_what_an_old_dek_wrote_meanwhile_is_sealed_again_with_the_same_fresh_one(notes: Notes) -> None:
    """The application writes with the DEK in its cache, value and id together; the next run finds it."""
    notes.fill(1, 3)
    before = notes.documents()
    assert notes.bench.run().code == 0
    after = notes.documents()
    notes.bench.sql("UPDATE notes SET doc = $1::jsonb WHERE id = 2", json.dumps(before[2]))
    assert notes.all_read(3)
    assert notes.bench.rewrap("verify").code == 3
    assert notes.bench.run().code == 0
    assert notes.documents()[2]["body"]["dekId"] == after[2]["body"]["dekId"]
    assert notes.documents()[2]["body"]["ct"] != after[2]["body"]["ct"]
    assert len(notes.deks()) == 6
    assert notes.all_read(3, "v2")


def test_ids_without_a_record_are_told_by_a_job_that_rewraps(notes: Notes) -> None:
    """The referential check: ids in use without a record, and records that nothing refers to."""
    notes.fill(1, 6)
    lost = notes.documents()[1]["body"]["dekId"]
    notes.bench.sql("DELETE FROM deks WHERE id = $1", lost)
    notes.bench.sql("DELETE FROM notes WHERE id = 2")
    layouts = DEKS[: DEKS.index("[deks.notes]")]
    reference = '[deks.notes]\ntable = "deks"\nreferenced_by = [{ table = "notes", column = "doc", path = '
    notes.bench.job(REWRAP, layouts + reference + '"body.dekId" }]\n')
    ran = notes.bench.run()
    assert ran.code == 3, ran.err
    (reason,) = ran.event("verdict")["reasons"]
    assert reason == f"notes.doc.body.dekId: 1 DEKs that are in use there have no record in deks: {lost}"
    told = [one["message"] for one in ran.events if one["type"] == "notice"]
    assert 'deks "notes": 5 records, 1 of them referred to by nothing that the job names' in told
    notes.bench.sql("DELETE FROM notes WHERE id = 1")
    assert notes.bench.rewrap("verify").code == 0


def test_check_looks_for_what_refers_to_deks(notes: Notes) -> None:
    """A name that nothing has would end verify: it is an error before anything is run."""
    notes.fill(1, 2)
    layouts = DEKS[: DEKS.index("[deks.notes]")]
    reference = '[deks.notes]\ntable = "deks"\nreferenced_by = [{ table = "nots", column = "doc", path = '
    notes.bench.job(REWRAP, layouts + reference + '"body.dekId" }]\n')
    found = notes.bench.rewrap("check", "--from", "v1", "--to", "v2", "--json")
    assert found.code == 1
    (finding,) = [event for event in found.events if event.get("code") == "no-reference"]
    assert finding["severity"] == "error"
    assert "nots" in finding["subject"]


def test_printed_query_joins_values_and_records(notes: Notes) -> None:
    """What an operator pastes into psql counts as verify does."""
    notes.fill(1, 4)
    notes.fill(5, 2, "v2")
    notes.bench.sql("DELETE FROM deks WHERE id = $1", notes.documents()[1]["body"]["dekId"])
    printed = notes.bench.rewrap("verify", "--to", "v2", "--print-queries")
    assert printed.code == 0, printed.err
    (query,) = [line for line in printed.out.splitlines() if line.startswith("SELECT")]
    counted = {(row["version"], row["recorded"]): row["n"] for row in notes.bench.sql(query.rstrip(";"))}
    assert counted == {("v1", True): 3, ("v2", True): 2, (None, False): 1}


REWRAP = """
[[targets]]
table = "deks"
fields = [{ column = "wrapped_dek", layout = "mek", version = { column = "mek_version" }, \
nonce = { column = "iv" }, tag = { column = "tag" } }]
"""
