"""Columns of bytes: a marker of bytes, and the payload as it is."""

from __future__ import annotations

import os

import pytest

from tests.support.values import KEY_V2, KEY_V3, box, opened_bytes, sealed_bytes, unbox
from tests.support.workbench import Workbench

RAW = """
[layouts.raw]
marker = "{version}:"
version = "v[0-9]+"
encoding = "raw"
cipher = "aes-256-gcm"
[layouts.bound]
marker = "{version}:"
version = "v[0-9]+"
encoding = "raw"
cipher = "aes-256-gcm"
aad = "{owner}"
"""

FILES = """
[[targets]]
table = "files"
fields = [{ column = "body", layout = "raw" }]
"""


def files(bench: Workbench, values: list[bytes | None]) -> None:
    bench.job(FILES, RAW)
    bench.sql("CREATE TABLE files (id bigint PRIMARY KEY, body bytea, owner text)")
    bench.insert("files", ["id", "body"], list(enumerate(values, 1)))


def bodies(bench: Workbench) -> dict[int, bytes | None]:
    return {row["id"]: row["body"] for row in bench.sql("SELECT id, body FROM files")}


def test_bytes_are_resealed_as_bytes(bench: Workbench) -> None:
    """Every value ends under the new marker and opens to its own plaintext; NULL and current stay."""
    plains = [f"file {i}".encode() + os.urandom(i % 50) for i in range(2_500)]
    kept = sealed_bytes("kept", "v2")
    files(bench, [sealed_bytes(plain) for plain in plains] + [None, kept])
    ran = bench.run()
    assert ran.code == 0, ran.err
    after = bodies(bench)
    assert (after[2_501], after[2_502]) == (None, kept)
    assert [opened_bytes(after[i + 1] or b"", {"v2": KEY_V2}) for i in range(2_500)] == plains
    assert ran.event("run_ended")["outcomes"]["files"]["body"] == {
        "resealed": 2_500, "null": 1, "current": 1,
    }  # fmt: skip
    deep = bench.rewrap("verify", "--deep", "--json")
    assert deep.code == 0, deep.out
    assert deep.event("field_verdict")["versions"] == {"v2": 2_501}


def test_every_kind_of_bytes_has_its_class(bench: Workbench) -> None:
    """Broken, foreign, unmarked and plain bytes are told apart, left as they are, and counted by verify."""
    odd = {
        2: b"v1:short",
        3: sealed_bytes("x", key=KEY_V3),
        4: b"v9:" + sealed_bytes("x")[3:],
        5: sealed_bytes("x")[3:],
        6: b"\x00\xff\x01plain bytes, \\ and \x1f",
        7: b"",
        8: b"\x01",
    }
    files(bench, [sealed_bytes("good"), *odd.values()])
    ran = bench.run()
    assert ran.code == 3
    assert ran.event("run_ended")["outcomes"]["files"]["body"] == {
        "resealed": 1, "quarantined": 2, "other_version": 1, "unmarked": 1, "plaintext": 3,
    }  # fmt: skip
    after = bodies(bench)
    assert {i: after[i] for i in odd} == odd
    verdict = ran.event("verdict")
    found = {
        name: verdict[name] for name in ("stale", "quarantined", "other_version", "unmarked", "plaintext")
    }
    assert found == {"stale": 0, "quarantined": 2, "other_version": 1, "unmarked": 1, "plaintext": 3}


def test_large_bytes_come_alone_and_larger_ones_not_at_all(bench: Workbench) -> None:
    """A value over the page's share is fetched by its key; one over the limit is set aside by its size."""
    files(bench, [sealed_bytes("a"), sealed_bytes(b"b" * 20_000), sealed_bytes(b"c" * 70_000)])
    bench.job(FILES, RAW + "[pace]\nmax_value_bytes = 65536\nbatch_bytes = 1048576\n")
    ran = bench.run()
    assert ran.code == 3
    assert ran.event("quarantined")["reason"] == "too_large"
    after = bodies(bench)
    assert opened_bytes(after[2] or b"", {"v2": KEY_V2}) == b"b" * 20_000
    assert (after[3] or b"").startswith(b"v1:")


def test_bytes_and_text_of_one_row_go_in_one_write(bench: Workbench) -> None:
    """A row with a column of each, bound to an owner, under a uuid: one new row version, both opened."""
    bench.job(
        """
[[targets]]
table = "files"
fields = [{ column = "body", layout = "bound" }, { column = "title", layout = "libsodium-token" }]
""",
        RAW,
    )
    bench.sql(
        "CREATE TABLE files (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), "
        "body bytea, title text, owner text)"
    )
    rows = [(sealed_bytes(f"b{i}", aad=f"o{i}"), box(f"t{i}"), f"o{i}") for i in range(300)]
    rows += [(None, box("only a title"), "x"), (sealed_bytes("only a body", aad="y\x1f"), None, "y\x1f")]
    bench.insert("files", ["body", "title", "owner"], rows)
    ran = bench.run()
    assert ran.code == 0, ran.err
    found = bench.sql("SELECT body, title, owner FROM files")
    assert len(found) == 302
    for row in found:
        if row["body"] is not None and row["title"] is not None:
            body = opened_bytes(row["body"], {"v2": KEY_V2}, row["owner"]).decode()
            title = unbox(row["title"], {"v2": KEY_V2}).decode()
            assert (body[1:], title[1:]) == (row["owner"][1:], row["owner"][1:])
    (one,) = bench.sql("SELECT n_tup_upd AS n FROM pg_stat_user_tables WHERE relname = 'files'")
    assert one["n"] <= 303, "more than one write a row"


def test_the_fence_on_bytes_refuses_the_old_marker(bench: Workbench) -> None:
    """`verify --fence` adds a constraint that admits the new marker and NULL, and knows it again."""
    files(bench, [sealed_bytes("a"), None])
    assert bench.run().code == 0
    for word in ("added and validated", "was there already"):
        fenced = bench.rewrap("verify", "--fence", "--json")
        assert fenced.code == 0, fenced.err
        assert any(word in e.get("message", "") for e in fenced.events)
    with pytest.raises(Exception, match="rewrap_fence_body"):
        bench.sql("UPDATE files SET body = $1 RETURNING id", sealed_bytes("late"))
    back = bench.rewrap("run", "--from", "v2", "--to", "v1", "--allow-unseen-target")
    assert back.code == 2
    assert "fence" in back.err


@pytest.mark.parametrize(("kind", "layout"), [("text", "raw"), ("bytea", "libsodium-token")])
def test_a_layout_for_the_other_kind_of_column_is_refused(bench: Workbench, kind: str, layout: str) -> None:
    """Bytes in text, or text in bytes, is a mistake in the job file, said before anything is read."""
    bench.job(f'[[targets]]\ntable = "files"\nfields = [{{ column = "body", layout = "{layout}" }}]\n', RAW)
    bench.sql(f"CREATE TABLE files (id bigint PRIMARY KEY, body {kind})")
    ran = bench.run()
    assert ran.code == 2
    assert f'layout "{layout}" stores' in ran.err
    assert 'encoding = "raw"' in ran.err
