"""Blind indexes: keyed digests beside a value, by which an application finds it without opening it.

    ciphersweet    BLAKE2b-256, or Argon2id where slow, of the value; first bits of it
    lockbox        Argon2id of the value, salted with the key (blind_index)
    hmac-sha256    HMAC-SHA256 of the value; first bits of it

The keys of the first two are derived for a table, a column and an index, all in one way:

    root = HKDF-SHA384( secret, salt: table, info: 32 bytes 0x7E ‖ column )
    key  = HMAC-SHA256( root, count 4 ‖ length 8 ‖ table ‖ length 8 ‖ column ‖ length 8 ‖ index )

with lengths little-endian; blind_index takes the index's column for both column and index.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from rewrap.crypto.encodings import RAW, TEXT_ENCODINGS
from rewrap.crypto.failures import LayoutError

_DOMAIN = b"\x7e" * 32

KINDS = {"ciphersweet": "hex", "lockbox": "base64", "hmac-sha256": "hex"}
"""Each kind with the encoding that its own program stores."""

NORMALIZATIONS = ("none", "strip", "lowercase", "strip lowercase")

_CIPHERSWEET_COST = (2, 65_536)
"""Passes and KiB of its slow index in PHP: libsodium's interactive limits."""

_LOCKBOX_COST = (3, 4_096)
"""Passes and KiB of blind_index, unless it is told otherwise."""

_COST_MAX = (100, 2**22)
"""Passes and KiB: 4 GiB are what blind_index takes at most."""

Compute = Callable[[bytes], str]


@dataclass(frozen=True, slots=True, repr=False)
class BlindIndex:
    """How an index is computed from a plaintext.

    `name` is what its key is derived for. `bits` are kept of the digest, from its beginning. `passes` and
    `memory_kib` are Argon2id's cost. `key_apart` when each key version has a secret of its own for indexes.
    """

    kind: str
    name: str
    bits: int = 256
    encoding: str = ""
    normalize: str = "none"
    slow: bool = False
    passes: int = 0
    memory_kib: int = 0
    info: str = "blind index"
    table: str = ""
    column: str = ""
    key_apart: bool = False

    def __repr__(self) -> str:
        stated = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        told = [f"{e.name}={stated[e.name]!r}" for e in fields(self) if stated[e.name] != e.default]
        return f"BlindIndex({', '.join(told)})"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise LayoutError(f'index kind "{self.kind}" is unknown; known: {", ".join(KINDS)}')
        if self.encoding not in ("", RAW, *TEXT_ENCODINGS):
            raise LayoutError(f'encoding "{self.encoding}" is unknown; known: {", ".join(TEXT_ENCODINGS)}')
        if self.normalize not in NORMALIZATIONS:
            raise LayoutError(f'normalize "{self.normalize}" is unknown; known: {", ".join(NORMALIZATIONS)}')
        if not 1 <= self.bits <= 256 or (self.kind == "lockbox" and self.bits % 8):
            raise LayoutError("bits are between 1 and 256, and whole bytes for lockbox")
        if self.kind == "ciphersweet" and not self.slow and 64 < self.bits < 256:
            raise LayoutError("a fast index has at most 64 bits, or 256: its programs differ in between")
        if self.slow and self.kind != "ciphersweet":
            raise LayoutError("slow is for ciphersweet; lockbox is never fast")
        if self.passes > _COST_MAX[0] or self.memory_kib > _COST_MAX[1]:
            raise LayoutError(f"passes are at most {_COST_MAX[0]}, memory_kib is at most {_COST_MAX[1]}")
        try:
            if self._cost:
                _argon2id(bytes(16), *self._cost, 16)
        except (UnsupportedAlgorithm, ValueError) as exc:
            raise LayoutError(f"Argon2id with this cost cannot be computed here: {exc}") from None

    @property
    def _cost(self) -> tuple[int, int] | None:
        if self.kind == "lockbox" or self.slow:
            passes, memory = _LOCKBOX_COST if self.kind == "lockbox" else _CIPHERSWEET_COST
            return self.passes or passes, self.memory_kib or memory
        return None

    def bind(self, secret: bytes, table: str, column: str) -> Compute:
        """What computes the index of a plaintext, as it is stored, from a version's secret."""
        key = self._key(secret, self.table or table.rpartition(".")[2], self.column or column)
        encoding = self.encoding or KINDS[self.kind]
        # bytes stored apart are joined in hex
        encode = TEXT_ENCODINGS["hex" if encoding == RAW else encoding].encode

        def compute(plain: bytes) -> str:
            return encode([_first_bits(self._digest(key, _normalized(plain, self.normalize)), self.bits)])[0]

        return compute

    def _key(self, secret: bytes, table: str, column: str) -> bytes:
        if self.kind == "hmac-sha256":
            return secret if self.key_apart else _hkdf(secret, hashes.SHA256(), b"", self.info.encode())
        if self.kind == "lockbox":
            column = self.name
        root = _hkdf(secret, hashes.SHA384(), table.encode(), _DOMAIN + column.encode())
        pieces = [piece.encode() for piece in (table, column, self.name)]
        packed = b"".join(len(piece).to_bytes(8, "little") + piece for piece in pieces)
        return hmac.digest(root, len(pieces).to_bytes(4, "little") + packed, "sha256")

    def _digest(self, key: bytes, value: bytes) -> bytes:
        if self.kind == "hmac-sha256":
            return hmac.digest(key, value, "sha256")
        if self.kind == "lockbox":
            return _argon2id(key, *(self._cost or _LOCKBOX_COST), self.bits // 8).derive(value)
        if not self.slow:
            return hashlib.blake2b(value, key=key, digest_size=32).digest()
        salt = hashlib.blake2b(key, digest_size=16).digest()
        return _argon2id(salt, *(self._cost or _CIPHERSWEET_COST), max(16, self.bits // 8)).derive(value)


def parse_index(declared: Mapping[str, Any], name: str, *, key_apart: bool) -> BlindIndex:
    """The index that a section declares; `name` is used where it names none."""
    stated = {"name": name, **{key: value for key, value in declared.items() if value is not None}}
    return BlindIndex(**stated, key_apart=key_apart)


def _argon2id(salt: bytes, passes: int, memory_kib: int, length: int) -> Argon2id:
    return Argon2id(salt=salt, length=length, iterations=passes, lanes=1, memory_cost=memory_kib)


def _hkdf(secret: bytes, algorithm: hashes.HashAlgorithm, salt: bytes, info: bytes) -> bytes:
    return HKDF(algorithm, 32, salt, info).derive(secret)


def _first_bits(digest: bytes, bits: int) -> bytes:
    whole, rest = divmod(bits, 8)
    if not rest:
        return digest[:whole]
    return digest[:whole] + bytes([digest[whole] & (0xFF << (8 - rest)) & 0xFF])


def _normalized(plain: bytes, how: str) -> bytes:
    try:
        text = plain.decode()
    except UnicodeDecodeError:
        # what is no text has no case and no space around it
        return plain
    if "strip" in how:
        text = text.strip()
    if "lowercase" in how:
        text = text.lower()
    return text.encode()
