"""The NoteLett rotation with the jobs of jobs/, over documents that Node made and afterwards reads."""

from __future__ import annotations

import base64
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.cosmos import CosmosDatabase, CosmosServer
from tests.support.notelett import CLASS_OF, CONTAINERS, NoteLett, Told, expected_classes, merged, rotated
from tests.support.vault import VaultEmulator
from tests.support.workbench import Result

PUBLISHED = 'SELECT VALUE COUNT(1) FROM c WHERE c.mekVersion != "{new}"'
"""What the application's runbook counts after a rotation."""

OURS = (
    "SELECT VALUE COUNT(1) FROM c WHERE NOT IS_DEFINED(c.mekVersion) OR IS_NULL(c.mekVersion) "
    'OR NOT IS_STRING(c.mekVersion) OR c.mekVersion != "{new}"'
)

COUNTS = {"dek_store": 240, "notes": 90, "artifacts": 6, "prompts": 6, "agent_actions": 6, "memories": 6}

ENCRYPTED = tuple(name for name in CONTAINERS if name != "dek_store")

_NUMBERS = itertools.count(1)


@pytest.fixture(params=["env", "akv"])
def notelett(request: pytest.FixtureRequest, cosmos: CosmosDatabase, tmp_path: Path) -> NoteLett:
    """The application over empty containers: outside of production, and with its MEK in a vault."""
    return NoteLett(cosmos, tmp_path, None if request.param == "env" else _emulator(request))


@pytest.fixture
def local(cosmos: CosmosDatabase, tmp_path: Path) -> NoteLett:
    """The application outside of production."""
    return NoteLett(cosmos, tmp_path)


def _emulator(request: pytest.FixtureRequest) -> VaultEmulator:
    vault = request.getfixturevalue("vault")
    if not isinstance(vault, VaultEmulator):
        pytest.skip("its keys are the tests' own, and so is what they are unwrapped with")
    return vault


@dataclass(frozen=True)
class Rotation:
    """One whole rotation over ordinary and odd records, as it was seen from outside at each step."""

    notelett: NoteLett
    made: Told
    before: Told
    rehearsed: Result
    left_by_dry_run: tuple[bool, list[str]]
    ran: Result
    after: Told
    verified: Result
    listed: Result


@pytest.fixture(scope="module", params=["env", "akv"])
def rotation(
    request: pytest.FixtureRequest,
    cosmos_emulator: CosmosServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Rotation]:
    """Made once, since each step takes seconds; the tests below only look at it."""
    name = f"notelett-{os.getpid()}-{next(_NUMBERS)}"
    with CosmosDatabase(cosmos_emulator.endpoint, cosmos_emulator.key, name) as database:
        vault = None if request.param == "env" else request.getfixturevalue("vault_server")
        yield _rotate(NoteLett(database, tmp_path_factory.mktemp("notelett"), vault))


def _rotate(notelett: NoteLett) -> Rotation:
    made = merged(notelett.node("make", json.dumps(COUNTS)), notelett.node("odd"))
    if notelett.vault is not None:
        notelett.mint()
    before = notelett.node("read")
    etags = notelett.etags()
    rehearsed = notelett.run("--dry-run")
    left_by_dry_run = notelett.etags() == etags, [path.name for path in notelett.folder.iterdir()]
    ran = notelett.run()
    return Rotation(
        notelett=notelett,
        made=made,
        before=before,
        rehearsed=rehearsed,
        left_by_dry_run=left_by_dry_run,
        ran=ran,
        after=notelett.node("read"),
        verified=notelett.rewrap("verify", "--deep", "--json"),
        listed=notelett.rewrap("quarantine list", "--keys", "--json"),
    )


def test_dry_run_tells_the_outcome_and_leaves_every_etag(rotation: Rotation) -> None:
    """A dry run counts what the run then does, and writes no document, no ledger and no record of itself."""
    untouched, files = rotation.left_by_dry_run
    assert rotation.rehearsed.code == 3, rotation.rehearsed.err
    ended = rotation.rehearsed.event("run_ended")
    assert rotated(ended["outcomes"]["dek_store"]["wrappedDek"]) == expected_classes(rotation.made)
    assert untouched
    assert not [name for name in files if "ledger" in name or "audit" in name]


def test_every_record_ends_in_its_class(rotation: Rotation) -> None:
    """Absent, null and numeric versions count as unmarked; what does not open is put aside; exit 3."""
    assert rotation.ran.code == 3, rotation.ran.err
    ended = rotation.ran.event("run_ended")
    assert rotated(ended["outcomes"]["dek_store"]["wrappedDek"]) == expected_classes(rotation.made)
    assert ended["state"] == "incomplete"


