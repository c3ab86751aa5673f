"""Values of several texts with a separator, tag-first payloads, and keys that discover cannot read."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from rewrap.job import Job
from tests.support.values import KEY_V1, box
from tests.support.workbench import Result, Workbench

JOB = """
name = "found"
[stores.main]
kind = "postgres"
url = "${DATABASE_URL}"
[keys.versions.v1]
material = "env:KEY_V1"
[keys.versions.v2]
material = "env:KEY_V2"
"""


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def b64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def parts(n: int, size: int = 12) -> tuple[bytes, bytes, bytes]:
    nonce = os.urandom(size)
    sealed = AESGCM(KEY_V1).encrypt(nonce, b"canary-plaintext %d" % (n * 7919), None)
    return nonce, sealed[-16:], sealed[:-16]


def ordered(n: int, *order: int) -> list[bytes]:
    made = parts(n)
    return [made[at] for at in order]


def found(ran: Result) -> dict[str, dict[str, Any]]:
    assert ran.code == 0, ran.err
    return {event["column"]: event for event in ran.events if event["type"] == "column_found"}


Make = Callable[[int], str]

FORMS: dict[str, tuple[Make, str | None]] = {
    "hex_colon": (lambda n: ":".join(one.hex() for one in parts(n)), None),
    "base64_colon": (lambda n: ":".join(map(b64, parts(n))), None),
    "url_dot": (lambda n: ".".join(map(b64url, parts(n))), None),
    "marked": (lambda n: "v1:" + ":".join(one.hex() for one in parts(n)), "{version}:"),
    "keyed": (lambda n: "k1:" + ":".join(map(b64, parts(n))), "k{version}:"),
    "constant": (lambda n: "enc:" + ":".join(one.hex() for one in parts(n)), "enc:"),
    "nonce16": (lambda n: ":".join(one.hex() for one in parts(n, 16)), None),
    "tag_last": (lambda n: ":".join(one.hex() for one in ordered(n, 0, 2, 1)), None),
    "two": (lambda n: (lambda p: f"{p[0].hex()}:{(p[2] + p[1]).hex()}")(parts(n)), None),
}  # fmt: skip


def pieces(bench: Workbench, forms: dict[str, tuple[Make, str | None]] = FORMS) -> None:
    columns = ", ".join(f"{name} text" for name in forms)
    bench.sql(f"CREATE TABLE pieces (id int PRIMARY KEY, {columns}, doc jsonb)")
    rows = []
    for n in range(40):
        made = [make(n) for make, _ in forms.values()]
        cards = [{"number": ":".join(one.hex() for one in parts(n))} for _ in range(2)]
        rows.append((n, *made, json.dumps({"ssn": ":".join(map(b64, parts(n))), "cards": cards})))
    bench.insert("pieces", ["id", *forms, "doc"], rows)


def test_pieces_with_a_separator_are_found(bench: Workbench) -> None:
    """Nonce, tag and ciphertext in texts of their own, as Node programs write them, wherever they are."""
    pieces(bench)
    ran = bench.rewrap("discover", bench.dsn, "--json")
    seen = found(ran)
    assert {name: one["likeness"] for name, one in seen.items()} == dict.fromkeys(
        [*FORMS, "doc.ssn", "doc.cards[*].number"], "ciphertext"
    )
    assert {name: seen[name]["marker"] for name in FORMS} == {
        name: marker for name, (_, marker) in FORMS.items()
    }
    assert bench.rewrap("discover", bench.dsn, "--write", "found.toml").code == 0
    text = (bench.folder / "found.toml").read_text()
    assert 'order = "nonce | tag | ciphertext"' in text
    assert 'separator = ":"' in text
    assert "canary" not in text + ran.out


def test_pieces_open_with_a_key(bench: Workbench) -> None:
    """Order, nonce and marker are found by trying; a job written from it rotates."""
    pieces(bench)
    (bench.folder / "rewrap.toml").write_text(JOB)
    seen = found(bench.rewrap("discover", "--json"))
    opened = {
        name: [(o["version"], o["opened"], o["tried"]) for o in one["opens"]] for name, one in seen.items()
    }
    # the head of `keyed` names version 1, and the job calls it v1: only taken as a constant it opens
    assert opened == {name: [("v1", 20, 20)] for name in (*FORMS, "doc.ssn")} | {"doc.cards[*].number": []}
    assert "elements are not probed" in seen["doc.cards[*].number"]["refused"]
    assert seen["tag_last"]["opens"][0]["order"] == "nonce | ciphertext | tag"
    assert bench.rewrap("discover", "--write", "found.toml").code == 0
    text = (bench.folder / "found.toml").read_text()
    assert "nonce_bytes = 16" in text


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
def test_order_of_one_payload_is_found_by_trying(bench: Workbench, order: tuple[int, ...]) -> None:
    """A tag before the ciphertext looks like any payload: the key tells."""
    bench.sql("CREATE TABLE one (id int PRIMARY KEY, body text)")
    rows = [(n, "enc:v1:" + b64(b"".join(ordered(n, *order)))) for n in range(20)]
    bench.insert("one", ["id", "body"], rows)
    (bench.folder / "rewrap.toml").write_text(JOB)
    (one,) = found(bench.rewrap("discover", "--json")).values()
    names = ("nonce", "tag", "ciphertext")
    assert one["opens"][0]["order"] == " ".join(names[at] for at in order)
    assert bench.rewrap("discover", "--write", "found.toml").code == 0
    checked = bench.rewrap("check", "found.toml", "--from", "v1", "--to", "v2")
    assert "opens 20 of 20" in checked.out


def test_what_a_layout_of_the_job_opens_is_ciphertext(bench: Workbench) -> None:
    """Whatever it looks like: here values whose marker no guess would find."""
    bench.sql("CREATE TABLE odd (id int PRIMARY KEY, body text, note text)")
    rows = [(n, f"<<sealed>> {b64(b''.join(ordered(n, 0, 2, 1)))}", "words") for n in range(20)]
    bench.insert("odd", ["id", "body", "note"], rows)
    layout = '[layouts.odd]\nmarker = "<<sealed>> "\nencoding = "base64"\ncipher = "aes-256-gcm"\n'
    (bench.folder / "rewrap.toml").write_text(JOB + layout)
    (one,) = found(bench.rewrap("discover", "--json")).values()
    assert (one["column"], one["likeness"]) == ("body", "ciphertext")
    assert one["opens"][0]["layout"] == "odd"


def test_column_of_the_job_that_does_not_open_is_named(bench: Workbench) -> None:
    """A column of the job is listed whatever it looks like, and that no key opens it is said."""
    bench.notes(["plain words", "and others"])
    ran = bench.rewrap("discover")
    assert "notes.body" in ran.out
    assert "opens under no layout tried" in ran.out


def test_key_that_cannot_be_read_is_named(bench: Workbench) -> None:
    """Why a key was not tried, without what stood in its place."""
    bench.notes([box("one"), box("two", "v2")])
    ran = bench.rewrap("discover", KEY_V1="zzz-canary")
    assert 'key version "v1" in environment variable KEY_V1 is not hex' in ran.out
    assert "zzz-canary" not in ran.out + ran.err
    notices = [
        e["message"] for e in bench.rewrap("discover", "--json", KEY_V1="zzz").events if e["type"] == "notice"
    ]
    assert any('"v1"' in message for message in notices)


def test_job_without_targets_tries_keys(bench: Workbench) -> None:
    """What discover could not make a target of can be tried once the keys are set."""
    bench.sql("CREATE TABLE bare (id int PRIMARY KEY, body text)")
    bench.insert("bare", ["id", "body"], [(n, b64(b"".join(ordered(n, 0, 2, 1)))) for n in range(20)])
    (bench.folder / "rewrap.toml").unlink()
    ran = bench.rewrap("job", "init")
    assert ran.code == 0
    assert "no column could be made a target" in ran.out
    assert "rewrap discover rewrap.toml --write" in ran.out
    assert "[[targets]]" in (bench.folder / "rewrap.toml").read_text()
    tried = bench.rewrap("discover", "rewrap.toml", "--write", "found.toml")
    assert "aes-gcm under v1 (20/20)" in tried.out
    assert bench.rewrap("check", "found.toml", "--from", "v1", "--to", "v2").code == 0
    refused = bench.rewrap("check")
    assert "rewrap discover" in refused.err


def test_pieces_without_a_tag_are_left_for_a_person(bench: Workbench) -> None:
    """An IV and whole blocks may be CBC: a draft does not guess a cipher that authenticates."""
    bench.sql("CREATE TABLE blocks (id int PRIMARY KEY, cbc text, gcm text)")
    rows = []
    for n in range(30):
        cbc = f"{os.urandom(16).hex()}:{os.urandom(16 * (1 + n % 4)).hex()}"
        rows.append((n, cbc, ":".join(one.hex() for one in parts(n))))
    bench.insert("blocks", ["id", "cbc", "gcm"], rows)
    assert bench.rewrap("job", "init", "--write", "found.toml").code == 0
    job = Job.load(bench.folder / "found.toml", bench.environ)
    assert [entry.column for target in job.targets for entry in target.fields] == ["gcm"]
    assert "aes-256-cbc" in (bench.folder / "found.toml").read_text()


def test_salt_and_hash_are_no_ciphertext(bench: Workbench) -> None:
    """`salt:digest`, as scrypt is often stored, is doubtful."""
    bench.sql("CREATE TABLE logins (id int PRIMARY KEY, password text)")
    values = [f"{os.urandom(16).hex()}:{os.urandom(64).hex()}" for _ in range(30)]
    bench.insert("logins", ["id", "password"], list(enumerate(values)))
    assert found(bench.rewrap("discover", bench.dsn, "--json"))["password"]["likeness"] == "hash"
