"""Binary heads: a version in bytes before the nonce, encoded together with it where values are text.

Tink      0x01 ‖ key id 4, big-endian                 version: the key id in decimals
Cloak     0x01 ‖ length 1 ‖ tag                       version: the tag
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rewrap.crypto.cipher import Batch
from rewrap.crypto.encodings import RAW, TEXT_ENCODINGS
from rewrap.crypto.failures import LayoutError
from rewrap.crypto.markers import MARKER_BYTES_MAX, Value
from rewrap.crypto.parts import Codec
from rewrap.packed import PART

_TAG_BYTES_MAX = 64
"""Longest tag of Cloak's that is looked for; its own limit is higher, and its examples have 10."""


class Head(Protocol):
    """How a version stands in bytes; `exact` when a text has to hold the whole of it.

    `regex` shows Postgres where it is, in bytes as `encode(…, 'escape')` writes them; `text_regex` in base64,
    `hex_regex` in hex.
    """

    exact: bool
    regex: str
    text_regex: str
    hex_regex: str

    def write(self, version: str) -> bytes:
        """The head of a version; ValueError when it cannot be written."""
        ...

    def read(self, raw: bytes) -> str | None:
        """The version that bytes begin with."""
        ...


class TinkHead:
    """Tink's prefix of type TINK: five bytes, the last four of which are the key's id."""

    exact = False
    regex = r"^\x01((?:\\[0-7]{3}|\\\\|[^\\]){4})"
    text_regex = "^(A[Q-Za-f][A-Za-z0-9+/_-]{4})"
    hex_regex = "^01([0-9A-Fa-f]{8})"

    def write(self, version: str) -> bytes:
        if not version.isascii() or not version.isdigit() or str(int(version)) != version:
            raise ValueError("a key id is a decimal number")
        if int(version) >= 2**32:
            raise ValueError("a key id has 32 bits")
        return b"\x01" + int(version).to_bytes(4, "big")

    def read(self, raw: bytes) -> str | None:
        return str(int.from_bytes(raw[1:5], "big")) if raw[:1] == b"\x01" and len(raw) >= 5 else None


class CloakHead:
    """Elixir Cloak's tag, with its length before it."""

    exact = True
    # the length decides how many characters the tag has, so that nothing of the nonce is taken for it
    regex = (
        r"^\x01[\x01-\x40]("
        + "|".join(rf"(?<=\x{n:02x})[!-\[\]-~]{{{n}}}" for n in range(1, _TAG_BYTES_MAX + 1))
        + ")"
    )
    text_regex = "^(A[Q-Za-f][A-Za-z0-9+/_-]{14})"
    hex_regex = "^01([0-9A-Fa-f]{22})"

    def write(self, version: str) -> bytes:
        tag = version.encode()
        if not 1 <= len(tag) <= _TAG_BYTES_MAX or not all(0x21 <= byte <= 0x7E for byte in tag):
            raise ValueError(f"a tag is of 1 to {_TAG_BYTES_MAX} printable ASCII characters")
        if b"\\" in tag:
            raise ValueError("a tag is without backslashes")
        return b"\x01" + bytes([len(tag)]) + tag

    def read(self, raw: bytes) -> str | None:
        if raw[:1] != b"\x01" or len(raw) < 2 or not 1 <= raw[1] <= _TAG_BYTES_MAX:
            return None
        tag = raw[2 : 2 + raw[1]]
        return tag.decode() if len(tag) == raw[1] and tag.isascii() else None


HEADS: dict[str, Head] = {"tink": TinkHead(), "cloak": CloakHead()}


@dataclass(frozen=True)
class HeadMarker:
    """A binary head as a marker: of bytes, or of as many characters of a text as it decides alone."""

    layout: str
    head: Head
    encoding: str

    versioned: bool = True

    @property
    def regex(self) -> str:
        if self.encoding == RAW:
            return self.head.regex
        return self.head.hex_regex if self.encoding == "hex" else self.head.text_regex

    def prefix_of(self, version: str) -> Value:
        try:
            raw = self.head.write(version)
        except ValueError as exc:
            raise LayoutError(f'version "{version}" does not fit layout "{self.layout}": {exc}') from None
        if self.encoding == RAW:
            return raw
        whole, rest = divmod(len(raw) * 8, TEXT_ENCODINGS[self.encoding].bits)
        if rest and self.head.exact:
            raise LayoutError(
                f'version "{version}" of layout "{self.layout}" ends within a character of its base64, so '
                "others would begin alike; only tags of 1, 4, 7, 10 … characters can be told apart"
            )
        (text,) = TEXT_ENCODINGS[self.encoding].encode([raw])
        return text[:whole]

    def version_of(self, value: Value) -> str | None:
        if isinstance(value, bytes):
            return self.head.read(value)
        text = value[:MARKER_BYTES_MAX].partition(PART)[0]
        text = text[: len(text) // 4 * 4]
        try:
            (raw,) = TEXT_ENCODINGS[self.encoding].decode([text])
        except ValueError:
            return None
        return self.head.read(raw)


def headed(text: Codec, head: bytes, prefix: str) -> Codec:
    """Texts whose encoding begins with a head; `prefix` is what was taken off them as their marker."""
    size, at = len(head), len(prefix)

    def decode(payloads: Sequence[Any]) -> Batch:
        raws = text.decode([prefix + payload for payload in payloads])
        if not all(raw.startswith(head) for raw in raws):
            raise ValueError("the value is of another version")
        return [raw[size:] for raw in raws]

    def encode(sealed: Batch) -> list[Any]:
        return [whole[at:] for whole in text.encode([head + raw for raw in sealed])]

    return Codec(decode, encode)