def test_node_unwraps_every_dek_to_what_it_was(rotation: Rotation) -> None:
    """With both MEKs each DEK is the one it was, and those that were rotated need the new one alone."""
    new = rotation.notelett.new
    for dek_id, made in rotation.made["dek_store"].items():
        record = rotation.after["dek_store"][dek_id]
        if made["kind"] not in CLASS_OF:
            assert (record.get("dek"), record["opened"], record["mekVersion"]) == (made["dek"], new, new)
        elif CLASS_OF[made["kind"]] == "unmarked":
            assert record.get("dek") == made["dek"]


def test_records_change_in_wrapping_and_version_alone(rotation: Rotation) -> None:
    """Every other property stays; a record that was not rotated is not even written."""
    before, after = rotation.before["dek_store"], rotation.after["dek_store"]
    assert before.keys() == after.keys()
    for dek_id, made in rotation.made["dek_store"].items():
        assert after[dek_id]["others"] == before[dek_id]["others"]
        if made["kind"] in CLASS_OF:
            assert after[dek_id]["hash"] == before[dek_id]["hash"], made["kind"]
        else:
            assert after[dek_id]["hash"] != before[dek_id]["hash"]


def test_documents_are_byte_identical_and_read(rotation: Rotation) -> None:
    """No note, artifact, prompt, action or memory is written, and Node reads each to what it wrote."""
    for container in ENCRYPTED:
        before, after = rotation.before[container], rotation.after[container]
        assert {name: document["hash"] for name, document in after.items()} == {
            name: document["hash"] for name, document in before.items()
        }
        for name, made in rotation.made[container].items():
            if made["kind"] == "encrypted":
                assert after[name]["plains"] == made["plains"], name


def test_verify_counts_the_same_classes_as_the_run(rotation: Rotation) -> None:
    assert rotation.verified.code == 3, rotation.verified.err
    expected = expected_classes(rotation.made)
    expected["current"] = expected.pop("resealed")
    (counted,) = [e for e in rotation.verified.events if e["type"] == "field_verdict"]
    assert counted["classes"] == expected
    verdict = rotation.verified.event("verdict")
    assert (verdict["stale"], verdict["unopenable"], verdict["complete"]) == (0, 0, False)
    assert verdict["values"] == len(rotation.made["dek_store"])


def test_quarantine_names_exactly_the_broken_records(rotation: Rotation) -> None:
    found = {(event["row_id"], event["reason"]) for event in rotation.listed.events}
    assert found == {
        (dek_id, made["kind"])
        for dek_id, made in rotation.made["dek_store"].items()
        if made["kind"] in ("malformed", "unopenable")
    }


def test_dek_ids_without_a_record_are_named(rotation: Rotation) -> None:
    """A note under a DEK that has no record will never be read again: the verdict says so."""
    (reason,) = [one for one in rotation.verified.event("verdict")["reasons"] if "notes.body.dekId" in one]
    assert "dek-that-is-gone" in reason


def test_audit_says_who_rotated_what(rotation: Rotation) -> None:
    """One line, of the run alone: which versions by fingerprint, and how it ended."""
    (line,) = (rotation.notelett.folder / "notelett-audit.jsonl").read_text().splitlines()
    record = json.loads(line)
    notelett = rotation.notelett
    assert (record["from_versions"], record["to_version"]) == ([notelett.old], notelett.new)
    assert record["fingerprints"].keys() == {notelett.old, notelett.new}
    assert (record["outcome"], record["exit_code"], record["complete"]) == ("incomplete", 3, False)
    assert rotated(record["counts"]["dek_store"]) == expected_classes(rotation.made)


def test_no_output_holds_keys_deks_or_stored_values(rotation: Rotation) -> None:
    """Nothing that was stored or sealed, and no key of account or MEK, is printed or kept."""
    results = (rotation.rehearsed, rotation.ran, rotation.verified, rotation.listed)
    said = "".join(result.out + result.err for result in results).encode()
    notelett = rotation.notelett
    kept = b"".join(path.read_bytes() for path in notelett.folder.iterdir() if "notelett-" in path.name)
    secrets = [mek["secret"] for mek in notelett.meks.values() if "secret" in mek]
    secrets += [notelett.bench.environ["COSMOS_KEY"], "Grüße aus", "before encryption came"]
    for record in notelett.cosmos.documents("dek_store"):
        if record["wrappedDek"]:
            secrets.append(record["wrappedDek"][:20])
    assert len(secrets) > 200
    assert not [secret for secret in secrets if secret.encode() in said + kept]


# a rotation that is complete


