"""Vectors made by other programs: each opens to its plaintext, or fails as it says, wherever it is opened.

By the layout itself, by the engine of a run, and by verify's own opener. Their makers stand beside them.
"""

from __future__ import annotations

import re
from collections import Counter

import pytest

from rewrap.crypto.ciphers import CIPHERS, OPEN_FAILURES
from rewrap.crypto.indexes import parse_index
from rewrap.crypto.layout import Malformed, Unopenable, builtin_descriptors
from rewrap.opening import opened
from rewrap.packed import PART
from tests.support.vectorchecks import check_engine, check_layout, check_resealing, check_verify
from tests.support.vectors import CAUSES, FILES, FOLDER, RUNS, Vector, vectors

EVERY = tuple(vector for name in FILES for vector in vectors(name))

REMOTE = {"aws-kms", "vault-transit"}
"""Ciphers whose keys are never here: no program can make their values without the service."""

WITHOUT_EMPTY = {
    "attr-encrypted": "its OpenSSL refuses to seal nothing",
    "message-encryptor": "its OpenSSL refuses to seal nothing",
}


@pytest.mark.parametrize("name", FILES)
def test_vector_does_what_it_says(name: str) -> None:
    """Opened by its layout: its plaintext, unopenable, or malformed; and its version is read as it stands."""
    check_layout(vectors(name))


@pytest.mark.parametrize("name", FILES)
def test_run_makes_of_a_vector_what_it_says(name: str) -> None:
    """Judged alone and in a column with the others, it is resealed, counted or quarantined for its reason."""
    check_engine(vectors(name))


@pytest.mark.parametrize("name", FILES)
def test_verify_tells_what_a_vector_is(name: str) -> None:
    """Verify's own opener agrees, though it shares no code with the engine's."""
    check_verify(vectors(name))


@pytest.mark.parametrize("name", FILES)
def test_resealed_vector_is_stored_as_the_maker_would(name: str) -> None:
    """Resealing under another key gives a value of the same form, and the same length but for its nonce."""
    check_resealing(vectors(name))


def classes(chosen: list[Vector]) -> set[str]:
    return {vector.expect for vector in chosen}


@pytest.mark.parametrize("layout", sorted(builtin_descriptors()))
def test_built_in_layout_has_vectors_of_every_class(layout: str) -> None:
    """Of all that can happen to its values, and of plaintexts that are empty, long and not ASCII."""
    own = [vector for vector in EVERY if vector.made["layout"].get("like") == layout]
    cipher = CIPHERS[builtin_descriptors()[layout]["cipher"]]
    assert classes(own) == set(CAUSES) - (set() if cipher.binds_aad and can_bind(layout) else {"bad-aad"})
    plains = [vector.made.get("inflated", vector.made["plain"]) for vector in own if vector.opens]
    assert any(len(plain) >= 600 for plain in plains)
    assert any(not bytes.fromhex(plain).isascii() for plain in plains)
    assert ("" in plains) != (layout in WITHOUT_EMPTY)


def can_bind(layout: str) -> bool:
    """Documents of Rails and Laravel have no associated data."""
    return not layout.startswith(("rails", "laravel"))


@pytest.mark.parametrize("cipher", sorted(set(CIPHERS) - REMOTE))
def test_cipher_has_vectors_of_every_class(cipher: str) -> None:
    """Of all that can happen to what it seals."""
    own = [vector for vector in EVERY if vector.layout.cipher_name == cipher]
    documents = {vector.layout.framing for vector in own} <= {"rails", "laravel"}
    binds = CIPHERS[cipher].binds_aad and not documents
    assert classes(own) == set(CAUSES) - (set() if binds else {"bad-aad"})
    assert len([vector for vector in own if vector.opens]) >= 3


def test_documentation_says_whose_values_were_tried() -> None:
    """Each built-in layout stands in its table once, and each cipher that has vectors of its own."""
    text = (FOLDER.parent.parent / "docs" / "layouts.md").read_text()
    section = text.partition("### Which program's values were tried")[2].partition("## Changing")[0]
    first = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    named = Counter(name for cell in first for name in re.findall("`([^`]+)`", cell))
    own = {v.layout.cipher_name for v in EVERY if "like" not in v.made["layout"]}
    assert named == Counter([*builtin_descriptors(), *own])


def test_every_cause_and_every_end_is_there() -> None:
    """Nothing that the README speaks of is without a vector, and no vector speaks of anything else."""
    assert {vector.expect for vector in EVERY} == set(CAUSES)
    assert {vector.run for vector in EVERY} == set(RUNS)
    for vector in EVERY:
        assert ("plain" in vector.made) == vector.opens, vector.told
        assert "why" in vector.made or vector.opens, vector.told
    causes = Counter(vector.expect for vector in EVERY)
    assert min(causes.values()) > 40, causes


def test_blind_index_is_the_one_that_was_stored() -> None:
    """Computed from the plaintext, and found again beside the value."""
    checked = 0
    for vector in EVERY:
        for declared in vector.made.get("indexes", ()):
            kind = {key: value for key, value in declared.items() if key != "stored"}
            index = parse_index(kind, "unused", key_apart=False)
            layout = vector.layout.joined(("index",), indexes=(index,))
            bound = layout.bind("v1", vector.key, *vector.place)
            assert bound.index_of(vector.plain) == [declared["stored"]], declared
            checked += 1
            if "passes" in declared:
                # tens of milliseconds for each look
                continue
            value = f"{vector.value!s}{PART}{declared['stored']}"
            assert bound.open_one(value, None) == vector.plain
            assert bound.indexes_match(value, vector.plain)
            assert not bound.indexes_match(f"{vector.value!s}{PART}00", vector.plain)
    assert checked


def test_flipped_bit_of_every_byte_is_noticed() -> None:
    """Of one value of each built-in layout, as bytes: none opens to its plaintext with a bit changed.

    Vectors have some of them; here is each byte of marker, head, nonce, ciphertext and tag.
    """
    for layout in sorted(builtin_descriptors()):
        vector = min(
            (v for v in EVERY if v.made["layout"] == {"like": layout} and v.opens and v.plain),
            key=lambda v: len(v.value),
        )
        bound, value = vector.bound(), vector.value
        for at in range(len(value)):
            if isinstance(value, bytes):
                changed: str | bytes = value[:at] + bytes([value[at] ^ 0x10]) + value[at + 1 :]
            else:
                changed = value[:at] + chr(ord(value[at]) ^ 0x02) + value[at + 1 :]
            try:
                plain = bound.open_one(changed, vector.aad)
            except (Malformed, Unopenable):
                continue
            # bits of the last character before the padding stand for nothing, and JSON has other letters
            assert isinstance(value, str), (layout, at)
            assert (
                plain[bound.layout.frame_bytes :]
                == bound.open_one(value, vector.aad)[bound.layout.frame_bytes :]
            ), (layout, at)


def test_batch_with_one_bad_value_opens_none() -> None:
    """Opening a list is all or nothing, so that nothing is resealed beside what did not open."""
    for name in FILES:
        good = next(vector for vector in vectors(name) if vector.opens)
        bad = next(
            v for v in vectors(name) if v.run == "unopenable" and v.made["layout"] == good.made["layout"]
        )
        bound, aads = good.bound(), None if good.aad is None else [good.aad, good.aad]
        if bad.made["key"] != good.made["key"]:
            continue
        with pytest.raises(OPEN_FAILURES):
            bound.open_values([good.value, bad.value], aads)
        assert opened(bound, good.value, good.aad) is not None
