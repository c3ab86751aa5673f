"""Properties of the pure transform, over values of every kind."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewrap.crypto.ciphers import CIPHERS, OPEN_FAILURES
from rewrap.crypto.layout import AadTemplate, Layout, LayoutError, Malformed, Unopenable, builtin_layouts
from rewrap.engine.reseal import FieldReseal, Form, Reseal
from rewrap.interfaces import OversizeMark, Page
from rewrap.keys.keyring import Key
from rewrap.model import FieldColumn, KeyColumn, Location, Role, Table
from rewrap.packed import ABSENT, HELD_BACK, SEPARATOR, listed, packable, packed, unpacked
from tests.support.values import KEY_V1, KEY_V2, KEY_V3, KEYS, aead, box, unaead, unbox

TOKEN = builtin_layouts()["libsodium-token"]
BOUND = Layout("aead", "{version}:", "v[0-9]+", "base64", "aes-256-gcm", AadTemplate.parse("{account_id}"))

SYMMETRIC = {name: cipher for name, cipher in CIPHERS.items() if cipher.key_bytes}
AUTHENTICATED = sorted(name for name, cipher in SYMMETRIC.items() if cipher.authenticated)

plain = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=80).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from([b"", b"v1:", b"v2:AAAA", b"\x00", b"\x01", b","]),
)

texts = st.text(alphabet=st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=40)

stored = st.one_of(
    st.none(),
    plain.map(box),
    plain.map(lambda text: box(text, "v2")),
    plain.map(lambda text: box(text, "v3")),
    plain.map(lambda text: box(text, marker=False)),
    plain.map(lambda text: "v9:" + base64.b64encode(text).decode()),
    plain.map(lambda text: "v1:" + base64.b64encode(text).decode()),
    texts.filter(lambda text: not text.startswith("\x01")),
)


def table(*columns: str, aad: tuple[str, ...] = ()) -> Table:
    fields = tuple(
        FieldColumn(name, "text", True, (Location(Role.PAYLOAD, name, "text", "text"),), aad)
        for name in columns
    )
    return Table("t", '"public"."t"', 1, (KeyColumn("id", "bigint"),), fields, aad, 0, 0)


def field(column: str, layout: Layout = TOKEN, *, adopt: bool = False) -> FieldReseal:
    return FieldReseal(
        table='"public"."t"',
        column=column,
        old=layout,
        new=layout,
        sources=(Form(layout.bind("v1", KEY_V1)),),
        target=layout.bind("v2", KEY_V2),
        probes=tuple(Form(layout.bind(version, key)) for version, key in KEYS.items()),
        adopt=adopt,
        digester=Key("v2", KEY_V2).digester(),
    )


@given(st.lists(st.tuples(stored, stored), max_size=12), st.booleans())
@settings(max_examples=300, deadline=None)
def test_every_value_has_exactly_one_outcome(rows: list[tuple[str | None, str | None]], adopt: bool) -> None:
    """Whatever is stored: settled classes and new values together are the values, column by column."""
    reseal = Reseal(table("a", "b"), [field("a", adopt=adopt), field("b", adopt=adopt)])
    done = reseal([(i, a, b) for i, (a, b) in enumerate(rows)])
    for column in ("a", "b"):
        assert sum(done.tally[column].values()) + done.swap.written(column) == len(rows)
    assert len(done.faults) == sum(counts["quarantined"] for counts in done.tally.values())


@given(st.lists(st.tuples(stored, stored), min_size=1, max_size=12))
@settings(max_examples=300, deadline=None)
def test_new_values_belong_to_their_rows(rows: list[tuple[str | None, str | None]]) -> None:
    """Each new value opens, with the new key alone, to the plaintext of its own row and column."""
    reseal = Reseal(table("a", "b"), [field("a"), field("b")])
    swap = reseal([(100 + i, a, b) for i, (a, b) in enumerate(rows)]).swap
    assert swap.keys == sorted(swap.keys)
    for at, key in enumerate(swap.keys):
        for column, value in zip(("a", "b"), rows[key - 100], strict=True):
            new, old = swap.news[column][at], swap.olds[column][at]
            assert (new is None) == (old is None)
            if new is not None:
                assert old == value
                assert unbox(new, {"v2": KEY_V2}) == unbox(old or "", {"v1": KEY_V1})


def page_of(rows: list[tuple[str | None, ...]]) -> Page:
    """Rows as the store sends them: packed where that is possible."""
    columns = []
    for column in zip(*rows, strict=True):
        text = SEPARATOR.join(ABSENT if value is None else value for value in column)
        came = unpacked(text, len(rows), len(rows) - column.count(None))
        columns.append(list(column) if came is None else came)
    return Page([100 + i for i in range(len(rows))], tuple(columns), (), None, [7] * len(rows))


def string_to_array(text: str) -> list[str | None]:
    """As Postgres does it: an empty text has no element, not an empty one."""
    return [None if part == ABSENT else part for part in text.split(SEPARATOR)] if text else []


odd = st.sampled_from(
    [
        ABSENT,
        SEPARATOR,
        HELD_BACK,
        "",
        f"v1:AAAA{SEPARATOR}v1:AAAA",
        SEPARATOR + box("x"),
        box("x") + SEPARATOR,
    ]
)


@given(st.lists(st.one_of(stored, odd), min_size=1, max_size=8))
@settings(max_examples=500, deadline=None)
def test_a_packed_column_is_the_column(values: list[str | None]) -> None:
    """Whatever is stored comes apart again as it was, or is said to need another way."""
    text = SEPARATOR.join(ABSENT if value is None else value for value in values)
    came = unpacked(text, len(values), len(values) - values.count(None))
    if came is not None:
        assert listed(came) == values
    else:
        assert any(value is not None and (SEPARATOR in value or value == ABSENT) for value in values)
    if packable(list(values)):
        assert string_to_array(packed(list(values), len(values))) == values


@given(st.lists(st.tuples(st.one_of(stored, odd), stored), min_size=1, max_size=8), st.booleans())
@settings(max_examples=300, deadline=None)
def test_packed_pages_are_judged_as_rows_are(rows: list[tuple[str | None, str | None]], adopt: bool) -> None:
    """Classes, faults and what is written do not depend on how a page travelled."""
    reseal = Reseal(table("a", "b"), [field("a", adopt=adopt), field("b", adopt=adopt)])
    one = reseal.page(page_of(list(rows)))
    two = reseal([(100 + i, *row) for i, row in enumerate(rows)])
    assert (one.tally, one.large, one.swap.keys) == (two.tally, two.large, two.swap.keys)
    assert [fault.row_id for fault in one.faults] == [fault.row_id for fault in two.faults]
    assert one.opened == two.opened
    for column in ("a", "b"):
        assert listed(one.swap.olds[column]) == listed(two.swap.olds[column])
        for new, other in zip(listed(one.swap.news[column]), listed(two.swap.news[column]), strict=True):
            assert (new is None) == (other is None)
            if new is not None:
                assert unbox(new, {"v2": KEY_V2}) == unbox(other, {"v2": KEY_V2})


@given(st.lists(plain, min_size=1, max_size=30), st.sampled_from(AUTHENTICATED))
@settings(deadline=None)
def test_a_packed_batch_opens_to_what_was_sealed(plains: list[bytes], cipher: str) -> None:
    """Packed or not, the same plaintexts come back in the same order; another key opens none."""
    plains = [CIPHERS[cipher].fresh_carry() + text for text in plains]
    layout = Layout("any", "{version}:", "v[0-9]+", "base64", cipher)
    size = CIPHERS[cipher].key_bytes
    bound = layout.bind("v1", bytes(size))
    sealed = bound.seal_packed(plains, None)
    assert bound.open_packed(sealed, None) == plains
    assert bound.open_values(sealed.split(), None) == plains
    assert layout.bind("v2", bytes(size)).open_packed(sealed, None) is None
    with pytest.raises(OPEN_FAILURES):
        layout.bind("v1", bytes([1]) * size).open_packed(sealed, None)


@given(st.lists(plain, min_size=1, max_size=20))
def test_resealing_twice_is_resealing_once(plains: list[bytes]) -> None:
    """What was resealed is current: a second pass has nothing to write."""
    reseal = Reseal(table("a"), [field("a")])
    first = reseal([(i, box(text)) for i, text in enumerate(plains)])
    second = reseal(list(zip(first.swap.keys, first.swap.news["a"], strict=True)))
    assert len(second.swap) == 0
    assert second.tally["a"] == {"current": len(plains)}


@given(plain, texts, texts)
def test_a_value_stays_bound_to_its_account(text: bytes, account: str, other: str) -> None:
    """The new value opens under the row's own associated data and under no other."""
    reseal = Reseal(table("a", aad=("account_id",)), [field("a", BOUND)])
    done = reseal([(1, aead(text, account), account)])
    new = done.swap.news["a"][0]
    assert new is not None
    assert unaead(new, account) == text
    if other != account:
        assert reseal([(1, aead(text, other), account)]).faults[0].reason == "unopenable"


