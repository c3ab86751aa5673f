"""Values in the elements of an array: one value of the account a row, each element resealed."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.support.values import KEY_V1, KEY_V2, KEY_V3, box, unbox
from tests.support.workbench import Workbench

CARDS = """
[[targets]]
table = "people"
[[targets.fields]]
column = "doc"
path = "cards[*].number"
layout = "libsodium-token"
[[targets.fields]]
column = "doc"
path = "cards[*].holder"
layout = "libsodium-token"
[[targets.fields]]
column = "doc"
path = "tokens[*]"
layout = "libsodium-token"
"""

LAYOUTS = """
[layouts.hex]
encoding = "hex"
cipher = "aes-256-gcm"
[layouts.bare]
encoding = "hex"
cipher = "aes-256-gcm"
"""

PARTS = """
[[targets]]
table = "people"
[[targets.fields]]
column = "doc"
path = "cards[*].ct"
layout = "hex"
version = { path = "cards[*].kid" }
nonce = { path = "cards[*].iv" }
tag = { path = "cards[*].tag" }
"""

NEW = {"v2": KEY_V2}


def people(bench: Workbench, documents: list[Any], targets: str = CARDS) -> None:
    bench.job(targets, LAYOUTS)
    bench.sql("CREATE TABLE people (id bigint PRIMARY KEY, doc jsonb)")
    bench.sql(
        "INSERT INTO people SELECT * FROM unnest($1::bigint[], $2::jsonb[])",
        list(range(1, len(documents) + 1)),
        [None if doc is None else json.dumps(doc) for doc in documents],
    )


def documents(bench: Workbench) -> list[Any]:
    found = bench.sql("SELECT doc::text AS doc FROM people ORDER BY id")
    return [None if row["doc"] is None else json.loads(row["doc"]) for row in found]


def person(i: int) -> dict[str, Any]:
    return {
        "name": f"person {i}",
        "cards": [
            {"number": box(f"card {i}.{n}"), "holder": box(f"holder {i}.{n}"), "kind": n}
            for n in range(i % 4)
        ],
        "tokens": [box(f"token {i}"), None, 7, box("another")],
    }


def test_every_element_is_resealed_where_it_is(bench: Workbench) -> None:
    """Two paths into one array and a bare array: all elements get the new key, all else stays."""
    people(bench, [person(i) for i in range(400)])
    ran = bench.run()
    assert ran.code == 0, ran.err
    after = documents(bench)
    for i, doc in enumerate(after):
        assert doc["name"] == f"person {i}"
        assert len(doc["cards"]) == i % 4
        for n, card in enumerate(doc["cards"]):
            assert unbox(card["number"], NEW) == f"card {i}.{n}".encode()
            assert unbox(card["holder"], NEW) == f"holder {i}.{n}".encode()
            assert card["kind"] == n
        assert doc["tokens"][1:3] == [None, 7]
        assert unbox(doc["tokens"][0], NEW) == f"token {i}".encode()
        assert unbox(doc["tokens"][3], NEW) == b"another"
    outcomes = ran.event("run_ended")["outcomes"]["people"]
    assert outcomes["doc.cards[*].number"] == {"resealed": 300, "null": 100}
    assert outcomes["doc.tokens[*]"] == {"resealed": 400}


def test_a_bad_element_does_not_keep_the_others_back(bench: Workbench) -> None:
    """The elements that open are resealed; then the row is put aside for the one that does not."""
    docs = [person(3) for _ in range(6)]
    for doc in docs:
        del doc["tokens"]
    docs[1]["cards"][1]["number"] = box("foreign", key=KEY_V3)
    docs[2]["cards"][0]["number"] = "v9:" + box("x")[3:]
    docs[3]["cards"][2]["number"] = "plain \u001d text"
    docs[4]["cards"] = {"not": "an array"}
    docs[5]["cards"] = []
    people(bench, docs)
    ran = bench.run()
    assert ran.code == 3
    after = documents(bench)
    for row, bad in ((1, 1), (2, 0), (3, 2)):
        assert after[row]["cards"][bad]["number"] == docs[row]["cards"][bad]["number"]
    opened = sum(
        card["number"].startswith("v2:") and bool(unbox(card["number"], NEW))
        for i in range(4)
        for card in after[i]["cards"]
    )
    assert opened == 12 - 3
    assert after[4:] == docs[4:]
    listed = bench.rewrap("quarantine", "list", "--json").events
    assert [(e["row_id"], e["field"], e["reason"]) for e in listed] == [
        ("2", "doc.cards[*].number", "unopenable")
    ]
    verdict = bench.rewrap("verify", "--json").event("verdict")
    assert (verdict["stale"], verdict["quarantined"], verdict["other_version"]) == (0, 1, 1)


def test_a_list_counts_as_stale_for_one_element(bench: Workbench) -> None:
    """Verify looks at every element: one old value among new ones is one too many."""
    old, new = person(3), person(3)
    for card in new["cards"]:
        card["number"], card["holder"] = box("n", "v2"), box("h", "v2")
    new["tokens"] = []
    old["tokens"] = []
    old["cards"][0]["number"] = box("n", "v2")
    old["cards"][2]["number"] = box("n", "v2")
    people(bench, [new, old])
    found = bench.rewrap("verify", "--to", "v2", "--json")
    assert found.code == 3
    fields = {e["field"]: e for e in found.events if e["type"] == "field_verdict"}
    assert fields["doc.cards[*].number"]["versions"] == {"v2": 1, "v1": 1}
    assert fields["doc.cards[*].number"]["classes"] == {"current": 1, "stale": 1}
    assert bench.run().code == 0
    damaged = documents(bench)[0]
    damaged["cards"][1]["number"] = box("n", "v2", key=KEY_V3)
    bench.sql("UPDATE people SET doc = $1 WHERE id = 1", json.dumps(damaged))
    assert bench.rewrap("verify").code == 0
    deep = bench.rewrap("verify", "--deep", "--json")
    assert deep.code == 3
    assert deep.event("verdict")["unopenable"] == 1


def test_a_fence_on_elements_is_refused(bench: Workbench) -> None:
    """A constraint cannot look into each element: said so, and none is added."""
    people(bench, [{"cards": [{"number": box("a")}]}])
    assert bench.run().code == 0
    refused = bench.rewrap("verify", "--fence")
    assert refused.code == 3
    assert "no fence was added" in refused.err
    assert "elements of an array" in refused.err
    assert "verify to v2: complete" in refused.out
    assert bench.value("SELECT count(*) FROM pg_constraint WHERE starts_with(conname, 'rewrap_fence')") == 0


def test_elements_in_parts(bench: Workbench) -> None:
    """Each element has its own nonce, tag and version, by paths through the same array."""
    nonces = [os.urandom(12) for _ in range(3)]
    cards = []
    for at, nonce in enumerate(nonces):
        sealed = AESGCM(KEY_V1).encrypt(nonce, f"card {at}".encode(), None)
        cards.append({"ct": sealed[:-16].hex(), "iv": nonce.hex(), "tag": sealed[-16:].hex(), "kid": "v1"})
    people(bench, [{"cards": [*cards, {"other": 1}]}], PARTS)
    ran = bench.run()
    assert ran.code == 0, ran.err
    (after,) = documents(bench)
    assert after["cards"][3] == {"other": 1}
    for at, card in enumerate(after["cards"][:3]):
        assert card["kid"] == "v2"
        sealed = bytes.fromhex(card["ct"] + card["tag"])
        assert AESGCM(KEY_V2).decrypt(bytes.fromhex(card["iv"]), sealed, None) == f"card {at}".encode()
    assert bench.rewrap("verify", "--deep").code == 0


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ('path = "cards[*].ct"\nlayout = "hex"\nversion = { column = "kid" }', "elements of the same array"),
        ('path = "cards[*].ct"\nlayout = "bare"', "elements are not probed"),
    ],
)
def test_elements_that_cannot_be_told_are_refused(bench: Workbench, field: str, message: str) -> None:
    """A version for all elements in one place, or none at all: no job."""
    bench.job(f'[[targets]]\ntable = "people"\n[[targets.fields]]\ncolumn = "doc"\n{field}', LAYOUTS)
    refused = bench.run()
    assert refused.code == 2
    assert message in refused.err


@pytest.mark.parametrize(
    "elements",
    [
        [{"n": 1}, "ENC"],
        [{"number": None}, "ENC"],
        ["ENC", None],
        [None, 7, "text", [], {}, "ENC", [1], None, "ENC", {"number": {"deep": 1}}],
    ],
)
def test_elements_without_a_value_stay_as_they_are(bench: Workbench, elements: list[Any]) -> None:
    """Objects without the key, nulls and scalars among the elements, first, last or between."""
    cards = [
        {"number": box(f"card {at}"), "holder": box(f"holder {at}")} if one == "ENC" else one
        for at, one in enumerate(elements)
    ]
    people(bench, [{"cards": cards, "tokens": []} for _ in range(3)])
    ran = bench.run()
    assert ran.code == 0, ran.err
    for doc in documents(bench):
        for at, (one, card) in enumerate(zip(elements, doc["cards"], strict=True)):
            if one == "ENC":
                assert unbox(card["number"], NEW) == f"card {at}".encode()
                assert unbox(card["holder"], NEW) == f"holder {at}".encode()
            else:
                assert card == one
    assert bench.rewrap("verify", "--deep").code == 0


def test_an_array_that_is_the_document(bench: Workbench) -> None:
    """`[*].number`: the document itself is the array."""
    target = """
