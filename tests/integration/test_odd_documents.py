"""Documents that are not as the job thinks: paths that lead nowhere, odd elements, one place by two names."""

from __future__ import annotations

import base64
import json
import os
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.support.values import KEY_V1, KEY_V2, KEY_V3, box, unbox
from tests.support.workbench import Result, Workbench

NEW = {"v2": KEY_V2}

HEX = """
[layouts.hex]
encoding = "hex"
cipher = "aes-256-gcm"
"""

RAILS = """
[layouts.document]
encoding = "base64"
cipher = "aes-256-gcm"
framing = "rails"
"""


def hexed(plain: str, key: bytes = KEY_V1) -> str:
    """hex(nonce12 ‖ ciphertext ‖ tag16), AES-256-GCM."""
    nonce = os.urandom(12)
    return (nonce + AESGCM(key).encrypt(nonce, plain.encode(), None)).hex()


def unhexed(value: str, key: bytes) -> str:
    raw = bytes.fromhex(value)
    return AESGCM(key).decrypt(raw[:12], raw[12:], None).decode()


def target(*fields: str) -> str:
    """A target over people.doc: each field is a path, or a path and further TOML behind a comma."""
    entries = []
    for field in fields:
        path, _, more = field.partition(", ")
        more = more or 'layout = "libsodium-token"'
        entries.append(f'{{ column = "doc", path = "{path}", {more} }}')
    return f'[[targets]]\ntable = "people"\nfields = [{", ".join(entries)}]\n'


def rotate(bench: Workbench, documents: list[Any], targets: str, more: str = "") -> tuple[Result, list[Any]]:
    """A run over these documents, and what they are afterwards."""
    bench.job(targets, more)
    bench.sql("CREATE TABLE people (id bigint PRIMARY KEY, doc jsonb)")
    bench.insert("people", ["id", "doc"], [(i, json.dumps(doc)) for i, doc in enumerate(documents, 1)])
    ran = bench.run()
    return ran, stored(bench)


def stored(bench: Workbench) -> list[Any]:
    return [json.loads(row["doc"]) for row in bench.sql("SELECT doc::text AS doc FROM people ORDER BY id")]


# what is beside values


def test_elements_that_have_no_value_do_not_keep_others_from_theirs(bench: Workbench) -> None:
    """No value in the first element, a null first, scalars and arrays among objects: all stay as they are."""
    documents: list[Any] = [
        {"cards": [{"kind": 1}, {"number": box("a")}], "t": []},
        {"cards": [], "t": [None, box("b")]},
        {"cards": [{"number": box("c")}, "legacy", 7, None, [1, 2], {"other": 1}], "t": []},
    ]
    ran, after = rotate(bench, documents, target("cards[*].number", "t[*]"))
    assert ran.code == 0, ran.err
    assert after[0]["cards"][0] == {"kind": 1}
    assert unbox(after[0]["cards"][1]["number"], NEW) == b"a"
    assert after[1]["t"][0] is None
    assert unbox(after[1]["t"][1], NEW) == b"b"
    assert unbox(after[2]["cards"][0]["number"], NEW) == b"c"
    assert after[2]["cards"][1:] == documents[2]["cards"][1:]


@pytest.mark.parametrize("beside", [[1, 2], 5, "text", None, [], [{"x": 1}], {"name": {"deep": 1}}])
def test_a_path_that_meets_something_else_does_not_spoil_its_neighbour(bench: Workbench, beside: Any) -> None:
    """Another path of the column leads through an array, a scalar or null: it has no value there."""
    fields = ["ssn", "b.name", "b.c[0].x", "b.list[*].x"]
    ran, (after,) = rotate(bench, [{"ssn": box("a"), "b": beside}], target(*fields))
    assert ran.code == 0, ran.err
    assert unbox(after["ssn"], NEW) == b"a"
    assert after["b"] == beside


def test_control_characters_in_elements_are_plaintext(bench: Workbench) -> None:
    """Texts with the characters that stand between values on their way: each comes back as it was."""
    odd = ["\u001f", "\u001e", "\u001d", "\u0001", "\u0001N", "\u0001N\u001f", "", " ", "a \u001f b"]
    documents = [{"t": [text, box(f"value {i}"), text + "x", text]} for i, text in enumerate(odd)]
    ran, after = rotate(bench, [*documents, {"t": odd}], target("t[*]"))
    assert ran.code == 0, ran.err
    assert after[-1]["t"] == odd
    for i, (text, doc) in enumerate(zip(odd, after, strict=False)):
        assert unbox(doc["t"].pop(1), NEW) == f"value {i}".encode()
        assert doc["t"] == [text, text + "x", text]


def test_a_json_object_does_not_become_a_string(bench: Workbench) -> None:
    """A format of JSON documents is stored as a text; an object in its place is left alone."""

    def rails(plain: str) -> dict[str, Any]:
        nonce = os.urandom(12)
        sealed = AESGCM(KEY_V1).encrypt(nonce, plain.encode(), None)
        payload, iv, tag = (base64.b64encode(x).decode() for x in (sealed[:-16], nonce, sealed[-16:]))
        return {"p": payload, "h": {"iv": iv, "at": tag}}

    documents = [{"s": json.dumps(rails("string"))}, {"s": rails("object")}]
    ran, after = rotate(bench, documents, target('s, layout = "document"'), RAILS)
    assert ran.code == 0, ran.err
    assert ran.event("run_ended")["outcomes"] == {"people": {"doc.s": {"resealed": 1, "plaintext": 1}}}
    written = json.loads(after[0]["s"])
    iv, tag, payload = (base64.b64decode(x) for x in (written["h"]["iv"], written["h"]["at"], written["p"]))
    assert AESGCM(KEY_V2).decrypt(iv, payload + tag, None) == b"string"
    assert after[1] == documents[1]


