"""How sealed bytes are stored: as text in an encoding, or as bytes as they are."""

from __future__ import annotations

from binascii import hexlify, unhexlify
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import repeat

from pybase64 import b64decode, b64encode_as_string, standard_b64encode

_LINE_CHARS = 60
"""Characters of a line of Ruby's `pack("m")`."""


@dataclass(frozen=True, slots=True)
class TextEncoding:
    """Bytes as text, a list at a time. `decode` raises ValueError for what is not in the encoding.

    `bits` is how many bits a character stands for, 0 if none alone.
    """

    name: str
    decode: Callable[[Iterable[str]], list[bytes]]
    encode: Callable[[Iterable[bytes]], list[str]]
    bits: int = 6


def _decode_base64(texts: Iterable[str]) -> list[bytes]:
    # no alternative alphabet, and strict; given by position: by name they cost as much as the decoding
    return list(map(b64decode, texts, repeat(None), repeat(True)))


def _encode_base64(payloads: Iterable[bytes]) -> list[str]:
    return list(map(b64encode_as_string, payloads))


_PADDING = ("", "===", "==", "=")
"""What a text lacks by its length modulo 4; one character over is never whole, and then is refused."""


def _decode_base64url(texts: Iterable[str]) -> list[bytes]:
    # some writers use the standard alphabet in the same place, and what is in it is read as well
    plain = (text.replace("-", "+").replace("_", "/") for text in texts)
    return [b64decode(text + _PADDING[len(text) & 3], None, True) for text in plain]


def _encode_base64url(payloads: Iterable[bytes]) -> list[str]:
    return [text.rstrip("=") for text in _encode_base64url_padded(payloads)]


def _encode_base64url_padded(payloads: Iterable[bytes]) -> list[str]:
    return list(map(b64encode_as_string, payloads, repeat(b"-_")))


def _decode_lines(texts: Iterable[str]) -> list[bytes]:
    return _decode_base64(text.replace("\n", "") for text in texts)


def _encode_lines(payloads: Iterable[bytes]) -> list[str]:
    texts = (standard_b64encode(payload).decode() for payload in payloads)
    return [
        "".join(text[at : at + _LINE_CHARS] + "\n" for at in range(0, len(text), _LINE_CHARS))
        for text in texts
    ]


def _decode_twice(texts: Iterable[str]) -> list[bytes]:
    return _decode_base64url(raw.decode("ascii") for raw in _decode_base64(texts))


def _encode_twice(payloads: Iterable[bytes]) -> list[str]:
    return _encode_base64(text.encode() for text in _encode_base64url_padded(payloads))


def _decode_hex(texts: Iterable[str]) -> list[bytes]:
    return list(map(unhexlify, texts))


def _encode_hex(payloads: Iterable[bytes]) -> list[str]:
    return [hexlify(payload).decode() for payload in payloads]


TEXT_ENCODINGS = {
    encoding.name: encoding
    for encoding in (
        # RFC 4648 section 4, with padding
        TextEncoding("base64", _decode_base64, _encode_base64),
        # RFC 4648 section 5; padding and the standard alphabet are read too
        TextEncoding("base64url", _decode_base64url, _encode_base64url),
        TextEncoding("base64url-padded", _decode_base64url, _encode_base64url_padded),
        # Ruby's pack("m"): lines of 60 characters, a newline after each
        TextEncoding("base64-lines", _decode_lines, _encode_lines),
        # base64url, and that in base64: a token that was text already, encoded once more
        TextEncoding("base64-base64url", _decode_twice, _encode_twice, bits=0),
        # lower case when written, either when read
        TextEncoding("hex", _decode_hex, _encode_hex, bits=4),
    )
}

_BASE64 = ("base64", "base64url", "base64url-padded")


def rewritten(encoding: str, text: str) -> str | None:
    """A text as an encoding writes it, that somebody has written otherwise; None where nothing is to change.

    Space and ends of lines around and in it, another alphabet, padding left out or added: what lenient
    decoders pass over. Whether it is in the encoding at all, only decoding tells.
    """
    if encoding not in _BASE64:
        return None
    plain = "".join(text.split("\n")).strip().replace("\r", "").replace("\t", "")
    plain = plain.replace("-", "+").replace("_", "/").rstrip("=")
    if encoding != "base64":
        plain = plain.replace("+", "-").replace("/", "_")
    if encoding != "base64url":
        plain += _PADDING[len(plain) & 3]
    return None if plain == text else plain


RAW = "raw"
"""Marker and payload are bytes, in a column of bytes."""

ENCODINGS = (*TEXT_ENCODINGS, RAW)
