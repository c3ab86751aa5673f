"""One value in several columns: version, nonce and tag apart, and versions that several values share."""

from __future__ import annotations

import os
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.support.inprocess import run_here
from tests.support.values import KEY_V2, KEY_V3, KEYS
from tests.support.workbench import Workbench

LAYOUTS = """
[layouts.hex]
encoding = "hex"
cipher = "aes-256-gcm"
[layouts.raw]
encoding = "raw"
cipher = "aes-256-gcm"
aad = "{owner}"
"""

TEXT = """
[[targets]]
table = "cards"
[[targets.fields]]
column = "number"
layout = "hex"
version = { column = "kid" }
nonce = { column = "iv" }
tag = { column = "auth" }
"""

BYTES = """
[[targets]]
table = "cards"
[[targets.fields]]
column = "number"
layout = "raw"
version = { column = "kid", form = "local/{version}" }
nonce = { column = "iv" }
tag = { column = "auth" }
"""

SHARED = """
[[targets]]
table = "cards"
fields = [
  { column = "number", layout = "raw", version = { column = "kid" } },
  { column = "holder", layout = "raw", version = { column = "kid" } },
]
"""


def gcm(
    plain: str, version: str = "v1", aad: str = "", key: bytes | None = None
) -> tuple[bytes, bytes, bytes]:
    """(nonce, ciphertext, tag)."""
    nonce = os.urandom(12)
    sealed = AESGCM(key or KEYS[version]).encrypt(nonce, plain.encode(), aad.encode())
    return nonce, sealed[:-16], sealed[-16:]


def opened(nonce: bytes, ciphertext: bytes, tag: bytes, aad: str = "", key: bytes = KEY_V2) -> str:
    return AESGCM(key).decrypt(nonce, ciphertext + tag, aad.encode()).decode()


def whole(plain: str, version: str = "v1", aad: str = "o", key: bytes | None = None) -> bytes:
    nonce, ciphertext, tag = gcm(plain, version, aad, key)
    return nonce + ciphertext + tag


def test_parts_of_text_are_written_each_to_its_column(bench: Workbench) -> None:
    """Nonce, tag, ciphertext and version in columns of text: one value, one UPDATE."""
    bench.job(TEXT, LAYOUTS)
    bench.sql("CREATE TABLE cards (id int PRIMARY KEY, number text, iv text, auth varchar(32), kid text)")
    rows: list[tuple[Any, ...]] = []
    for i in range(1_200):
        nonce, ciphertext, tag = gcm(f"card {i}")
        rows.append((i, ciphertext.hex(), nonce.hex(), tag.hex(), "v1"))
    rows += [(9_001, None, None, None, None), (9_002, None, "dead", "beef", "v1")]
    bench.insert("cards", ["id", "number", "iv", "auth", "kid"], rows)
    ran = bench.run()
    assert ran.code == 0, ran.err
    for row in bench.sql("SELECT * FROM cards WHERE id < 9000"):
        parts = (bytes.fromhex(row[name]) for name in ("iv", "number", "auth"))
        assert opened(*parts) == f"card {row['id']}"
        assert row["kid"] == "v2"
    left = [tuple(row) for row in bench.sql("SELECT * FROM cards WHERE id > 9000 ORDER BY id")]
    assert left == rows[-2:]
    assert ran.event("run_ended")["outcomes"]["cards"]["number"] == {"resealed": 1_200, "null": 2}
    assert bench.rewrap("verify", "--deep").code == 0


def test_parts_of_bytes_with_associated_data(bench: Workbench) -> None:
    """Parts in columns of bytea, the version written in a form of its own, bound to a column of the row."""
    bench.job(BYTES, LAYOUTS)
    bench.sql(
        "CREATE TABLE cards (id int PRIMARY KEY, owner text, number bytea, iv bytea, auth bytea, kid text)"
    )
    rows: list[tuple[Any, ...]] = []
    for i in range(300):
        nonce, ciphertext, tag = gcm(f"card {i}", aad=f"owner {i % 7}")
        rows.append((i, f"owner {i % 7}", ciphertext, nonce, tag, "local/v1"))
    bench.insert("cards", ["id", "owner", "number", "iv", "auth", "kid"], rows)
    ran = bench.run()
    assert ran.code == 0, ran.err
    for row in bench.sql("SELECT * FROM cards"):
        assert opened(row["iv"], row["number"], row["auth"], row["owner"]) == f"card {row['id']}"
        assert row["kid"] == "local/v2"
    assert bench.rewrap("verify", "--deep").code == 0
    again = bench.run()
    assert again.event("run_ended")["outcomes"]["cards"]["number"] == {"current": 300}


