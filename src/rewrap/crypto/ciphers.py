"""The ciphers that a layout can name."""

from __future__ import annotations

from cryptography.hazmat.primitives.hashes import SHA1, SHA256

from rewrap.crypto.aead import AesGcm, SecretBox, XChaCha
from rewrap.crypto.blocks import LaravelCbc, aes_cbc, aes_ctr
from rewrap.crypto.cipher import OPEN_FAILURES, Aads, Batch, Cipher, OpenBatch, SealBatch
from rewrap.crypto.elsewhere import Elsewhere
from rewrap.crypto.fernet import Fernet
from rewrap.crypto.keywrap import AesKeyWrap
from rewrap.crypto.rsa import RsaOaep

__all__ = ["CIPHERS", "OPEN_FAILURES", "Aads", "Batch", "Cipher", "OpenBatch", "SealBatch"]

CIPHERS: dict[str, Cipher] = {
    cipher.name: cipher
    for cipher in (
        SecretBox(),
        AesGcm("aes-256-gcm", 32),
        AesGcm("aes-192-gcm", 24),
        AesGcm("aes-128-gcm", 16),
        AesGcm("aes-256-gcm-derived-nonce", 32, derived_nonce=True),
        XChaCha(),
        XChaCha("xchacha20-poly1305-nonce", binds_nonce=True),
        Fernet(),
        LaravelCbc("laravel-aes-256-cbc", 32),
        LaravelCbc("laravel-aes-128-cbc", 16),
        aes_cbc("aes-256-cbc", 32),
        aes_cbc("aes-128-cbc", 16),
        aes_ctr("aes-256-ctr", 32),
        AesKeyWrap("aes-key-wrap", pads=False),
        AesKeyWrap("aes-key-wrap-pad", pads=True),
        RsaOaep("rsa-oaep-256", SHA256),
        # the hash of RFC 8017's default, as services offer it; OAEP does not need it to resist collisions
        RsaOaep("rsa-oaep", SHA1),
        Elsewhere("aws-kms", binds_aad=True, least_bytes=1),
        Elsewhere("vault-transit", binds_aad=True, least_bytes=28),
    )
}
"""By name; those without authentication need a layout that says what plaintexts look like."""
