"""Sealed values, made and opened with PyNaCl, cryptography and hashlib directly, by no code of rewrap's."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.fernet import Fernet
from cryptography.hazmat.primitives import hashes, padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from nacl import bindings

PIECES = ("nonce", "tag", "ciphertext")

NONCE_BYTES = {"box": 24, "xchacha": 24, "aead": 12, "cbc": 16, "fernet": 16}
"""By cipher; what else there is of it is the tag and the ciphertext."""

ORDER = {"box": "nonce tag ciphertext", "cbc": "nonce ciphertext", "fernet": "ciphertext"}
"""The pieces of a value, where it is not `nonce ciphertext tag`. A Fernet token is one piece."""

AS = ("base64", "base64url", "base64url-padded", "hex", "bytea", "text")
"""How bytes are written in SQL: `bytea` for bytes as a whole, `text` where they are text already."""


@dataclass(frozen=True)
class Format:
    """How a value is stored.

    `groups` are the pieces that are encoded together, in order, with `separator` between them. `kdf` is how
    the key is made of the version's secret, `time` the seconds that a Fernet token names.
    """

    kind: str
    version: str
    marker: str
    groups: tuple[tuple[str, ...], ...]
    encoding: str
    separator: str = ""
    kdf: str = ""
    time: int = 0

    @property
    def prefix(self) -> str:
        return self.marker.replace("{version}", self.version)


@dataclass(frozen=True)
class Sealed:
    """The pieces of one sealed value."""

    nonce: bytes = field(repr=False, default=b"")
    tag: bytes = field(repr=False, default=b"")
    ciphertext: bytes = field(repr=False, default=b"")

    def written(self, stored: Format) -> str:
        """As it stands in a table."""
        raw = [b"".join(getattr(self, piece) for piece in group) for group in stored.groups]
        if stored.encoding == "bytea":
            return "\\x" + (stored.prefix.encode() + b"".join(raw)).hex()
        return stored.prefix + stored.separator.join(encoded(part, stored.encoding) for part in raw)


def seal(stored: Format, secret: bytes, nonce: bytes, plain: bytes, aad: bytes = b"") -> Sealed:
    """Seals under a nonce of the caller's: the same words in a case make the same value each time."""
    key = derived(secret, stored.kdf)
    if stored.kind == "box":
        box = bindings.crypto_secretbox(plain, nonce, key)
        return Sealed(nonce, box[:16], box[16:])
    if stored.kind == "fernet":
        token = Fernet(base64.urlsafe_b64encode(key))._encrypt_from_parts(plain, stored.time, nonce)
        return Sealed(ciphertext=token)
    if stored.kind == "cbc":
        padder = padding.PKCS7(128).padder()
        encryptor = Cipher(algorithms.AES(key), modes.CBC(nonce)).encryptor()
        return Sealed(nonce, ciphertext=encryptor.update(padder.update(plain) + padder.finalize()))
    if stored.kind == "xchacha":
        both = bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(plain, aad, nonce, key)
    else:
        both = AESGCM(key).encrypt(nonce, plain, aad)
    return Sealed(nonce, both[-16:], both[:-16])


def opened(stored: Format, secret: bytes, sealed: Sealed, aad: bytes = b"") -> bytes:
    """The plaintext; raises what the library raises."""
    key = derived(secret, stored.kdf)
    if stored.kind == "box":
        return bindings.crypto_secretbox_open(sealed.tag + sealed.ciphertext, sealed.nonce, key)
    if stored.kind == "fernet":
        fernet = Fernet(base64.urlsafe_b64encode(key))
        assert fernet.extract_timestamp(sealed.ciphertext) == stored.time, "a token has another time"
        return fernet.decrypt(sealed.ciphertext)
    if stored.kind == "cbc":
        decryptor = Cipher(algorithms.AES(key), modes.CBC(sealed.nonce)).decryptor()
        unpadder = padding.PKCS7(128).unpadder()
        return unpadder.update(decryptor.update(sealed.ciphertext)) + unpadder.finalize()
    both = sealed.ciphertext + sealed.tag
    if stored.kind == "xchacha":
        return bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(both, aad, sealed.nonce, key)
    return AESGCM(key).decrypt(sealed.nonce, both, aad)


def derived(secret: bytes, kdf: str) -> bytes:
    """`hkdf:HASH:SALT:INFO`, `pbkdf2:HASH:SALT:ITERATIONS` or `sha256`, 32 bytes; else the secret itself."""
    kind, *words = kdf.split(":")
    if kind == "hkdf":
        algorithm, salt, info = words
        chosen = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384(), "sha512": hashes.SHA512()}[algorithm]
        return HKDF(chosen, 32, salt.encode(), info.encode()).derive(secret)
    if kind == "pbkdf2":
        algorithm, salt, iterations = words
        return hashlib.pbkdf2_hmac(algorithm, secret, salt.encode(), int(iterations), 32)
    return hashlib.sha256(secret).digest() if kind == "sha256" else secret


def blind_index(secret: bytes, plain: bytes) -> bytes:
    """HMAC-SHA256 under a key of its own."""
    return hmac.digest(derived(secret, "hkdf:sha256::blind index"), plain, "sha256")


def read(stored: Format, value: str | bytes, apart: Mapping[str, str | bytes]) -> Sealed:
    """The pieces of a stored value; `apart` are those that are stored elsewhere, by name."""
    prefix = stored.prefix.encode() if isinstance(value, bytes) else stored.prefix
    assert value[: len(prefix)] == prefix, f"a value does not begin with {stored.prefix!r}"
    payload = value[len(prefix) :]
    separated = isinstance(payload, str) and stored.separator
    texts = payload.split(stored.separator) if separated else [payload]
    pieces = {name: decoded(part, stored.encoding) for name, part in apart.items()}
    for group, text in zip(stored.groups, texts, strict=True):
        raw = decoded(text, stored.encoding)
        lengths = {"nonce": NONCE_BYTES[stored.kind], "tag": 16}
        lengths["ciphertext"] = len(raw) - sum(lengths.get(piece, 0) for piece in group)
        for piece in group:
            pieces[piece], raw = raw[: lengths[piece]], raw[lengths[piece] :]
    return Sealed(**pieces)


def encoded(raw: bytes, encoding: str) -> str:
    if encoding == "text":
        return raw.decode()
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
    if encoding == "text":
        raw = text.encode()
    elif encoding == "hex":
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
