"""Keys: where they are read from, how they are decoded, and how little of them is ever shown."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
from pathlib import Path

import anyio
import pytest
from azure.core.credentials import AccessToken
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from rewrap.crypto.rsa import private_key
from rewrap.errors import KeyAccessError, UsageError
from rewrap.keys.azure import KeyVault
from rewrap.keys.keyring import Key, Keyring
from rewrap.keys.local import load_key

KEY = bytes(range(200, 232))
LENGTHS = frozenset({32})
NOWHERE = Path("/nowhere")


def decoded(stored: bytes | str, encoding: str, lengths: frozenset[int] = LENGTHS) -> bytes:
    """The key that a variable with this content holds."""
    return from_environment(stored, encoding, lengths).secret


def from_environment(stored: bytes | str, encoding: str, lengths: frozenset[int] = LENGTHS) -> Key:
    text = stored if isinstance(stored, str) else os.fsdecode(stored)
    return load_key("v1", "env:KEY", encoding, lengths, {"KEY": text}, NOWHERE)


def refusal(stored: bytes | str, encoding: str, lengths: frozenset[int] = LENGTHS) -> KeyAccessError:
    """The error of a variable that holds no key; it has a hint and does not repeat what it found."""
    with pytest.raises(KeyAccessError) as caught:
        decoded(stored, encoding, lengths)
    error = caught.value
    text = stored if isinstance(stored, str) else os.fsdecode(stored)
    assert error.exit_code == 10
    assert error.hint
    assert "environment variable KEY" in error.message
    assert not text.strip() or text.strip() not in error.message + error.hint
    return error


# decoding


@given(key=st.binary(min_size=32, max_size=32))
def test_every_key_is_read_in_every_encoding(key: bytes) -> None:
    """Hex of either case, base64 and base64url with and without padding all give the same bytes."""
    assert decoded(key.hex(), "hex") == key
    assert decoded(key.hex().upper(), "hex") == key
    for encoded in (base64.b64encode(key), base64.urlsafe_b64encode(key)):
        assert decoded(encoded, "base64") == key
        assert decoded(encoded.rstrip(b"="), "base64") == key


@given(key=st.binary(min_size=32, max_size=32))
def test_raw_file_is_taken_byte_for_byte(tmp_path_factory: pytest.TempPathFactory, key: bytes) -> None:
    """Raw bytes are not stripped: a key may well begin or end with what looks like a blank."""
    path = tmp_path_factory.getbasetemp() / "raw.key"
    path.write_bytes(key)
    assert load_key("v1", f"file:{path}", "raw", LENGTHS, {}, NOWHERE).secret == key


def test_raw_variable_may_hold_any_byte_but_zero() -> None:
    """What is not UTF-8 comes through the environment unchanged."""
    assert decoded(KEY, "raw") == KEY


@pytest.mark.parametrize("encoding", ["hex", "base64"])
def test_newline_at_the_end_of_a_key_file_is_no_part_of_it(tmp_path: Path, encoding: str) -> None:
    """Editors and `echo` add one."""
    text = KEY.hex().encode() if encoding == "hex" else base64.b64encode(KEY)
    (tmp_path / "v1.key").write_bytes(text + b"\n")
    assert load_key("v1", "file:v1.key", encoding, LENGTHS, {}, tmp_path).secret == KEY


@pytest.mark.parametrize(
    ("stored", "encoding"),
    [
        ("not hex at all", "hex"),
        ("0x" + KEY.hex(), "hex"),
        (KEY.hex()[:-1], "hex"),
        (KEY.hex(" "), "hex"),
        ("no*base64*" * 4, "base64"),
        ("no-base64url-!?" * 3, "base64"),
        (base64.b64encode(KEY).decode()[:20] + "\n" + base64.b64encode(KEY).decode()[20:], "base64"),
    ],
)
def test_what_is_not_in_its_encoding_is_refused(stored: str, encoding: str) -> None:
    """No character is passed over: a key with a slip in it would be another key."""
    error = refusal(stored, encoding)
    assert f"is not {encoding}" in error.message
    assert "keys.versions.v1.encoding" in (error.hint or "")


# lengths


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
def test_key_of_another_length_is_refused(size: int) -> None:
    """The message says how many bytes there are and how many there should be."""
    error = refusal(bytes(range(1, size + 1)).hex() or " ", "hex")
    assert f"has {size} bytes, its layout takes 32" in error.message


def test_every_length_that_a_layout_takes_is_taken() -> None:
    """A job with two ciphers may have keys of two lengths."""
    both = frozenset({16, 32})
    assert len(decoded("ab" * 16, "hex", both)) == 16
    assert len(decoded("ab" * 32, "hex", both)) == 32
    assert "takes 16 or 32" in refusal("ab" * 20, "hex", both).message


@pytest.mark.parametrize(
    ("stored", "encoding", "hint"),
    [
        (KEY.hex(), "raw", 'encoding = "hex"'),
        (KEY.hex(), "base64", 'encoding = "hex"'),
        (KEY + b"\n", "raw", "ends with a newline"),
        (KEY.hex(), "utf8", 'encoding = "hex"'),
        ("ab" * 31, "hex", "rand -hex 32"),
        (base64.b64encode(KEY[:16]), "base64", "rand -base64 32"),
        (KEY[:16], "raw", "openssl rand 32"),
        ("k" * 31, "utf8", "rand -hex 16"),
    ],
)
def test_usual_slip_of_the_encoding_is_recognised(stored: bytes | str, encoding: str, hint: str) -> None:
    """A length that fits another encoding says which one it is."""
    assert hint in (refusal(stored, encoding).hint or "")


# places


def test_relative_path_starts_at_the_job_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the command is started from does not matter; `~` is the operator's home."""
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "v1").write_text(KEY.hex())
    monkeypatch.setenv("HOME", str(tmp_path))
    for reference in ("file:keys/v1", f"file:{tmp_path}/keys/v1", "file:~/keys/v1"):
        assert load_key("v1", reference, "hex", LENGTHS, {}, tmp_path).secret == KEY


