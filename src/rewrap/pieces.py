"""Values of several texts with a separator between them: `iv:tag:ciphertext`. Pure.

Which piece is which, their lengths tell: a nonce and a tag have one length in all values of a column.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import permutations

from rewrap.crypto.encodings import TEXT_ENCODINGS

Span = tuple[int, int]
"""Least and greatest length of a piece in bytes."""

_NONCE_BYTES, _TAG_BYTES = (12, 16, 24), 16

_SPLIT = re.compile(r"(--|[:.|$,;*~#])")

_HEAD = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9_-]{0,23}(?:--|[:.|$,;*~#])){0,3}")

_PIECE = re.compile(r"[A-Za-z0-9+/_=-]+")

_SALTED_BYTES = frozenset({20, 32, 48, 64})
"""Lengths of digests that follow a salt of 16 bytes."""

_COMMON = ("nonce | tag | ciphertext", "nonce | ciphertext | tag", "ciphertext | nonce | tag")
"""Orders that most programs write, the commonest first."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """One value taken apart: what stands before it, its separator, the bytes of each piece."""

    head: str
    separator: str
    encoding: str
    raws: tuple[bytes, ...] = field(repr=False)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(len(raw) for raw in self.raws)


def take_apart(text: str) -> Pieces | None:
    """The pieces of a value that could be a nonce, a ciphertext and a tag; None for any other text."""
    split = _SPLIT.split(text)
    texts, separators = split[::2], split[1::2]
    for count in (3, 2):
        if len(texts) < count or len(set(separators[len(separators) - count + 1 :])) != 1:
            continue
        last = texts[-count:]
        head = "".join(split[: -(2 * count - 1)])
        if not all(_PIECE.fullmatch(one) for one in last) or not _HEAD.fullmatch(head):
            continue
        for encoding in ("hex", "base64", "base64url"):
            try:
                raws = tuple(TEXT_ENCODINGS[encoding].decode(last))
            except ValueError:
                continue
            if next(orders([(len(raw), len(raw)) for raw in raws]), None):
                return Pieces(head, separators[-1], encoding, raws)
    return None


def orders(spans: Sequence[Span]) -> Iterator[str]:
    """The orders that pieces of these lengths could be in, the commonest first."""
    if len(spans) == 3:
        for order in sorted(
            (" | ".join(names) for names in permutations(("nonce", "tag", "ciphertext"))),
            key=lambda text: _COMMON.index(text) if text in _COMMON else len(_COMMON),
        ):
            placed = dict(zip(order.split(" | "), spans, strict=True))
            if _nonce(placed["nonce"]) and placed["tag"] == (_TAG_BYTES, _TAG_BYTES):
                yield order
    if len(spans) == 2:
        for at, order in ((0, "nonce | {}"), (1, "{} | nonce")):
            if _nonce(spans[at]) and spans[1 - at][0] > _TAG_BYTES - 1:
                yield order.format("ciphertext tag")
                yield order.format("tag ciphertext")


def nonce_bytes(order: str, spans: Sequence[Span]) -> int:
    """The nonce's length in an order."""
    return spans[[group.split() for group in order.split("|")].index(["nonce"])][0]


def salted(spans: Sequence[Span]) -> bool:
    """Whether pieces are as long as a salt and a digest are."""
    return (
        len(spans) == 2
        and (16, 16) in spans
        and any(one[0] == one[1] and one[0] in _SALTED_BYTES for one in spans)
    )


def whole_blocks(sizes: Sequence[Sequence[int]]) -> bool:
    """Whether the pieces of all values are as long as those of AES-CBC: an IV, and whole blocks."""
    return all(len(one) == 2 and one[0] == 16 and one[1] % 16 == 0 for one in sizes)


def _nonce(span: Span) -> bool:
    return span[0] == span[1] and span[0] in _NONCE_BYTES
