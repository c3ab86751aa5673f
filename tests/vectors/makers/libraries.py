"""What Python libraries store, by their own code: tink, jwcrypto, SQLAlchemy-Utils, cryptography.

pip install --require-hashes -r requirements.txt
python libraries.py | python broken.py > ../libraries.json
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

TEXTS = ["", "a", "Grüße, Zürich ✓", "x" * 300]

MADE_AT = 1_600_000_000

PART = "\x1e"

Seal = Callable[[str], str | bytes]
Other = tuple[str, str, Seal, dict[str, Any]]

sets: list[dict[str, Any]] = []


def add(layout: dict[str, Any], key: bytes, seal: Seal, *others: Other, **about: Any) -> None:
    """A set of one layout: every text, and what is sealed in another way."""
    more = {"time": about.pop("time")} if "time" in about else {}

    def stored(value: str | bytes) -> dict[str, Any]:
        return {"bytes": value.hex(), **more} if isinstance(value, bytes) else {"value": value, **more}

    vectors = [{"expect": "ok", "plain": text.encode().hex(), **stored(seal(text))} for text in TEXTS]
    for expect, why, sealed, told in others:
        vectors.append({"expect": expect, "why": why, **stored(sealed("a value")), **told})
    sets.append({"layout": layout, "key": key.hex(), **about, "vectors": vectors})


def other_key(seal: Seal) -> Other:
    return ("unknown-key", "sealed under another key", seal, {})


def bound_to_another(seal: Seal) -> Other:
    return ("bad-aad", "sealed with other associated data", seal, {})


aead.register()


def keyset(template: Any) -> tuple[bytes, str, Any]:
    """A new key of Tink's: its bytes, its id, and what seals with it."""
    handle = tink.new_keyset_handle(template)
    written = io.StringIO()
    cleartext_keyset_handle.write(tink.JsonKeysetWriter(written), handle)
    found = json.loads(written.getvalue())["key"][0]
    # the key's value is a message of one field: tag and length, then the key
    return base64.b64decode(found["keyData"]["value"])[2:], str(found["keyId"]), handle.primitive(aead.Aead)


def in_base64(seal: Callable[[str], bytes]) -> Seal:
    return lambda text: base64.b64encode(seal(text)).decode()


for template, cipher in (
    (aead.aead_key_templates.AES256_GCM, {}),
    (aead.aead_key_templates.AES128_GCM, {"cipher": "aes-128-gcm"}),
):
    secret, number, primitive = keyset(template)
    _, named, stranger = keyset(template)

    def seal(text: str, p: Any = primitive, aad: bytes = b"") -> bytes:
        return bytes(p.encrypt(text.encode(), aad))

    def seal_strange(text: str, p: Any = stranger) -> bytes:
        return bytes(p.encrypt(text.encode(), b""))

    def seal_bound(text: str, p: Any = primitive) -> bytes:
        return bytes(p.encrypt(text.encode(), b"tenant 7"))

    away = {"named": named}
    missing = "under a version without a key"
    add(
        {"like": "tink", **cipher},
        secret,
        seal,
        ("unknown-key", missing, seal_strange, away),
        bound_to_another(seal_bound),
        version=number,
    )
    add(
        {"like": "tink-base64", **cipher},
        secret,
        in_base64(seal),
        ("unknown-key", missing, in_base64(seal_strange), away),
        bound_to_another(in_base64(seal_bound)),
        version=number,
    )
    add(
        {"like": "tink", **cipher, "aad": "tenant {tenant_id}"},
        secret,
        seal_bound,
        bound_to_another(seal),
        version=number,
        columns={"tenant_id": "7"},
    )


def token(secret: bytes, kid: str = "v1") -> Seal:
    key = jwk.JWK(kty="oct", k=base64.urlsafe_b64encode(secret).rstrip(b"=").decode())
    header = {"alg": "dir", "enc": "A256GCM", "kid": kid}

    def seal(text: str) -> str:
        made = jwe.JWE(text.encode(), json.dumps(header, separators=(",", ":")))
        made.add_recipient(key)
        return str(made.serialize(compact=True))

    return seal