[[targets]]
table = "people"
fields = [{ column = "doc", path = "[*].number", layout = "libsodium-token" }]
"""
    people(bench, [[{"n": 1}, {"number": box("a")}], [], {}, None], target)
    ran = bench.run()
    assert ran.code == 0, ran.err
    (first, *rest) = documents(bench)
    assert first[0] == {"n": 1}
    assert unbox(first[1]["number"], NEW) == b"a"
    assert rest == [[], {}, None]


@pytest.mark.parametrize("left", ["unmarked", "other_version", "plaintext"])
def test_a_dry_run_says_of_elements_what_a_run_says(bench: Workbench, left: str) -> None:
    """One element can be resealed and another one cannot: what is left of the row decides."""
    others = {
        "unmarked": box("x").partition(":")[2],
        "other_version": box("x", "v3"),
        "plaintext": "legacy",
    }
    rows = [(i, json.dumps([box("a"), others[left], box("b")])) for i in range(3)]
    field = '{ column = "tags", path = "[*]", layout = "libsodium-token" }'
    bench.job(f'[[targets]]\ntable = "people"\nfields = [{field}]\n')
    bench.sql("CREATE TABLE people (id bigint PRIMARY KEY, tags jsonb)")
    bench.insert("people", ["id", "tags"], [*rows, (9, json.dumps([box("c")]))])
    rehearsed, ran = bench.run("--dry-run"), bench.run()
    code = 0 if left == "plaintext" else 3
    assert (rehearsed.code, ran.code) == (code, code), rehearsed.err + ran.err
    (told,) = rehearsed.event("run_ended")["outcomes"]["people"].values()
    assert told == ({"resealed": 4} if left == "plaintext" else {"resealed": 1, left: 3})
