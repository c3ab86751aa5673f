"""Layouts: markers with and without a version, encodings, the order of a payload's pieces, joined values."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Sequence

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from rewrap.crypto.encodings import TEXT_ENCODINGS
from rewrap.crypto.layout import Layout, LayoutError, Malformed, Unopenable, builtin_layouts, compiled
from rewrap.packed import PART

KEY = bytes(range(32))


def layout(marker: str = "", version: str = "", encoding: str = "base64", **more: str) -> Layout:
    return Layout("any", marker, version, encoding, more.pop("cipher", "aes-256-gcm"), **more)


def sealed(plain: bytes, key: bytes = KEY) -> tuple[bytes, bytes, bytes]:
    """Nonce, ciphertext and tag, made with the library alone."""
    nonce = os.urandom(12)
    both = AESGCM(key).encrypt(nonce, plain, None)
    return nonce, both[:-16], both[-16:]


def opened(nonce: bytes, ciphertext: bytes, tag: bytes, key: bytes = KEY) -> bytes:
    return AESGCM(key).decrypt(nonce, ciphertext + tag, None)


# markers


@pytest.mark.parametrize("marker", ["", "enc:", "v1:"])
def test_layout_without_a_version_has_one_prefix_for_all(marker: str) -> None:
    """What cannot be read from a value is not made up: the version is None, the prefix constant."""
    found = layout(marker)
    assert not found.versioned
    assert found.prefix_of("v1") == found.prefix_of("anything at all") == marker
    assert found.version_of(marker + "AAAA") is None
    assert not re.search(found.version_regex, marker + "AAAA")
    (value,) = found.bind("v7", KEY).seal_values([b"plain"], None)
    assert value.startswith(marker)
    assert found.bind("v7", KEY).open_one(value, None) == b"plain"


def test_marker_with_a_version_needs_a_pattern() -> None:
    """Only a version stored apart may be any text: there the part ends where it ends."""
    with pytest.raises(LayoutError, match="by a pattern"):
        layout("{version}:")
    joined = layout().joined(("version",))
    assert joined.versioned
    assert joined.prefix_of("prod 2026/7") == f"prod 2026/7{PART}"
    assert joined.version_of(f"prod 2026/7{PART}AAAA") == "prod 2026/7"
    # a text longer than the beginning that is searched names a version too, if none of the job's
    assert joined.version_of("AAAA") == "AAAA"
    assert joined.version_of(f"{PART}AAAA") is None


@pytest.mark.parametrize(
    ("form", "version", "prefix"),
    [
        ("local/aether:{version}", "v1", f"local/aether:v1{PART}"),
        ("{version}/key", "v1", f"v1/key{PART}"),
        (None, "7", f"7{PART}"),
    ],
)
def test_version_apart_is_written_in_its_form(form: str | None, version: str, prefix: str) -> None:
    """The form is how the version stands in its own column."""
    joined = layout().joined(("version",), form)
    assert joined.prefix_of(version) == prefix
    assert joined.version_of(prefix + "AAAA") == version


def test_version_that_runs_over_its_form_is_refused() -> None:
    """It would be read back as another."""
    with pytest.raises(LayoutError, match="does not fit"):
        layout().joined(("version",), "{version}/key").prefix_of("a/b")
    with pytest.raises(LayoutError, match="of a version holds"):
        layout().joined(("version",), "key")


def test_marker_in_parentheses_is_read() -> None:
    """The version is the group that was declared, whatever stands before it."""
    assert layout("enc({version})", "v[0-9]+").version_of("enc(v2)AAAA") == "v2"


# encodings


@given(st.sampled_from(sorted(TEXT_ENCODINGS)), st.lists(st.binary(max_size=200), max_size=5))
def test_encoding_gives_back_what_it_took(name: str, payloads: list[bytes]) -> None:
    """decode(encode(x)) is x for every encoding."""
    encoding = TEXT_ENCODINGS[name]
    assert encoding.decode(encoding.encode(payloads)) == payloads


@pytest.mark.parametrize(
    ("name", "raw", "written", "also_read"),
    [
        ("base64", b"\xfb\xff", "+/8=", []),
        ("base64url", b"\xfb\xff", "-_8", ["-_8=", "+/8=", "+/8", "-/8"]),
        ("base64url-padded", b"\xfb\xff", "-_8=", ["-_8", "+/8="]),
        ("hex", b"\xfb\xff", "fbff", ["FBFF", "fBfF"]),
        ("base64-lines", b"\xff" * 46, "/" * 60 + "\n/w==\n", ["/" * 60 + "/w=="]),
    ],
)
def test_encoding_is_written_in_one_form(name: str, raw: bytes, written: str, also_read: list[str]) -> None:
    """What writers in the field differ in is read either way, and written in the declared one."""
    encoding = TEXT_ENCODINGS[name]
    assert encoding.encode([raw]) == [written]
    for text in (written, *also_read):
        assert encoding.decode([text]) == [raw]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("base64", "-_8="),
        ("base64", "+/8"),
        ("base64", "+/8=\n"),
        ("base64url", "A"),
        ("base64url", "-_8\n"),
        ("base64url", "-_8é"),
        ("hex", "abc"),
        ("hex", "0x00"),
        ("hex", "ab cd"),
        ("hex", "é0"),
    ],
)
def test_text_in_no_encoding_is_malformed(name: str, text: str) -> None:
    """No character is passed over."""
    with pytest.raises(Malformed):
        layout("", encoding=name).bind("v1", KEY).open_one(text, None)


# the order of the pieces


@pytest.mark.parametrize(
    ("order", "pieces"),
    [
        ("nonce tag ciphertext", (0, 2, 1)),
        ("ciphertext nonce tag", (1, 0, 2)),
        ("tag ciphertext nonce", (2, 1, 0)),
        ("nonce ciphertext tag", (0, 1, 2)),
    ],
)
@pytest.mark.parametrize("encoding", ["base64", "hex", "raw"])
def test_pieces_are_read_and_written_in_the_declared_order(
    order: str, pieces: Sequence[int], encoding: str
) -> None:
    """In text and in bytes, behind a marker and without one."""
    for marker in ("", "v1:"):
        bound = layout(marker, encoding=encoding, order=order).bind("v1", KEY)
        whole = sealed(b"plain")
        raw = b"".join(whole[piece] for piece in pieces)
        text = {"base64": base64.b64encode(raw).decode(), "hex": raw.hex()}.get(encoding)
        value = marker.encode() + raw if text is None else marker + text
        assert bound.open_one(value, None) == b"plain"
        assert bound.open_values([value, value], None) == [b"plain", b"plain"]
        (new,) = bound.seal_values([b"other"], None)
        assert bound.open_values([new], None) == [b"other"]
        body = new[len(marker) :]
        if text is not None:
            body = base64.b64decode(body) if encoding == "base64" else bytes.fromhex(body)
        sizes = [(12, 5, 16)[piece] for piece in pieces]
        found, at = {}, 0
        for piece, size in zip(pieces, sizes, strict=True):
            found[piece], at = body[at : at + size], at + size
        assert opened(found[0], found[1], found[2]) == b"other"


def test_parts_with_a_separator() -> None:
    """Each part is encoded by itself; one too many or too few is malformed."""
    bound = layout(order="ciphertext | nonce | tag", separator="--").bind("v1", KEY)
    nonce, ciphertext, tag = (base64.b64encode(piece).decode() for piece in sealed(b"plain"))
    assert bound.open_one(f"{ciphertext}--{nonce}--{tag}", None) == b"plain"
    (new,) = bound.seal_values([b"other"], None)
    c, n, t = (base64.b64decode(part) for part in new.split("--"))
    assert opened(n, c, t) == b"other"
    for value in (f"{ciphertext}--{nonce}", f"{ciphertext}--{nonce}--{tag}--", f"{ciphertext}----{tag}", ""):
        with pytest.raises(Malformed):
            bound.open_one(value, None)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"order": "nonce ciphertext"}, "each of"),
        ({"order": "nonce nonce tag ciphertext"}, "each of"),
        ({"order": "nonce | ciphertext tag"}, "give the separator"),
        ({"order": "nonce ciphertext tag", "separator": "."}, 'where the order has a "|"'),
        ({"order": "nonce | ciphertext tag", "separator": ".", "encoding": "raw"}, "are text"),
        ({"encoding": "base32"}, "encoding"),
    ],
)
def test_order_that_makes_no_payload_is_refused(fields: dict[str, str], says: str) -> None:
    """Where it is declared, not when the first value is read."""
    with pytest.raises(LayoutError, match=re.escape(says)):
        layout(**fields)


# joined values


@pytest.mark.parametrize("encoding", ["base64", "raw", "hex"])
@pytest.mark.parametrize("apart", [("nonce",), ("tag",), ("nonce", "tag"), ("version", "nonce", "tag")])
def test_what_is_stored_apart_is_put_together(encoding: str, apart: tuple[str, ...]) -> None:
    """Each part in the layout's encoding, bytes in hex; sealing takes them apart in the same way."""
    joined = layout(encoding=encoding).joined(apart)
    assert not joined.binary
    bound = joined.bind("v1", KEY)

    def text(raw: bytes) -> str:
        return base64.b64encode(raw).decode() if encoding == "base64" else raw.hex()

    def raw(part: str) -> bytes:
        return base64.b64decode(part) if encoding == "base64" else bytes.fromhex(part)

    nonce, ciphertext, tag = sealed(b"plain")
    parts = ["v1"] if "version" in apart else []
    parts += [text(nonce)] if "nonce" in apart else []
    parts += [text(tag)] if "tag" in apart else []
    rest = b"" if "nonce" in apart else nonce
    rest += ciphertext
    rest += b"" if "tag" in apart else tag
    value = PART.join([*parts, text(rest)])
    assert bound.open_one(value, None) == b"plain"
    (new,) = bound.seal_values([b"other"], None)
    assert bound.open_values([new], None) == [b"other"]
    assert len(new.split(PART)) == len(parts) + 1
    if apart == ("version", "nonce", "tag"):
        version, nonce_text, tag_text, payload = new.split(PART)
        assert version == "v1"
        assert opened(raw(nonce_text), raw(payload), raw(tag_text)) == b"other"


