"""Stored layouts: a declared descriptor, compiled into functions over whole batches.

A stored value under the prefix marker is text, or bytes where the encoding is `raw`:

    marker            payload
    ┌───────────────┐┌─────────────────────────────────────────────┐
     v1:              base64( nonce ‖ ciphertext ‖ tag )
     v1:              nonce ‖ ciphertext ‖ tag

The marker is a template with a `{version}` group (`"{version}:"`, `"a1.k{version}:"`), so that the version
can be read from a value, written to a new one, and searched for in SQL as one delimited prefix.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import resources
from itertools import repeat
from typing import Any, cast

from rewrap.crypto.ciphers import CIPHERS, OPEN_FAILURES, Aads, Batch, Cipher, OpenBatch, SealBatch
from rewrap.crypto.encodings import ENCODINGS, RAW, TEXT_ENCODINGS
from rewrap.packed import PART, SEPARATOR, Packed

MARKER_BYTES_MAX = 128
"""Longest marker looked for, in characters. Markers in the field are under 60; this bounds SQL's look."""

_GROUP = "{version}"
_COLUMN = re.compile(r"\{([^{}]+)\}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

Value = str | bytes
"""A stored value: text, or bytes where the layout's encoding is `raw`."""


class LayoutError(ValueError):
    """A descriptor that cannot be compiled; the text says why and what to write instead."""


class Malformed(Exception):
    """The value has the marker, but its payload is not in the layout's encoding, or is too short."""


class Unopenable(Exception):
    """The value parses, and the AEAD refuses it: bad tag, wrong key or wrong associated data."""


@dataclass(frozen=True, slots=True)
class AadTemplate:
    """Associated data built from row columns: `"{account_id}"`, `"acct:{account_id}:{kind}"`, as UTF-8.

    A column's value is its text form in the database; NULL is the empty string.
    """

    text: str
    parts: tuple[str, ...]
    columns: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> AadTemplate:
        if not text:
            raise LayoutError("an AAD template is not empty; leave it out for no associated data")
        parts = _COLUMN.split(text)
        if any("{" in part or "}" in part for part in parts[::2]):
            raise LayoutError("braces in an AAD template name a column, like {account_id}")
        return cls(text, tuple(parts), tuple(parts[1::2]))

    def render(self, values: dict[str, str | None]) -> bytes:
        """The associated data of one row, from its columns' text forms."""
        out = [part if at % 2 == 0 else (values[part] or "") for at, part in enumerate(self.parts)]
        return "".join(out).encode()

    def render_all(self, columns: Mapping[str, Sequence[str | None]], count: int) -> list[bytes]:
        """The associated data of a batch of `count` rows, from each column's texts."""
        if len(self.parts) == 3 and self.parts[0] == self.parts[2] == "":
            return [(text or "").encode() for text in columns[self.parts[1]]]
        # a template without columns is the same for every row
        pieces = [
            repeat(part, count) if at % 2 == 0 else [text or "" for text in columns[part]]
            for at, part in enumerate(self.parts)
        ]
        return ["".join(row).encode() for row in zip(*pieces, strict=True)]


@dataclass(frozen=True)
class Layout:
    """A stored format: marker, version pattern, text encoding, cipher, associated data.

    `version_pattern` is a regular expression without groups that the version must match as a whole.
    """

    name: str
    marker: str
    version_pattern: str
    encoding: str
    cipher_name: str
    aad: AadTemplate | None = None
    apart: tuple[str, ...] = ()

    def joined(self, apart: tuple[str, ...], version_form: str | None = None) -> Layout:
        """This layout for values some parts of which are stored apart, joined to one text.

        `apart` is in the order version, nonce, tag, index…; the parts come before the payload but for
        indexes, which follow it, with PART between them; bytes are in hex. `version_form` is how a version
        is written where it is stored, `{version}` if nothing is said.
        """
        if not apart:
            return self
        marker = f"{version_form or _GROUP}{PART}" if "version" in apart else self.marker
        return replace(self, marker=marker, apart=apart)

    def __post_init__(self) -> None:
        if self.marker.count(_GROUP) != 1:
            raise LayoutError(f'marker "{self.marker}" holds {_GROUP} exactly once')
        before, after = self.marker.split(_GROUP)
        if not after:
            raise LayoutError(
                f'marker "{self.marker}" ends at the version, so v1 would match v10 too; '
                "end it with a delimiter"
            )
        if re.search(r"[(){}]", self.version_pattern):
            raise LayoutError(f'version pattern "{self.version_pattern}" is without groups and braces')
        try:
            pattern = re.compile(self.version_pattern, re.ASCII)
        except re.error as exc:
            raise LayoutError(f'version pattern "{self.version_pattern}": {exc}') from exc
        if pattern.fullmatch("") or any(pattern.fullmatch("v1" + char) for char in after[:1]):
            raise LayoutError(
                f'version pattern "{self.version_pattern}" also matches the delimiter "{after}", '
                "or nothing at all"
            )
        if _CONTROL.search(self.marker.removesuffix(PART)):
            raise LayoutError("a marker is without control characters")
        if self.encoding not in ENCODINGS:
            raise LayoutError(f'encoding "{self.encoding}" is unknown; known: {", ".join(ENCODINGS)}')
        if self.binary and not re.fullmatch(r"[ -\[\]-~]*", before + after):
            raise LayoutError(f'marker "{self.marker}" of bytes is printable ASCII without backslashes')
        if self.cipher_name not in CIPHERS:
            raise LayoutError(f'cipher "{self.cipher_name}" is unknown; known: {", ".join(sorted(CIPHERS))}')
        if self.aad is not None and not self.cipher.binds_aad:
            raise LayoutError(f'cipher "{self.cipher_name}" has no associated data; leave aad out')

    @property
    def cipher(self) -> Cipher:
        return CIPHERS[self.cipher_name]

    @property
    def binary(self) -> bool:
        """Whether values are bytes: columns of bytea, not of text."""
        return self.encoding == RAW and not self.apart

    @cached_property
    def _version_regex(self) -> re.Pattern[str]:
        return re.compile(self.version_regex.replace("(", "(?P<version>", 1), re.ASCII)

    @property
    def version_regex(self) -> str:
        """The anchored regular expression whose one group is the version; for Python and Postgres alike."""
        before, after = self.marker.split(_GROUP)
        return f"^{_escape(before)}({self.version_pattern}){_escape(after)}"

    @property
    def versioned(self) -> bool:
        """Whether a value's version can be read from its marker; if not, only opening it tells."""
        return _GROUP in self.marker

    def prefix_of(self, version: str) -> Value:
        """What values of this version begin with: text, or bytes where the layout is binary.

        Raises LayoutError when the version does not fit the pattern, since a value written with it could
        not be recognised again.
        """
        marker = self.marker.replace(_GROUP, version)
        prefix = marker.encode() if self.binary else marker
        if self.version_of(prefix) != version:
            raise LayoutError(
                f'version "{version}" does not fit the pattern "{self.version_pattern}" '
                f'of layout "{self.name}"'
            )
        return prefix

    def version_of(self, value: Value) -> str | None:
        """The version in a value's marker, or None when it has no marker."""
        head = value[:MARKER_BYTES_MAX]
        found = self._version_regex.match(head.decode("latin-1") if isinstance(head, bytes) else head)
        return found.group("version") if found else None

    def bind(self, version: str, key: bytes, table: str = "", column: str = "") -> BoundLayout:
        """This layout with one key: what opens and seals values of `version` in a table's column."""
        return BoundLayout(self, version, self.prefix_of(version), key, table, column)


@dataclass(frozen=True)
class BoundLayout:
    """Opens and seals values of one version with one key. Plaintexts are bytes.

    What works on a list is all or none: it raises one of OPEN_FAILURES at the first value that does not
    open. Every value must begin with `prefix`; associated data are by index.
    """

    layout: Layout
    version: str
    prefix: Value
    key: bytes = field(repr=False)
    table: str = ""
    column: str = ""

    @cached_property
    def open_values(self) -> Callable[[Sequence[Any], Aads | None], Batch]:
        """Opens a list of marked values."""
        decode, open_batch, at = self._decode, self._open_batch, len(self.prefix)

        def open_values(values: Sequence[Any], aads: Aads | None) -> Batch:
            return open_batch(decode([value[at:] for value in values]), aads, 0)

        def open_bytes(values: Sequence[Any], aads: Aads | None) -> Batch:
            return open_batch(values, aads, at)

        return open_bytes if self.layout.binary else open_values

    def begins_all(self, values: Sequence[Any]) -> bool:
        """Whether every one of some values is there and begins with `prefix`."""
        size = len(self.prefix)
        try:
            return [value[:size] for value in values].count(self.prefix) == len(values) > 0
        except TypeError:
            # None, or a mark: neither can be sliced
            return False

    @cached_property
    def seal_values(self) -> Callable[[Batch, Aads | None], list[Any]]:
        """Seals plaintexts into marked values, in order, each under a nonce of its own."""
        encode, seal_batch, prefix = self._encode, self._seal_batch, cast("Any", self.prefix)

        def seal_values(plain: Batch, aads: Aads | None) -> list[Any]:
            return [prefix + payload for payload in encode(seal_batch(plain, aads))]

        return seal_values

    @cached_property
    def open_packed(self) -> Callable[[Packed, Aads | None], Batch | None]:
        """Opens a packed column of text; None unless every value of it begins with `prefix`.

        A value that holds the separator cannot pass for two: every boundary between values is one, so
        there is always one too many, which then stands inside a payload, where the decoder refuses it.
        """
        decode, open_batch = self._decode, self._open_batch
        marker, at = cast("str", self.prefix), len(self.prefix)
        glue = SEPARATOR + marker

        def open_packed(values: Packed, aads: Aads | None) -> Batch | None:
            if not values.text.startswith(marker):
                return None
            payloads = values.text.split(glue)
            if len(payloads) != values.count:
                return None
            payloads[0] = payloads[0][at:]
            return open_batch(decode(payloads), aads, 0)

        return open_packed

    @cached_property
    def seal_packed(self) -> Callable[[Batch, Aads | None], Packed]:
        """Seals plaintexts into a packed column of text."""
        encode, seal_batch, marker = self._encode, self._seal_batch, cast("str", self.prefix)
        glue = SEPARATOR + marker

        def seal_packed(plain: Batch, aads: Aads | None) -> Packed:
            return Packed(marker + glue.join(encode(seal_batch(plain, aads))), len(plain))

        return seal_packed

    def open_one(self, value: Value, aad: bytes | None) -> bytes:
        """Opens one marked value; raises Malformed or Unopenable."""
        if not value.startswith(cast("Any", self.prefix)):
            raise Malformed
        return self.open_bare(value[len(self.prefix) :], aad)

    def open_bare(self, payload: Value, aad: bytes | None) -> bytes:
        """Opens a payload that carries no marker; raises Malformed or Unopenable."""
        cipher = self.layout.cipher
        try:
            (raw,) = self._decode([payload])
        except ValueError:
            raise Malformed from None
        if len(raw) < cipher.nonce_bytes + cipher.tag_bytes:
            raise Malformed
        try:
            return self._open_batch([raw], None if aad is None else [aad], 0)[0]
        except OPEN_FAILURES:
            raise Unopenable from None

    @cached_property
    def _decode(self) -> Callable[[list[Any]], Batch]:
        return _as_it_is if self.layout.binary else TEXT_ENCODINGS[self.layout.encoding].decode

    @cached_property
    def _encode(self) -> Callable[[Batch], list[Any]]:
        return _as_it_is if self.layout.binary else TEXT_ENCODINGS[self.layout.encoding].encode

    @cached_property
    def _open_batch(self) -> OpenBatch:
        return self.layout.cipher.opener(self.key)

    @cached_property
    def _seal_batch(self) -> SealBatch:
        return self.layout.cipher.sealer(self.key)


def _as_it_is(payloads: list[bytes]) -> list[bytes]:
    return payloads


def builtin_layouts() -> dict[str, Layout]:
    """The layouts that ship with rewrap, by name: one descriptor a file under crypto/layouts."""
    found = {}
    for entry in sorted(resources.files("rewrap.crypto.layouts").iterdir(), key=lambda e: e.name):
        if not entry.name.endswith(".toml"):
            continue
        declared = tomllib.loads(entry.read_text(encoding="utf-8"))
        name = entry.name.removesuffix(".toml")
        found[name] = Layout(
            name=name,
            marker=declared["marker"],
            version_pattern=declared["version"],
            encoding=declared["encoding"],
            cipher_name=declared["cipher"],
        )
    return found


def _escape(literal: str) -> str:
    """A literal for a regular expression, escaped so that Python and Postgres read it alike."""
    return re.sub(r"([^A-Za-z0-9_:,;=/@#~ -])", r"\\\1", literal)
