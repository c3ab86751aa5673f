"""Stored values, made and opened without rewrap: what row n holds follows from n alone.

Values of 120 bytes of plaintext, with `‖` for concatenation and lengths in bytes:

    gcm      v1: + base64( nonce12 ‖ ciphertext120 ‖ tag16 )            203 characters
    box      v1: + base64( nonce24 ‖ mac16 ‖ ciphertext120 )            219 characters
    raw      v1: + nonce12 ‖ ciphertext120 ‖ tag16                      151 bytes
    lockbox  base64( nonce12 ‖ ciphertext120 ‖ tag16 )                  as Ruby's Lockbox stores it
    cbc      v1: + base64( iv16 ‖ AES-256-CBC, PKCS#7: 128 )            as pgcrypto's encrypt_iv makes it
"""

from __future__ import annotations

import base64
import functools
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.padding import PKCS7
from nacl.secret import SecretBox

PLAINTEXT_BYTES = 120

Open = Callable[[Any], tuple[str, bytes]]
"""The version in a stored value's marker, and its plaintext; raises when it does not open."""


def plaintext(number: int) -> bytes:
    """What row `number` holds: 120 bytes of ASCII."""
    return hashlib.shake_256(b"rewrap benchmark %d" % number).hexdigest(PLAINTEXT_BYTES // 2).encode()


@dataclass(frozen=True, slots=True)
class Keys:
    """Both key versions, made anew for each bench."""

    by_version: Mapping[str, bytes] = field(repr=False)

    @classmethod
    def fresh(cls) -> Keys:
        return cls({version: os.urandom(32) for version in ("v1", "v2")})

    @property
    def environ(self) -> dict[str, str]:
        """The variables that the job file and the peers read."""
        return {f"KEY_{version.upper()}": key.hex() for version, key in self.by_version.items()}

    def seal_gcm(self, version: str, plain: bytes) -> str:
        nonce = os.urandom(12)
        sealed = nonce + _gcm(self.by_version[version]).encrypt(nonce, plain, None)
        return f"{version}:{base64.b64encode(sealed).decode()}"

    def seal_box(self, version: str, plain: bytes) -> str:
        sealed = bytes(_box(self.by_version[version]).encrypt(plain))
        return f"{version}:{base64.b64encode(sealed).decode()}"

    def seal_cbc(self, version: str, plain: bytes) -> str:
        iv = os.urandom(16)
        padder = PKCS7(128).padder()
        sealing = Cipher(algorithms.AES(self.by_version[version]), modes.CBC(iv)).encryptor()
        sealed = iv + sealing.update(padder.update(plain) + padder.finalize()) + sealing.finalize()
        return f"{version}:{base64.b64encode(sealed).decode()}"

    def opener(self, form: str) -> Open:
        """What opens values of a form."""
        openers: dict[str, Open] = {
            "gcm": self._open_gcm,
            "box": self._open_box,
            "raw": self._open_raw,
            "lockbox": self._open_lockbox,
            "cbc": self._open_cbc,
        }
        return openers[form]

    def _open_gcm(self, value: str) -> tuple[str, bytes]:
        version, sealed = _unmark(value)
        return version, _gcm(self.by_version[version]).decrypt(sealed[:12], sealed[12:], None)

    def _open_box(self, value: str) -> tuple[str, bytes]:
        version, sealed = _unmark(value)
        return version, _box(self.by_version[version]).decrypt(sealed)

    def _open_raw(self, value: bytes) -> tuple[str, bytes]:
        marker, _, sealed = value.partition(b":")
        version = marker.decode()
        return version, _gcm(self.by_version[version]).decrypt(sealed[:12], sealed[12:], None)

    def _open_lockbox(self, value: str) -> tuple[str, bytes]:
        """Lockbox writes no version: only the new key is tried."""
        sealed = base64.b64decode(value, validate=True)
        return "v2", _gcm(self.by_version["v2"]).decrypt(sealed[:12], sealed[12:], None)

    def _open_cbc(self, value: str) -> tuple[str, bytes]:
        version, sealed = _unmark(value)
        opened = Cipher(algorithms.AES(self.by_version[version]), modes.CBC(sealed[:16])).decryptor()
        padded = opened.update(sealed[16:]) + opened.finalize()
        unpadded = PKCS7(128).unpadder()
        return version, unpadded.update(padded) + unpadded.finalize()


# to make one for each value would cost more than to use it
_gcm = functools.lru_cache(AESGCM)
_box = functools.lru_cache(SecretBox)


def _unmark(value: str) -> tuple[str, bytes]:
    version, _, payload = value.partition(":")
    return version, base64.b64decode(payload, validate=True)
