"""Properties of the transform of documents under DEKs: pure, whatever it asks for and in what order."""

from __future__ import annotations

import asyncio
import base64
import os
from collections import Counter
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from rewrap.crypto.layout import Layout
from rewrap.deks import DekRecord
from rewrap.engine.dekring import DekRing, DekWrapping, Document, FreshDek
from rewrap.engine.envelope import EnvelopeField, EnvelopeReseal
from rewrap.engine.reseal import Resealed
from rewrap.envelopes import DekSection
from rewrap.interfaces import Page
from rewrap.keys.keyring import Key, Keyring
from rewrap.keys.resolving import resolved
from rewrap.model import FieldColumn, KeyColumn, Location, Reason, Role, Table
from rewrap.packed import PART, listed
from rewrap.targets import FieldSection
from tests.support.values import KEYS

LAYOUT = Layout("field", "", "", "base64", "aes-256-gcm").joined(("version", "nonce", "tag"))
WRAP = Layout("mek", "", "", "base64", "aes-256-gcm").joined(("version",))
SECTION = DekSection(
    table="deks", wrapped=FieldSection(column="wrapped", layout="mek", version={"column": "v"})  # type: ignore[arg-type]  # pydantic takes what TOML gives
)  # fmt: skip
PARTS = tuple(
    Location(role, name, "text", "text")
    for role, name in ((Role.VERSION, "dek"), (Role.NONCE, "iv"), (Role.TAG, "tag"), (Role.PAYLOAD, "ct"))
)
TABLE = Table("t", "t", 1, (KeyColumn("id", "bigint"),), (FieldColumn("ct", "text", True, PARTS),), (), 0, 0)

DEKS = {f"d{i}": bytes([i] * 32) for i in range(6)}
VERSIONS = {"d0": "v1", "d1": "v1", "d2": "v2", "d3": "v3", "d4": "", "d5": "v1"}
"""What each record says; that of d5 holds something else, and d6 has none."""


def record(dek_id: str) -> DekRecord | None:
    if dek_id not in DEKS:
        return None
    nonce, version = os.urandom(12), VERSIONS[dek_id]
    key = KEYS.get(version, KEYS["v1"])
    sealed = nonce + AESGCM(key).encrypt(nonce, DEKS[dek_id], b"other" if dek_id == "d5" else None)
    return DekRecord(dek_id, f"{version}{PART}{base64.b64encode(sealed).decode()}")


def value(plain: bytes, dek_id: str) -> str:
    nonce = os.urandom(12)
    sealed = AESGCM(DEKS.get(dek_id, bytes(32))).encrypt(nonce, plain, None)
    texts = (base64.b64encode(part).decode() for part in (nonce, sealed[-16:], sealed[:-16]))
    return PART.join((dek_id, *texts))


def opened(stored: str, dek: bytes) -> bytes:
    nonce, tag, sealed = (base64.b64decode(part) for part in stored.split(PART)[1:])
    return AESGCM(dek).decrypt(nonce, sealed + tag, None)


class Asked:
    """Answers as a store would: records as they are, a DEK for each document once."""

    def __init__(self) -> None:
        self.made: dict[Document, FreshDek] = {}
        self.records = {name: record(name) for name in (*DEKS, "d6")}

    async def find(self, ids: Any) -> list[DekRecord | None]:
        return [self.records[one] for one in ids]

    async def mint(self, documents: Any) -> list[FreshDek]:
        for one in documents:
            self.made.setdefault(one, FreshDek(f"new {one.row_id} {one.old_id}", os.urandom(32)))
        return [self.made[one] for one in documents]


def transform(*, seals: bool = False, dry: bool = False) -> tuple[EnvelopeReseal, DekWrapping]:
    keyring = Keyring(Key(version, key) for version, key in KEYS.items())
    wrapping = DekWrapping("deks", SECTION, WRAP, keyring, ("v1",), "v2")
    ring = DekRing(wrapping, "t", dry=dry)
    digester = keyring.get("v2").digester()
    field = EnvelopeField("t", "ct", "t", LAYOUT, ring, seals, digester)
    return EnvelopeReseal(TABLE, [field], ring), wrapping


def judged(values: list[Any], asked: Asked, **choices: bool) -> Resealed:
    reseal, wrapping = transform(**choices)
    page = Page.of([(at, one) for at, one in enumerate(values)], TABLE)
    sources = {wrapping.records: asked.find, wrapping.fresh: asked.mint}

    async def work() -> Resealed:
        return await resolved(lambda: reseal.page(page), sources)

    return asyncio.run(work())


