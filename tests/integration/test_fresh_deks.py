"""Documents under DEKs, re-encrypted with a fresh DEK each; made and read by Node's own crypto."""

from __future__ import annotations

import pytest

from tests.conftest import require
from tests.support.documents import Notes
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
