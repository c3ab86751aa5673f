"""Stored values made with PyNaCl and cryptography directly: no code of rewrap's has a part in them."""

from __future__ import annotations

import base64
import os

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from nacl.secret import SecretBox

KEY_V1 = bytes(range(32))
KEY_V2 = bytes(range(100, 132))
KEY_V3 = bytes(range(200, 232))
KEYS = {"v1": KEY_V1, "v2": KEY_V2, "v3": KEY_V3}


def box(plain: str | bytes, version: str = "v1", key: bytes | None = None, *, marker: bool = True) -> str:
    """`v1:` + base64(nonce24 ‖ secretbox)."""
    text = plain.encode() if isinstance(plain, str) else plain
    sealed = base64.b64encode(SecretBox(key or KEYS[version]).encrypt(text)).decode()
    return f"{version}:{sealed}" if marker else sealed


def unbox(value: str, keys: dict[str, bytes] = KEYS) -> bytes:
    version, _, payload = value.partition(":")
    return SecretBox(keys[version]).decrypt(base64.b64decode(payload, validate=True))


def aead(plain: str | bytes, aad: str, version: str = "v1", key: bytes | None = None) -> str:
    """`v1:` + base64(nonce12 ‖ ciphertext ‖ tag16), AES-256-GCM."""
    text = plain.encode() if isinstance(plain, str) else plain
    nonce = os.urandom(12)
    sealed = nonce + AESGCM(key or KEYS[version]).encrypt(nonce, text, aad.encode())
    return f"{version}:{base64.b64encode(sealed).decode()}"


def unaead(value: str, aad: str, keys: dict[str, bytes] = KEYS) -> bytes:
    version, _, payload = value.partition(":")
    raw = base64.b64decode(payload, validate=True)
    return AESGCM(keys[version]).decrypt(raw[:12], raw[12:], aad.encode())


def sealed_bytes(plain: str | bytes, version: str = "v1", key: bytes | None = None, aad: str = "") -> bytes:
    """`v1:` and nonce12 ‖ ciphertext ‖ tag16, AES-256-GCM, as bytes."""
    text = plain.encode() if isinstance(plain, str) else plain
    nonce = os.urandom(12)
    return version.encode() + b":" + nonce + AESGCM(key or KEYS[version]).encrypt(nonce, text, aad.encode())


def opened_bytes(value: bytes, keys: dict[str, bytes] = KEYS, aad: str = "") -> bytes:
    version, _, raw = value.partition(b":")
    return AESGCM(keys[version.decode()]).decrypt(raw[:12], raw[12:], aad.encode())


def one_ciphertext_for_two_keys(one: bytes, two: bytes) -> str:
    """base64(nonce12 ‖ ciphertext16 ‖ tag16) that opens under both keys, to two plaintexts.

    AES-GCM does not commit to its key: with a free block c, both tags are equal when
    c·(H1² ⊕ H2²) = L·(H1 ⊕ H2) ⊕ E1(J0) ⊕ E2(J0) in GF(2^128) (SP 800-38D 6.4, 7.1).
    """
    nonce = os.urandom(12)
    counter = nonce + b"\x00\x00\x00\x01"
    h1, h2 = (_element(_block(key, bytes(16))) for key in (one, two))
    e1, e2 = (_element(_block(key, counter)) for key in (one, two))
    lengths = _element((0).to_bytes(8, "big") + (128).to_bytes(8, "big"))
    right = _times(lengths, h1 ^ h2) ^ e1 ^ e2
    free = _times(right, _inverse(_times(h1, h1) ^ _times(h2, h2)))
    tag = _times(_times(free, h1) ^ lengths, h1) ^ e1
    return base64.b64encode(nonce + _bytes(free) + _bytes(tag)).decode()


def _block(key: bytes, block: bytes) -> bytes:
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    return encryptor.update(block)


def _element(block: bytes) -> int:
    """A block as a polynomial: GCM's first bit is the coefficient of x^0."""
    return int(f"{int.from_bytes(block, 'big'):0128b}"[::-1], 2)


def _bytes(element: int) -> bytes:
    return int(f"{element:0128b}"[::-1], 2).to_bytes(16, "big")


def _times(a: int, b: int) -> int:
    product = 0
    while b:
        if b & 1:
            product ^= a
        a <<= 1
        if a >> 128:
            a ^= (1 << 128) | 0x87
        b >>= 1
    return product


def _inverse(a: int) -> int:
    """a^(2^128 - 2)."""
    result, power = 1, a
    for _ in range(127):
        power = _times(power, power)
        result = _times(result, power)
    return result