plains = st.binary(max_size=60)
_CONTROL = "".join(map(chr, range(32)))
texts = st.text(
    st.characters(exclude_characters=_CONTROL, exclude_categories=["Cs"]), min_size=1, max_size=30
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(plains, st.sampled_from([*DEKS, "d6"])), max_size=12))
def test_what_is_in_scope_gets_a_dek_of_its_own_and_opens_to_the_same(cases: list[tuple[bytes, str]]) -> None:
    """Every value ends in one class, by its record; new values open under their documents' DEKs alone."""
    asked = Asked()
    result = judged([value(plain, dek_id) for plain, dek_id in cases], asked)
    deks = {fresh.id: fresh.dek for fresh in asked.made.values()}
    news = dict(zip(result.swap.keys, listed(result.swap.news["ct"]), strict=True))
    in_scope = {at for at, (_, dek_id) in enumerate(cases) if dek_id in ("d0", "d1")}
    assert set(news) == in_scope
    assert {document.row_id for document in asked.made} == {str(at) for at in in_scope}
    for at, new in news.items():
        dek_id = new.partition(PART)[0]
        assert opened(new, deks[dek_id]) == cases[at][0]
        with pytest.raises(InvalidTag):
            opened(new, DEKS[cases[at][1]])
    assert len({new.partition(PART)[0] for new in news.values()}) == len(news)
    named = Counter(dek_id for _, dek_id in cases)
    counts = result.tally.get("ct", Counter())
    assert counts["current"] == named["d2"]
    assert counts["other_version"] == named["d3"]
    reasons = Counter(fault.reason for fault in result.faults)
    assert reasons[Reason.NO_DEK] == named["d6"]
    assert reasons[Reason.MALFORMED] == named["d4"]
    assert reasons[Reason.UNOPENABLE] == named["d5"]


@settings(max_examples=40, deadline=None)
@given(plains, st.integers(0, 200), st.integers(1, 255))
def test_a_flipped_byte_is_put_aside_and_no_dek_is_made_for_it(plain: bytes, at: int, flip: int) -> None:
    """What does not open is left as it is, and nothing is stored on its account."""
    parts = value(plain, "d0").split(PART)
    raw = bytearray(base64.b64decode(parts[1]) + base64.b64decode(parts[2]) + base64.b64decode(parts[3]))
    raw[at % len(raw)] ^= flip
    cut = (bytes(raw[:12]), bytes(raw[12:28]), bytes(raw[28:]))
    asked = Asked()
    broken = PART.join(("d0", *(base64.b64encode(part).decode() for part in cut)))
    result = judged([broken], asked)
    assert [fault.reason for fault in result.faults] == [Reason.UNOPENABLE]
    assert not result.swap.keys
    assert not asked.made


@settings(max_examples=40, deadline=None)
@given(st.lists(texts, max_size=6))
def test_plaintext_is_counted_or_sealed_as_it_is(cases: list[str]) -> None:
    """A text without parts, or with empty ones, is plaintext; sealed, it opens to its own bytes."""
    stored = [text if at % 2 else f"{PART}{PART}{PART}{text}" for at, text in enumerate(cases)]
    asked = Asked()
    assert judged(stored, asked).tally.get("ct", Counter())["plaintext"] == len(cases)
    assert not asked.made
    result = judged(stored, asked, seals=True)
    deks = {fresh.id: fresh.dek for fresh in asked.made.values()}
    news = listed(result.swap.news["ct"])
    assert [opened(new, deks[new.partition(PART)[0]]).decode() for new in news] == cases


def test_a_dry_run_asks_for_no_fresh_dek() -> None:
    """What it would write is sealed with DEKs that nobody keeps."""
    asked = Asked()
    result = judged([value(b"x", "d0"), value(b"y", "d0")], asked, dry=True)
    assert len(result.swap) == 2
    assert not asked.made


def test_nothing_is_judged_without_answers() -> None:
    """Outside of an attempt that can be made again, a missing record is an error, and no class."""
    reseal, _ = transform()
    with pytest.raises(ValueError, match="nobody to ask"):
        reseal.page(Page.of([(1, value(b"x", "d0"))], TABLE))


def test_ids_of_new_records_are_always_the_same_and_told_by_the_old_dek_alone() -> None:
    """Whoever tries again arrives at the same id; without the old DEK nobody does."""
    _, wrapping = transform()
    document = Document("t", "7", "d0", DEKS["d0"], ())
    first = wrapping.new_id(document, 0)
    assert first == transform()[1].new_id(document, 0)
    others = [
        wrapping.new_id(document, 1),
        wrapping.new_id(Document("t", "7", "d0", DEKS["d1"], ()), 0),
        wrapping.new_id(Document("t", "8", "d0", DEKS["d0"], ()), 0),
        wrapping.new_id(Document("u", "7", "d0", DEKS["d0"], ()), 0),
        DekWrapping("deks", SECTION, WRAP, wrapping.keyring, ("v1",), "v3").new_id(document, 0),
    ]
    assert len({first, *others}) == 6
