"""Properties of finding a value's key by opening it, and of changing its layout on the way."""

from __future__ import annotations

import base64
import os
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from rewrap.crypto.layout import AadTemplate, Layout
from rewrap.engine.compile import Rotation
from rewrap.engine.health import UNNAMED
from rewrap.engine.reseal import Reseal
from rewrap.forms import Forms
from rewrap.interfaces import OversizeMark
from rewrap.job import Job
from rewrap.keys.keyring import Key, Keyring
from rewrap.model import FieldColumn, KeyColumn, Location, Role, Table
from rewrap.opening import Opening, opened
from rewrap.packed import Packed, listed
from tests.support.values import KEY_V1, KEY_V2, KEY_V3, KEYS, aead, box, one_ciphertext_for_two_keys, unaead

JOB = """
name = "probing"
[stores.main]
kind = "postgres"
url = "postgresql://localhost/none"
[keys.versions.v1]
material = "env:KEY_V1"
[keys.versions.v2]
material = "env:KEY_V2"
[keys.versions.v3]
material = "env:KEY_V3"
[layouts.bare]
encoding = "base64"
cipher = "aes-256-gcm"
aad = "{account}"
[layouts.gcm]
marker = "gcm:{version}:"
version = "v[0-9]+"
encoding = "base64"
cipher = "aes-256-gcm"
aad = "{account}"
[layouts.cbc]
encoding = "base64"
cipher = "aes-256-cbc"
plaintext = "pattern:.*"
[layouts.boxed]
encoding = "base64"
cipher = "secretbox"
[[targets]]
table = "t"
fields = [{ column = "a", layout = "OLD", to_layout = "NEW" }]
"""

KEYRING = Keyring([Key(version, key) for version, key in KEYS.items()])


@cache
def rotation(old: str, new: str, keyring: Keyring = KEYRING) -> tuple[Rotation, Table]:
    job = Job.parse(JOB.replace("OLD", old).replace("NEW", new), path=Path("rewrap.toml"), environ={})
    column = FieldColumn("a", "text", True, (Location(Role.PAYLOAD, "a", "text", "text"),), ("account",))
    table = Table("t", '"public"."t"', 1, (KeyColumn("id", "bigint"),), (column,), ("account",), 0, 0)
    return Rotation(job, keyring, ("v1",), "v2"), table


def reseal(old: str, new: str, keyring: Keyring = KEYRING) -> Reseal:
    made, table = rotation(old, new, keyring)
    return made.reseal(table)


def bare(plain: bytes, version: str = "v1", account: str = "x") -> str:
    return aead(plain, account, version).partition(":")[2]


plain = st.binary(max_size=60)
versions = st.sampled_from(["v1", "v2", "v3"])
texts = st.text(alphabet=st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=50)
base64_texts = st.binary(max_size=60).map(lambda raw: base64.b64encode(raw).decode())

stored = st.one_of(
    st.none(),
    st.tuples(plain, versions).map(lambda made: bare(*made)),
    st.tuples(plain, versions).map(lambda made: bare(*made, "another account")),
    st.tuples(plain, versions).map(lambda made: box(made[0], made[1], marker=False)),
    st.tuples(plain, versions).map(lambda made: box(*made)),
    st.tuples(plain, versions).map(lambda made: "gcm:" + aead(made[0], "x", made[1])),
    st.tuples(plain, versions).map(lambda made: "gcm:" + aead(made[0], "another account", made[1])),
    base64_texts,
    texts.filter(lambda text: not text.startswith("\x01")),
)

changes = st.sampled_from(
    [
        ("bare", "bare"),
        ("bare", "gcm"),
        ("boxed", "gcm"),
        ("boxed", "bare"),
        ("bare", "boxed"),
        ("libsodium-token", "gcm"),
        ("libsodium-token", "bare"),
        ("gcm", "libsodium-token"),
        ("gcm", "boxed"),
    ]
)


def rows_of(values: list[str | None]) -> list[tuple[Any, ...]]:
    return [(100 + i, value, "x") for i, value in enumerate(values)]