def test_a_text_nested_without_end_is_plaintext(bench: Workbench) -> None:
    """It is no document of the format, and no reason to stop."""
    documents = [{"s": "[" * 100_000}, {"s": '{"a":' * 50_000}, {"s": None}]
    ran, after = rotate(bench, documents, target('s, layout = "document"'), RAILS)
    assert ran.code == 0, ran.err
    assert ran.event("run_ended")["outcomes"] == {"people": {"doc.s": {"plaintext": 2, "null": 1}}}
    assert after == documents


def test_elements_of_a_long_array_are_all_resealed(bench: Workbench) -> None:
    """Two thousand elements in one document."""
    documents = [{"cards": [{"number": box(f"card {n}"), "kind": n} for n in range(2_000)]}]
    ran, (after,) = rotate(bench, documents, target("cards[*].number"))
    assert ran.code == 0, ran.err
    for n, card in enumerate(after["cards"]):
        assert card["kind"] == n
        assert unbox(card["number"], NEW) == f"card {n}".encode()


def test_a_bad_element_is_quarantined_in_rehearsal_and_run(bench: Workbench) -> None:
    """One good and one foreign element: a dry run says what a run says, and the run says it in its counts."""
    documents = [{"t": [box("a"), box("x", key=KEY_V3)]}, *({"t": [box("b")]} for _ in range(30))]
    bench.job(target("t[*]"))
    bench.sql("CREATE TABLE people (id bigint PRIMARY KEY, doc jsonb)")
    bench.insert("people", ["id", "doc"], [(i, json.dumps(doc)) for i, doc in enumerate(documents)])
    rehearsed = bench.run("--dry-run")
    ran = bench.run()
    assert (rehearsed.code, ran.code) == (3, 3)
    assert ran.event("run_ended")["outcomes"]["people"]["doc.t[*]"] == {"resealed": 30, "quarantined": 1}


# versions apart


def test_a_version_without_a_place_is_not_written_half(bench: Workbench) -> None:
    """The object that would hold the version is missing: the value is left, counted, and still opens."""
    documents: list[dict[str, Any]] = [{"card": {"ct": hexed("lone")}}]
    documents += [{"card": {"ct": hexed("x"), "meta": {"kid": "v1"}}} for _ in range(3)]
    targets = target('card.ct, layout = "hex", version = { path = "card.meta.kid" }')
    targets = targets.replace("fields", 'unmarked = "reseal"\nfields')
    ran, after = rotate(bench, documents, targets, HEX)
    assert ran.code == 3, ran.err
    assert after[0] == documents[0]
    assert unhexed(after[0]["card"]["ct"], KEY_V1) == "lone"
    for doc in after[1:]:
        assert doc["card"]["meta"] == {"kid": "v2"}
        assert unhexed(doc["card"]["ct"], KEY_V2) == "x"


# jobs that would write one place twice

REFUSED = {
    "elements that share a version": (
        (
            'c[*].a, layout = "hex", version = { path = "c[*].kid" }',
            'c[*].b, layout = "hex", version = { path = "c[*].kid" }',
        ),
        'fields share the version of elements, "doc.c[*].b" among them',
    ),
    "a version in two forms": (
        (
            'a, layout = "hex", version = { path = "kid", form = "k/{version}" }',
            'b, layout = "hex", version = { path = "kid" }',
        ),
        'the version in column "doc" is named with different forms',
    ),
    "all elements and one of them": (("a[*].x", "a[0].y"), "a place in a column is named twice"),
    "an index as a key": (("a[0]", "a.0"), "a place in a column is named twice"),
    "an index from the end": (("a[0]", "a.-1"), "a place in a column is named twice"),
    "elements in an element": (("a[0].l[*].z", "a[*].x"), "a place in a column is named twice"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_places_that_would_overwrite_each_other_are_refused(bench: Workbench, why: str) -> None:
    """Before anything is read: an update of one would undo, or belie, the update of the other."""
    fields, message = REFUSED[why]
    element = {"x": box("x"), "y": box("y"), "l": [{"z": box("z")}]}
    document = {"a": [element], "kid": "v1", "c": [{"kid": "v1", "a": hexed("a"), "b": hexed("b")}]}
    ran, (after,) = rotate(bench, [document], target(*fields), HEX)
    assert ran.code == 2, ran.err
    assert message in ran.err
    assert "hint: " in ran.err
    assert after == document


def test_two_fields_of_one_name_are_refused(bench: Workbench) -> None:
    """A column with a dot in its name and a path of another column would be reported, and kept, as one."""
    bench.job("""
[[targets]]
table = "people"
fields = [
    { column = "a.b", layout = "libsodium-token" },
    { column = "a", path = "b", layout = "libsodium-token" },
]
""")
    bench.sql('CREATE TABLE people (id bigint PRIMARY KEY, "a.b" text, a jsonb)')
    row = (1, box("column"), json.dumps({"b": box("path")}))
    bench.insert("people", ["id", "a.b", "a"], [row])
    ran = bench.run()
    assert ran.code == 2
    assert 'two fields are both called "a.b"' in ran.err
    assert tuple(bench.sql('SELECT id, "a.b", a::text FROM people')[0]) == row
