"""Keys, layouts and indexes as a job file declares them, and the built-in layouts as a whole."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewrap.crypto.ciphers import OPEN_FAILURES
from rewrap.crypto.elsewhere import Elsewhere
from rewrap.crypto.layout import Layout, LayoutError, Malformed, Unopenable, builtin_layouts, compiled
from rewrap.errors import JobError
from rewrap.job import Job
from rewrap.keys.open import open_local
from rewrap.packed import PART, Packed

LAYOUTS = builtin_layouts()
VERSIONS = {
    "tink": "1000736548",
    "tink-base64": "4294967295",
    "elixir-cloak": "AES.GCM.V1",
    "elixir-cloak-base64": "AES.GCM.V1",
    "47ng-cloak": "b431c1bd",
}
AADS = {"elixir-cloak": b"AES256GCM", "elixir-cloak-base64": b"AES256GCM", "wrapped-data-key": b"dek-wrap"}

JOB = """
name = "orders"

[stores.main]
kind = "postgres"
url = "postgresql://db/app"

[keys.versions.v1]
material = "env:KEY_V1"
encoding = "utf8"

[keys.versions.v2]
material = "env:KEY_V2"
encoding = "utf8"

[layouts.mine]
like = "lockbox"

[indexes.email]
kind = "lockbox"

[[targets]]
table = "users"

[[targets.fields]]
column = "email_ciphertext"
layout = "mine"
indexes = [{ column = "email_bidx", index = "email" }]
"""
ENVIRON = {
    "KEY_V1": "first secret of the application",
    "KEY_V2": "second secret of the application",
    "I": "i" * 20,
}


HERE = sorted(name for name, layout in LAYOUTS.items() if not isinstance(layout.cipher, Elsewhere))
"""Those whose keys come here: of the others a keeper seals and opens the values."""


def parsed(*changes: tuple[str, str]) -> Job:
    text = JOB
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    return Job.parse(text, path="folder/orders.toml", environ=ENVIRON)


def secret_of(layout: Layout) -> bytes:
    return bytes(range(layout.key_bytes or 40))


# the built-in layouts


@pytest.mark.parametrize("name", HERE)
@given(plains=st.lists(st.binary(max_size=200), min_size=1, max_size=4))
@settings(max_examples=15, deadline=None)
def test_builtin_layout_opens_what_it_sealed(name: str, plains: list[bytes]) -> None:
    """open(seal(x)) is x, one by one, in a list and packed; another version's key opens none of it."""
    layout = LAYOUTS[name]
    bound = layout.bind(VERSIONS.get(name, "v1"), secret_of(layout), "t", "c")
    aads = [AADS[name]] * len(plains) if name in AADS else None
    whole = [layout.fresh_carry() + plain for plain in plains]
    values = bound.seal_values(whole, aads)
    assert bound.open_values(values, aads) == whole
    assert [bound.open_one(value, AADS.get(name)) for value in values] == whole
    if not layout.binary:
        packed = bound.seal_packed(whole, aads)
        assert isinstance(packed, Packed)
        assert bound.open_packed(packed, aads) == whole
    other = layout.bind(VERSIONS.get(name, "v1"), secret_of(layout)[::-1], "t", "c")
    with pytest.raises(OPEN_FAILURES):
        other.open_values(values, aads)


@pytest.mark.parametrize("name", HERE)
@given(plain=st.binary(max_size=40), place=st.integers(min_value=0), bit=st.integers(0, 6))
@settings(max_examples=40, deadline=None)
def test_value_that_was_changed_opens_to_nothing_else(name: str, plain: bytes, place: int, bit: int) -> None:
    """A flipped bit fails, unless it is one that the encoding passes over; it never opens to another text."""
    layout = LAYOUTS[name]
    bound = layout.bind(VERSIONS.get(name, "v1"), secret_of(layout), "t", "c")
    whole = layout.fresh_carry() + plain
    aads = [AADS[name]] if name in AADS else None
    (value,) = bound.seal_values([whole], aads)
    raw = bytearray(value if isinstance(value, bytes) else value.encode())
    raw[place % len(raw)] ^= 1 << bit
    changed = bytes(raw) if isinstance(value, bytes) else raw.decode("latin-1")
    try:
        found = bound.open_one(changed, AADS.get(name))
    except (Malformed, Unopenable):
        return
    # headers of a document are not authenticated, and belong to the carry
    assert found[layout.carry_bytes :] == plain


