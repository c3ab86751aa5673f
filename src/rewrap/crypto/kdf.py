"""Key derivation: from a version's secret to the key of one table's column, when a layout is bound."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from rewrap.crypto.failures import LayoutError

HASHES: dict[str, hashes.HashAlgorithm] = {
    "sha1": hashes.SHA1(),  # noqa: S303  # PBKDF2-HMAC-SHA1 is what older Rails derives with
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}

LEAST_SECRET_BYTES = 16
"""The shortest secret that keys are derived from, in bytes: a guessable one would be told by its hash."""

ITERATIONS_MAX = 10_000_000
"""More would take seconds for each column and version."""

_FIELDS = {
    "hkdf": {"kind", "hash", "salt", "info", "table", "column"},
    "pbkdf2": {"kind", "hash", "salt", "iterations", "table", "column"},
    "sha256": {"kind"},
}

_HEX = re.compile(r"hex:((?:[0-9A-Fa-f]{2})*)(?::(.*))?", re.DOTALL)
_NAME = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, slots=True, repr=False)
class Kdf:
    """How a key is made of a secret; its length is what the cipher takes.

    `salt` and `info` are templates over `{table}` and `{column}`, as UTF-8; bytes are written as
    `hex:B4B4…`, with a template behind a second colon: `hex:b4b4:{column}`. `table` and `column` replace the
    database's names where the application's differ.
    """

    kind: str
    hash: str = "sha256"
    salt: str = ""
    info: str = ""
    iterations: int = 0
    table: str = ""
    column: str = ""

    def __repr__(self) -> str:
        # part of a layout's identity: a field that a later version adds must not show unless it is used
        told = [
            f"{e.name}={getattr(self, e.name)!r}" for e in fields(self) if getattr(self, e.name) != e.default
        ]
        return f"Kdf({', '.join(told)})"

    @classmethod
    def parse(cls, declared: Mapping[str, Any]) -> Kdf:
        kind = declared.get("kind")
        if kind not in _FIELDS:
            raise LayoutError(f'kdf.kind "{kind}" is unknown; known: {", ".join(_FIELDS)}')
        for name, value in declared.items():
            if name not in _FIELDS[kind]:
                raise LayoutError(
                    f"kdf.{name} is not for {kind}; it takes {', '.join(sorted(_FIELDS[kind]))}"
                )
            if not isinstance(value, int if name == "iterations" else str) or isinstance(value, bool):
                raise LayoutError(f"kdf.{name} is {'a number' if name == 'iterations' else 'text'}")
        kdf = cls(**declared)
        if kdf.hash not in HASHES:
            raise LayoutError(f'kdf.hash "{kdf.hash}" is unknown; known: {", ".join(HASHES)}')
        if kind == "pbkdf2" and not 1 <= kdf.iterations <= ITERATIONS_MAX:
            raise LayoutError(f"kdf.iterations is between 1 and {ITERATIONS_MAX}")
        for template in (kdf.salt, kdf.info):
            _render(template, {"table": "t", "column": "c"})
        return kdf

    def derive(self, secret: bytes, length: int, table: str, column: str) -> bytes:
        """The key of `length` bytes for a column of a table."""
        if self.kind == "sha256":
            return hashlib.sha256(secret).digest()[:length]
        # the schema is where a table is, not what the application calls it
        names = {"table": self.table or table.rpartition(".")[2], "column": self.column or column}
        salt = _render(self.salt, names)
        if self.kind == "pbkdf2":
            return hashlib.pbkdf2_hmac(self.hash, secret, salt, self.iterations, length)
        return HKDF(HASHES[self.hash], length, salt, _render(self.info, names)).derive(secret)


def _render(template: str, names: Mapping[str, str]) -> bytes:
    lead = b""
    found = _HEX.fullmatch(template)
    if found is not None:
        lead, template = bytes.fromhex(found.group(1)), found.group(2) or ""

    def name_of(match: re.Match[str]) -> str:
        if match.group(1) not in names:
            raise LayoutError(f"a kdf's templates hold {{table}} and {{column}}, not {match.group()}")
        return names[match.group(1)]

    return lead + _NAME.sub(name_of, template).encode()
