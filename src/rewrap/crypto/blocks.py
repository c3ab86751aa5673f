"""AES in CBC and CTR: alone, without authentication, and as Laravel signs it.

Without authentication a wrong key gives a wrong plaintext and no error: always in CTR, about once in 256
times in CBC. So a layout with such a cipher has to say what its plaintexts look like.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7
from pybase64 import b64encode

from rewrap.crypto.cipher import Aads, Batch, Carried, OpenBatch, SealBatch

Crypt = Callable[[bytes, bytes, bytes], bytes]
"""Opens or seals one text: (key, iv, text)."""


def cbc_open(key: bytes, iv: bytes, ciphertext: bytes) -> bytes:
    """AES-CBC with PKCS #7 padding; ValueError for a wrong length or padding."""
    decryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).decryptor()
    padded = decryptor.update(ciphertext) + decryptor.finalize()
    unpadder = PKCS7(128).unpadder()
    return unpadder.update(padded) + unpadder.finalize()


def cbc_seal(key: bytes, iv: bytes, plain: bytes) -> bytes:
    """AES-CBC with PKCS #7 padding."""
    padder = PKCS7(128).padder()
    padded = padder.update(plain) + padder.finalize()
    encryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor()
    return encryptor.update(padded) + encryptor.finalize()


def _ctr(key: bytes, iv: bytes, text: bytes) -> bytes:
    encryptor = Cipher(algorithms.AES(key), modes.CTR(iv)).encryptor()
    return encryptor.update(text) + encryptor.finalize()


@dataclass(frozen=True, slots=True)
class AesUnsigned(Carried):
    """AES in a mode without authentication: `iv16 ‖ ciphertext`, a fresh random iv each.

    In CBC with PKCS #7 (SP 800-38A 6.2; RFC 5652 6.3); in CTR the iv is the first counter block (6.5).
    """

    name: str
    key_bytes: int
    least_bytes: int
    open_one: Crypt = field(repr=False)
    seal_one: Crypt = field(repr=False)
    nonce_bytes: int = 16
    tag_bytes: int = 0
    binds_aad: bool = False
    authenticated: bool = False
    seal_limit: int | None = None
    order: tuple[str, ...] = ("nonce", "ciphertext")

    def opener(self, key: bytes) -> OpenBatch:
        _check(self.name, self.key_bytes, key)
        open_one = self.open_one

        def open_batch(sealed: Sequence[bytes], aads: Aads | None, at: int) -> Batch:
            return [open_one(key, raw[at : at + 16], raw[at + 16 :]) for raw in sealed]

        return open_batch

    def sealer(self, key: bytes) -> SealBatch:
        _check(self.name, self.key_bytes, key)
        seal_one = self.seal_one

        def seal_batch(plain: Batch, aads: Aads | None) -> Batch:
            ivs = [os.urandom(16) for _ in plain]
            return [iv + seal_one(key, iv, text) for iv, text in zip(ivs, plain, strict=True)]

        return seal_batch


def aes_cbc(name: str, key_bytes: int) -> AesUnsigned:
    return AesUnsigned(name, key_bytes, 32, cbc_open, cbc_seal)


def aes_ctr(name: str, key_bytes: int) -> AesUnsigned:
    return AesUnsigned(name, key_bytes, 16, _ctr, _ctr)


@dataclass(frozen=True, slots=True)
class LaravelCbc(Carried):
    """Laravel's encrypter in CBC: `iv16 ‖ ciphertext ‖ mac32`, once its JSON is taken apart.

    The MAC is HMAC-SHA256 under the same key, over the base64 of the iv and of the ciphertext.
    """

    name: str
    key_bytes: int
    nonce_bytes: int = 16
    tag_bytes: int = 32
    least_bytes: int = 64
    binds_aad: bool = False
    seal_limit: int | None = None
    order: tuple[str, ...] = ("nonce", "ciphertext", "tag")

    def opener(self, key: bytes) -> OpenBatch:
        _check(self.name, self.key_bytes, key)

        def open_batch(sealed: Sequence[bytes], aads: Aads | None, at: int) -> Batch:
            plain = []
            for raw in sealed:
                iv, ciphertext, mac = raw[at : at + 16], raw[at + 16 : -32], raw[-32:]
                if not hmac.compare_digest(_laravel_mac(key, iv, ciphertext), mac):
                    raise InvalidTag
                plain.append(cbc_open(key, iv, ciphertext))
            return plain

        return open_batch

    def sealer(self, key: bytes) -> SealBatch:
        _check(self.name, self.key_bytes, key)

        def seal_batch(plain: Batch, aads: Aads | None) -> Batch:
            sealed = []
            for text in plain:
                iv = os.urandom(16)
                ciphertext = cbc_seal(key, iv, text)
                sealed.append(iv + ciphertext + _laravel_mac(key, iv, ciphertext))
            return sealed

        return seal_batch


def _laravel_mac(key: bytes, iv: bytes, ciphertext: bytes) -> bytes:
    return hmac.digest(key, b64encode(iv) + b64encode(ciphertext), "sha256")


def _check(name: str, key_bytes: int, key: bytes) -> None:
    if len(key) != key_bytes:
        raise ValueError(f"{name} keys are {key_bytes} bytes")