secret = os.urandom(32)
add(
    {"like": "jwe"},
    secret,
    token(secret),
    other_key(token(os.urandom(32))),
    ("unknown-key", "under a version without a key", token(secret, "v9"), {"named": "v9"}),
    version="v1",
)


def engine(passphrase: str) -> Any:
    made = AesGcmEngine()
    made._update_key(passphrase)
    return made


passphrase = "a passphrase of whoever wrote the model"
add(
    {"like": "sqlalchemy-utils-gcm"},
    passphrase.encode(),
    lambda text: str(engine(passphrase).encrypt(text)),
    other_key(lambda text: str(engine("another passphrase of theirs").encrypt(text))),
)


def fernet(key: bytes) -> Callable[[str], bytes]:
    made = Fernet(base64.urlsafe_b64encode(key))
    return lambda text: made.encrypt_at_time(text.encode(), MADE_AT)


def sentry(key: bytes, number: str = "k1") -> Seal:
    """As Sentry's encrypted fields put it together."""
    return lambda text: f"enc:fernet:{number}:{base64.b64encode(fernet(key)(text)).decode()}"


key, other = os.urandom(32), os.urandom(32)
add(
    {"like": "fernet"},
    key,
    lambda text: fernet(key)(text).decode(),
    other_key(lambda text: fernet(other)(text).decode()),
    time=MADE_AT,
)
add(
    {"like": "sentry"},
    key,
    sentry(key),
    other_key(sentry(other)),
    ("unknown-key", "under a version without a key", sentry(other, "k9"), {"named": "k9"}),
    time=MADE_AT,
    version="k1",
)


def gcm(key: bytes, aad: str) -> Callable[[str], tuple[bytes, bytes, bytes]]:
    """AES-GCM by the package cryptography: nonce, ciphertext, tag."""

    def seal(text: str) -> tuple[bytes, bytes, bytes]:
        nonce = os.urandom(12)
        sealed = AESGCM(key).encrypt(nonce, text.encode(), aad.encode())
        return nonce, sealed[:-16], sealed[-16:]

    return seal


def account(key: bytes, number: str) -> Seal:
    return in_base64(lambda text: b"".join(gcm(key, f'{{"account_id":"{number}"}}')(text)))


for declared in ('{{"account_id":"{account_id}"}}', {"account_id": "{account_id}"}):
    add(
        {"like": "aes-gcm", "aad": declared},
        key,
        account(key, "7"),
        other_key(account(other, "7")),
        bound_to_another(account(key, "8")),
        columns={"account_id": "7"},
    )


def apart(key: bytes, aad: str = "dek-wrap") -> Seal:
    def seal(text: str) -> str:
        nonce, ciphertext, tag = gcm(key, aad)(text)
        return PART.join((nonce.hex(), tag.hex(), ciphertext.hex()))

    return seal


def cloak(key: bytes, aad: str = "AES256GCM") -> Callable[[str], bytes]:
    """In the form of Elixir's Cloak, which cannot be made to seal with other associated data."""

    def seal(text: str) -> bytes:
        nonce, ciphertext, tag = gcm(key, aad)(text)
        return b"\x01\x0aAES.GCM.V1" + nonce + tag + ciphertext

    return seal


add(
    {"like": "wrapped-data-key"},
    key,
    apart(key),
    other_key(apart(other)),
    bound_to_another(apart(key, "dek-wrap-2")),
    apart=["nonce", "tag"],
)
for like, form in (("elixir-cloak", lambda seal: seal), ("elixir-cloak-base64", in_base64)):
    add(
        {"like": like},
        key,
        form(cloak(key)),
        other_key(form(cloak(other))),
        bound_to_another(form(cloak(key, "AES128GCM"))),
        version="AES.GCM.V1",
    )

names = ("tink", "jwcrypto", "SQLAlchemy-Utils", "cryptography")
maker = ", ".join(f"{name} {version(name)}" for name in names)
print(json.dumps({"maker": maker, "sets": sets}))