def test_missing_key_is_named_by_its_place(tmp_path: Path) -> None:
    """An unset variable, a missing file and a folder in a file's place."""
    for reference, message in (
        ("env:KEY_V1", "environment variable KEY_V1 is not set"),
        ("file:absent", "file absent: No such file"),
        (f"file:{tmp_path}", "Is a directory"),
    ):
        with pytest.raises(KeyAccessError, match=message) as caught:
            load_key("v1", reference, "hex", LENGTHS, {}, tmp_path)
        assert 'key version "v1" is missing' in caught.value.message
        assert caught.value.hint


# what is shown


def test_fingerprint_is_what_sha256sum_prints() -> None:
    """An operator can compute it without rewrap, and over the bytes, not over their hex form."""
    printed = subprocess.run(["sha256sum"], input=KEY, capture_output=True, check=True).stdout.decode()
    assert Key("v1", KEY).fingerprint == f"sha256:{printed[:16]}"
    assert Key("v1", KEY).fingerprint == "sha256:" + hashlib.sha256(KEY).hexdigest()[:16]


def test_nothing_that_is_printed_holds_the_key() -> None:
    """Neither a key, nor its digester, nor a keyring shows secret bytes when it is printed."""
    key = Key("v1", b"canary-key-bytes-0123456789abcdef")
    shown = " ".join(
        [
            repr(key),
            str(key),
            repr([key]),
            repr(key.digester()),
            repr(Keyring([key])),
            key.commitment,
            f"{key}",
        ]
    )
    for form in (key.secret, key.digester().derived):
        for text in (form.hex(), base64.b64encode(form).decode(), repr(form)[2:-1]):
            assert text not in shown
    assert key.fingerprint in repr(Keyring([key]))


def test_commitment_recognises_a_key_and_is_not_its_fingerprint() -> None:
    """The ledger keeps it; it is a hash for this purpose alone."""
    assert Key("v1", KEY).commitment == Key("v2", KEY).commitment
    assert Key("v1", KEY).commitment != Key("v1", KEY[::-1]).commitment
    assert Key("v1", KEY).commitment != Key("v1", KEY, b"index").commitment
    assert not Key("v1", KEY).commitment.startswith(Key("v1", KEY).fingerprint.removeprefix("sha256:"))


def test_digest_binds_a_value_to_its_place_and_key() -> None:
    """Another row, column, table, value or key gives another digest; parts cannot slide into each other."""
    digester = Key("v1", KEY).digester()
    base = digester.digest("t", "c", "1", "value")
    assert base == Key("v9", KEY).digester().digest("t", "c", "1", "value")
    others = {
        digester.digest("u", "c", "1", "value"),
        digester.digest("t", "d", "1", "value"),
        digester.digest("t", "c", "2", "value"),
        digester.digest("t", "c", "1", "Value"),
        digester.digest("t", "c1", "", "value"),
        digester.digest("t", "c", "1v", "alue"),
        Key("v1", KEY[::-1]).digester().digest("t", "c", "1", "value"),
    }
    assert len(others | {base}) == 8