def test_broken_parts_are_put_aside(bench: Workbench) -> None:
    """A missing nonce, a short tag, a nonce of another row: quarantined, and no part of them is written."""
    bench.job(TEXT, LAYOUTS)
    bench.sql("CREATE TABLE cards (id int PRIMARY KEY, number text, iv text, auth text, kid text)")
    rows: list[tuple[Any, ...]] = []
    for i in range(8):
        nonce, ciphertext, tag = gcm(f"card {i}")
        rows.append((i, ciphertext.hex(), nonce.hex(), tag.hex(), "v1"))
    rows[1] = (1, rows[1][1], None, rows[1][3], "v1")
    rows[2] = (2, rows[2][1], rows[2][2], rows[2][3][:-2], "v1")
    rows[3] = (3, rows[3][1], rows[4][2], rows[3][3], "v1")
    rows[5] = (5, "not hex", rows[5][2], rows[5][3], "v1")
    rows[6] = (6, rows[6][1], rows[6][2], rows[6][3], "v9")
    bench.insert("cards", ["id", "number", "iv", "auth", "kid"], rows)
    ran = bench.run()
    assert ran.code == 3
    assert ran.event("run_ended")["outcomes"]["cards"]["number"] == {
        "resealed": 3, "quarantined": 4, "other_version": 1,
    }  # fmt: skip
    found = {row["id"]: tuple(row) for row in bench.sql("SELECT * FROM cards")}
    assert all(found[i] == rows[i] for i in (1, 2, 3, 5, 6))
    listed = bench.rewrap("quarantine", "list", "--json")
    reasons = {event["row_id"]: event["reason"] for event in listed.events}
    assert reasons == {"1": "malformed", "2": "malformed", "3": "unopenable", "5": "malformed"}


@pytest.mark.parametrize("kid", ["int", "smallint", "bigint", "text", "varchar(5)"])
def test_version_columns_of_any_type(bench: Workbench, kid: str) -> None:
    """The version's name is what stands in the column, numbers included."""
    path = bench.job(
        '[[targets]]\ntable = "cards"\nfields = [{ column = "number", layout = "raw", '
        'version = { column = "kid" } }]',
        LAYOUTS,
    )
    path.write_text(
        path.read_text().replace("versions.v1", "versions.1").replace("versions.v2", "versions.2")
    )
    bench.sql(f"CREATE TABLE cards (id int PRIMARY KEY, owner text DEFAULT 'o', number bytea, kid {kid})")
    bench.sql(
        "INSERT INTO cards (id, number, kid) SELECT i, v, '1' FROM unnest($1::int[], $2::bytea[]) AS d(i, v)",
        list(range(10)),
        [whole(f"card {i}") for i in range(10)],
    )
    ran = bench.rewrap("run", "--from", "1", "--to", "2", "--allow-unseen-target")
    assert ran.code == 0, ran.err
    for row in bench.sql("SELECT id, number, kid::text AS kid FROM cards"):
        raw = row["number"]
        assert (opened(raw[:12], raw[12:-16], raw[-16:], "o"), row["kid"]) == (f"card {row['id']}", "2")


def shared(bench: Workbench, rows: list[tuple[int, bytes | None, bytes | None, str | None]]) -> None:
    bench.job(SHARED, LAYOUTS)
    bench.sql(
        "CREATE TABLE cards (id int PRIMARY KEY, owner text DEFAULT 'o', number bytea, holder bytea,"
        " kid text)"
    )
    bench.insert("cards", ["id", "number", "holder", "kid"], list(rows))


def test_values_that_share_a_version_change_together(bench: Workbench) -> None:
    """Two ciphertexts under one version column: both get the new version, or neither does."""
    rows: list[tuple[int, bytes | None, bytes | None, str | None]] = [
        (i, whole(f"card {i}"), whole(f"holder {i}"), "v1") for i in range(100)
    ]
    rows[7] = (7, whole("card 7"), whole("holder 7", key=KEY_V3), "v1")
    rows[8] = (8, whole("card 8"), None, "v1")
    rows[9] = (9, whole("card 9"), b"short", "v1")
    shared(bench, rows)
    ran = bench.run()
    assert ran.code == 3
    found = {row["id"]: row for row in bench.sql("SELECT * FROM cards")}
    for i in (7, 9):
        assert (found[i]["number"], found[i]["holder"], found[i]["kid"]) == rows[i][1:]
    for i in set(range(100)) - {7, 8, 9}:
        raw = found[i]["holder"]
        assert opened(raw[:12], raw[12:-16], raw[-16:], "o") == f"holder {i}"
        assert found[i]["kid"] == "v2"
    assert found[8]["kid"] == "v2"
    assert ran.event("run_ended")["outcomes"]["cards"] == {
        "number": {"resealed": 98, "quarantined": 2},
        "holder": {"resealed": 97, "quarantined": 2, "null": 1},
    }
    listed = bench.rewrap("quarantine", "list", "--json").events
    assert {(e["row_id"], e["field"], e["reason"]) for e in listed} == {
        ("7", "number", "linked"), ("7", "holder", "unopenable"),
        ("9", "number", "linked"), ("9", "holder", "malformed"),
    }  # fmt: skip
    assert "shares its stored version" in bench.rewrap("quarantine", "show", "--row", "7").out
    assert bench.rewrap("verify", "--json").event("verdict")["quarantined"] == 4


