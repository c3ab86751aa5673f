"""Stored layouts: a declared descriptor, compiled into functions over whole batches.

A stored value under the prefix marker is text, or bytes where the encoding is `raw`:

    marker            payload
    ┌───────────────┐┌─────────────────────────────────────────────┐
     v1:              base64( nonce ‖ ciphertext ‖ tag )
     v1:              nonce ‖ ciphertext ‖ tag

The marker is a template with a `{version}` group (`"{version}:"`, `"a1.k{version}:"`), so that the version
can be read from a value, written to a new one, and searched for in SQL as one delimited prefix. A marker may
also be a constant, or empty: then only opening a value tells its version.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from importlib import resources
from typing import Any

from rewrap.crypto.aad import Aad, AadTemplate, parse_aad
from rewrap.crypto.aead import AesGcm
from rewrap.crypto.bound import BoundLayout
from rewrap.crypto.ciphers import CIPHERS, Cipher
from rewrap.crypto.documents import RAILS_CARRY_BYTES, laravel, rails
from rewrap.crypto.elsewhere import is_descriptor
from rewrap.crypto.encodings import ENCODINGS, RAW
from rewrap.crypto.failures import LayoutError, Malformed, Unopenable
from rewrap.crypto.heads import HEADS, HeadMarker, headed
from rewrap.crypto.indexes import BlindIndex
from rewrap.crypto.jwe import JweMarker
from rewrap.crypto.kdf import Kdf
from rewrap.crypto.markers import GROUP, MARKER_BYTES_MAX, Marker, Value, text_marker
from rewrap.crypto.parts import Codec, Groups, apart_groups, encoded, followed, grouped, led, parse_order
from rewrap.crypto.validators import Validator, parse_validator
from rewrap.packed import PART

__all__ = [
    "MARKER_BYTES_MAX",
    "AadTemplate",
    "BoundLayout",
    "Layout",
    "LayoutError",
    "Malformed",
    "Unopenable",
    "Value",
    "builtin_descriptors",
    "builtin_layouts",
    "compiled",
]

_MARKED = (*HEADS, "jwe")
"""Framings that hold a version."""

_DOCUMENTS = ("rails", "laravel")
"""Framings that are JSON."""

FRAMINGS = (*_MARKED, *_DOCUMENTS)

_FIRST_FIELDS = ("name", "marker", "version_pattern", "encoding", "cipher_name", "aad")
"""The fields of the first layouts, which always count in a layout's identity."""


