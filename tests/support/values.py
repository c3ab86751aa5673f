"""Stored values made with PyNaCl and cryptography directly: no code of rewrap's has a part in them."""

from __future__ import annotations

import base64
import os

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