@given(st.sampled_from(AUTHENTICATED), plain, st.integers(min_value=0), st.integers(0, 7))
def test_any_flipped_bit_fails_to_open(name: str, text: bytes, place: int, bit: int) -> None:
    """open(seal(x)) is x, and no other bytes open."""
    cipher = CIPHERS[name]
    key = bytes(range(cipher.key_bytes))
    layout = Layout("any", "{version}:", "v[0-9]+", "base64", name)
    bound = layout.bind("v1", key)
    text = cipher.fresh_carry() + text
    (sealed,) = bound.seal_values([text], None)
    assert bound.open_one(sealed, None) == text
    raw = bytearray(base64.b64decode(sealed.removeprefix("v1:")))
    raw[place % len(raw)] ^= 1 << bit
    with pytest.raises(Unopenable):
        bound.open_one("v1:" + base64.b64encode(bytes(raw)).decode(), None)


@given(st.lists(plain, min_size=2, max_size=20))
def test_no_nonce_is_used_twice_in_a_batch(plains: list[bytes]) -> None:
    """Every value of a batch has a nonce of its own."""
    for name, cipher in SYMMETRIC.items():
        if "derived" in name:
            continue
        sealed = cipher.sealer(bytes(cipher.key_bytes))([cipher.fresh_carry() + p for p in plains], None)
        assert len({raw[: cipher.nonce_bytes] for raw in sealed}) == len(plains)