@dataclass(frozen=True)
class Layout:
    """A stored format: marker, version pattern, text encoding, cipher, associated data.

    `version_pattern` is a regular expression without groups that the version must match as a whole. `order`
    is how nonce, ciphertext and tag are stored, with `|` where `separator` stands between them; the
    cipher's own order if it is empty. `nonce_bytes` is for GCM with nonces of another length than 12 bytes.
    `plaintext` says what plaintexts look like, where the cipher does not authenticate. `framing` is for what
    is no text or bytes behind a marker, one of FRAMINGS. `foreign` is what other values than this layout's
    begin with, in place of what stands before the version in its marker. `apart` and `lead` come from
    `joined`.
    """

    name: str
    marker: str
    version_pattern: str
    encoding: str
    cipher_name: str
    aad: Aad | None = None
    apart: tuple[str, ...] = ()
    lead: str = ""
    order: str = ""
    separator: str = ""
    nonce_bytes: int = 0
    kdf: Kdf | None = None
    plaintext: str = ""
    framing: str = ""
    foreign: str = ""
    indexes: tuple[BlindIndex, ...] = ()

    def joined(
        self,
        apart: tuple[str, ...],
        version_form: str | None = None,
        indexes: tuple[BlindIndex, ...] = (),
    ) -> Layout:
        """This layout for values some parts of which are stored apart, joined to one text.

        `apart` is in the order version, nonce, tag, index…; the parts come before the payload but for
        indexes, which follow it, with PART between them; bytes are in hex. `version_form` is how a version
        is written where it is stored, `{version}` if nothing is said. `indexes` compute those parts when
        a value is sealed.
        """
        if not apart:
            return self
        if indexes:
            return replace(self, indexes=indexes).joined(apart, version_form)
        if self.framing and set(apart) - ({"index"} if self.framing in _MARKED else {"index", "version"}):
            raise LayoutError(f"parts of values of framing {self.framing} cannot be stored apart")
        if "version" in apart:
            form = version_form or GROUP
            if GROUP not in form:
                raise LayoutError(f'the form "{form}" of a version holds {GROUP}')
            # a marker with a version of its own gives way; a constant one stays before the payload
            lead = "" if self.versioned or self.framing else self.marker
            return replace(self, marker=f"{form}{PART}", apart=apart, lead=lead)
        if self.marker and {"nonce", "tag"} & set(apart):
            if self.versioned:
                raise LayoutError(
                    f'marker "{self.marker}" stands before a payload whose nonce or tag is stored apart; '
                    "leave it out, or say where the version is stored"
                )
            return replace(self, marker="", apart=apart, lead=self.marker)
        return replace(self, apart=apart)

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS:
            raise LayoutError(f'encoding "{self.encoding}" is unknown; known: {", ".join(ENCODINGS)}')
        if self.cipher_name not in CIPHERS:
            raise LayoutError(f'cipher "{self.cipher_name}" is unknown; known: {", ".join(sorted(CIPHERS))}')
        if self.aad is not None and not self.cipher.binds_aad:
            raise LayoutError(f'cipher "{self.cipher_name}" has no associated data; leave aad out')
        if self.nonce_bytes and not (
            isinstance(CIPHERS[self.cipher_name], AesGcm) and 8 <= self.nonce_bytes <= 64
        ):
            raise LayoutError("nonce_bytes is for AES-GCM, from 8 on; other nonces have one length")
        if self.kdf is not None and not self.cipher.key_bytes:
            raise LayoutError(f'keys of cipher "{self.cipher_name}" cannot be derived; leave kdf out')
        if not self.plaintext and not self.cipher.authenticated:
            raise LayoutError(
                f'cipher "{self.cipher_name}" does not authenticate: a wrong key gives garbage and no error; '
                'say what plaintexts look like: plaintext = "json", or "pattern:[0-9]{9}"'
            )
        if self.encoding == RAW and self.separator:
            raise LayoutError("parts with a separator are text; bytes may hold any separator")
        if self.framing:
            self._check_framing()
        if PART in self.separator:
            raise LayoutError("a separator is without control characters")
        # compiled once, and here, so that what is wrong with a descriptor shows where it is declared
        assert self._marker is not None
        assert self._groups
        assert self.validator is not None or not self.plaintext

    def _check_framing(self) -> None:
        if self.framing not in FRAMINGS:
            raise LayoutError(f'framing "{self.framing}" is unknown; known: {", ".join(FRAMINGS)}')
        if self.framing in HEADS:
            if self.marker or self.separator:
                raise LayoutError(
                    f"framing {self.framing} is a marker itself; leave out marker and separator"
                )
        elif self.encoding == RAW:
            raise LayoutError(f"framing {self.framing} is text, not bytes")
        named = GROUP in self.marker and "version" not in self.apart
        if self.framing in _DOCUMENTS and (self.order or named or self.nonce_bytes):
            raise LayoutError(f"values of framing {self.framing} have their own order, and no version")
        if self.framing == "jwe" and (self.aad or not self.cipher.binds_aad):
            raise LayoutError("a JWE's associated data are its header; leave aad out, and take AES-GCM")
        if self.framing == "laravel" and not self.cipher_name.startswith(("laravel-", "aes-")):
            raise LayoutError("Laravel's ciphers are laravel-aes-256-cbc, aes-256-gcm and those of 128 bits")
        if self.framing == "rails" and not isinstance(self.cipher, AesGcm):
            raise LayoutError("Active Record Encryption's cipher is aes-256-gcm")

    @property
    def identity(self) -> str:
        """What this layout is, for a job's digest: its first fields, and what differs from later ones."""
        told = [
            f"{entry.name}={getattr(self, entry.name)!r}"
            for entry in fields(self)
            if entry.name in _FIRST_FIELDS or getattr(self, entry.name) != entry.default
        ]
        return f"Layout({', '.join(told)})"

    @cached_property
    def cipher(self) -> Cipher:
        cipher = CIPHERS[self.cipher_name]
        if self.nonce_bytes and isinstance(cipher, AesGcm):
            return replace(cipher, nonce_bytes=self.nonce_bytes)
        return cipher

    @cached_property
    def validator(self) -> Validator | None:
        """Whether a plaintext looks as it should; None where the cipher's tag says so."""
        return parse_validator(self.plaintext) if self.plaintext else None

    @property
    def key_bytes(self) -> int | None:
        """The length in bytes of the secrets it takes; None when they have no one length, or are derived."""
        return None if self.kdf else self.cipher.key_bytes or None

    @property
    def key_lengths(self) -> frozenset[int]:
        """The lengths in bytes that its secrets may have; empty when any is taken, or none is a length."""
        return frozenset() if self.kdf else frozenset(self.cipher.key_lengths)

    def takes(self, secret: bytes) -> bool:
        """Whether a secret has a length that it takes; that of a key kept elsewhere is not known."""
        return not self.key_lengths or len(secret) in self.key_lengths or is_descriptor(secret)

    @property
    def carry_bytes(self) -> int:
        """How many bytes of a plaintext, at its beginning, belong to the stored form and not to the value."""
        return self.frame_bytes + self.cipher.carry_bytes

    @property
    def carry_kind(self) -> tuple[str, str]:
        """What the carry is: layouts with the same kind keep each other's; the empty kind is none at all."""
        return (self.framing if self.frame_bytes else "", self.cipher.name if self.cipher.carry_bytes else "")

    @property
    def frame_bytes(self) -> int:
        """How many bytes of the carry are the framing's, before the cipher's."""
        return RAILS_CARRY_BYTES if self.framing == "rails" else 0

    def fresh_carry(self) -> bytes:
        """What a plaintext begins with that comes from another layout."""
        return bytes(self.frame_bytes) + self.cipher.fresh_carry()

    @property
    def binary(self) -> bool:
        """Whether values are bytes: columns of bytea, not of text."""
        return self.encoding == RAW and not self.apart

    @property
    def stored_as_sealed(self) -> bool:
        """Whether what follows the marker is what the cipher takes, byte by byte."""
        return self.binary and self._groups == (self.cipher.order,)

    @property
    def least_bytes(self) -> int:
        """Length in bytes of a sealed empty plaintext, before it is encoded."""
        return self.cipher.least_bytes

    @cached_property
    def _marker(self) -> Marker:
        if self.framing in HEADS and "version" not in self.apart:
            # bytes that were joined are in hex
            encoding = "hex" if self.encoding == RAW and not self.binary else self.encoding
            return HeadMarker(self.name, HEADS[self.framing], encoding)
        if self.framing == "jwe":
            return JweMarker(self.name, self.marker)
        return text_marker(
            self.name,
            self.marker,
            self.version_pattern,
            binary=self.binary,
            apart="version" in self.apart,
            foreign=self.foreign,
        )

    @cached_property
    def _groups(self) -> Groups:
        return apart_groups(parse_order(self.order, self.separator, self.cipher), self.apart)

    def codec(self, version: str, key: bytes) -> Codec:
        """From what follows the marker of a version to the cipher's own bytes, and back."""
        codec = self._codec(version, key)
        return followed(codec, self.index_count) if self.index_count else codec

    @property
    def index_count(self) -> int:
        """How many blind indexes are joined to a value."""
        return self.apart.count("index")

    def _codec(self, version: str, key: bytes) -> Codec:
        removed = "" if "version" in self.apart else self.marker
        if self.framing == "rails":
            return rails(self.cipher, key, removed)
        if self.framing == "laravel":
            return laravel(self.cipher, removed)
        texts = [encoded(self.encoding, binary=self.binary) for _ in self._groups]
        joined = not {"nonce", "tag"}.isdisjoint(self.apart)
        if self.framing in HEADS and not self.binary:
            texts[0] = headed(texts[0], HEADS[self.framing].write(version), str(self.prefix_of(version)))
        if self.lead:
            # the payload is the last part of what was joined, and the first of what never was apart
            place = -1 if joined else 0
            texts[place] = led(texts[place], self.lead)
        return grouped(self.cipher, self._groups, PART if joined else self.separator, texts)

    @property
    def version_regex(self) -> str:
        """The anchored regular expression whose one group is the version; for Python and Postgres alike."""
        return self._marker.regex

    @property
    def versioned(self) -> bool:
        """Whether a value's version can be read from its marker; if not, only opening it tells."""
        return self._marker.versioned

    def prefix_of(self, version: str) -> Value:
        """What values of this version begin with: text, or bytes where the layout is binary.

        Without a version in the marker it is the same for all, and may be empty. Raises LayoutError when
        the version does not fit the pattern, since a value written with it could not be recognised again.
        """
        return self._marker.prefix_of(version)

    def version_of(self, value: Value) -> str | None:
        """The version in a value's marker, or None when it has no marker, or one without a version."""
        return self._marker.version_of(value)

    def bind(
        self, version: str, key: bytes, table: str = "", column: str = "", *, index_key: bytes | None = None
    ) -> BoundLayout:
        """This layout with one key: what opens and seals values of `version` in a table's column.

        `index_key` is the secret of blind indexes where they have their own.
        """
        derived = self.kdf.derive(key, self.cipher.key_bytes, table, column) if self.kdf else key
        computes = tuple(
            index.bind(index_key if index.key_apart and index_key else key, table, column)
            for index in self.indexes
            if index_key is not None or not index.key_apart
        )
        return BoundLayout(self, version, self.prefix_of(version), derived, table, column, computes)


