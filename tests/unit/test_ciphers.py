"""Ciphers beyond the AEADs, validators of plaintexts, and keys derived from secrets."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time

import pytest
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from rewrap.crypto.ciphers import CIPHERS, OPEN_FAILURES
from rewrap.crypto.elsewhere import Elsewhere
from rewrap.crypto.failures import Unsealable
from rewrap.crypto.kdf import Kdf
from rewrap.crypto.layout import Layout, LayoutError, Unopenable, compiled

KEY = bytes(range(32))
FERNET = Layout("fernet", "", "", "base64url-padded", "fernet")


@given(st.binary(max_size=100), st.integers(0, 2**40))
def test_fernet_token_keeps_its_time(plain: bytes, at: int) -> None:
    """A token that has expired stays expired when it is sealed under another key."""
    library = Fernet(base64.urlsafe_b64encode(KEY))
    old = library.encrypt_at_time(plain, at).decode()
    carried = FERNET.bind("v1", KEY).open_one(old, None)
    assert carried == at.to_bytes(8, "big") + plain
    (new,) = FERNET.bind("v2", KEY[::-1]).seal_values([carried], None)
    other = Fernet(base64.urlsafe_b64encode(KEY[::-1]))
    assert other.extract_timestamp(new) == at
    assert other.decrypt(new) == plain


def test_value_that_was_no_token_gets_the_present_time() -> None:
    """A change of layout to Fernet makes tokens as the application would."""
    assert FERNET.carry_bytes == 8
    assert abs(int.from_bytes(FERNET.fresh_carry(), "big") - time.time()) < 60


@pytest.mark.parametrize("cipher", ["aes-256-cbc", "aes-128-cbc", "aes-256-ctr"])
def test_unauthenticated_cipher_needs_a_plaintext_that_can_be_told(cipher: str) -> None:
    """Without one a wrong key would reseal garbage as if it were a value."""
    with pytest.raises(LayoutError, match="does not authenticate"):
        Layout("any", "", "", "base64", cipher)
    layout = Layout("any", "", "", "base64", cipher, plaintext="pattern:[0-9]{3}-[0-9]{2}")
    key = KEY[: layout.cipher.key_bytes]
    bound = layout.bind("v1", key)
    (value,) = bound.seal_values([b"123-45"], None)
    assert bound.open_one(value, None) == b"123-45"
    (garbage,) = bound.seal_values([b"123-45\n"], None)
    for made, other in ((value, layout.bind("v2", key[::-1])), (garbage, bound)):
        with pytest.raises(Unopenable):
            other.open_one(made, None)
        with pytest.raises(OPEN_FAILURES):
            other.open_values([made], None)


@pytest.mark.parametrize(
    ("declared", "fits", "does_not"),
    [
        ("utf8", ["", "Grüße\r\n\tx"], ["\xff", "a\x00", "\x7f"]),
        ("json", ['{"a":1}', "12", '"x"'], ["", "{", "\xff", "[" * 100_000]),
        ("pattern:[a-z]+", ["abc"], ["", "abc1", "Abc", "abc\n", "\xff"]),
    ],
)
def test_validator_tells_what_fits(declared: str, fits: list[str], does_not: list[str]) -> None:
    """The whole plaintext has to fit."""
    fit = Layout("any", "", "", "base64", "aes-256-cbc", plaintext=declared).validator
    assert fit is not None
    assert all(fit(text.encode()) for text in fits)
    assert not any(fit(text.encode("latin-1")) for text in does_not)


@pytest.mark.parametrize("declared", ["xml", "pattern:", "pattern:(", "utf-8"])
def test_unknown_validator_is_refused(declared: str) -> None:
    """Where it is declared."""
    with pytest.raises(LayoutError):
        Layout("any", "", "", "base64", "aes-256-gcm", plaintext=declared)


def test_nonce_of_another_length_is_declared() -> None:
    """Node programs often take 16 bytes for GCM too."""
    layout = Layout("any", "", "", "hex", "aes-256-gcm", nonce_bytes=16)
    (value,) = layout.bind("v1", KEY).seal_values([b"plain"], None)
    assert len(bytes.fromhex(value)) == 16 + 5 + 16
    assert layout.bind("v1", KEY).open_one(value, None) == b"plain"
    with pytest.raises(LayoutError, match="nonce_bytes"):
        Layout("any", "", "", "hex", "secretbox", nonce_bytes=16)


# keys that are derived


def derived(kdf: dict[str, str | int], secret: bytes = KEY, table: str = "t", column: str = "c") -> bytes:
    return Kdf.parse(kdf).derive(secret, 32, table, column)


def hkdf(secret: bytes, salt: bytes, info: bytes, digest: str) -> bytes:
    """RFC 5869, by hand."""
    extracted = hmac.digest(salt or bytes(hashlib.new(digest).digest_size), secret, digest)
    return hmac.digest(extracted, info + b"\x01", digest)[:32]


@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
def test_hkdf_takes_salt_and_info_from_where_the_value_is(digest: str) -> None:
    """Table and column by template, bytes in hex before it; the schema is no part of a table's name."""
    kdf = {"kind": "hkdf", "hash": digest, "salt": "{table}", "info": "hex:b4B4:{column}"}
    wanted = hkdf(KEY, b"users", b"\xb4\xb4email", digest)
    assert derived(kdf, table="users", column="email") == wanted
    assert derived(kdf, table="app.users", column="email") == wanted
    named = {**kdf, "table": "users", "column": "email"}
    assert derived(named, table="people", column="mail") == wanted
    assert derived({"kind": "hkdf", "hash": digest}) == hkdf(KEY, b"", b"", digest)


