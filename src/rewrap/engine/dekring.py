"""Pure: the DEKs at hand for the values of one table, what their records say, and the fresh ones.

Nothing here asks a store: records, and fresh DEKs for documents, are asked for as whatever an attempt needs
from outside (`rewrap.crypto.answers`), and the attempt is made again when they are there.
"""

from __future__ import annotations

import hmac
import os
import uuid
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from rewrap.crypto.answers import AT_HAND, Unresolved, answers
from rewrap.crypto.ciphers import OPEN_FAILURES
from rewrap.crypto.encodings import TEXT_ENCODINGS
from rewrap.crypto.layout import BoundLayout, Layout, Malformed, Unopenable
from rewrap.deks import DekRecord, NewRecord
from rewrap.envelopes import UUID, DekSection
from rewrap.keys.keyring import Keyring
from rewrap.model import Reason

DEK_BYTES = 32
"""Length of a DEK that replaces none."""

KEPT = 10_000
"""DEKs kept open for the pages that follow, which may share them; about 10 MB under RSA-4096."""


@dataclass(frozen=True, slots=True)
class Document:
    """A document that gets a fresh DEK in place of one: its key as text, and the old DEK's id and record.

    `place` is where it is; `old` is the DEK itself, `texts` what its record is bound to. All of it is empty
    where the document's value was plaintext.
    """

    place: str
    row_id: str
    old_id: str
    old: bytes = field(repr=False)
    texts: tuple[str | None, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class FreshDek:
    """A DEK made for one document, and the id of its record."""

    id: str
    dek: bytes = field(repr=False)


@dataclass(frozen=True)
class DekWrapping:
    """How DEKs are wrapped in the records of one `[deks.NAME]`, for one rotation."""

    name: str
    section: DekSection
    layout: Layout
    keyring: Keyring
    from_versions: tuple[str, ...]
    to_version: str
    _bound: dict[str, BoundLayout] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def records(self) -> Hashable:
        """Whom records are asked of, by id: the answer is a DekRecord, or None where there is none."""
        return ("records", self.name)

    @property
    def fresh(self) -> Hashable:
        """Whom fresh DEKs are asked of, by document: the answer is a FreshDek, whose record is kept."""
        return ("fresh", self.name)

    @property
    def columns(self) -> tuple[str, ...]:
        """The properties of a record that its wrapping is bound to."""
        return tuple(dict.fromkeys(self.layout.aad.columns)) if self.layout.aad else ()

    def version_in(self, record: DekRecord) -> str | None:
        """The version that a record names."""
        wrapped = record.wrapped
        for version in (*self.from_versions, self.to_version):
            prefix = self.bind(version).prefix
            if isinstance(wrapped, str) and isinstance(prefix, str) and wrapped.startswith(prefix):
                return version
            if isinstance(wrapped, bytes) and isinstance(prefix, bytes) and wrapped.startswith(prefix):
                return version
        return None if wrapped is None else self.layout.version_of(wrapped)

    def opened(self, records: Mapping[str, DekRecord]) -> dict[str, bytes | Reason]:
        """What some records' DEKs are, or why they do not open; those of other versions are left out."""
        out: dict[str, bytes | Reason] = {}
        by_version: dict[str, list[str]] = {}
        for name, record in records.items():
            version = self.version_in(record)
            if version in (*self.from_versions, self.to_version):
                by_version.setdefault(str(version), []).append(name)
        for version, names in by_version.items():
            found = _opened_each(
                self.bind(version),
                [records[name].wrapped for name in names],
                [self._aad(records[name].texts) for name in names],
            )
            out.update(zip(names, map(self._held, found), strict=True))
        return out

    def wrapped(self, document: Document, new_id: str, dek: bytes) -> NewRecord:
        """The record of a document's fresh DEK."""
        aad = self._aad(self._new_texts(document, new_id))
        (sealed,) = self.bind(self.to_version).seal_values(
            [self._written(dek)], None if aad is None else [aad]
        )
        return NewRecord(new_id, document.old_id, sealed)

    def new_id(self, document: Document, attempt: int) -> str:
        """The id of a document's new record: always the same, and known to nobody without the old DEK.

        Whoever tries again after a crash arrives at the record that was left behind. A UUID of version 8
        (RFC 9562 5.8) from 128 bits of an HMAC-SHA256.
        """
        mac = hmac.new(document.old, b"rewrap fresh dek", sha256)
        for part in (document.place, document.row_id, document.old_id, self.to_version, str(attempt)):
            encoded = part.encode("utf-8", "surrogatepass")
            mac.update(len(encoded).to_bytes(8, "big") + encoded)
        number = int.from_bytes(mac.digest()[:16], "big")
        number = number & ~(0xF << 76) | 0x8 << 76
        number = number & ~(0x3 << 62) | 0x2 << 62
        return self.section.new_id.replace(UUID, str(uuid.UUID(int=number)))

    def bind(self, version: str) -> BoundLayout:
        if version not in self._bound:
            entry = self.section.wrapped
            assert entry is not None
            key = self.keyring.get(version)
            self._bound[version] = self.layout.bind(version, key.secret, self.section.table, entry.name)
        return self._bound[version]

    def _new_texts(self, document: Document, new_id: str) -> tuple[str | None, ...]:
        """What a new record's wrapping is bound to: as the old one's, but for the id and what is given."""
        old = dict(zip(self.columns, document.texts, strict=False))
        told = {name: _text(value) for name, value in self.section.given.items()}
        own: dict[str, str | None] = {**old, **told, self.section.id: new_id}
        return tuple(own.get(name) for name in self.columns)

    def _aad(self, texts: Sequence[str | None]) -> bytes | None:
        if self.layout.aad is None:
            return None
        return self.layout.aad.render(dict(zip(self.columns, texts, strict=True)))

    def _held(self, opened: bytes | Reason) -> bytes | Reason:
        """The DEK in what a record opened to."""
        if isinstance(opened, Reason) or self.section.holds == "raw":
            return opened
        try:
            return TEXT_ENCODINGS[self.section.holds].decode([opened.decode()])[0]
        except ValueError:
            return Reason.MALFORMED

    def _written(self, dek: bytes) -> bytes:
        if self.section.holds == "raw":
            return self.layout.fresh_carry() + dek
        return self.layout.fresh_carry() + str(TEXT_ENCODINGS[self.section.holds].encode([dek])[0]).encode()


@dataclass
class DekRing:
    """The DEKs of the values that one attempt looks at: at hand from `begin` on, until the next.

    `place` is what says where its documents are. With `dry`, fresh DEKs are used that no record was made for:
    nothing sealed with one is ever written.
    """

    wrapping: DekWrapping
    place: str
    dry: bool = False
    _records: dict[str, DekRecord] = field(default_factory=dict, repr=False)
    _deks: dict[str, bytes | Reason] = field(default_factory=dict, repr=False)
    _lent: dict[str, Document] = field(default_factory=dict, repr=False)
    _spare: dict[Document, FreshDek] = field(default_factory=dict, repr=False)
    _kept: dict[DekRecord, bytes] = field(default_factory=dict, repr=False)

    def begin(self, ids: Iterable[str]) -> None:
        """Fetches the records of all ids that values name, and opens those in scope."""
        wanted = sorted(set(ids))
        found = _asked(self.wrapping.records, wanted)
        self._records = {one: record for one, record in zip(wanted, found, strict=True) if record is not None}
        leaving = {
            one: record
            for one, record in self._records.items()
            if self.wrapping.version_in(record) in self.wrapping.from_versions
        }
        self._deks = self._opened(leaving)
        self._lent, self._spare = {}, {}

    def _opened(self, records: Mapping[str, DekRecord]) -> dict[str, bytes | Reason]:
        """The DEKs of some records. Documents may share one for a tenant: it is opened once."""
        out: dict[str, bytes | Reason] = {}
        out |= {one: self._kept[record] for one, record in records.items() if record in self._kept}
        found = self.wrapping.opened({one: record for one, record in records.items() if one not in out})
        if len(self._kept) > KEPT:
            self._kept.clear()
        # what did not open may only not be known yet
        self._kept.update({records[one]: dek for one, dek in found.items() if isinstance(dek, bytes)})
        return out | found

    def recorded(self, dek_id: str) -> bool:
        return dek_id in self._records

    def version_of(self, dek_id: str) -> str | None:
        """The version that a DEK is wrapped under; None when its record names none, or there is none."""
        record = self._records.get(dek_id)
        return None if record is None else self.wrapping.version_in(record)

    def dek(self, dek_id: str) -> bytes | Reason:
        """A DEK in scope, or why it does not open."""
        return self._deks[dek_id]

    def fresh(self, row_id: str, dek_id: str) -> FreshDek:
        """The document's fresh DEK in place of one: that of its record, or one that has none yet."""
        old = self._deks.get(dek_id, b"")
        record = self._records.get(dek_id)
        assert isinstance(old, bytes)
        texts = record.texts if record is not None else ()
        document = Document(self.place, row_id, dek_id, old, texts)
        at_hand = AT_HAND.get()
        kept = at_hand.known.get((self.wrapping.fresh, document)) if at_hand is not None else None
        if isinstance(kept, FreshDek):
            return kept
        made = self._made(document)
        self._lent[made.id] = document
        return made

    def require_kept(self, ids: Iterable[str]) -> None:
        """Asks for records for those fresh DEKs, of these ids, that have none yet."""
        missing = [] if self.dry else [self._lent[one] for one in dict.fromkeys(ids) if one in self._lent]
        _asked(self.wrapping.fresh, missing)

    def _made(self, document: Document) -> FreshDek:
        """A DEK for the time being, the same for all values of a document that share the old one."""
        lent = self._spare.get(document)
        if lent is None:
            lent = FreshDek(self.wrapping.new_id(document, 0), os.urandom(len(document.old) or DEK_BYTES))
            self._spare[document] = lent
        return lent


def _asked(source: Hashable, items: Sequence[Hashable]) -> Sequence[Any]:
    """The answers to some items; None to each where one is not known yet.

    The attempt goes on then, and asks for what the next rows need too: nothing that it returns is used.
    """
    if not items:
        return []
    try:
        return answers(source, items)
    except Unresolved:
        return [None] * len(items)


def _opened_each(bound: BoundLayout, values: list[object], aads: list[bytes | None]) -> list[bytes | Reason]:
    drop = bound.layout.carry_bytes
    given = aads if bound.layout.aad else None
    try:
        return [plain[drop:] for plain in bound.open_values(values, given)]
    except OPEN_FAILURES:
        pass
    out: list[bytes | Reason] = []
    for value, aad in zip(values, aads, strict=True):
        assert isinstance(value, str | bytes)
        try:
            out.append(bound.open_one(value, aad)[drop:])
        except Malformed:
            out.append(Reason.MALFORMED)
        except Unopenable:
            out.append(Reason.UNOPENABLE)
    return out


def _text(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