def test_rotation_completes_under_a_live_writer(notelett: NoteLett) -> None:
    """Exit 0; afterwards the old MEK is not needed: the application reads everything without it."""
    made = notelett.node("make", json.dumps(COUNTS))
    if notelett.vault is not None:
        notelett.mint()
    with notelett.writing() as told:
        ran = notelett.run()
    assert ran.code == 0, ran.err + ran.out
    verified = notelett.rewrap("verify", "--deep", "--json")
    assert verified.code == 0, verified.err + verified.out
    if notelett.vault is not None:
        notelett.vault.disable(notelett.name, notelett.old)
    read = notelett.node("read", forget=notelett.old)
    for dek_id, record in merged(made, told[0])["dek_store"].items():
        assert read["dek_store"][dek_id].get("dek") == record["dek"]
    for container in ENCRYPTED:
        for name, document in merged(made, told[0]).get(container, {}).items():
            assert read[container][name]["plains"] == document["plains"]
    marks = {record["id"]: record.get("lastUsed") for record in notelett.cosmos.documents("dek_store")}
    for dek_id, mark in told[0]["marked"].items():
        assert marks[dek_id] == mark


def test_published_check_says_0_where_verify_says_not_complete(local: NoteLett) -> None:
    """A record without mekVersion is not counted by `!=`, and does not open once the old version is gone."""
    local.node("make", json.dumps({"dek_store": 20}), version=local.new)
    (dek_id,) = local.node("save", "notes", "note-1", "still under the old MEK")["dek_store"]
    record = local.cosmos.document("dek_store", dek_id)
    del record["mekVersion"]
    local.cosmos.replace("dek_store", record)
    assert local.query("dek_store", PUBLISHED.format(new=local.new)) == [0]
    assert local.query("dek_store", OURS.format(new=local.new)) == [1]
    verified = local.rewrap("verify", "--to", local.new, "--json")
    assert verified.code == 3, verified.err
    assert verified.event("verdict")["unmarked"] == 1
    assert local.node("read", forget=local.old)["notes"]["note-1"]["kinds"] == ["no dek"]


# re-encryption


def test_reencryption_gives_every_document_a_dek_of_its_own(notelett: NoteLett) -> None:
    """Fresh DEKs under the new version; Node reads all of it without the old one; the rest stays."""
    made = notelett.node("make", json.dumps({**COUNTS, "dek_store": 20}))
    if notelett.vault is not None:
        notelett.mint()
    before = notelett.node("read")
    ran = notelett.run(job="notelett-reencrypt.toml")
    assert ran.code == 0, ran.err + ran.out
    read = notelett.node("read", forget=notelett.old)
    used: list[str] = []
    for container in ENCRYPTED:
        assert read[container].keys() == before[container].keys()
        for name, document in made[container].items():
            now = read[container][name]
            assert now["plains"] == document["plains"]
            assert now["others"] == before[container][name]["others"]
            assert len(set(now["dekIds"])) == 1
            used.append(now["dekIds"][0])
    assert len(set(used)) == len(used)
    assert not set(used) & made["dek_store"].keys()
    assert {read["dek_store"][dek_id]["mekVersion"] for dek_id in used} == {notelett.new}
    # the old records stay: something else may refer to them
    assert made["dek_store"].keys() <= read["dek_store"].keys()


def test_reencryption_counts_plaintext_and_leaves_it(local: NoteLett) -> None:
    """A text where a field should be is reported, and not touched; nor is a note whose DEK is lost."""
    made = merged(local.node("make", json.dumps({"dek_store": 4, "notes": 8})), local.node("odd"))
    before = local.node("read")
    ran = local.run(job="notelett-reencrypt.toml")
    assert ran.code == 3, ran.err + ran.out
    classes = ran.event("run_ended")["outcomes"]["notes"]["body.ct"]
    assert classes["plaintext"] == 1
    after = local.node("read")
    for name, document in made["notes"].items():
        if document["kind"] in ("plaintext", "orphan", "null"):
            assert after["notes"][name]["hash"] == before["notes"][name]["hash"], document["kind"]


def test_reencryption_seals_plaintext_where_the_job_says_so(local: NoteLett) -> None:
    """With plaintext = "seal" in its target a legacy text becomes an encrypted field that Node reads."""
    local.node("make", json.dumps({"dek_store": 2, "notes": 2}))
    local.cosmos.upsert(
        "notes",
        {"id": "legacy", "workspaceId": "w", "title": "old", "body": "written before encryption came"},
    )
    job = local.folder / "notelett-reencrypt.toml"
    wanted = 'container = "notes"\ndek = "notelett"\n'
    assert job.read_text().count(wanted) == 1
    job.write_text(job.read_text().replace(wanted, wanted + 'plaintext = "seal"\n'))
    ran = local.run(job="notelett-reencrypt.toml")
    assert ran.code == 0, ran.err + ran.out
    read = local.node("read", forget=local.old)["notes"]["legacy"]
    assert read["kinds"] == ["encrypted"]
    assert base64.b64decode(read["plains"][0]) == b"written before encryption came"
