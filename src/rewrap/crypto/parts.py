"""Payloads: the order of nonce, ciphertext and tag, as they are stored and as the cipher takes them.

nonce ciphertext tag         one text: encoding( nonce ‖ ciphertext ‖ tag )
nonce | ciphertext tag       two texts, each encoded, with a separator between them
nonce ␞ tag ␞ ciphertext     what is stored apart, joined to one text (U+001E); indexes follow it
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rewrap.crypto.cipher import Batch, Cipher
from rewrap.crypto.encodings import RAW, TEXT_ENCODINGS
from rewrap.crypto.failures import LayoutError
from rewrap.packed import PART

PIECES = ("nonce", "ciphertext", "tag")

Groups = tuple[tuple[str, ...], ...]
"""Pieces that are stored together, in order; each group is one text."""


@dataclass(frozen=True, slots=True)
class Codec:
    """From stored payloads to the cipher's own bytes, and back, a list at a time.

    `decode` raises ValueError for what is malformed.
    """

    decode: Callable[[Sequence[Any]], Batch]
    encode: Callable[[Batch], list[Any]]


def parse_order(order: str, separator: str, cipher: Cipher) -> Groups:
    """The groups that an order declares; the cipher's own order, as one group, when it is empty."""
    if not order:
        return (cipher.order,)
    groups = tuple(tuple(group.split()) for group in order.split("|"))
    named = [piece for group in groups for piece in group]
    if sorted(named) != sorted(cipher.order) or not all(groups):
        raise LayoutError(f'order "{order}" holds each of {", ".join(cipher.order)} once')
    if len(groups) > 1 and not separator:
        raise LayoutError(f'order "{order}" has more than one part; give the separator between them')
    if len(groups) == 1 and separator:
        raise LayoutError('a separator stands where the order has a "|"')
    return groups


def apart_groups(groups: Groups, apart: Sequence[str]) -> Groups:
    """The groups of a value whose nonce or tag is stored apart: those first, then the rest."""
    named = tuple(part for part in apart if part in PIECES)
    if not named:
        return groups
    if len(groups) > 1:
        raise LayoutError("parts of a payload with a separator cannot be stored apart as well")
    missing = [part for part in named if part not in groups[0]]
    if missing:
        raise LayoutError(f"the cipher has no {missing[0]} that could be stored apart")
    rest = tuple(piece for piece in groups[0] if piece not in named)
    return (*((part,) for part in named), rest)


def encoded(encoding: str, *, binary: bool) -> Codec:
    """Payloads in an encoding; bytes as they are where values are bytes, in hex where they were joined."""
    if binary:
        return Codec(_as_it_is, _as_it_is)
    text = TEXT_ENCODINGS["hex" if encoding == RAW else encoding]
    return Codec(text.decode, text.encode)


def grouped(cipher: Cipher, groups: Groups, separator: str, texts: Sequence[Codec]) -> Codec:
    """Payloads of one or more groups of pieces; `texts` says how each group is encoded."""
    if groups == (cipher.order,):
        return texts[0]
    sizes = {"nonce": cipher.nonce_bytes, "tag": cipher.tag_bytes}
    cuts = [_cuts(group, sizes) for group in groups]
    own = _cuts(cipher.order, sizes)
    least = [sum(sizes.get(piece, 0) for piece in group) for group in groups]
    exact = ["ciphertext" not in group for group in groups]

    def decode(payloads: Sequence[Any]) -> Batch:
        columns = _columns(payloads, len(groups), separator)
        pieces: dict[str, list[bytes]] = {}
        for at, column in enumerate(columns):
            raws = texts[at].decode(column)
            if any(len(raw) < least[at] or (exact[at] and len(raw) > least[at]) for raw in raws):
                raise ValueError("a part of the value has not its length")
            for piece, cut in cuts[at].items():
                pieces[piece] = [raw[cut] for raw in raws]
        return [b"".join(row) for row in zip(*(pieces[piece] for piece in cipher.order), strict=True)]

    def encode(sealed: Batch) -> list[Any]:
        pieces = {piece: [raw[cut] for raw in sealed] for piece, cut in own.items()}
        columns = [
            text.encode([b"".join(row) for row in zip(*(pieces[p] for p in group), strict=True)])
            for text, group in zip(texts, groups, strict=True)
        ]
        if len(columns) == 1:
            return columns[0]
        return [separator.join(row) for row in zip(*columns, strict=True)]

    return Codec(decode, encode)


def led(codec: Codec, lead: str) -> Codec:
    """Payloads behind a constant that is no part of the whole value's prefix."""
    size = len(lead)

    def decode(payloads: Sequence[Any]) -> Batch:
        if not all(payload.startswith(lead) for payload in payloads):
            raise ValueError("the value lacks its marker")
        return codec.decode([payload[size:] for payload in payloads])

    return Codec(decode, lambda sealed: [lead + payload for payload in codec.encode(sealed)])


def followed(codec: Codec, count: int) -> Codec:
    """Joined values with `count` indexes behind them, which are passed over; encoding leaves them out."""

    def decode(payloads: Sequence[Any]) -> Batch:
        return codec.decode([without_indexes(payload, count) for payload in payloads])

    return Codec(decode, codec.encode)


def without_indexes(value: str, count: int) -> str:
    """What stands before the last `count` parts of a joined value; ValueError when there are not so many."""
    parts = value.rsplit(PART, count)
    if len(parts) != count + 1:
        raise ValueError("the value has too few parts")
    return parts[0]


def _columns(payloads: Sequence[Any], count: int, separator: str) -> list[Sequence[Any]]:
    """Each group's texts over all payloads."""
    if count == 1:
        return [payloads]
    rows = [payload.split(separator) for payload in payloads]
    if any(len(row) != count for row in rows):
        raise ValueError("the value has not its number of parts")
    return [[row[at] for row in rows] for at in range(count)]


def _cuts(order: Sequence[str], sizes: dict[str, int]) -> dict[str, slice]:
    """Where each piece stands in bytes of an order; the ciphertext takes what is left."""
    cuts: dict[str, slice] = {}
    at = 0
    for piece in order:
        if piece == "ciphertext":
            after = sum(sizes[later] for later in order[order.index(piece) + 1 :])
            cuts[piece] = slice(at, -after or None)
            at = -after
        else:
            cuts[piece] = slice(at, at + sizes[piece] or None)
            at += sizes[piece]
    return cuts


def _as_it_is(payloads: Sequence[Any]) -> list[Any]:
    return payloads if isinstance(payloads, list) else list(payloads)