def test_other_derivations() -> None:
    """PBKDF2 with its salt and rounds, and a plain SHA-256."""
    kdf = {"kind": "pbkdf2", "hash": "sha1", "salt": "authenticated encrypted cookie", "iterations": 1000}
    wanted = hashlib.pbkdf2_hmac("sha1", b"secret" * 4, b"authenticated encrypted cookie", 1000, 32)
    assert derived(kdf, b"secret" * 4) == wanted
    assert derived({"kind": "sha256"}, b"a passphrase") == hashlib.sha256(b"a passphrase").digest()


@pytest.mark.parametrize(
    ("kdf", "says"),
    [
        ({"kind": "scrypt"}, "kdf.kind"),
        ({}, "kdf.kind"),
        ({"kind": "hkdf", "hash": "md5"}, "kdf.hash"),
        ({"kind": "hkdf", "salt": "{row}"}, "templates hold"),
        ({"kind": "hkdf", "iterations": 1}, "kdf.iterations is not for hkdf"),
        ({"kind": "pbkdf2", "salt": "x"}, "kdf.iterations"),
        ({"kind": "pbkdf2", "salt": "x", "iterations": "9"}, "kdf.iterations is a number"),
        ({"kind": "sha256", "salt": "x"}, "kdf.salt is not for sha256"),
    ],
)
def test_derivation_that_cannot_be_is_refused(kdf: dict[str, str | int], says: str) -> None:
    """Where it is declared."""
    with pytest.raises(LayoutError, match=says):
        compiled("any", {"encoding": "base64", "cipher": "aes-256-gcm", "kdf": kdf or {"hash": "sha256"}})


def test_layout_that_derives_opens_what_its_own_key_sealed() -> None:
    """Each column has a key of its own; a value moved to another does not open."""
    kdf = {"kind": "hkdf", "salt": "{table}", "info": "{column}"}
    layout = compiled("any", {"encoding": "base64", "cipher": "aes-256-gcm", "kdf": kdf})
    secret = b"any length at all"
    (value,) = layout.bind("v1", secret, "users", "email").seal_values([b"plain"], None)
    assert layout.bind("v1", secret, "users", "email").open_one(value, None) == b"plain"
    with pytest.raises(Unopenable):
        layout.bind("v1", secret, "users", "phone").open_one(value, None)
    assert "any length" not in repr(layout.bind("v1", secret, "users", "email"))


def test_every_cipher_refuses_a_key_of_another_length() -> None:
    """AES would take a shorter key, and be another cipher. A key that is elsewhere has no length here."""
    for cipher in CIPHERS.values():
        if isinstance(cipher, Elsewhere):
            continue
        for length in {16, 24, 32, 33} - {*cipher.key_lengths}:
            wrong = "bytes" if cipher.key_lengths else "key"
            with pytest.raises(ValueError, match=wrong):
                cipher.opener(bytes(length))
            with pytest.raises(ValueError, match=wrong):
                cipher.sealer(bytes(length))


def test_what_is_too_long_for_an_rsa_key_is_no_defect() -> None:
    """It says how much the key wraps: RFC 8017 7.1.1 takes two hashes and two bytes off the modulus."""
    key = rsa.generate_private_key(65537, 2048)
    der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    seal = CIPHERS["rsa-oaep-256"].sealer(der)
    assert CIPHERS["rsa-oaep-256"].opener(der)(seal([bytes(190)], None), None, 0) == [bytes(190)]
    with pytest.raises(Unsealable, match="190 bytes at most"):
        seal([bytes(191)], None)
