"""Stored layouts: a declared descriptor, compiled into functions over whole batches.

A stored value under the prefix marker is text:

    marker            payload
    ┌───────────────┐┌─────────────────────────────────────────────┐
     v1:              base64( nonce ‖ ciphertext ‖ tag )

The marker is a template with a `{version}` group (`"{version}:"`, `"a1.k{version}:"`), so that the version
can be read from a value, written to a new one, and searched for in SQL as one delimited prefix.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources

from pybase64 import b64decode, b64encode_as_string

from rewrap.crypto.ciphers import CIPHERS, OPEN_FAILURES, Aads, Batch, Cipher

MARKER_BYTES_MAX = 128
"""Longest marker looked for, in characters. Markers in the field are under 60; this bounds SQL's look."""

_GROUP = "{version}"
_COLUMN = re.compile(r"\{([^{}]+)\}")


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

    def renderer(self, columns: Sequence[str]) -> Callable[[Sequence[str | None]], bytes]:
        """A function from one row's texts, in the order of `columns`, to its associated data."""
        if len(self.parts) == 3 and self.parts[0] == self.parts[2] == "":
            only = list(columns).index(self.parts[1])
            return lambda texts: (texts[only] or "").encode()
        places = [part if at % 2 == 0 else list(columns).index(part) for at, part in enumerate(self.parts)]

        def render(texts: Sequence[str | None]) -> bytes:
            return "".join(
                place if isinstance(place, str) else (texts[place] or "") for place in places
            ).encode()

        return render


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
        if "," in before + after:
            raise LayoutError(f'marker "{self.marker}" is without commas')
        if self.encoding != "base64":
            raise LayoutError(f'encoding "{self.encoding}" is unknown; known: base64')
        if self.cipher_name not in CIPHERS:
            raise LayoutError(f'cipher "{self.cipher_name}" is unknown; known: {", ".join(sorted(CIPHERS))}')
        if self.aad is not None and not self.cipher.binds_aad:
            raise LayoutError(f'cipher "{self.cipher_name}" has no associated data; leave aad out')

    @property
    def cipher(self) -> Cipher:
        return CIPHERS[self.cipher_name]

    @cached_property
    def _version_regex(self) -> re.Pattern[str]:
        return re.compile(self.version_regex.replace("(", "(?P<version>", 1), re.ASCII)

    @property
    def version_regex(self) -> str:
        """The anchored regular expression whose one group is the version; for Python and Postgres alike."""
        before, after = self.marker.split(_GROUP)
        return f"^{_escape(before)}({self.version_pattern}){_escape(after)}"

    def marker_of(self, version: str) -> str:
        """The prefix that values of this version carry.

        Raises LayoutError when the version does not fit the pattern, since a value written with it could
        not be recognised again.
        """
        marker = self.marker.replace(_GROUP, version)
        if self.version_of(marker) != version:
            raise LayoutError(
                f'version "{version}" does not fit the pattern "{self.version_pattern}" '
                f'of layout "{self.name}"'
            )
        return marker

    def version_of(self, value: str) -> str | None:
        """The version in a value's marker, or None when it has no marker."""
        found = self._version_regex.match(value[:MARKER_BYTES_MAX])
        return found.group("version") if found else None

    def bind(self, version: str, key: bytes) -> BoundLayout:
        """This layout with one key: what opens and seals values of `version`."""
        return BoundLayout(self, version, self.marker_of(version), key)


@dataclass(frozen=True)
class BoundLayout:
    """Opens and seals values of one version with one key. Values are text; plaintexts are bytes."""

    layout: Layout
    version: str
    prefix: str
    key: bytes = field(repr=False)

    @cached_property
    def open_values(self) -> Callable[[list[str], Aads | None], Batch]:
        """Opens marked values, all or none: raises one of OPEN_FAILURES at the first that does not open.

        Every value must begin with `prefix`; the associated data are by index.
        """
        open_batch = self.layout.cipher.opener(self.key)
        at = len(self.prefix)

        def open_values(values: list[str], aads: Aads | None) -> Batch:
            return open_batch([b64decode(value[at:], validate=True) for value in values], aads)

        return open_values

    @cached_property
    def seal_values(self) -> Callable[[Batch, Aads | None], list[str]]:
        """Seals plaintexts into marked values, in order, each under a nonce of its own."""
        seal_batch = self.layout.cipher.sealer(self.key)
        prefix = self.prefix

        def seal_values(plain: Batch, aads: Aads | None) -> list[str]:
            return [prefix + b64encode_as_string(raw) for raw in seal_batch(plain, aads)]

        return seal_values

    def open_one(self, value: str, aad: bytes | None) -> bytes:
        """Opens one marked value; raises Malformed or Unopenable."""
        if not value.startswith(self.prefix):
            raise Malformed
        return self.open_bare(value[len(self.prefix) :], aad)

    def open_bare(self, payload: str, aad: bytes | None) -> bytes:
        """Opens a payload that carries no marker; raises Malformed or Unopenable."""
        cipher = self.layout.cipher
        try:
            raw = b64decode(payload, validate=True)
        except ValueError:
            raise Malformed from None
        if len(raw) < cipher.nonce_bytes + cipher.tag_bytes:
            raise Malformed
        try:
            return self._open_raw([raw], None if aad is None else [aad])[0]
        except OPEN_FAILURES:
            raise Unopenable from None

    @cached_property
    def _open_raw(self) -> Callable[[Batch, Aads | None], Batch]:
        return self.layout.cipher.opener(self.key)


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
