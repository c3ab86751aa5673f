"""Values that other programs stored, rotated in a table: found, resealed, counted and opened again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rewrap.crypto.indexes import parse_index
from rewrap.crypto.layout import builtin_layouts
from rewrap.packed import PART
from tests.support.workbench import Workbench
from tests.unit.test_vectors import Vector, aad_of, layout_of, value_of, vectors

NEW_VERSIONS = {
    "tink": "7",
    "tink-base64": "7",
    "elixir-cloak": "AES.GCM.V2",
    "elixir-cloak-base64": "AES.GCM.V2",
    "47ng-cloak": "0badc0de",
}
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
    found = [vector for vector in vectors(name) if vector["layout"] == layout and "plain" in vector]
    return [vector for vector in found if vector["key"] == found[0]["key"]]


def set_up(bench: Workbench, chosen: list[Vector], more: dict[str, str]) -> tuple[str, str]:
    """A table with the values, and a job for it; the versions' names."""
    first = chosen[0]
    table, column = first.get("table", "t"), first.get("column", "c")
    old, new = first.get("version", "v1"), NEW_VERSIONS.get(first["layout"].get("like", ""), "v2")
    kind = "bytea" if "bytes" in first else "text"
    bench.environ |= {"KEY_OLD": first["key"], "KEY_NEW": bytes.fromhex(first["key"])[::-1].hex()}
    layout = "\n".join(f"{name} = {json.dumps(value)}" for name, value in first["layout"].items())
    words = {"old": old, "new": new, "layout": layout, "table": table, "column": column}
    (bench.folder / "rewrap.toml").write_text(JOB.format(**words, **more))
    bench.sql(f"CREATE TABLE {table} (id bigint PRIMARY KEY, {column} {kind}, c_iv text, idx text)")
    rows: list[tuple[Any, ...]] = []
    for at, vector in enumerate(chosen * 30, 1):
        whole = value_of(vector)
        nonce, payload = (None, whole)
        if "apart" in vector:
            nonce, payload = str(whole).split(PART)
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
    again = bench.rewrap("run", "--from", old, "--to", new, "--json")
    assert again.code == 0, again.err


@pytest.mark.parametrize(("name", "layout"), STORED, ids=lambda value: str(value)[:60])
def test_stored_format_is_rotated(bench: Workbench, name: str, layout: dict[str, Any]) -> None:
    """Every value opens under the new key to its own plaintext, and has its old form."""
    chosen = stored(name, layout)
    nonce = 'nonce = { column = "c_iv" }' if "apart" in chosen[0] else ""
    old, new = set_up(bench, chosen, {"indexes": "", "apart": nonce})
    rotate(bench, old, new, 30 * len(chosen))
    table, column = chosen[0].get("table", "t"), chosen[0].get("column", "c")
    bound = layout_of(chosen[0]).bind(new, bytes.fromhex(bench.environ["KEY_NEW"]), table, column)
    for at, row in enumerate(bench.sql(f"SELECT {column} AS v, c_iv FROM {table} ORDER BY id")):
        vector = chosen[at % len(chosen)]
        value = row["v"] if row["c_iv"] is None else row["c_iv"] + PART + row["v"]
        whole = bound.open_one(value, aad_of(vector))
        assert whole[bound.layout.carry_bytes :].hex() == vector["plain"]
        if "time" in vector:
            assert int.from_bytes(whole[:8], "big") == vector["time"]


def test_blind_index_is_written_with_its_value(bench: Workbench) -> None:
    """The index of the new key stands beside each value; the old one is gone."""
    chosen = [vector for vector in vectors("blind_index") if "plain" in vector]
    indexes = '[indexes.mail]\nkind = "lockbox"\nname = "email_bidx"'
    old, new = set_up(
        bench, chosen, {"indexes": indexes, "apart": 'indexes = [{ column = "idx", index = "mail" }]'}
    )
    bench.sql("UPDATE users SET idx = 'old'")
    rotate(bench, old, new, 30 * len(chosen))
    index = parse_index({"kind": "lockbox", "name": "email_bidx"}, "idx", key_apart=False)
    layout = layout_of(chosen[0]).joined(("index",), indexes=(index,))
    bound = layout.bind(new, bytes.fromhex(bench.environ["KEY_NEW"]), "users", "email_ciphertext")
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
