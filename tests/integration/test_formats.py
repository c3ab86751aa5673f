"""Values that other programs stored, rotated in a table: found, resealed, counted and opened again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rewrap.crypto.indexes import parse_index
from rewrap.crypto.layout import builtin_layouts
from rewrap.packed import PART
from tests.support.vectors import Vector, vectors
from tests.support.workbench import Workbench

STORED = [
    ("laravel", {"like": "laravel"}),
    ("rails", {"like": "rails"}),
    ("ruby", {"like": "lockbox"}),
    ("ruby", {"like": "lockbox-bytes"}),
    ("ruby", {"like": "attr-encrypted"}),
    ("libraries", {"like": "tink"}),
    ("libraries", {"like": "tink-base64"}),
    ("libraries", {"like": "jwe"}),
    ("libraries", {"like": "sentry"}),
    ("node", {"like": "47ng-cloak"}),
    ("node", {"like": "ciphersweet"}),
    ("cloak", {"like": "elixir-cloak", "nonce_bytes": 16}),
    ("php", {"encoding": "base64", "cipher": "aes-256-ctr", "plaintext": "json"}),
]

JOB = """
name = "formats"
[stores.main]
kind = "postgres"
url = "${{DATABASE_URL}}"
[keys.versions."{old}"]
material = "env:KEY_OLD"
[keys.versions."{new}"]
material = "env:KEY_NEW"
[layouts.stored]
{layout}
{indexes}
[[targets]]
table = "{table}"
[[targets.fields]]
column = "{column}"
layout = "stored"
{apart}
"""


def stored(name: str, layout: dict[str, Any]) -> list[Vector]:
    """The vectors of one layout and one key that open."""
    found = [vector for vector in vectors(name) if vector.made["layout"] == layout and vector.opens]
    return [vector for vector in found if vector.key == found[0].key and not vector.made.get("liberal")]


def set_up(bench: Workbench, chosen: list[Vector], more: dict[str, str]) -> tuple[str, str]:
    """A table with the values, and a job for it; the versions' names."""
    first = chosen[0]
    table, column = first.place
    old, new = first.version, first.new_version
    kind = "bytea" if first.layout.binary else "text"
    bench.environ |= {"KEY_OLD": first.key.hex(), "KEY_NEW": first.new_key.hex()}
    layout = "\n".join(f"{name} = {json.dumps(value)}" for name, value in first.made["layout"].items())
    words = {"old": old, "new": new, "layout": layout, "table": table, "column": column}
    (bench.folder / "rewrap.toml").write_text(JOB.format(**words, **more))
    bench.sql(f"CREATE TABLE {table} (id bigint PRIMARY KEY, {column} {kind}, c_iv text, idx text)")
    rows: list[tuple[Any, ...]] = []
    for at, vector in enumerate(chosen * 30, 1):
        nonce, payload = (None, vector.value)
        if "apart" in vector.made:
            nonce, payload = str(vector.value).split(PART)
        rows.append((at, payload, nonce))
    bench.insert(table, ["id", column, "c_iv"], rows)
    return old, new


def rotate(bench: Workbench, old: str, new: str, count: int) -> None:
    """All values of the table are resealed, and verify finds them so."""
    ran = bench.rewrap("run", "--from", old, "--to", new, "--allow-unseen-target", "--json")
    assert ran.code == 0, ran.err + ran.out
    (outcomes,) = ran.event("run_ended")["outcomes"].values()
    assert list(outcomes.values()) == [{"resealed": count}]
    deep = bench.rewrap("verify", "--to", new, "--deep", "--json")
    assert deep.code == 0, deep.out + deep.err


@pytest.mark.parametrize(("name", "layout"), STORED, ids=lambda value: str(value)[:60])
def test_stored_format_is_rotated(bench: Workbench, name: str, layout: dict[str, Any]) -> None:
    """Every value opens under the new key to its own plaintext, and has its old form."""
    chosen = stored(name, layout)
    nonce = 'nonce = { column = "c_iv" }' if "apart" in chosen[0].made else ""
    old, new = set_up(bench, chosen, {"indexes": "", "apart": nonce})
    rotate(bench, old, new, 30 * len(chosen))
    table, column = chosen[0].place
    bound = chosen[0].bound(new=True)
    for at, row in enumerate(bench.sql(f"SELECT {column} AS v, c_iv FROM {table} ORDER BY id")):
        vector = chosen[at % len(chosen)]
        value = row["v"] if row["c_iv"] is None else row["c_iv"] + PART + row["v"]
        whole = bound.open_one(value, vector.aad)
        assert whole[bound.layout.carry_bytes :] == vector.plain
        if "time" in vector.made:
            assert int.from_bytes(whole[:8], "big") == vector.made["time"]