def test_a_value_that_comes_beside_a_shared_version_stays_readable(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The application fills an empty column under v1 between read and write: the version stays with it."""
    from rewrap.stores.postgres.writer import PostgresWriter

    shared(bench, [(i, whole(f"card {i}"), None, "v1") for i in range(20)])
    swap = PostgresWriter.swap
    writes = iter(
        [
            # the first batch loses two rows: one for this, one because it is not the row that was read
            ("UPDATE cards SET holder = $1 WHERE id = 1", whole("late holder")),
            ("UPDATE cards SET number = $1 WHERE id = 2", whole("card 2")),
            # and the second attempt at row 2 compares what it writes, and what shares its version
            ("UPDATE cards SET holder = $1 WHERE id = 2", whole("late holder")),
        ]
    )
    calls: list[int] = []

    async def disturbed_swap(self: PostgresWriter, *arguments: Any, **named: Any) -> int:
        connection = await self.connected()
        if not connection.is_in_transaction():
            calls.append(1)
            for _ in range(2 if len(calls) == 1 else 1):
                if (write := next(writes, None)) is not None:
                    await connection.execute(*write)
        return await swap(self, *arguments, **named)

    monkeypatch.setattr(PostgresWriter, "swap", disturbed_swap)
    assert run_here(bench).exit_code == 0
    for row in bench.sql("SELECT * FROM cards"):
        assert row["kid"] == "v2"
        for name, plain in (("number", f"card {row['id']}"), ("holder", "late holder")):
            raw = row[name]
            assert raw is None or opened(raw[:12], raw[12:-16], raw[-16:], "o") == plain
    assert bench.value("SELECT count(holder) FROM cards") == 2


def test_an_unmarked_value_gets_a_version(bench: Workbench) -> None:
    """A NULL version: unmarked, counted or resealed as the job says."""
    target = """
[[targets]]
table = "cards"
unmarked = "reseal"
fields = [{ column = "number", layout = "raw", version = { column = "kid" } }]
"""
    bench.job(target, LAYOUTS)
    bench.sql("CREATE TABLE cards (id int PRIMARY KEY, owner text DEFAULT 'o', number bytea, kid text)")
    bench.insert("cards", ["id", "number", "kid"], [(1, whole("a"), "v1"), (2, whole("b"), None)])
    ran = bench.run()
    assert ran.code == 0, ran.err
    for row in bench.sql("SELECT * FROM cards"):
        assert row["kid"] == "v2"
        raw = row["number"]
        assert opened(raw[:12], raw[12:-16], raw[-16:], "o") == "ab"[row["id"] - 1]


@pytest.mark.parametrize("number_as", ["text", "number"])
def test_versions_in_a_document(bench: Workbench, number_as: str) -> None:
    """Payload, nonce, tag and version by path; a version that is a number in the document stays one."""
    import json

    path = bench.job(
        """
[[targets]]
table = "docs"
[[targets.fields]]
column = "doc"
path = "card.ct"
layout = "hex"
version = { path = "card.kid" }
nonce = { path = "card.iv" }
tag = { path = "card.tag" }
""",
        LAYOUTS,
    )
    path.write_text(
        path.read_text().replace("versions.v1", "versions.1").replace("versions.v2", "versions.2")
    )
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, doc jsonb)")
    kid: Any = 1 if number_as == "number" else "1"
    for i in range(20):
        nonce, ciphertext, tag = gcm(f"card {i}")
        doc = {"card": {"ct": ciphertext.hex(), "iv": nonce.hex(), "tag": tag.hex(), "kid": kid}, "n": i}
        bench.sql("INSERT INTO docs VALUES ($1, $2)", i, json.dumps(doc))
    ran = bench.rewrap("run", "--from", "1", "--to", "2", "--allow-unseen-target")
    assert ran.code == 0, ran.err
    for row in bench.sql("SELECT id, doc::text AS doc FROM docs"):
        doc = json.loads(row["doc"])
        assert doc["n"] == row["id"]
        assert doc["card"]["kid"] == (2 if number_as == "number" else "2")
        parts = (bytes.fromhex(doc["card"][name]) for name in ("iv", "ct", "tag"))
        assert opened(*parts) == f"card {row['id']}"
