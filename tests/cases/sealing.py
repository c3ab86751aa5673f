"""Sealed values, made and opened with PyNaCl and cryptography directly, by no code of rewrap's."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from nacl import bindings

PIECES = ("nonce", "tag", "ciphertext")

AS = ("base64", "base64url", "base64url-padded", "hex", "bytea")
"""How bytes are written in SQL; `bytea` is Postgres' hex form of a value that is bytes as a whole."""


@dataclass(frozen=True)
class Format:
    """How a value is stored: its cipher, its marker, which pieces it has in which order, and its encoding."""

    kind: str
    version: str
    marker: str = "{version}:"
    pieces: tuple[str, ...] = ("nonce", "ciphertext", "tag")
    encoding: str = "base64"

    @property
    def prefix(self) -> str:
        return self.marker.replace("{version}", self.version)


@dataclass(frozen=True)
class Sealed:
    """The pieces of one sealed value."""

    nonce: bytes = field(repr=False)
    tag: bytes = field(repr=False)
    ciphertext: bytes = field(repr=False)

    def written(self, stored: Format) -> str:
        """As it stands in a table."""
        raw = b"".join(getattr(self, piece) for piece in stored.pieces)
        if stored.encoding == "bytea":
            return "\\x" + (stored.prefix.encode() + raw).hex()
        return stored.prefix + encoded(raw, stored.encoding)


def nonce_bytes(kind: str) -> int:
    """The length of a cipher's nonce."""
    return {"box": 24, "xchacha": 24, "aead": 12}[kind]


def seal(kind: str, key: bytes, nonce: bytes, plain: bytes, aad: bytes = b"") -> Sealed:
    """Seals under a nonce of the caller's: the same words in a case make the same value each time."""
    if kind == "box":
        box = bindings.crypto_secretbox(plain, nonce, key)
        return Sealed(nonce, box[:16], box[16:])
    if kind == "xchacha":
        both = bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(plain, aad, nonce, key)
    else:
        both = AESGCM(key).encrypt(nonce, plain, aad)
    return Sealed(nonce, both[-16:], both[:-16])


def opened(kind: str, key: bytes, sealed: Sealed, aad: bytes = b"") -> bytes:
    """The plaintext; raises what the library raises."""
    if kind == "box":
        return bindings.crypto_secretbox_open(sealed.tag + sealed.ciphertext, sealed.nonce, key)
    both = sealed.ciphertext + sealed.tag
    if kind == "xchacha":
        return bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(both, aad, sealed.nonce, key)
    return AESGCM(key).decrypt(sealed.nonce, both, aad)


def read(stored: Format, value: str | bytes, apart: Mapping[str, str | bytes]) -> Sealed:
    """The pieces of a stored value; `apart` are those that are stored elsewhere, by name."""
    prefix = stored.prefix.encode() if isinstance(value, bytes) else stored.prefix
    assert value[: len(prefix)] == prefix, f"a value does not begin with {stored.prefix!r}"
    raw = decoded(value[len(prefix) :], stored.encoding)
    pieces = {name: decoded(part, stored.encoding) for name, part in apart.items()}
    lengths = {"nonce": nonce_bytes(stored.kind), "tag": 16}
    known = sum(lengths.get(piece, 0) for piece in stored.pieces)
    lengths["ciphertext"] = len(raw) - known
    for piece in stored.pieces:
        pieces[piece], raw = raw[: lengths[piece]], raw[lengths[piece] :]
    return Sealed(**pieces)


def encoded(raw: bytes, encoding: str) -> str:
    if encoding == "hex":
        return raw.hex()
    if encoding == "base64":
        return base64.b64encode(raw).decode()
    text = base64.urlsafe_b64encode(raw).decode()
    return text if encoding == "base64url-padded" else text.rstrip("=")


def decoded(text: str | bytes, encoding: str) -> bytes:
    """Strictly: what is not in the encoding, to the last character, is an error."""
    if isinstance(text, bytes):
        return text
    if encoding == "hex":
        raw = bytes.fromhex(text)
    elif encoding == "base64":
        raw = base64.b64decode(text, validate=True)
    else:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if encoded(raw, encoding) != text:
        raise binascii.Error(f"a value is not in {encoding}")
    return raw


def key_of(name: str, size: int = 32) -> bytes:
    """The key of a version: printable, so that it would be found in any output."""
    start = f"canary-key:{name}:"
    return (start + hashlib.sha256(start.encode()).hexdigest()).encode()[:size].ljust(size, b"!")
