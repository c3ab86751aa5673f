"""Verify's own opening of values: whose they are where nothing in them says so, and whether they open at all.

It shares no code with the engine's: a mistake in one is no mistake in the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from rewrap.crypto.layout import BoundLayout, Layout, Malformed, Unopenable, Value
from rewrap.forms import Forms, begins_with, fits
from rewrap.keys.keyring import Key, Keyring
from rewrap.ledgers.sql import ExceptionRecord
from rewrap.model import StoredValue, Table
from rewrap.packed import ELEMENT


@dataclass(frozen=True, slots=True)
class Told:
    """What opening a value tells: its class, and its version if a key at hand opened it.

    `kind` is "current", "stale" (under another version, or in the old layout), "ambiguous" (it opens under
    two keys), "unmarked" (it opens without the marker it should have), "sealed" (it looks so, and opens under
    no key at hand) or "plaintext". `indexed` is False when its blind indexes are not those of its plaintext.
    """

    kind: str
    version: str | None = None
    indexed: bool = True


@dataclass(frozen=True)
class Opening:
    """The keys at hand over the forms of one field.

    `left` are the versions that values leave; `deep` looks at blind indexes too. `table` and `column` are
    what keys may be derived for.
    """

    forms: Forms
    keyring: Keyring
    left: tuple[str, ...]
    table: str
    column: str
    deep: bool = False

    @cached_property
    def _keys(self) -> list[Key]:
        """Every key at hand once, under the first of its names that the rotation speaks of."""
        named = (self.forms.versions[0], *self.left, *self.forms.versions)
        at_hand = [version for version in named if version in self.keyring]
        by_secret: dict[bytes, Key] = {}
        for key in (self.keyring.get(version) for version in at_hand):
            by_secret.setdefault(key.secret, key)
        return list(by_secret.values())

    def _bound(self, layout: Layout) -> list[BoundLayout]:
        return [
            layout.bind(key.version, key.secret, self.table, self.column, index_key=key.index)
            for key in self._keys
            if fits(layout, key.version) and layout.takes(key.secret)
        ]

    @cached_property
    def _unnamed(self) -> list[BoundLayout]:
        return [
            bound for layout in self.forms.layouts if not layout.versioned for bound in self._bound(layout)
        ]

    @cached_property
    def _bare(self) -> list[BoundLayout]:
        """Those whose values have a marker, of either kind, and may have lost it."""
        return [bound for layout in self.forms.layouts for bound in self._bound(layout) if bound.prefix]

    def tell(self, value: Value, aads: Mapping[str, bytes | None]) -> Told:
        """What a value is that no marker names a version of. `aads` are by the layouts' names."""
        found: dict[tuple[bytes, bytes], BoundLayout] = {}
        current = sealed = False
        for bound in self._unnamed:
            if not begins_with(value, bound.prefix):
                continue
            aad = aads[bound.layout.name]
            try:
                plain = bound.open_one(value, aad)
            except Unopenable:
                sealed = True
                continue
            except Malformed:
                # a beginning of its own is a marker, though it names no version
                sealed = sealed or bool(bound.prefix) or bound.written_otherwise(value, aad)
                continue
            found.setdefault((bound.key, plain[bound.layout.carry_bytes :]), bound)
            current = current or (bound.layout is self.forms.new and bound.version == self.forms.versions[0])
        if len(found) > 1:
            return Told("ambiguous")
        if found:
            ((_, plain), bound) = next(iter(found.items()))
            if not current:
                return Told("stale", bound.version)
            return Told("current", bound.version, self._indexed(bound, value, plain))
        if self.opens_bare(value, aads):
            return Told("unmarked")
        return Told("sealed" if sealed else "plaintext")

    def _indexed(self, bound: BoundLayout, value: Value, plain: bytes) -> bool:
        """Whether a value's blind indexes are its own, as far as that was asked."""
        if not (self.deep and bound.layout.index_count) or isinstance(value, bytes):
            return True
        return bound.indexes_match(value, bytes(bound.layout.carry_bytes) + plain)

    def opens_bare(self, value: Value, aads: Mapping[str, bytes | None]) -> bool | None:
        """Whether a value opens though it has no marker; None when it is no payload of any layout.

        Of many elements, whether one does.
        """
        if isinstance(value, str) and ELEMENT in value:
            verdicts = {self.opens_bare(part, aads) for part in value.split(ELEMENT)}
            return True if True in verdicts else False if False in verdicts else None
        payload = False
        for bound in self._bare:
            try:
                bound.open_bare(value, aads[bound.layout.name])
            except Malformed:
                continue
            except Unopenable:
                payload = True
                continue
            return True
        return False if payload else None


def opens_all(bound: BoundLayout, value: str, aad: bytes | None) -> bool:
    """Whether the values of all elements open."""
    return all(opens(bound, part, aad) for part in value.split(ELEMENT))


def associated(table: Table, forms: Forms, row: Sequence[Any]) -> dict[str, bytes | None]:
    """The associated data of a row (key, value, AAD texts…), by layout's name."""
    texts = dict(zip(table.aad_columns, row[2:], strict=True))
    return {layout.name: None if layout.aad is None else layout.aad.render(texts) for layout in forms.layouts}


def opens(bound: BoundLayout, value: Value, aad: bytes | None) -> bool:
    """Whether a marked value opens."""
    return opened(bound, value, aad) is not None


def opened(bound: BoundLayout, value: Value, aad: bytes | None) -> bytes | None:
    """What a marked value opens to; None when it does not."""
    try:
        return bound.open_one(value, aad)
    except (Malformed, Unopenable):
        return None


def misindexed(bound: BoundLayout, values: Sequence[Any], plains: Sequence[bytes | None]) -> int:
    """How many of some values that open have blind indexes that are not those of their plaintexts."""
    if not bound.layout.index_count:
        return 0
    pairs = zip(values, plains, strict=True)
    return sum(plain is not None and not bound.indexes_match(value, plain) for value, plain in pairs)


@dataclass
class Aside:
    """Values put aside that name no version, by their bytes' hash; `large` those too large to be read.

    `looked` once each of those values has been opened.
    """

    by_hash: dict[bytes, list[ExceptionRecord]] = field(default_factory=dict)
    large: list[ExceptionRecord] = field(default_factory=list)
    looked: bool = False

    def add(self, entry: ExceptionRecord, stored: StoredValue) -> None:
        if stored.whole is None:
            self.large.append(entry)
        else:
            self.by_hash.setdefault(_hash(stored.whole), []).append(entry)

    def take(self, value: Value) -> ExceptionRecord | None:
        """The entry of a value, once; None when it was not put aside."""
        entries = self.by_hash.get(_hash(value)) if self.by_hash else None
        return entries.pop() if entries else None

    def rest(self) -> list[ExceptionRecord]:
        return [*self.large, *(entry for entries in self.by_hash.values() for entry in entries)]


def _hash(value: Value) -> bytes:
    return hashlib.sha256(value if isinstance(value, bytes) else value.encode()).digest()