def test_blind_index_is_written_with_its_value(bench: Workbench) -> None:
    """The index of the new key stands beside each value; the old one is gone."""
    chosen = [vector for vector in vectors("blind_index") if vector.opens]
    indexes = '[indexes.mail]\nkind = "lockbox"\nname = "email_bidx"'
    old, new = set_up(
        bench, chosen, {"indexes": indexes, "apart": 'indexes = [{ column = "idx", index = "mail" }]'}
    )
    bench.sql("UPDATE users SET idx = 'old'")
    rotate(bench, old, new, 30 * len(chosen))
    index = parse_index({"kind": "lockbox", "name": "email_bidx"}, "idx", key_apart=False)
    layout = chosen[0].layout.joined(("index",), indexes=(index,))
    bound = layout.bind(new, chosen[0].new_key, "users", "email_ciphertext")
    for row in bench.sql("SELECT email_ciphertext AS v, idx FROM users LIMIT 5"):
        value = row["v"] + PART + row["idx"]
        assert bound.indexes_match(value, bound.open_one(value, None))


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("tink", "3735928559"),
        ("tink", "92"),
        ("tink-base64", "3735928559"),
        ("elixir-cloak", "AES.GCM.V1"),
        ("elixir-cloak", "a"),
        ("elixir-cloak", "b" * 64),
        ("elixir-cloak-base64", "AES.GCM.V1"),
        ("jwe", "2026-07"),
        ("47ng-cloak", "b431c1bd"),
    ],
)
def test_server_reads_a_version_where_it_stands(bench: Workbench, name: str, version: str) -> None:
    """The expression for a marker that no job knows works in Postgres too, and matches nothing else."""
    layout = builtin_layouts()[name]
    aads = [layout.aad.render({})] if layout.aad else None
    (value,) = layout.bind(version, bytes(32)).seal_values([b"plain"], aads)
    text = "encode($1::bytea, 'escape')" if layout.binary else "$1::text"
    found = f"SELECT substring({text} from $2)"
    read = bench.value(found, value, layout.version_regex)
    assert read
    if name == "elixir-cloak":
        assert read == version
    plain = b"just text, and nothing sealed"
    assert bench.value(found, plain if layout.binary else plain.decode(), layout.version_regex) is None


CHANGES = {
    "a token keeps its time": (
        {"like": "fernet"},
        {"like": "fernet", "marker": "t:{version}:", "version": "v[0-9]+"},
        1_600_000_000,
    ),
    "a token's time is dropped": (
        {"like": "fernet"},
        {"like": "aes-gcm", "marker": "g:{version}:", "version": "v[0-9]+"},
        None,
    ),
    "a document begins without headers": ({"like": "aes-gcm"}, {"like": "rails"}, None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_belongs_to_a_form_is_kept_or_dropped_with_it(bench: Workbench, change: str) -> None:
    """After a change of layout each value is what the new layout makes of the same plaintext."""
    before, after, time = CHANGES[change]
    old, new = ({"layout": layout, "key": bytes(range(32)).hex()} for layout in (before, after))
    key = bytes(range(32))
    carry = (1_600_000_000).to_bytes(8, "big") if before == {"like": "fernet"} else b""
    plains = [f"plaintext {i}".encode() for i in range(49)] + [b'{"c":"%s"}' % (b"z" * 88)]
    values = Vector(old).layout.bind("v1", key).seal_values([carry + plain for plain in plains], None)
    bench.sql("CREATE TABLE t (id bigint PRIMARY KEY, c text)")
    bench.insert("t", ["id", "c"], list(enumerate(values)))
    bench.environ |= {"KEY_OLD": key.hex(), "KEY_NEW": key[::-1].hex()}
    layout = "\n".join(f"{name} = {json.dumps(value)}" for name, value in before.items())
    layout += "\n[layouts.changed]\n" + "\n".join(f"{k} = {json.dumps(v)}" for k, v in after.items())
    words = {"old": "v1", "new": "v2", "layout": layout, "table": "t", "column": "c", "indexes": ""}
    (bench.folder / "rewrap.toml").write_text(JOB.format(**words, apart='to_layout = "changed"'))
    rotate(bench, "v1", "v2", 50)
    bound = Vector(new).layout.bind("v2", key[::-1])
    for row, plain in zip(bench.sql("SELECT c FROM t ORDER BY id"), plains, strict=True):
        whole = bound.open_one(row["c"], None)
        assert whole[bound.layout.carry_bytes :] == plain
        if time is not None:
            assert int.from_bytes(whole[:8], "big") == time


def test_document_does_not_change_to_a_form_without_headers(bench: Workbench) -> None:
    """They say that the plaintext is deflated: without them nothing could read it."""
    words = {"old": "v1", "new": "v2", "table": "t", "column": "c", "indexes": ""}
    (bench.folder / "rewrap.toml").write_text(
        JOB.format(**words, layout='like = "rails"', apart='to_layout = "libsodium-token"')
    )
    bench.sql("CREATE TABLE t (id bigint PRIMARY KEY, c text)")
    refused = bench.rewrap("run", "--from", "v1", "--to", "v2")
    assert refused.code == 2
    assert "no place for it" in refused.err