@given(changes, st.lists(stored, max_size=12))
@settings(max_examples=300, deadline=None)
def test_every_value_has_exactly_one_outcome(layouts: tuple[str, str], values: list[str | None]) -> None:
    """Whatever is stored and however the layouts differ: classes and new values together are the values."""
    done = reseal(*layouts)(rows_of(values))
    assert sum(done.tally["a"].values()) + done.swap.written("a") == len(values)
    assert len(done.faults) == done.tally["a"]["quarantined"]


@given(changes, st.lists(stored, min_size=1, max_size=12))
@settings(max_examples=300, deadline=None)
def test_what_was_resealed_is_current_and_was_in_scope(
    layouts: tuple[str, str], values: list[str | None]
) -> None:
    """A second pass has nothing to write, and verify tells old values and new ones as the engine does."""
    made, table = rotation(*layouts)
    first = made.reseal(table)(rows_of(values))
    news = listed(first.swap.news["a"])
    second = made.reseal(table)(rows_of(news))
    assert second.tally["a"] == Counter({"current": len(news)} if news else {})
    assert len(second.swap) == 0
    opening = Opening(made.job.forms(made.job.targets[0].fields[0], "v2"), KEYRING, ("v1",), "t", "a")
    for old, new in zip(listed(first.swap.olds["a"]), news, strict=True):
        assert told(opening, old)[0] == "stale"
        assert told(opening, new) == ("current", "v2")


def told(opening: Opening, value: str) -> tuple[str, str | None]:
    """What verify would say of a value: by its marker, or by opening it."""
    named = opening.forms.named_by(value)
    if named is not None:
        version, new = named
        return ("current" if new and version == "v2" else "stale"), version
    found = opening.tell(value, {layout.name: _bound(layout) for layout in opening.forms.layouts})
    return found.kind, found.version


def _bound(layout: Layout) -> bytes | None:
    return None if layout.aad is None else b"x"


CLASSES = {
    "current": "current",
    "ambiguous": "quarantined",
    "sealed": "quarantined",
    "unmarked": "unmarked",
    "plaintext": "plaintext",
}


@given(changes, stored.filter(lambda value: value is not None))
@settings(max_examples=400, deadline=None)
def test_verify_agrees_with_the_engine(layouts: tuple[str, str], value: str) -> None:
    """Two openings, written apart, say the same of every value that names no version."""
    made, table = rotation(*layouts)
    opening = Opening(made.job.forms(made.job.targets[0].fields[0], "v2"), KEYRING, ("v1",), "t", "a")
    if opening.forms.named_by(value) is not None or not opening.forms.probed:
        return
    kind, version = told(opening, value)
    done = made.reseal(table)(rows_of([value]))
    if kind == "stale":
        expected = {} if version in ("v1", "v2") else {"other_version": 1}
        assert (dict(done.tally["a"]), len(done.swap)) == (expected, 0 if expected else 1)
    else:
        assert dict(done.tally["a"]) == {CLASSES[kind]: 1}


@given(st.lists(plain, min_size=1, max_size=12))
@settings(deadline=None)
def test_a_page_of_old_values_is_tried_under_the_new_key_too(plains: list[bytes]) -> None:
    """All of a page opens under the old key, and one value under the new one as well: that is put aside."""
    unbound = Layout("unbound", "", "", "base64", "aes-256-gcm")
    made, table = rotation("bare", "bare")
    double = one_ciphertext_for_two_keys(KEY_V1, KEY_V2)
    assert unbound.bind("v1", KEY_V1).open_bare(double, None)
    sealed = [bare(text, account="") for text in plains]
    values = [*sealed, double]
    done = made.reseal(table)([(i, value, None) for i, value in enumerate(values)])
    assert done.swap.keys == list(range(len(plains)))
    assert [fault.reason for fault in done.faults] == ["ambiguous_key"]
    for text, new in zip(plains, listed(done.swap.news["a"]), strict=True):
        assert unaead(f"v2:{new}", "", {"v2": KEY_V2}) == text


