"""What Python libraries store, by their own code: tink, jwcrypto, SQLAlchemy-Utils, cryptography.

pip install tink jwcrypto sqlalchemy-utils cryptography
python libraries.py > ../libraries.json
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import tink
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from jwcrypto import jwe, jwk
from sqlalchemy_utils.types.encrypted.encrypted_type import AesGcmEngine
from tink import aead, cleartext_keyset_handle

TEXTS = ["a", "Grüße, Zürich ✓", "x" * 300]

MADE_AT = 1_600_000_000

vectors: list[dict[str, Any]] = []


def add(
    like: str | dict[str, str],
    key: bytes,
    seal: Callable[[str], str | bytes],
    cut: Callable[[str], str] = lambda value: value[:20],
    **more: Any,
) -> None:
    """Vectors of one layout: plaintexts, a wrong key, a value that is cut off."""
    layout = {"like": like} if isinstance(like, str) else like
    known = {"layout": layout, "key": key.hex(), **more}

    def stored(value: str | bytes) -> dict[str, str]:
        return {"bytes": value.hex()} if isinstance(value, bytes) else {"value": value}

    for text in TEXTS:
        vectors.append({**known, "plain": text.encode().hex(), **stored(seal(text))})
    value = seal("a value")
    short = {"bytes": value.hex()[:40]} if isinstance(value, bytes) else {"value": cut(value)}
    vectors.append({**known, "key": os.urandom(len(key)).hex(), **stored(value), "fails": "unopenable"})
    vectors.append({**known, **short, "fails": "malformed"})


aead.register()
for template in (aead.aead_key_templates.AES256_GCM, aead.aead_key_templates.AES128_GCM):
    handle = tink.new_keyset_handle(template)
    written = io.StringIO()
    cleartext_keyset_handle.write(tink.JsonKeysetWriter(written), handle)
    found = json.loads(written.getvalue())["key"][0]
    # the key's value is a message of one field: tag and length, then the key
    secret = base64.b64decode(found["keyData"]["value"])[2:]
    primitive = handle.primitive(aead.Aead)
    cipher = {} if len(secret) == 32 else {"cipher": "aes-128-gcm"}
    number = {"version": str(found["keyId"])}
    add({"like": "tink", **cipher}, secret, lambda text, p=primitive: p.encrypt(text.encode(), b""), **number)
    add(
        {"like": "tink-base64", **cipher},
        secret,
        lambda text, p=primitive: base64.b64encode(p.encrypt(text.encode(), b"")).decode(),
        **number,
    )

secret = os.urandom(32)
key = jwk.JWK(kty="oct", k=base64.urlsafe_b64encode(secret).rstrip(b"=").decode())
header = {"alg": "dir", "enc": "A256GCM", "kid": "v1"}


def token(text: str) -> str:
    made = jwe.JWE(text.encode(), json.dumps(header, separators=(",", ":")))
    made.add_recipient(key)
    return str(made.serialize(compact=True))


add("jwe", secret, token, cut=lambda value: value[:90], version="v1")

passphrase = "a passphrase of whoever wrote the model"
engine = AesGcmEngine()
engine._update_key(passphrase)
add("sqlalchemy-utils-gcm", passphrase.encode(), lambda text: str(engine.encrypt(text)))

fernet = os.urandom(32)
made = Fernet(base64.urlsafe_b64encode(fernet))


def sentry(text: str) -> str:
    """As Sentry's encrypted fields put it together."""
    encoded = base64.b64encode(made.encrypt_at_time(text.encode(), MADE_AT)).decode()
    return f"enc:fernet:k1:{encoded}"


add("fernet", fernet, lambda text: made.encrypt_at_time(text.encode(), MADE_AT).decode(), time=MADE_AT)
add("sentry", fernet, sentry, cut=lambda value: value[:80], time=MADE_AT, version="k1")


def bound(text: str, aad: str) -> bytes:
    nonce = os.urandom(12)
    return nonce + AESGCM(secret).encrypt(nonce, text.encode(), aad.encode())


account = '{"account_id":"7"}'
add(
    {"like": "aes-gcm", "aad": '{{"account_id":"{account_id}"}}'},
    secret,
    lambda text: base64.b64encode(bound(text, account)).decode(),
    aad=account,
)


def apart(text: str) -> str:
    raw = bound(text, "dek-wrap")
    return "\x1e".join((raw[:12].hex(), raw[-16:].hex(), raw[12:-16].hex()))


add("wrapped-data-key", secret, apart, aad="dek-wrap", apart=["nonce", "tag"])

names = ("tink", "jwcrypto", "SQLAlchemy-Utils", "cryptography")
maker = ", ".join(f"{name} {version(name)}" for name in names)
print(json.dumps({"maker": maker, "vectors": vectors}, indent=2))