def builtin_descriptors() -> dict[str, dict[str, Any]]:
    """The descriptors that ship with rewrap, by name: one file each under crypto/layouts."""
    entries = sorted(resources.files("rewrap.crypto.layouts").iterdir(), key=lambda entry: entry.name)
    return {
        entry.name.removesuffix(".toml"): tomllib.loads(entry.read_text(encoding="utf-8"))
        for entry in entries
        if entry.name.endswith(".toml")
    }


def builtin_layouts() -> dict[str, Layout]:
    """The layouts that ship with rewrap, compiled, by name."""
    return {name: compiled(name, declared) for name, declared in builtin_descriptors().items()}


def compiled(name: str, declared: Mapping[str, Any]) -> Layout:
    """The layout that a descriptor declares, by the names of its fields in TOML."""
    aad = declared.get("aad")
    return Layout(
        name=name,
        marker=declared.get("marker", ""),
        version_pattern=declared.get("version", ""),
        encoding=declared["encoding"],
        cipher_name=declared["cipher"],
        aad=parse_aad(aad) if aad else None,
        order=declared.get("order", ""),
        separator=declared.get("separator", ""),
        nonce_bytes=declared.get("nonce_bytes", 0),
        kdf=Kdf.parse(declared["kdf"]) if declared.get("kdf") else None,
        plaintext=declared.get("plaintext", ""),
        framing=declared.get("framing", ""),
        foreign=declared.get("foreign", ""),
    )
