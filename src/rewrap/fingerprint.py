"""Fingerprints of what a rotation must leave as it is, row by row.

A row becomes one entry of 32 bytes:

    key8 ‖ row24      key8 = SHA-256(key)[:8], row24 = SHA-256(key ‖ part₁ ‖ part₂ …)[:24]
    part              00 where nothing is stored, else 01 ‖ SHA-256(bytes)
    key               the parts of the key's columns, one after the other

The fingerprint of a table is SHA-256 over its entries in ascending order: neither the order in which rows
are read plays a part, nor can two changes cancel each other out. Beside it the entries are kept: from two
sorted lists of them follows how many rows are the same, differ, are new and are gone.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

ENTRY_BYTES = 32

KEY_BYTES = 8
"""Two of a million keys begin alike once in 37 million tables: then a row gone and a new one pass for one."""


def part(stored: bytes | None) -> bytes:
    """One stored value within a row: whether it is there, and its SHA-256."""
    return b"\x00" if stored is None else b"\x01" + hashlib.sha256(stored).digest()


def entry(key: Sequence[bytes | None], values: Sequence[bytes | None]) -> bytes:
    """A row's entry, from the bytes of its key's columns and of its values."""
    keys = b"".join(map(part, key))
    row = hashlib.sha256(keys + b"".join(map(part, values))).digest()
    return hashlib.sha256(keys).digest()[:KEY_BYTES] + row[: ENTRY_BYTES - KEY_BYTES]


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A table at one moment: how many rows, and SHA-256 over their sorted entries in hex."""

    rows: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Difference:
    """Two looks at a table: rows that are the same in both, that differ, that are new, that are gone."""

    before: Fingerprint
    now: Fingerprint
    unchanged: int
    changed: int
    inserted: int
    deleted: int

    @property
    def same(self) -> bool:
        return self.before == self.now


async def compared(before: AsyncIterator[bytes], now: AsyncIterator[bytes]) -> Difference:
    """What became of a table's rows, from two streams of sorted entries. Memory stays flat."""
    old, new = _Entries(before), _Entries(now)
    unchanged = changed = inserted = deleted = 0
    while True:
        await old.fill()
        await new.fill()
        bounds = [side.last for side in (old, new) if not side.ended]
        bound = min(bounds) if bounds else None
        a, b = old.take(bound), new.take(bound)
        if not a and not b:
            if bound is None:
                break
            # everything at hand is of one key: it may go on in what comes next
            await (old if not old.ended and old.last == bound else new).extend()
            continue
        if a == b:
            unchanged += len(a) // ENTRY_BYTES
            continue
        was, found = Counter(_split(a)), Counter(_split(b))
        missing, fresh = was - found, found - was
        unchanged += was.total() - missing.total()
        rewritten = (_by_key(missing) & _by_key(fresh)).total()
        changed += rewritten
        deleted += missing.total() - rewritten
        inserted += fresh.total() - rewritten
    return Difference(old.fingerprint, new.fingerprint, unchanged, changed, inserted, deleted)


def _split(entries: bytes) -> list[bytes]:
    return [entries[at : at + ENTRY_BYTES] for at in range(0, len(entries), ENTRY_BYTES)]


def _by_key(entries: Counter[bytes]) -> Counter[bytes]:
    keys: Counter[bytes] = Counter()
    for one, number in entries.items():
        keys[one[:KEY_BYTES]] += number
    return keys


class _Entries:
    """A stream of sorted entries, taken up to a bound at a time, and added up on the way."""

    def __init__(self, stream: AsyncIterator[bytes]) -> None:
        self._stream = stream
        self._held = b""
        self._sum = Summed()
        self.ended = False

    @property
    def last(self) -> bytes:
        """The key of the last entry at hand."""
        return self._held[-ENTRY_BYTES : KEY_BYTES - ENTRY_BYTES]

    @property
    def fingerprint(self) -> Fingerprint:
        return self._sum.fingerprint

    async def fill(self) -> None:
        """Has at least one entry at hand, unless the stream has ended."""
        while not self._held and not self.ended:
            await self.extend()

    async def extend(self) -> None:
        more = await anext(self._stream, None)
        if more is None:
            self.ended = True
            return
        self._sum.add(more)
        self._held += more

    def take(self, bound: bytes | None) -> bytes:
        """The entries whose key is below the bound; all that are left if there is none."""
        if bound is None:
            taken, self._held = self._held, b""
            return taken
        held = self._held
        places = range(len(held) // ENTRY_BYTES)
        cut = ENTRY_BYTES * bisect_left(
            places, bound, key=lambda at: held[at * ENTRY_BYTES : at * ENTRY_BYTES + KEY_BYTES]
        )
        taken, self._held = held[:cut], held[cut:]
        return taken


class Summed:
    """Adds up sorted entries to a fingerprint, as they come."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._rows = 0

    def add(self, entries: bytes) -> None:
        self._hash.update(entries)
        self._rows += len(entries) // ENTRY_BYTES

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(self._rows, self._hash.hexdigest())
