"""How a sealed payload is stored behind its marker: as text in an encoding, or as bytes as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import repeat

from pybase64 import b64decode, b64encode_as_string


@dataclass(frozen=True, slots=True)
class TextEncoding:
    """Bytes as text, a list at a time. `decode` raises ValueError for what is not in the encoding."""

    name: str
    decode: Callable[[Iterable[str]], list[bytes]]
    encode: Callable[[Iterable[bytes]], list[str]]


def _decode_base64(texts: Iterable[str]) -> list[bytes]:
    # no alternative alphabet, and strict; given by position: by name they cost as much as the decoding
    return list(map(b64decode, texts, repeat(None), repeat(True)))


def _encode_base64(payloads: Iterable[bytes]) -> list[str]:
    return list(map(b64encode_as_string, payloads))


TEXT_ENCODINGS = {
    # RFC 4648 section 4, with padding
    "base64": TextEncoding("base64", _decode_base64, _encode_base64),
}

RAW = "raw"
"""Marker and payload are bytes, in a column of bytes."""

ENCODINGS = (*TEXT_ENCODINGS, RAW)