@pytest.mark.parametrize("name", HERE)
def test_builtin_layout_may_be_changed_by_a_job(name: str) -> None:
    """`like` takes over every field of a descriptor."""
    job = parsed(('like = "lockbox"', f'like = "{name}"'))
    assert job.layout("mine").identity.replace("'mine'", f"'{name}'") == LAYOUTS[name].identity


# markers of their own


@pytest.mark.parametrize(
    ("name", "version", "says"),
    [
        ("tink", "v1", "decimal"),
        ("tink", "007", "decimal"),
        ("tink", "4294967296", "32 bits"),
        ("elixir-cloak", "", "1 to 64"),
        ("elixir-cloak", "a b", "printable"),
        ("elixir-cloak-base64", "AES.GCM.10", ""),
        ("elixir-cloak-base64", "v1", "within a character"),
        ("jwe", 'a"b', "no plain text"),
        ("jwe", "k" * 80, "longer than 128"),
    ],
)
def test_version_that_a_marker_cannot_hold_is_refused(name: str, version: str, says: str) -> None:
    """Values of it could not be recognised again."""
    if not says:
        assert LAYOUTS[name].version_of(LAYOUTS[name].prefix_of(version)) == version
        return
    with pytest.raises(LayoutError, match=says):
        LAYOUTS[name].prefix_of(version)


@pytest.mark.parametrize(
    "value", ["", "A", "AQ", "eyJhbGciOiJkaXIifQ..", "e30..", "W10..", "eyJ..x", b"", b"\x01", b"\x01\x05ab"]
)
def test_value_of_no_version_has_none(value: str | bytes) -> None:
    """What only looks like a head, or a header, names no version."""
    for name in ("tink", "tink-base64", "elixir-cloak", "elixir-cloak-base64", "jwe"):
        if LAYOUTS[name].binary == isinstance(value, bytes):
            assert LAYOUTS[name].version_of(value) is None


def test_jwe_of_another_header_is_of_another_version() -> None:
    """The header is bound to the value, so its key id cannot be exchanged."""
    bound = LAYOUTS["jwe"].bind("v1", bytes(32))
    (value,) = bound.seal_values([b"plain"], None)
    moved = str(LAYOUTS["jwe"].prefix_of("v2")) + value.partition("..")[2]
    with pytest.raises(Unopenable):
        LAYOUTS["jwe"].bind("v2", bytes(32)).open_one(moved, None)


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        ({"framing": "xml"}, "framing"),
        ({"framing": "tink", "marker": "v1:"}, "marker itself"),
        ({"framing": "jwe", "marker": "{version}."}, "is its header"),
        ({"framing": "jwe", "marker": '{"alg":"RSA","kid":"{version}"}'}, "is its header"),
        ({"framing": "jwe", "marker": '{"alg":"dir","kid":"{version}"}', "aad": "x"}, "are its header"),
        ({"framing": "rails", "order": "nonce tag ciphertext"}, "their own order"),
        ({"framing": "rails", "cipher": "secretbox"}, "aes-256-gcm"),
        ({"framing": "laravel", "cipher": "secretbox"}, "Laravel's ciphers"),
        ({"framing": "laravel", "encoding": "raw"}, "not bytes"),
    ],
)
def test_framing_that_cannot_be_is_refused(declared: dict[str, str], says: str) -> None:
    """Where it is declared."""
    with pytest.raises(LayoutError, match=says):
        compiled("any", {"encoding": "base64", "cipher": "aes-256-gcm", **declared})


@pytest.mark.parametrize("name", ["tink", "jwe", "rails", "laravel"])
def test_parts_of_a_framed_value_cannot_be_apart(name: str) -> None:
    """Its nonce is inside."""
    with pytest.raises(LayoutError, match="cannot be stored apart"):
        LAYOUTS[name].joined(("nonce",))


