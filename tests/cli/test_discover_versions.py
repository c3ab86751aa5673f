"""Versions beside values: discover proposes them, and check, plan and run speak of those left out."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from rewrap.job import Job
from tests.support.values import KEY_V1, box
from tests.support.workbench import Result, Workbench

PARTS = """
[layouts.apart]
encoding = "raw"
cipher = "aes-256-gcm"
"""

VISITS = """
[[targets]]
table = "visits"
[[targets.fields]]
column = "diagnosis"
layout = "apart"
nonce = { column = "diagnosis_iv" }
tag = { column = "diagnosis_auth_tag" }
"""


def visits(bench: Workbench, more: str = "", *, version: str = "key_version int") -> None:
    """A value in four columns, and beside it a hash."""
    bench.sql(
        f"CREATE TABLE visits (id int PRIMARY KEY, diagnosis bytea, diagnosis_iv bytea, "
        f"diagnosis_auth_tag bytea, {version}, attachment_sha256 bytea{more})"
    )
    rows = []
    for n in range(40):
        nonce = os.urandom(12)
        sealed = AESGCM(KEY_V1).encrypt(nonce, b"canary-plaintext %d" % n * (1 + n % 3), None)
        named = 1 if version.endswith("int") else "1"
        rows.append(
            (n, sealed[:-16], nonce, sealed[-16:], named, hashlib.sha256(str(n).encode()).digest())
        )  # fmt: skip
    columns = ["id", "diagnosis", "diagnosis_iv", "diagnosis_auth_tag", version.split()[0]]
    bench.insert("visits", [*columns, "attachment_sha256"], rows)


def found(ran: Result) -> dict[str, dict[str, Any]]:
    assert ran.code == 0, ran.err
    return {event["column"]: event for event in ran.events if event["type"] == "column_found"}


def test_hash_beside_a_value_does_not_hide_its_version(bench: Workbench) -> None:
    """The one ciphertext of a table has the one column that names a key, whatever else looks random."""
    visits(bench)
    seen = found(bench.rewrap("discover", bench.dsn, "--json"))
    assert seen["diagnosis"]["parts"] == {
        "nonce": "diagnosis_iv", "tag": "diagnosis_auth_tag", "version": "key_version",
    }  # fmt: skip
    assert seen["diagnosis"]["undecided"] == []
    # counted as versions in a marker are
    assert seen["diagnosis"]["versions"] == {"1": 40}
    assert "parts" not in seen["attachment_sha256"] or not seen["attachment_sha256"]["parts"]


def test_versions_that_compete_are_left_to_be_decided(bench: Workbench) -> None:
    """Two columns that may name the key: none is taken, and the draft says so where it matters."""
    visits(bench, ", kid text DEFAULT 'k7'")
    seen = found(bench.rewrap("discover", bench.dsn, "--json"))
    assert "version" not in seen["diagnosis"]["parts"]
    assert seen["diagnosis"]["undecided"] == ["key_version", "kid"]
    assert bench.rewrap("discover", bench.dsn, "--write", "found.toml").code == 0
    text = (bench.folder / "found.toml").read_text()
    assert "DECIDE" in text
    assert 'version = { column = "key_version" }' in text
    shown = bench.rewrap("discover", bench.dsn).out
    assert "key_version or kid" in shown


def test_version_of_unknown_form_is_left_to_be_decided(bench: Workbench) -> None:
    """What a column names keys by may be no number: then a person says what it is."""
    visits(bench, version="key_id text")
    bench.sql("UPDATE visits SET key_id = 'prod-blue'")
    seen = found(bench.rewrap("discover", bench.dsn, "--json"))
    assert seen["diagnosis"]["undecided"] == ["key_id"]


def test_version_named_after_its_value_wins(bench: Workbench) -> None:
    """`diagnosis_key_version` is not another column's."""
    visits(bench, ", kid text DEFAULT 'k7'", version="diagnosis_key_version int")
    seen = found(bench.rewrap("discover", bench.dsn, "--json"))
    assert seen["diagnosis"]["parts"]["version"] == "diagnosis_key_version"


def test_version_in_the_same_document_is_proposed(bench: Workbench) -> None:
    """A key beside a value's parts in one object names the key, as text or as a number."""
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, doc jsonb)")
    rows = []
    for n in range(30):
        raw = {"ct": os.urandom(20 + n % 7), "iv": os.urandom(12), "tag": os.urandom(16)}
        sealed = {name: value.hex() for name, value in raw.items()}
        rows.append((n, json.dumps({"ssn": {**sealed, "kid": 1 + n % 2}})))
    bench.insert("docs", ["id", "doc"], rows)
    (one,) = found(bench.rewrap("discover", bench.dsn, "--json")).values()
    assert one["column"] == "doc.ssn.ct"
    assert one["parts"]["version"] == "doc.ssn.kid"


def warned(bench: Workbench) -> list[dict[str, Any]]:
    ran = bench.rewrap("check", "--from", "v1", "--to", "v2", "--json")
    assert ran.event("checked"), ran.err
    return [one for one in ran.events if one.get("code") == "version-column-unnamed"]


def test_version_column_left_out_is_a_warning(bench: Workbench) -> None:
    """Rotated values beside a version that stays are unreadable: check says so, plan and run too."""
    visits(bench)
    bench.job(VISITS, PARTS)
    (one,) = warned(bench)
    assert one["severity"] == "warning"
    assert '"key_version"' in one["reason"]
    assert 'version = { column = "key_version" }' in one["hint"]
    planned = bench.rewrap("plan", "--from", "v1", "--to", "v2")
    assert planned.code == 0, planned.err
    assert "key_version" in planned.out
    ran = bench.run("--dry-run")
    assert any("key_version" in event["message"] for event in ran.events if event["type"] == "notice")
    part = 'version = { column = "key_version" }'
    bench.job(VISITS + part, PARTS)
    assert warned(bench) == []


def test_version_in_the_marker_needs_no_column(bench: Workbench) -> None:
    """Values that name their key themselves are not warned about."""
    bench.notes([box("one"), box("two", "v2")])
    bench.sql("ALTER TABLE notes ADD key_version int")
    assert warned(bench) == []


def test_version_in_a_document_left_out_is_a_warning(bench: Workbench) -> None:
    """The same where value and version are keys of one object, in arrays too."""
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, doc jsonb)")
    rows = []
    for n in range(20):
        nonce = os.urandom(12)
        sealed = (nonce + AESGCM(KEY_V1).encrypt(nonce, b"canary-plaintext", None)).hex()
        rows.append((n, json.dumps({"ssn": {"ct": sealed, "kid": "v1", "other": "x"}})))
    bench.insert("docs", ["id", "doc"], rows)
    layout = '[layouts.hexed]\nencoding = "hex"\ncipher = "aes-256-gcm"\n'
    field = '{ column = "doc", path = "ssn.ct", layout = "hexed" }'
    bench.job(f'[[targets]]\ntable = "docs"\nfields = [{field}]', layout)
    (one,) = warned(bench)
    assert 'version = { path = "ssn.kid" }' in one["hint"]


def test_draft_with_a_version_loads(bench: Workbench) -> None:
    """The proposed version is one that a job takes."""
    visits(bench)
    assert bench.rewrap("discover", bench.dsn, "--write", "found.toml").code == 0
    job = Job.load(bench.folder / "found.toml", bench.environ)
    (entry,) = job.targets[0].fields
    assert entry.version is not None
    assert entry.version.column == "key_version"