def test_every_kind_of_value_has_its_class() -> None:
    """The classes by example, the odd ones included."""
    values = {
        "null": None,
        "current": box("x", "v2"),
        "other_version": "v9:" + box("x").partition(":")[2],
        "plaintext": "just text",
        "unmarked": box("x", marker=False),
    }
    reseal = Reseal(table("a"), [field("a")])
    for outcome, value in values.items():
        assert reseal([(1, value)]).tally["a"] == {outcome: 1}
    for value, reason in (
        ("v1:", "malformed"),
        ("v1:AAAA", "malformed"),
        ("v1:!!!!", "malformed"),
        (box("x") + "\n", "malformed"),
        ("v1:é", "malformed"),
        (box("x", "v1", KEY_V3), "unopenable"),
    ):
        (fault,) = reseal([(1, value)]).faults
        assert fault.reason == reason, value


def test_large_values_are_left_to_be_fetched_whole() -> None:
    """A value held back for its size takes its row out of the batch, and only its row."""
    reseal = Reseal(table("a", "b"), [field("a"), field("b")])
    done = reseal([(1, "\x01999999", box("x")), (2, box("y"), None)])
    assert done.large == [1]
    assert done.swap.keys == [2]
    whole = reseal.judge_whole((1, OversizeMark(999_999, "v1:AAAA"), box("x")))
    assert [fault.reason for fault in whole.faults] == ["too_large"]
    assert whole.swap.news["b"][0] is not None


@pytest.mark.parametrize(
    ("marker", "version", "says"),
    [
        ("{version}", "v[0-9]+", "ends at the version"),
        ("{version}{version}:", "v[0-9]+", "at most once"),
        ("{version}:", "(v)[0-9]+", "without groups"),
        ("{version}:", "v[0-9:]*", "also matches the delimiter"),
        ("{version}:", "v[", "version pattern"),
        ("{version}\x1f", "v[0-9]+", "control characters"),
    ],
)
def test_layouts_that_could_mistake_a_version_are_refused(marker: str, version: str, says: str) -> None:
    """A marker must be delimited, and its version readable again."""
    with pytest.raises(LayoutError, match=says):
        Layout("x", marker, version, "base64", "secretbox")


def test_a_version_that_could_not_be_read_back_is_refused() -> None:
    """Writing a version that the pattern does not match would make the value unreadable."""
    with pytest.raises(LayoutError, match="does not fit"):
        TOKEN.prefix_of("prod-2")


def test_malformed_is_told_from_unopenable() -> None:
    """Too short or not base64 is malformed; a whole payload that fails is unopenable."""
    bound = TOKEN.bind("v1", KEY_V1)
    with pytest.raises(Malformed):
        bound.open_one("v1:" + base64.b64encode(bytes(39)).decode(), None)
    with pytest.raises(Unopenable):
        bound.open_one("v1:" + base64.b64encode(bytes(40)).decode(), None)