@pytest.mark.parametrize("name", ["rails", "laravel", "tink", "tink-base64", "jwe"])
def test_framed_value_may_have_an_index_beside_it(name: str) -> None:
    """The version of a document may be apart, too."""
    apart = ("version", "index") if name in ("rails", "laravel") else ("index",)
    indexes = parsed().old_layout(parsed().targets[0].fields[0]).indexes
    layout = LAYOUTS[name].joined(apart, indexes=indexes)
    version = VERSIONS.get(name, "v1")
    bound = layout.bind(version, secret_of(layout), "t", "c")
    whole = layout.fresh_carry() + b"plain"
    (value,) = bound.seal_values([whole], None)
    assert value.count(PART) == len(apart)
    assert bound.open_one(value, None) == whole
    assert bound.indexes_match(value, whole)
    assert layout.version_of(value) == version


def test_rails_document_keeps_its_headers() -> None:
    """What says how a plaintext was packed stays; the reference names the new key; a data key is refused."""
    layout = LAYOUTS["rails"]
    old, new = layout.bind("v1", bytes(32)), layout.bind("v2", bytes([1]) * 32)
    (value,) = old.seal_values([layout.fresh_carry() + b"plain"], None)
    document = json.loads(value)
    assert list(document["h"]) == ["iv", "at"]
    document["h"] |= {"i": "b2xk", "c": True, "e": "SVNPLTg4NTktMQ=="}
    whole = old.open_one(json.dumps(document, separators=(",", ":")), None)
    (resealed,) = new.seal_values([whole], None)
    assert new.open_one(resealed, None) == whole
    headers = json.loads(resealed)["h"]
    assert (headers["c"], headers["e"]) == (True, "SVNPLTg4NTktMQ==")
    assert headers["i"] not in ("", "b2xk")
    for extra in ({"k": {"p": "AAAA", "h": {}}}, {"x": "A" * 100}):
        document["h"] = {"iv": document["h"]["iv"], "at": document["h"]["at"], **extra}
        with pytest.raises(Malformed):
            old.open_one(json.dumps(document, separators=(",", ":")), None)


def test_plaintext_that_looks_like_headers_is_sealed() -> None:
    """A JSON object just as long as the room for headers: none of it stands in the document."""
    layout = LAYOUTS["rails"]
    bound = layout.bind("v1", bytes(32))
    plain = json.dumps({"name": "secret".ljust(84, "z")}).encode()
    assert len(plain) == layout.carry_bytes
    whole = layout.fresh_carry() + plain
    (value,) = bound.seal_values([whole], None)
    assert "secret" not in value
    assert set(json.loads(value)["h"]) == {"iv", "at"}
    assert bound.open_one(value, None) == whole


@pytest.mark.parametrize("name", ["rails", "laravel"])
@pytest.mark.parametrize("piece", ["[", '{"p":'])
def test_deep_json_is_malformed(name: str, piece: str) -> None:
    """As any other text that is no document: it is the value's fault, not the program's."""
    layout = LAYOUTS[name]
    text = '{"p":"","h":' + piece * 100_000
    value = base64.b64encode(text.encode()).decode() if name == "laravel" else text
    assert value.startswith(layout.prefix_of("v1"))
    with pytest.raises(Malformed):
        layout.bind("v1", secret_of(layout)).open_one(value, None)


def test_deterministic_value_is_the_same_each_time() -> None:
    """The application searches for it by its whole."""
    layout = LAYOUTS["rails-deterministic"]
    whole = layout.fresh_carry() + b"plain"
    bound = layout.bind("v1", bytes(32))
    assert len(set(bound.seal_values([whole, whole], None))) == 1
    assert len(set(LAYOUTS["rails"].bind("v1", bytes(32)).seal_values([whole, whole], None))) == 2


# jobs


def test_secret_of_any_length_is_read_for_a_layout_that_derives() -> None:
    """`key_lengths` is empty then; with another layout beside it that layout's length holds."""
    job = parsed()
    assert job.key_lengths == frozenset()
    keyring = open_local(job, ["v1", "v2"], ENVIRON)
    assert keyring.get("v1").secret == b"first secret of the application"
    beside = ('layout = "mine"', 'layout = "aes-gcm"')
    assert parsed(beside).key_lengths == {32}


