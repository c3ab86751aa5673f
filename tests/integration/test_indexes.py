"""Blind indexes beside values: verify --deep compares what is stored with what belongs there."""

from __future__ import annotations

import hmac

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tests.support.values import KEYS, aead, box
from tests.support.workbench import Workbench

LAYOUTS = """
[layouts.bare]
encoding = "base64"
cipher = "aes-256-gcm"
[indexes.find]
kind = "hmac-sha256"
"""

TARGET = """
[[targets]]
table = "notes"
[[targets.fields]]
column = "body"
layout = "{layout}"
indexes = [{{ column = "body_index", index = "find" }}]
"""


def index_of(plain: str, version: str) -> str:
    """HMAC-SHA256 under a key derived from the version's, as the job declares it; no code of rewrap's."""
    derived = HKDF(hashes.SHA256(), 32, None, b"blind index").derive(KEYS[version])
    return hmac.digest(derived, plain.encode(), "sha256").hex()


def sealed(layout: str, plain: str, version: str) -> str:
    return aead(plain, "", version).partition(":")[2] if layout == "bare" else box(plain, version)


@pytest.mark.parametrize("layout", ["libsodium-token", "bare"])
def test_deep_finds_indexes_that_do_not_belong_to_their_values(bench: Workbench, layout: str) -> None:
    """A wrong index and a missing one are named by verify --deep, and left alone by a run."""
    bench.job(TARGET.format(layout=layout), LAYOUTS)
    bench.sql("CREATE TABLE notes (id bigint PRIMARY KEY, body text, body_index text)")
    rows = [(i, sealed(layout, f"note {i}", "v1"), index_of(f"note {i}", "v1")) for i in range(1, 51)]
    bench.insert("notes", ["id", "body", "body_index"], rows)
    ran = bench.run()
    assert ran.code == 0, ran.err
    stored = {row["id"]: row["body_index"] for row in bench.sql("SELECT id, body_index FROM notes")}
    assert stored == {i: index_of(f"note {i}", "v2") for i in range(1, 51)}
    assert bench.rewrap("verify", "--deep", "--json").code == 0
    wrong = index_of("note 7", "v1")
    bench.sql("UPDATE notes SET body_index = $1 WHERE id = 7", wrong)
    bench.sql("UPDATE notes SET body_index = NULL WHERE id = 8")
    assert bench.rewrap("verify", "--json").code == 0
    deep = bench.rewrap("verify", "--deep", "--json")
    assert deep.code == 3
    verdict = deep.event("verdict")
    assert (verdict["misindexed"], verdict["unopenable"], verdict["stale"]) == (2, 0, 0)
    assert verdict["reasons"] == ["notes.body: 2 values whose blind index does not belong to them"]
    again = bench.run()
    assert again.event("run_ended")["outcomes"]["notes"]["body"] == {"current": 50}
    assert bench.value("SELECT body_index FROM notes WHERE id = 7") == wrong