@given(st.lists(stored.filter(lambda value: value is not None), min_size=1, max_size=8), changes)
@settings(max_examples=200, deadline=None)
def test_a_packed_column_is_judged_as_a_list_is(values: list[str], layouts: tuple[str, str]) -> None:
    """Classes and places do not depend on how a page travelled."""
    made, table = rotation(*layouts)
    (field,) = made.reseal(table).fields
    if any("\x1f" in value for value in values):
        return
    aads = ([b"x"] * len(values), [b"x"] * len(values))
    pair = (aads[0] if field.old.aad else None, aads[1] if field.new.aad else None)
    one = field.judge(Packed("\x1f".join(values), len(values)), pair, range(len(values)))
    two = field.judge(list(values), pair, range(len(values)))
    assert (one.counts, one.opened) == (two.counts, two.opened)
    assert [list(each.every(len(values))) for each in (one, two)].count(list(one.every(len(values)))) == 2


def test_one_key_under_two_names_is_not_ambiguous() -> None:
    """What opens under both opens under one key: it is resealed, or current."""
    keyring = Keyring([Key("v1", KEY_V1), Key("v2", KEY_V2), Key("v3", KEY_V1)])
    done = reseal("bare", "bare", keyring)(rows_of([bare(b"one"), bare(b"two", "v2")]))
    assert done.tally["a"] == {"current": 1}
    assert done.swap.keys == [100]


def test_a_third_key_at_hand_can_make_a_value_ambiguous() -> None:
    """Not only the keys of the rotation are tried."""
    double = one_ciphertext_for_two_keys(KEY_V1, KEY_V3)
    done = reseal("bare", "bare")([(1, double, None)])
    assert [fault.reason for fault in done.faults] == ["ambiguous_key"]
    alone = Keyring([Key("v1", KEY_V1), Key("v2", KEY_V2)])
    assert len(reseal("bare", "bare", alone)([(1, double, None)]).swap) == 1


def cbc_for_two_keys(one: bytes, two: bytes) -> str:
    """base64(iv16 ‖ block16) that both keys decrypt to 15 characters of ASCII and one byte of padding.

    The iv is free: it makes the first plaintext anything. For the second one the two decryptions of the block
    have to be equal in the last byte and differ in no high bit: one block in 2^23.
    """
    count = 2**20
    wanted = int.from_bytes((b"\x80" * 15 + b"\xff") * count)
    while True:
        blocks = os.urandom(16 * count)
        first, second = (
            Cipher(algorithms.AES(k), modes.ECB()).decryptor().update(blocks) for k in (one, two)
        )
        masked = ((int.from_bytes(first) ^ int.from_bytes(second)) & wanted).to_bytes(16 * count)
        at = masked.find(bytes(16))
        while at >= 0 and at % 16:
            at = masked.find(bytes(16), at + 1)
        if at >= 0:
            iv = bytes(a ^ b for a, b in zip(first[at : at + 16], b"fifteen letters\x01", strict=True))
            return base64.b64encode(iv + blocks[at : at + 16]).decode()


def test_two_keys_that_pass_the_validator_are_ambiguous() -> None:
    """Without authentication a wrong key passes by chance: what passes under two is nobody's."""
    iv = bytes(16)
    encryptor = Cipher(algorithms.AES(KEY_V1), modes.CBC(iv)).encryptor()
    sealed = base64.b64encode(iv + encryptor.update(b"fifteen letters\x01")).decode()
    done = reseal("cbc", "cbc")(rows_of([sealed, cbc_for_two_keys(KEY_V1, KEY_V2)]))
    assert done.swap.keys == [100]
    assert [(fault.row_id, fault.reason) for fault in done.faults] == [("101", "ambiguous_key")]


def test_what_opens_under_no_key_counts_for_no_version() -> None:
    """Its fault has a place of its own, so that a wrong key stops the run; plaintext is no fault."""
    done = reseal("bare", "bare")(rows_of([bare(b"strayed", account="y"), "some text", "c2hvcnQ="]))
    assert [(fault.reason, fault.version) for fault in done.faults] == [("unopenable", UNNAMED)]
    assert done.tally["a"] == {"quarantined": 1, "plaintext": 2}
    assert done.opened == {}