def test_wrong_number_of_parts_is_malformed() -> None:
    """So is a part that is empty, or not as long as it should be."""
    bound = layout().joined(("nonce", "tag")).bind("v1", KEY)
    nonce, ciphertext, tag = (base64.b64encode(piece).decode() for piece in sealed(b"plain"))
    good = PART.join((nonce, tag, ciphertext))
    assert bound.open_one(good, None) == b"plain"
    for parts in (
        (nonce, ciphertext),
        (nonce, tag, ciphertext, ""),
        ("", tag, ciphertext),
        (nonce, "", ciphertext),
        (nonce, nonce, ciphertext),
        (nonce[:-4], tag, ciphertext),
    ):
        with pytest.raises(Malformed):
            bound.open_one(PART.join(parts), None)
    with pytest.raises(Unopenable):
        bound.open_one(PART.join((nonce, tag, base64.b64encode(b"tampered").decode())), None)


def test_constant_marker_stays_with_the_payload() -> None:
    """`v1:` before the ciphertext is no part of the nonce's column, nor of the version's."""
    found = layout("v1:")
    nonce, ciphertext, tag = (base64.b64encode(piece).decode() for piece in sealed(b"plain"))
    both = base64.b64encode(base64.b64decode(ciphertext) + base64.b64decode(tag)).decode()
    for apart, before in ((("nonce",), ""), (("version", "nonce"), f"k1{PART}")):
        bound = found.joined(apart).bind("k1", KEY)
        assert bound.open_one(f"{before}{nonce}{PART}v1:{both}", None) == b"plain"
        (new,) = bound.seal_values([b"other"], None)
        assert f"{PART}v1:" in new
        with pytest.raises(Malformed):
            bound.open_one(f"{before}{nonce}{PART}{both}", None)


