"""Ciphers of keys that are never here: whoever keeps them wraps and unwraps, and rewraps in one go.

A key is then a descriptor, `descriptor(kind, …)`, that says which key it is and nothing of what it is. What
is to be opened or sealed is asked for (`rewrap.crypto.answers`): of the source `opening(key)` with items
(sealed bytes, associated data), and of `sealing(key)` with items (plaintext, associated data, number of its
use).

Where a keeper rewraps without giving out what is wrapped, opening answers with a `Rewrapped`: it stands for
the plaintext and holds the new wrapping, which sealing then needs no call for.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from rewrap.crypto.answers import AT_HAND, answers, used_again
from rewrap.crypto.cipher import Aads, Batch, Carried, OpenBatch, SealBatch

_LEAD = b"\x00rewrap key elsewhere\x00"

Opening = tuple[bytes, bytes | None]
"""What is to be opened, and what it is bound to."""

Sealing = tuple[bytes, bytes | None, int]
"""What is to be sealed, what it is bound to, and a number that tells two uses of the same apart."""


def descriptor(kind: str, *told: str) -> bytes:
    """Stands for a key that is kept elsewhere, in a key's place: who keeps it, and which it is there."""
    return _LEAD + "\x00".join((kind, *told)).encode()


def is_descriptor(key: bytes) -> bool:
    return key.startswith(_LEAD)


def opening(key: bytes) -> Hashable:
    """Whom to ask to open what is wrapped under a key."""
    return "open", key


def sealing(key: bytes) -> Hashable:
    """Whom to ask to wrap under a key."""
    return "seal", key


class Rewrapped(bytes):
    """Stands for what is wrapped, where that stays with the keeper: its old wrapping, and the `new` one.

    Its bytes are those of the old wrapping, so that two are equal only if they are of the same.
    """

    new: bytes

    def __new__(cls, old: bytes, new: bytes) -> Rewrapped:
        self = super().__new__(cls, old)
        self.new = new
        return self


def opened_elsewhere(key: bytes, sealed: Sequence[bytes], aads: Aads | None) -> Batch:
    """What a batch opens to by asking; ValueError where one does not open."""
    items = _paired(sealed, aads)
    found = answers(opening(key), items)
    if None in found:
        raise ValueError("a value does not open")
    at_hand = AT_HAND.get()
    assert at_hand is not None
    made_of = at_hand.made_of
    return [
        # a keeper that gives nothing out says only that it opens: to that which it was made of
        made_of.get((key, item), one) if isinstance(one, Rewrapped) else one
        for item, one in zip(items, found, strict=True)
    ]


def sealed_elsewhere(key: bytes, plain: Sequence[bytes], aads: Aads | None) -> Batch:
    """A batch wrapped by asking, and what was rewrapped already without."""
    pairs = _paired(plain, aads)
    fresh = [pair for pair in pairs if not isinstance(pair[0], Rewrapped)]
    made = iter(used_again(sealing(key), fresh))
    news: Batch = []
    at_hand = AT_HAND.get()
    for text, aad in pairs:
        new = text.new if isinstance(text, Rewrapped) else next(made)
        if at_hand is not None:
            at_hand.made_of_plain(key, opening(key), (new, aad), text)
        news.append(new)
    return news


def _paired(values: Sequence[bytes], aads: Aads | None) -> list[Opening]:
    if aads is None:
        return [(value, None) for value in values]
    return list(zip(values, aads, strict=True))


@dataclass(frozen=True, slots=True)
class Elsewhere(Carried):
    """A service's own wrapping, as it comes from there: opaque bytes.

    `binds_aad` says whether the service takes an encryption context.
    """

    name: str
    binds_aad: bool
    least_bytes: int
    key_bytes: int = 0
    nonce_bytes: int = 0
    tag_bytes: int = 0
    seal_limit: int | None = None
    order: tuple[str, ...] = ("ciphertext",)

    def opener(self, key: bytes) -> OpenBatch:
        def open_batch(sealed: Sequence[bytes], aads: Aads | None, at: int) -> Batch:
            return opened_elsewhere(key, [raw[at:] for raw in sealed], aads)

        return open_batch

    def sealer(self, key: bytes) -> SealBatch:
        def seal_batch(plain: Batch, aads: Aads | None) -> Batch:
            return sealed_elsewhere(key, plain, aads)

        return seal_batch