def test_a_large_value_that_names_no_version_is_too_large() -> None:
    """By its beginning alone nothing tells it; one with a new marker is current all the same."""
    judged = reseal("bare", "gcm").judge_whole((1, OversizeMark(9_999, "AAAA"), "x"))
    assert [fault.reason for fault in judged.faults] == ["too_large"]
    marked = reseal("bare", "gcm").judge_whole((1, OversizeMark(9_999, "gcm:v2:AAAA"), "x"))
    assert marked.tally["a"] == {"current": 1}


def test_values_of_the_new_version_in_the_old_layout_are_resealed() -> None:
    """With a change of layout they are not current, whatever their key."""
    done = reseal("libsodium-token", "gcm")(rows_of([box("one", "v2"), "gcm:" + aead("two", "x", "v2")]))
    assert done.tally["a"] == {"current": 1}
    (new,) = listed(done.swap.news["a"])
    assert unaead(new.removeprefix("gcm:"), "x", {"v2": KEY_V2}) == b"one"


def test_forms_name_the_targets_first() -> None:
    """A value under two markers, were there such a thing, counts as verify's query counts it."""
    old = Layout("old", "{version}:", "v[0-9]+", "base64", "secretbox")
    new = Layout("new", "g{version}:", "v[0-9]+", "base64", "aes-256-gcm", AadTemplate.parse("{a}"))
    forms = Forms(old, new, ("v2", "v1"))
    assert [(form.prefix, form.new) for form in forms.named] == [
        ("gv2:", True), ("gv1:", True), ("v2:", False), ("v1:", False),
    ]  # fmt: skip
    assert forms.named_by("gv9:x") == ("v9", True)
    assert forms.named_by("v9:x") == ("v9", False)
    assert forms.named_by("x") is None


def test_a_page_is_settled_at_once_and_the_right_key_is_mostly_first() -> None:
    """On a fresh table the old key is, and where all is done the new one: but for the first value's trial."""
    made, table = rotation("bare", "bare")
    transform = made.reseal(table)
    fresh = transform(rows_of([bare(b"plain %d" % i) for i in range(100)]))
    assert (fresh.probed, len(fresh.swap)) == (Counter(opened=100, first=99), 100)
    again = transform(rows_of(listed(fresh.swap.news["a"])))
    assert (again.probed, len(again.swap)) == (Counter(opened=100, first=100), 0)
    assert again.tally["a"] == Counter(current=100)


def test_one_value_for_two_keys_is_found_wherever_it_stands_in_a_page() -> None:
    """A page that is settled at once holds none of them, whichever key its other values are under."""
    twofold = one_ciphertext_for_two_keys(KEY_V1, KEY_V2)
    made, table = rotation("bare", "bare")
    for version, left in (("v1", 0), ("v2", 40)):
        for place in (0, 20, 40):
            values: list[str | None] = [bare(b"plain", version, "") for _ in range(40)]
            values.insert(place, twofold)
            done = made.reseal(table)([(100 + i, value, None) for i, value in enumerate(values)])
            assert [(fault.row_id, fault.reason) for fault in done.faults] == [
                (str(100 + place), "ambiguous_key")
            ]
            assert (done.tally["a"]["current"], len(done.swap)) == (left, 40 - left)


@given(st.lists(stored.filter(lambda value: value is not None), max_size=12))
@settings(max_examples=200, deadline=None)
def test_values_open_side_by_side_as_they_do_alone(values: list[str]) -> None:
    """Whatever stands beside it, a value opens to what it opens to alone, or does not open."""
    made, _ = rotation("bare", "bare")
    bound = made.job.layout("bare").bind("v1", KEY_V1)
    alone = [opened(bound, value, b"x") for value in values]
    assert list(bound.open_each(values, [b"x"] * len(values))) == alone
