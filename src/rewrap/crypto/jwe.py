"""JWE in compact form (RFC 7516 7.1), with a key used directly: the header is marker and associated data.

    base64url(header) . . base64url(iv) . base64url(ciphertext) . base64url(tag)

The second part, an encrypted key, is empty with `"alg":"dir"`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from rewrap.crypto.encodings import TEXT_ENCODINGS
from rewrap.crypto.failures import LayoutError
from rewrap.crypto.markers import GROUP, MARKER_BYTES_MAX, Value

_URL = TEXT_ENCODINGS["base64url"]


@dataclass(frozen=True)
class JweMarker:
    """A header with `{version}` as its key id, byte for byte as the application writes it."""

    layout: str
    template: str

    versioned: bool = True
    regex: str = r"^(eyJ[A-Za-z0-9_-]+)\.\."

    def __post_init__(self) -> None:
        try:
            header = json.loads(self.template)
            fits = header["alg"] == "dir" and header["kid"] == GROUP and self.template.count(GROUP) == 1
        except (ValueError, KeyError, TypeError):
            fits = False
        if not fits:
            raise LayoutError(
                'a JWE\'s marker is its header, with "alg":"dir" and "kid":"{version}", as it is written'
            )

    def prefix_of(self, version: str) -> Value:
        if json.dumps(version, ensure_ascii=False) != f'"{version}"':
            raise LayoutError(f'version "{version}" of layout "{self.layout}" is no plain text in JSON')
        (header,) = _URL.encode([self.template.replace(GROUP, version).encode()])
        if len(header) + 2 > MARKER_BYTES_MAX:
            raise LayoutError(
                f'the header of version "{version}" is longer than {MARKER_BYTES_MAX} characters'
            )
        return f"{header}.."

    def version_of(self, value: Value) -> str | None:
        if isinstance(value, bytes):
            return None
        header, dots, _ = value[:MARKER_BYTES_MAX].partition("..")
        if not dots:
            return None
        try:
            kid = json.loads(_URL.decode([header])[0])["kid"]
        except (ValueError, KeyError, TypeError):
            return None
        return kid if isinstance(kid, str) else None


def header_of(prefix: Value) -> bytes:
    """The associated data of values with this prefix (RFC 7516 5.1, step 14)."""
    assert isinstance(prefix, str)
    return prefix.removesuffix("..").encode()
