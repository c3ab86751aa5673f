"""The AEADs: batches of plaintext in, batches of `nonce ‖ ciphertext ‖ tag` out, and back.

A batch function takes and returns lists of equal length, in the same order. It works on whole batches so
that the interpreter's cost per value is one call into the C library and one slice on each side; it raises
at the first value that does not open, and says nothing about which one: `open_one` finds it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from operator import add
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

# PyNaCl's own functions make three buffers for every call, which costs more than the cipher does. These are
# the ones underneath, as PyNaCl itself calls them
from nacl._sodium import ffi, lib  # type: ignore[import-not-found]  # a compiled module without types
from nacl.exceptions import CryptoError

Batch = list[bytes]
Aads = Sequence[bytes | None]
OpenBatch = Callable[[Sequence[bytes], Aads | None, int], Batch]
"""Opens sealed values, each from an offset on: what stands before it there is its marker."""

SealBatch = Callable[[Batch, Aads | None], Batch]

OPEN_FAILURES = (InvalidTag, CryptoError, ValueError, OverflowError)
"""What the libraries raise for a bad tag, a wrong key, wrong AAD, or a length they refuse."""


class Cipher(Protocol):
    """An authenticated cipher with a random nonce in front of what it seals.

    `key_bytes`, `nonce_bytes` and `tag_bytes` are lengths in bytes. `seal_limit` is how many messages one
    key may seal with random nonces before a repeat becomes likely enough to matter; None is no limit in
    practice. `binds_aad` says whether associated data can be authenticated at all. `order` is how nonce, tag
    and ciphertext follow each other in what is sealed.
    """

    @property
    def name(self) -> str: ...

    @property
    def key_bytes(self) -> int: ...

    @property
    def nonce_bytes(self) -> int: ...

    @property
    def tag_bytes(self) -> int: ...

    @property
    def binds_aad(self) -> bool: ...

    @property
    def seal_limit(self) -> int | None: ...

    @property
    def order(self) -> tuple[str, ...]: ...

    def opener(self, key: bytes) -> OpenBatch: ...

    def sealer(self, key: bytes) -> SealBatch: ...


@dataclass(frozen=True, slots=True)
class AesGcm:
    """AES-GCM: `nonce12 ‖ ciphertext ‖ tag16` (RFC 5116 5.1; NIST SP 800-38D).

    Random 96-bit nonces: at most 2^32 messages a key (SP 800-38D 8.3).
    """

    name: str
    key_bytes: int
    nonce_bytes: int = 12
    tag_bytes: int = 16
    binds_aad: bool = True
    seal_limit: int | None = 2**32
    order: tuple[str, ...] = ("nonce", "ciphertext", "tag")

    def opener(self, key: bytes) -> OpenBatch:
        decrypt = AESGCM(key).decrypt

        def open_batch(sealed: Sequence[bytes], aads: Aads | None, at: int) -> Batch:
            bound, body = _each(aads, sealed), at + 12
            return list(map(decrypt, [raw[at:body] for raw in sealed], [raw[body:] for raw in sealed], bound))

        return open_batch

    def sealer(self, key: bytes) -> SealBatch:
        encrypt = AESGCM(key).encrypt

        def seal_batch(plain: Batch, aads: Aads | None) -> Batch:
            # one read of the kernel's generator for the whole batch: 12 fresh random bytes a value
            pool = os.urandom(12 * len(plain))
            nonces = [pool[at : at + 12] for at in range(0, len(pool), 12)]
            return list(map(add, nonces, map(encrypt, nonces, plain, _each(aads, plain))))

        return seal_batch


def _each(aads: Aads | None, batch: Sequence[bytes]) -> Iterable[bytes | None]:
    """The associated data of each value; ValueError when there are not as many as values."""
    if aads is None:
        return repeat(None)
    if len(aads) != len(batch):
        raise ValueError("associated data and values differ in number")
    return aads


@dataclass(frozen=True, slots=True)
class SecretBox:
    """libsodium's crypto_secretbox, XSalsa20-Poly1305: `nonce24 ‖ mac16 ‖ ciphertext`.

    192-bit random nonces do not repeat in practice. There is no associated data.
    """

    name: str = "secretbox"
    key_bytes: int = 32
    nonce_bytes: int = 24
    tag_bytes: int = 16
    binds_aad: bool = False
    seal_limit: int | None = None
    order: tuple[str, ...] = ("nonce", "tag", "ciphertext")

    def opener(self, key: bytes) -> OpenBatch:
        if len(key) != self.key_bytes:
            raise ValueError(f"secretbox keys are {self.key_bytes} bytes")
        open_easy, new, buffer = lib.crypto_secretbox_open_easy, ffi.new, ffi.buffer

        def open_batch(sealed: Sequence[bytes], aads: Aads | None, at: int) -> Batch:
            # one buffer for the whole batch, as long as its longest value
            out = new("unsigned char[]", max(map(len, sealed), default=0) + 1)
            view = buffer(out)
            plain, body = [], at + 24
            for raw in sealed:
                size = len(raw) - body
                if size < 16 or open_easy(out, raw[body:], size, raw[at:body], key):
                    raise CryptoError("the value does not open")
                plain.append(view[: size - 16])
            return plain

        return open_batch

    def sealer(self, key: bytes) -> SealBatch:
        if len(key) != self.key_bytes:
            raise ValueError(f"secretbox keys are {self.key_bytes} bytes")
        easy, new, buffer = lib.crypto_secretbox_easy, ffi.new, ffi.buffer

        def seal_batch(plain: Batch, aads: Aads | None) -> Batch:
            pool = os.urandom(24 * len(plain))
            out = new("unsigned char[]", max(map(len, plain), default=0) + 16)
            view = buffer(out)
            sealed = []
            for at, text in enumerate(plain):
                nonce = pool[24 * at : 24 * at + 24]
                size = len(text)
                if easy(out, text, size, nonce, key):
                    raise CryptoError("the value was not sealed")
                sealed.append(nonce + view[: size + 16])
            return sealed

        return seal_batch


CIPHERS: dict[str, Cipher] = {
    cipher.name: cipher
    for cipher in (
        SecretBox(),
        AesGcm("aes-256-gcm", 32),
        AesGcm("aes-192-gcm", 24),
        AesGcm("aes-128-gcm", 16),
    )
}
"""The ciphers a layout can name."""
