"""Pure: the transform of fields that are sealed with a DEK, which a record elsewhere holds, wrapped.

The record says which version a value is under. A value in scope is opened with its DEK, and sealed with a
fresh one, which is its document's alone: values of a document that shared a DEK share the fresh one. All of a
document's new values and DEK ids are written in one swap.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rewrap.crypto.layout import BoundLayout, Layout, Malformed, Unopenable, Value
from rewrap.deks import NO_DEK_ID
from rewrap.engine.dekring import DekRing
from rewrap.engine.health import UNRECORDED
from rewrap.engine.judged import AadPair, FieldTransform, Judged
from rewrap.engine.reseal import Reseal, Resealed
from rewrap.errors import ResealMismatch
from rewrap.interfaces import OversizeMark, Page
from rewrap.keys.keyring import Digester
from rewrap.model import Fault, Outcome, Reason, Table, key_text
from rewrap.packed import ELEMENT, PART, Column, listed

_NO_TEXT = "\x02"
"""Begins what stands for a payload that is no text."""


def dek_id_of(value: str) -> str:
    """The id of the DEK that a joined value names; empty when it names none."""
    head, part, _ = value.partition(PART)
    return head if part and head not in NO_DEK_ID else ""


@dataclass(frozen=True)
class EnvelopeField:
    """One field's transform. `seals` says whether plaintext is sealed; keys may be derived for `target`."""

    table: str
    column: str
    target: str
    layout: Layout
    ring: DekRing
    seals: bool
    digester: Digester

    @property
    def old(self) -> Layout:
        return self.layout

    @property
    def new(self) -> Layout:
        return self.layout

    @property
    def probed(self) -> bool:
        """Its values name no version: only their DEKs' records do."""
        return True

    def version_of(self, value: Value) -> str | None:
        """The version that a value's DEK is wrapped under."""
        return self.ring.version_of(dek_id_of(value)) if isinstance(value, str) else None

    def judge(self, values: Column, aads: AadPair, row_ids: Sequence[Any]) -> Judged:
        """Classifies a column of values, and reseals those in scope under their documents' fresh DEKs."""
        places: list[int] = []
        olds: list[Any] = []
        news: list[Any] = []
        out = Judged(places, olds, news)
        bound = aads[True]
        for place, value in enumerate(listed(values)):
            aad = None if bound is None else bound[place]
            plain = self._judge_one(value, aad, row_ids[place], out)
            if plain is None:
                continue
            places.append(place)
            olds.append(value)
            news.append(self._sealed(plain, aad, key_text(row_ids[place]), dek_id_of(value)))
        if len(places) == len(row_ids):
            out.places = None
        return out

    def _judge_one(self, value: Any, aad: bytes | None, row_id: Any, out: Judged) -> bytes | None:
        """The plaintext of a value to be sealed anew; or None, and what it is was counted."""
        if value is None:
            out.counts[Outcome.NULL] += 1
            return None
        mark = value if isinstance(value, OversizeMark) else None
        text = value if mark is None else str(mark.head)
        dek_id = dek_id_of(text)
        if not dek_id:
            return self._judge_bare(value, aad, row_id, out)
        if not self.ring.recorded(dek_id):
            self._fault(out, row_id, value, Reason.NO_DEK, UNRECORDED)
            return None
        out.opened[self.column, UNRECORDED] += 1
        version = self.ring.version_of(dek_id)
        if version is None:
            self._fault(out, row_id, value, Reason.MALFORMED, None)
        elif version == self.ring.wrapping.to_version:
            out.counts[Outcome.CURRENT] += 1
        elif version not in self.ring.wrapping.from_versions:
            out.counts[Outcome.OTHER_VERSION] += 1
        elif mark is not None:
            self._fault(out, row_id, value, Reason.TOO_LARGE, None)
        else:
            return self._opened(value, aad, row_id, dek_id, version, out)
        return None

    def _opened(
        self, value: str, aad: bytes | None, row_id: Any, dek_id: str, version: str, out: Judged
    ) -> bytes | None:
        dek = self.ring.dek(dek_id)
        if isinstance(dek, Reason):
            # whatever is wrong with the record: of this value it can only be said that it does not open
            self._fault(out, row_id, value, Reason.UNOPENABLE, version)
            return None
        try:
            plain = self._bind(dek_id, dek).open_one(value, aad)
        except Malformed:
            self._fault(out, row_id, value, Reason.MALFORMED, version)
            return None
        except Unopenable:
            self._fault(out, row_id, value, Reason.UNOPENABLE, version)
            return None
        out.opened[self.column, version] += 1
        return plain

    def _judge_bare(self, value: Any, aad: bytes | None, row_id: Any, out: Judged) -> bytes | None:
        """A value that names no DEK: plaintext, or sealed and nobody can say with what."""
        if isinstance(value, OversizeMark):
            if self.seals:
                self._fault(out, row_id, value, Reason.TOO_LARGE, None)
            else:
                out.counts[Outcome.PLAINTEXT] += 1
            return None
        if self._looks_sealed(value, aad):
            self._fault(out, row_id, value, Reason.NO_DEK, UNRECORDED)
            return None
        text = value.rpartition(PART)[2]
        if not self.seals:
            out.counts[Outcome.PLAINTEXT] += 1
            return None
        if text.startswith(_NO_TEXT):
            # a number or an object: sealed, it would come back as a text
            self._fault(out, row_id, value, Reason.MALFORMED, None)
            return None
        return self.layout.fresh_carry() + bytes(text.encode())

    def _looks_sealed(self, value: str, aad: bytes | None) -> bool:
        if PART not in value:
            return False
        _, *parts, _ = value.split(PART)
        value = PART + value.partition(PART)[2]
        if any(parts):
            # a nonce or a tag beside it: it was sealed once
            return True
        try:
            self._bind("", bytes(self.layout.key_bytes or 32)).open_bare(value, aad)
        except Malformed:
            return False
        except Unopenable:
            pass
        return True

    def _sealed(self, plain: bytes, aad: bytes | None, row_id: str, dek_id: str) -> str:
        fresh = self.ring.fresh(row_id, dek_id)
        bound = self._bind(fresh.id, fresh.dek)
        aads = None if aad is None else [aad]
        news = bound.seal_values([plain], aads)
        # open what is about to be sent: afterwards it is too late
        if bound.open_values(news, aads) != [plain]:
            raise ResealMismatch(
                f'column "{self.column}": a new value does not open to what was sealed; nothing was written',
                hint="this is a defect in rewrap or its libraries, please report it",
            )
        return str(news[0])

    def _bind(self, dek_id: str, dek: bytes) -> BoundLayout:
        # whatever the layout says of versions: an id of a DEK may look like anything
        key = self.layout.bind("0", dek, self.target, self.column).key
        prefix = dek_id + PART if dek_id else ""
        return BoundLayout(self.layout, dek_id, prefix, key, self.target, self.column)

    def _fault(self, out: Judged, row_id: Any, value: Any, reason: Reason, version: str | None) -> None:
        out.counts[Outcome.QUARANTINED] += 1
        if isinstance(value, OversizeMark):
            value = value.stands_for
        digest = self.digester.digest(self.table, self.column, key_text(row_id), value)
        out.faults.append(Fault(key_text(row_id), self.column, reason, digest, version))


class EnvelopeReseal(Reseal):
    """The transform of a table whose values are under DEKs. It asks for their records, and for fresh DEKs."""

    def __init__(self, table: Table, fields: Sequence[FieldTransform], ring: DekRing) -> None:
        super().__init__(table, fields)
        self.ring = ring

    def _judge(self, page: Page, only: frozenset[str] | None) -> Resealed:
        named = {
            dek_id
            for entry, values in zip(self.fields, page.fields, strict=True)
            if only is None or entry.column in only
            for dek_id in _dek_ids(listed(values))
        }
        self.ring.begin(named)
        result = super()._judge(page, only)
        # a record is made for what will be written, and for nothing else
        self.ring.require_kept(
            dek_id for news in result.swap.news.values() for dek_id in _dek_ids(listed(news))
        )
        return result


def _dek_ids(values: Iterable[Any]) -> Iterator[str]:
    """The ids of DEKs that values name, those of elements each."""
    for value in values:
        head = value.head if isinstance(value, OversizeMark) else value
        if isinstance(head, str) and PART in head:
            for one in head.split(ELEMENT):
                if dek_id := dek_id_of(one):
                    yield dek_id