# the keyring


def test_key_that_is_not_at_hand_names_those_that_are() -> None:
    """The error is about a key, and says what there is instead."""
    with pytest.raises(KeyAccessError, match='"v2" is not at hand') as caught:
        Keyring([Key("v1", KEY)]).get("v2")
    assert caught.value.hint == "versions at hand: v1"


def test_rotation_onto_the_same_bytes_is_refused() -> None:
    """One key under two names would rotate nothing."""
    keyring = Keyring([Key("v1", KEY), Key("v2", bytes(KEY)), Key("v3", KEY[::-1])])
    keyring.require_distinct(["v1"], "v3")
    with pytest.raises(UsageError, match="hold the same bytes"):
        keyring.require_distinct(["v3", "v1"], "v2")


# secrets that keys are derived from


def test_text_secret_is_taken_without_the_end_of_its_line() -> None:
    """As an application reads it from its settings; other space belongs to it."""
    for stored in ("a text secret für alle", "a text secret für alle\n", "a text secret für alle\r\n"):
        assert decoded(stored, "utf8", frozenset()) == "a text secret für alle".encode()
    assert decoded(" a text secret für alle ", "utf8", frozenset()).startswith(b" a")
    assert "is not utf8" in refusal(b"\xff" * 20, "utf8", frozenset()).message


def test_secret_of_any_length_is_taken_unless_it_is_short() -> None:
    """Where keys are derived, the cipher's length says nothing about the secret's."""
    assert len(decoded("ab" * 47, "hex", frozenset())) == 47
    assert "has 15 bytes, keys are derived from 16" in refusal("ab" * 15, "hex", frozenset()).message


def test_base64_key_may_begin_as_laravel_writes_it() -> None:
    """`APP_KEY` is `base64:` and the key."""
    assert decoded("base64:" + base64.b64encode(KEY).decode(), "base64") == KEY


def pem(
    private: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey,
    password: bytes | None = None,
    *,
    traditional: bool = False,
) -> str:
    form = PrivateFormat.TraditionalOpenSSL if traditional else PrivateFormat.PKCS8
    lock = BestAvailableEncryption(password) if password else NoEncryption()
    return private.private_bytes(Encoding.PEM, form, lock).decode()


RSA_KEY = rsa.generate_private_key(65537, 2048)


def test_an_rsa_key_has_one_fingerprint_in_either_form_of_pem() -> None:
    """PKCS #1 and PKCS #8 hold the same key: a ledger recognises it in both."""
    one, other = (from_environment(pem(RSA_KEY, traditional=old), "pem") for old in (False, True))
    assert one.fingerprint == other.fingerprint
    assert private_key(one.secret) is not None


def test_what_is_no_rsa_key_in_pem_is_refused_without_being_shown() -> None:
    """A locked key, a public key, a key of another kind, and text that is no key."""
    public = RSA_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    for text, said in (
        (pem(RSA_KEY, b"passphrase"), "encrypted with a passphrase"),
        (public, "no private key in PEM"),
        (pem(ec.generate_private_key(ec.SECP256R1())), "no RSA key"),
        ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "no private key in PEM"),
    ):
        error = refusal(text, "pem")
        assert said in error.message
        assert text.splitlines()[1] not in f"{error.message}{error.hint}"


class Nobody:
    """A credential that nothing is asked of."""

    async def get_token(self, *_scopes: str, **_options: object) -> AccessToken:
        raise AssertionError("nobody calls the vault")

    async def close(self) -> None: ...

    async def __aenter__(self) -> Nobody:
        return self

    async def __aexit__(self, *_exc: object) -> None: ...


@pytest.mark.parametrize(
    ("url", "named"),
    [("https://prod-eu.vault.azure.net/", "prod-eu"), ("https://hsm.example/", "…")],
)
def test_a_disabled_version_is_enabled_in_its_vault(url: str, named: str) -> None:
    """The hint is a command that can be typed: the CLI asks for the vault's name as well."""
    version = "0" * 32

    async def hint() -> str | None:
        vault = KeyVault(url, "mek", credential=Nobody())
        try:
            return vault.disabled(version).hint
        finally:
            await vault.close()

    assert anyio.run(hint) == (
        f"az keyvault key set-attributes --vault-name {named} --name mek --version {version} --enabled true"
    )
