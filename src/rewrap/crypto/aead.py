"""The AEADs: AES-GCM, and libsodium's secretbox and XChaCha20-Poly1305."""

from __future__ import annotations

import hmac
import os
from collections.abc import Sequence
from dataclasses import dataclass
from operator import add

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

# PyNaCl's own functions make three buffers for every call, which costs more than the cipher does. These are
# the ones underneath, as PyNaCl itself calls them
from nacl._sodium import ffi, lib  # type: ignore[import-not-found]  # a compiled module without types
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError

from rewrap.crypto.cipher import OPEN_FAILURES, Aads, Batch, Carried, OpenBatch, SealBatch, TryBatch, each


@dataclass(frozen=True, slots=True)
class AesGcm(Carried):
    """AES-GCM: `nonce12 ‖ ciphertext ‖ tag16` (RFC 5116 5.1; NIST SP 800-38D).

    Random 96-bit nonces: at most 2^32 messages a key (SP 800-38D 8.3). Longer ones are hashed to 96 bits and
    more (SP 800-38D 7.1), and the limit is kept. With `derived_nonce` the nonce is the beginning of the
    plaintext's HMAC-SHA256 under the same key: equal values look equal, as Rails needs it to search for them.
    """

    name: str
    key_bytes: int
    nonce_bytes: int = 12
    tag_bytes: int = 16
    binds_aad: bool = True
    seal_limit: int | None = 2**32
    derived_nonce: bool = False
    order: tuple[str, ...] = ("nonce", "ciphertext", "tag")

    @property
    def least_bytes(self) -> int:
        return self.nonce_bytes + self.tag_bytes

    def opener(self, key: bytes) -> OpenBatch:
        if len(key) != self.key_bytes:
            raise ValueError(f"{self.name} keys are {self.key_bytes} bytes")
        decrypt, size = AESGCM(key).decrypt, self.nonce_bytes

        def open_batch(sealed: Sequence[bytes], aads: Aads | None, at: int) -> Batch:
            bound, body = each(aads, sealed), at + size
            return list(map(decrypt, [raw[at:body] for raw in sealed], [raw[body:] for raw in sealed], bound))

        return open_batch

    def trier(self, key: bytes) -> TryBatch:
        if len(key) != self.key_bytes:
            raise ValueError(f"{self.name} keys are {self.key_bytes} bytes")
        decrypt, size = AESGCM(key).decrypt, self.nonce_bytes

        def try_batch(sealed: Sequence[bytes], aads: Aads | None, at: int) -> list[bytes | None]:
            plain: list[bytes | None] = []
            body = at + size
            for raw, aad in zip(sealed, _as_many(aads, sealed), strict=True):
                try:
                    plain.append(decrypt(raw[at:body], raw[body:], aad))
                except OPEN_FAILURES:
                    plain.append(None)
            return plain

        return try_batch

    def sealer(self, key: bytes) -> SealBatch:
        if len(key) != self.key_bytes:
            raise ValueError(f"{self.name} keys are {self.key_bytes} bytes")
        encrypt, size = AESGCM(key).encrypt, self.nonce_bytes

        def seal_alike(plain: Batch, aads: Aads | None) -> Batch:
            nonces = [hmac.digest(key, text, "sha256")[:size] for text in plain]
            return list(map(add, nonces, map(encrypt, nonces, plain, each(aads, plain))))

        def seal_batch(plain: Batch, aads: Aads | None) -> Batch:
            # one read of the kernel's generator for the whole batch: fresh random bytes for each value
            pool = os.urandom(size * len(plain))
            nonces = [pool[at : at + size] for at in range(0, len(pool), size)]
            return list(map(add, nonces, map(encrypt, nonces, plain, each(aads, plain))))

        return seal_alike if self.derived_nonce else seal_batch


@dataclass(frozen=True, slots=True)
class SecretBox(Carried):
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

    @property
    def least_bytes(self) -> int:
        return self.nonce_bytes + self.tag_bytes

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


@dataclass(frozen=True, slots=True)
class XChaCha(Carried):
    """XChaCha20-Poly1305: `nonce24 ‖ ciphertext ‖ tag16` (draft-irtf-cfrg-xchacha; libsodium's _ietf form).

    192-bit random nonces do not repeat in practice. With `binds_nonce` the associated data begin with the
    nonce, as CipherSweet has it.
    """

    name: str = "xchacha20-poly1305"
    binds_nonce: bool = False
    key_bytes: int = 32
    nonce_bytes: int = 24
    tag_bytes: int = 16
    least_bytes: int = 40
    binds_aad: bool = True
    seal_limit: int | None = None
    order: tuple[str, ...] = ("nonce", "ciphertext", "tag")

    def opener(self, key: bytes) -> OpenBatch:
        self._check(key)
        bind = self._bind

        def open_batch(sealed: Sequence[bytes], aads: Aads | None, at: int) -> Batch:
            plain = []
            for raw, aad in zip(sealed, _as_many(aads, sealed), strict=True):
                nonce = raw[at : at + 24]
                plain.append(
                    crypto_aead_xchacha20poly1305_ietf_decrypt(raw[at + 24 :], bind(nonce, aad), nonce, key)
                )
            return plain

        return open_batch

    def sealer(self, key: bytes) -> SealBatch:
        self._check(key)
        bind = self._bind

        def seal_batch(plain: Batch, aads: Aads | None) -> Batch:
            pool = os.urandom(24 * len(plain))
            sealed = []
            for at, (text, aad) in enumerate(zip(plain, _as_many(aads, plain), strict=True)):
                nonce = pool[24 * at : 24 * at + 24]
                sealed.append(
                    nonce + crypto_aead_xchacha20poly1305_ietf_encrypt(text, bind(nonce, aad), nonce, key)
                )
            return sealed

        return seal_batch

    def _check(self, key: bytes) -> None:
        if len(key) != self.key_bytes:
            raise ValueError(f"{self.name} keys are {self.key_bytes} bytes")

    def _bind(self, nonce: bytes, aad: bytes | None) -> bytes | None:
        return nonce + (aad or b"") if self.binds_nonce else aad


def _as_many(aads: Aads | None, batch: Sequence[bytes]) -> Aads:
    return [None] * len(batch) if aads is None else aads
