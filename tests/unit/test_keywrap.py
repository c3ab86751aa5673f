"""AES Key Wrap with keys at hand: the RFCs' vectors, what OpenSSL makes, and what is refused."""

from __future__ import annotations

import secrets
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewrap.crypto.ciphers import CIPHERS, OPEN_FAILURES
from rewrap.crypto.layout import Layout
from rewrap.errors import KeyAccessError
from rewrap.job import Job
from rewrap.keys.open import open_local

KW, KWP = CIPHERS["aes-key-wrap"], CIPHERS["aes-key-wrap-pad"]

KEK = bytes(range(32))
DATA = bytes.fromhex("00112233445566778899AABBCCDDEEFF0001020304050607") + bytes(range(8, 16))

RFC_3394 = [
    (16, 16, "1FA68B0A8112B447 AEF34BD8FB5A7B82 9D3E862371D2CFE5"),
    (24, 16, "96778B25AE6CA435 F92B5B97C050AED2 468AB8A17AD84E5D"),
    (32, 16, "64E8C3F9CE0F5BA2 63E9777905818A2A 93C8191E7D6E8AE7"),
    (24, 24, "031D33264E15D332 68F24EC260743EDC E1C6C7DDEE725A93 6BA814915C6762D2"),
    (32, 24, "A8F9BC1612C68B3F F6E6F4FBE30E71E4 769C8B80A32CB895 8CD5D17D6B254DA1"),
    (32, 32, "28C9F404C4B810F4 CBCCB35CFB87F826 3F5786E2D80ED326 CBC7F0E71A99F43B FB988B9B7A02DD21"),
]
"""RFC 3394 4.1 to 4.6: bytes of the key and of what is wrapped, and what comes of it."""

RFC_5649_KEK = bytes.fromhex("5840df6e29b02af1ab493b705bf16ea1ae8338f4dcc176a8")
RFC_5649 = [
    (
        "c37b7e6492584340bed12207808941155068f738",
        "138bdeaa9b8fa7fc61f97742e72248ee5ae6ae5360d1ae6a5f54f373fa543b6a",
    ),
    ("466f7250617369", "afbeb0f07dfbf5419200f2ccb50bb24f"),
]
"""RFC 5649 6: 20 and 7 bytes wrapped under a key of 192 bits."""


@pytest.mark.parametrize(("key_bytes", "data_bytes", "wrapped"), RFC_3394)
def test_vectors_of_rfc_3394(key_bytes: int, data_bytes: int, wrapped: str) -> None:
    """Section 4, both ways."""
    key, data, made = KEK[:key_bytes], DATA[:data_bytes], bytes.fromhex(wrapped)
    assert KW.sealer(key)([data], None) == [made]
    assert KW.opener(key)([b"12" + made], None, 2) == [data]


@pytest.mark.parametrize(("data", "wrapped"), RFC_5649)
def test_vectors_of_rfc_5649(data: str, wrapped: str) -> None:
    """Section 6, both ways."""
    plain, made = bytes.fromhex(data), bytes.fromhex(wrapped)
    assert KWP.sealer(RFC_5649_KEK)([plain], None) == [made]
    assert KWP.opener(RFC_5649_KEK)([made], None, 0) == [plain]


@pytest.mark.parametrize(("name", "initial", "size"), [("wrap", "A6" * 8, 32), ("wrap-pad", "A65959A6", 29)])
def test_what_openssl_wrapped_opens(name: str, initial: str, size: int) -> None:
    """Another implementation's command line makes the same bytes."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl on the PATH")
    data, cipher = secrets.token_bytes(size), CIPHERS[f"aes-key-{name}"]
    made = subprocess.run(
        ["openssl", "enc", f"-id-aes256-{name}", "-K", KEK.hex(), "-iv", initial],
        input=data,
        capture_output=True,
        check=True,
    ).stdout
    assert cipher.opener(KEK)([made], None, 0) == [data]
    assert cipher.sealer(KEK)([data], None) == [made]


@given(st.binary(min_size=1, max_size=100), st.integers(0, 10_000), st.sampled_from([16, 24, 32]))
def test_any_flipped_bit_fails_to_open(plain: bytes, at: int, key_bytes: int) -> None:
    """As do another key, a byte more and a byte less; nothing but an expected error comes of it."""
    for cipher, data in ((KWP, plain), (KW, plain.ljust(16, b"x")[: max(16, len(plain) // 8 * 8)])):
        key = KEK[:key_bytes]
        (made,) = cipher.sealer(key)([data], None)
        assert cipher.opener(key)([made], None, 0) == [data]
        bit = at % (8 * len(made))
        flipped = bytearray(made)
        flipped[bit // 8] ^= 1 << bit % 8
        for opener, bad in (
            (cipher.opener(key), bytes(flipped)),
            (cipher.opener(key), made + b"\0"),
            (cipher.opener(key), made[:-1]),
            (cipher.opener(key), b""),
            (cipher.opener(bytes(key_bytes)), made),
        ):
            with pytest.raises(OPEN_FAILURES):
                opener([bad], None, 0)


@pytest.mark.parametrize("size", [0, 8, 15, 17, 20])
def test_what_cannot_be_wrapped_without_padding_is_refused(size: int) -> None:
    """Nothing is filled up silently: it would open to something else."""
    with pytest.raises(ValueError, match="blocks of 8"):
        KW.sealer(KEK)([bytes(size)], None)
    if size:
        assert KWP.opener(KEK)(KWP.sealer(KEK)([bytes(size)], None), None, 0) == [bytes(size)]


JOB = """
name = "test"
[stores.main]
kind = "postgres"
url = "postgresql://h/d"
[keys.versions.v1]
material = "env:K"
[layouts.wrapped]
encoding = "base64"
cipher = "{cipher}"
[[targets]]
table = "deks"
fields = [{{ column = "wrapped_dek", layout = "wrapped", version = {{ column = "kek" }} }}]
"""


@pytest.mark.parametrize("cipher", ["aes-key-wrap", "aes-key-wrap-pad"])
@pytest.mark.parametrize("size", [16, 20, 24, 32, 33])
def test_a_local_key_has_one_of_three_lengths(cipher: str, size: int) -> None:
    """Any other is refused where it is read, with the lengths that there are."""
    job = Job.parse(JOB.format(cipher=cipher))
    assert job.key_lengths == {16, 24, 32}
    environ = {"K": bytes(size).hex()}
    if size in (16, 24, 32):
        (key,) = open_local(job, ["v1"], environ)
        assert job.layout("wrapped").takes(key.secret)
        return
    with pytest.raises(KeyAccessError, match="its layout takes 16 or 24 or 32") as caught:
        open_local(job, ["v1"], environ)
    assert caught.value.exit_code == 10


def test_a_layout_with_one_length_takes_no_other() -> None:
    """And one whose keys are derived takes any."""
    assert not Layout("a", "", "", "base64", "aes-128-gcm").takes(KEK)
    assert Layout("a", "", "", "base64", "aes-256-gcm").takes(KEK)
    assert not Layout("a", "", "", "base64", "aes-key-wrap").takes(KEK[:20])