def test_index_is_computed_with_the_version_s_secret_or_its_own() -> None:
    """One `index` reference asks for one in every version."""
    job = parsed()
    entry = job.targets[0].fields[0]
    keyring = open_local(job, ["v1", "v2"], ENVIRON)
    one = job.old_layout(entry).bind("v1", keyring.get("v1").secret, "users", entry.name)
    own = [('material = "env:KEY_V1"', 'material = "env:KEY_V1"\nindex = "env:I"')]
    with pytest.raises(JobError, match=r"keys.versions.v2.index: is missing"):
        parsed(*own)
    own.append(('material = "env:KEY_V2"', 'material = "env:KEY_V2"\nindex = "env:I"'))
    apart = parsed(*own)
    key = open_local(apart, ["v1", "v2"], ENVIRON).get("v1")
    assert "iiii" not in repr(key)
    layout = apart.old_layout(entry)
    two = layout.bind("v1", key.secret, "users", entry.name, index_key=key.index)
    assert len(one.index_of(b"a")[0]) == len(two.index_of(b"a")[0]) == 44
    assert one.index_of(b"a") != two.index_of(b"a")
    with pytest.raises(ValueError, match="without their key"):
        layout.bind("v1", key.secret, "users", entry.name).index_of(b"a")
    assert apart.digest != job.digest


@pytest.mark.parametrize(
    ("fields", "index"),
    [
        ('kind = "hmac-sha256"', 64),
        ('kind = "hmac-sha256"\nbits = 21\nencoding = "raw"', 6),
        ('kind = "hmac-sha256"\nencoding = "base64"\ninfo = "users.email"', 44),
        ('kind = "ciphersweet"\nname = "contact"\nbits = 32', 8),
    ],
)
def test_index_has_the_declared_form(fields: str, index: int) -> None:
    """Bits are kept from the beginning, the rest of the last byte is zero."""
    job = parsed(('kind = "lockbox"', fields))
    entry = job.targets[0].fields[0]
    bound = job.old_layout(entry).bind("v1", b"secret" * 6, "users", entry.name)
    (found,) = bound.index_of(b"Ada")
    assert len(found) == index
    if "bits = 21" in fields:
        assert bytes.fromhex(found)[-1] & 0x07 == 0


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('kind = "lockbox"', 'kind = "soundex"', "indexes.email: index kind"),
        ('kind = "lockbox"', 'kind = "lockbox"\nbits = 21', "indexes.email: bits"),
        ('kind = "lockbox"', 'kind = "ciphersweet"\nbits = 100', "indexes.email: a fast index"),
        ('kind = "lockbox"', 'kind = "lockbox"\nslow = true', "indexes.email: slow"),
        ('kind = "lockbox"', 'kind = "lockbox"\nencoding = "x"', "indexes.email: encoding"),
        ('kind = "lockbox"', 'kind = "lockbox"\nnormalize = "upper"', "indexes.email: normalize"),
        ('kind = "lockbox"', 'kind = "lockbox"\nmemory_kib = 1', "indexes.email: Argon2id"),
        ('kind = "lockbox"', 'kind = "lockbox"\npasses = 101', "indexes.email: passes"),
        ('kind = "lockbox"', 'kind = "lockbox"\nkey = 1', "indexes.email.key"),
        ('index = "email"', 'index = "mail"', 'there is no index "mail"'),
        ('like = "lockbox"', 'like = "lockbox"\nkdf = { kind = "x" }', "layouts.mine: kdf.kind"),
        ('like = "lockbox"', 'cipher = "aes-256-cbc"\nencoding = "hex"', "does not authenticate"),
        ('like = "lockbox"', 'like = "jwe"\nframing = "x"', "layouts.mine: framing"),
    ],
)
def test_mistake_in_a_format_is_named(old: str, new: str, says: str) -> None:
    """The message names the section and what is wrong; the hint says where to read on."""
    with pytest.raises(JobError) as caught:
        parsed((old, new))
    assert says in caught.value.message
    assert caught.value.hint


def test_descriptor_is_a_file_of_its_own() -> None:
    """Each begins with a comment that draws the format."""
    folder = Path(__file__).parents[2] / "src" / "rewrap" / "crypto" / "layouts"
    for path in folder.glob("*.toml"):
        assert path.read_text(encoding="utf-8").startswith("# "), path