def test_versioned_marker_cannot_stand_behind_a_nonce() -> None:
    """Values of a version would not begin alike."""
    with pytest.raises(LayoutError, match="stands before a payload"):
        builtin_layouts()["libsodium-token"].joined(("nonce",))


# identity


def test_identity_says_nothing_of_later_fields() -> None:
    """A job file's digest is kept in ledgers: a field it does not use must not change it."""
    assert layout("{version}:", "v[0-9]+").identity == (
        "Layout(name='any', marker='{version}:', version_pattern='v[0-9]+', encoding='base64', "
        "cipher_name='aes-256-gcm', aad=None)"
    )
    assert "order='nonce tag ciphertext'" in layout(order="nonce tag ciphertext").identity


@pytest.mark.parametrize(
    ("value", "version"),
    [
        ("a1.k0d1e-4f:AAAA", "0d1e-4f"),
        ("a2.k0d1e-4f:AAAA", "a2.k0d1e-4f"),
        ("a12.kX:AAAA", "a12.kX"),
        ("a1.ka2.kX:AAAA", "a2.kX"),
        ("a1.k0d1e 4f:AAAA", None),
        ("0d1e:AAAA", None),
        ("b1.kX:AAAA", None),
        ("a1.kX", None),
    ],
)
def test_another_algorithm_is_another_version_and_no_plaintext(value: str, version: str | None) -> None:
    """What a foreign beginning stands before keeps it in its name: no job has such a version."""
    layout = builtin_layouts()["two-axis-token"]
    assert layout.version_of(value) == version
    assert layout.prefix_of("X") == "a1.kX:"


@pytest.mark.parametrize("foreign", ["", "a(b)", "a|b", "[a-", "x*", "a{2}"])
def test_foreign_beginnings_that_are_no_plain_expression_are_refused(foreign: str) -> None:
    """They are for Python and Postgres alike."""
    declared = {
        "marker": "a1.k{version}:",
        "version": "[a-z]+",
        "encoding": "base64",
        "cipher": "aes-256-gcm",
    }
    if not foreign:
        assert compiled("one", declared).version_of("a2.kx:AAAA") is None
        return
    with pytest.raises(LayoutError, match="foreign"):
        compiled("one", {**declared, "foreign": foreign})
