"""Fernet tokens: AES-128-CBC and HMAC-SHA256, with the time at which a token was made."""

from __future__ import annotations

import hmac
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag

from rewrap.crypto.blocks import cbc_open, cbc_seal
from rewrap.crypto.cipher import Aads, Batch, OpenBatch, SealBatch

_VERSION = b"\x80"


@dataclass(frozen=True, slots=True)
class Fernet:
    """Fernet (github.com/fernet/spec), before it is encoded:

        0x80 ‖ timestamp 8, big-endian seconds ‖ iv 16 ‖ AES-128-CBC, PKCS #7 ‖ HMAC-SHA256 32, of all before

    The key is 16 bytes to sign with, then 16 to encrypt with. A plaintext carries its token's timestamp in
    front: with another one an expired token would open again.
    """

    name: str = "fernet"
    key_bytes: int = 32
    nonce_bytes: int = 25
    tag_bytes: int = 32
    least_bytes: int = 73
    binds_aad: bool = False
    authenticated: bool = True
    seal_limit: int | None = None
    order: tuple[str, ...] = ("nonce", "ciphertext", "tag")
    carry_bytes: int = 8

    @property
    def key_lengths(self) -> tuple[int, ...]:
        return (self.key_bytes,)

    def fresh_carry(self) -> bytes:
        return int(time.time()).to_bytes(8, "big")

    def opener(self, key: bytes) -> OpenBatch:
        signing, encryption = self._halves(key)

        def open_batch(sealed: Sequence[bytes], aads: Aads | None, at: int) -> Batch:
            plain = []
            for raw in sealed:
                body, mac = raw[at:-32], raw[-32:]
                if len(raw) - at < self.least_bytes or body[:1] != _VERSION:
                    raise ValueError("not a token")
                if not hmac.compare_digest(hmac.digest(signing, body, "sha256"), mac):
                    raise InvalidTag
                plain.append(body[1:9] + cbc_open(encryption, body[9:25], body[25:]))
            return plain

        return open_batch

    def sealer(self, key: bytes) -> SealBatch:
        signing, encryption = self._halves(key)

        def seal_batch(plain: Batch, aads: Aads | None) -> Batch:
            sealed = []
            for text in plain:
                if len(text) < 8:
                    raise ValueError("a plaintext lacks its timestamp")
                iv = os.urandom(16)
                body = _VERSION + text[:8] + iv + cbc_seal(encryption, iv, text[8:])
                sealed.append(body + hmac.digest(signing, body, "sha256"))
            return sealed

        return seal_batch

    def _halves(self, key: bytes) -> tuple[bytes, bytes]:
        if len(key) != self.key_bytes:
            raise ValueError(f"{self.name} keys are {self.key_bytes} bytes")
        return key[:16], key[16:]
