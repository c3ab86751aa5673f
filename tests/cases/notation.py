"""The placeholders of a case: `{{box v1 "plain text"}}` in SQL is a stored value (see README.md)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tests.cases.sealing import AS, NONCE_BYTES, ORDER, PIECES, Format, Sealed, blind_index, key_of, seal

_QUOTED = r'x?"(?:[^"\\]|\\.)*"|' + r"'[^']*'"
_PLACEHOLDER = re.compile(r"\{\{\s*([a-z][^\"'}\s]*)((?:[^\"'}]|" + _QUOTED + r")*)\}\}")
_WORD = re.compile(rf"\s*(?:([a-z]+)=)?({_QUOTED}|[^\s\"'=]+)")

SHORTEST_TEXT = 6
"""Characters: a shorter plaintext may stand in an output by chance, and is no canary."""


class CaseError(Exception):
    """A case that cannot be run as it is written."""


@dataclass(frozen=True)
class Words:
    """What stands in a placeholder, taken apart: bare words, options, and the plaintext."""

    kind: str
    bare: tuple[str, ...]
    options: dict[str, str]
    text: bytes | None = field(repr=False, default=None)

    @classmethod
    def parse(cls, source: str) -> Words:
        kind, _, rest = source.strip().partition(" ")
        bare: list[str] = []
        options: dict[str, str] = {}
        text: bytes | None = None
        at = 0
        while rest[at:].strip():
            found = _WORD.match(rest, at)
            if not found:
                raise CaseError(f"not understood: {rest[at:].strip()} in {{{{{source}}}}}")
            name, word = found.groups()
            at = found.end()
            if name:
                options[name] = _unquoted(word).decode()
            elif word[0] in "\"'" or word.startswith('x"'):
                if text is not None:
                    raise CaseError(f"two plaintexts in {{{{{source}}}}}")
                text = _unquoted(word)
            else:
                bare.append(word)
        return cls(kind, tuple(bare), options, text)


def _unquoted(word: str) -> bytes:
    if word.startswith('x"'):
        return bytes.fromhex(word[2:-1])
    if word.startswith('"'):
        return str(json.loads(word)).encode()
    return word.strip("'").encode()


_FORMAT_OPTIONS = {"marker", "of", "as", "separator", "kdf", "time"}
_SEALED_OPTIONS = {"aad", "key", "id", "size", "damage"}


def stored_format(words: Words, allowed: set[str] = _FORMAT_OPTIONS) -> Format:
    """The format that words name: `aead v2 marker='enc:{version}:' as=hex`."""
    if words.kind not in NONCE_BYTES:
        raise CaseError(f"there is no {words.kind}; there are {', '.join(NONCE_BYTES)}")
    if len(words.bare) != 1:
        raise CaseError(f"{words.kind} is followed by one version, not by {words.bare}")
    unknown = set(words.options) - allowed
    if unknown:
        raise CaseError(f"{words.kind} has no option {', '.join(sorted(unknown))}")
    whole = ORDER.get(words.kind, "nonce ciphertext tag")
    groups = tuple(tuple(group.split()) for group in words.options.get("of", whole).split("|"))
    pieces = {piece for group in groups for piece in group}
    if not all(groups) or not pieces <= set(PIECES):
        raise CaseError(f"of={words.options['of']!r}: pieces are {', '.join(PIECES)}")
    if (len(groups) > 1) != ("separator" in words.options):
        raise CaseError("several groups of pieces have a separator between them")
    encoding = words.options.get("as", "text" if words.kind == "fernet" else "base64")
    if encoding not in AS:
        raise CaseError(f"as={encoding}: it is one of {', '.join(AS)}")
    return Format(
        words.kind,
        words.bare[0],
        words.options.get("marker", "{version}:" if pieces == set(whole.split()) else ""),
        groups,
        encoding,
        words.options.get("separator", ""),
        words.options.get("kdf", ""),
        int(words.options.get("time", 0)),
    )


@dataclass
class Notation:
    """Replaces the placeholders of one case, and remembers what must not be seen in any output."""

    database: str
    key_bytes: int = 32
    plaintexts: set[bytes] = field(default_factory=set)
    stored: set[str] = field(default_factory=set)
    roles: set[str] = field(default_factory=set)

    def replaced(self, text: str) -> str:
        """The text with every placeholder replaced; quotes doubled, since they stand in SQL literals."""
        return _PLACEHOLDER.sub(lambda found: self._one(found).replace("'", "''"), text)

    def role(self, name: str) -> str:
        """The real name of a case's role: roles belong to the server, not to the database."""
        real = f"{name}_{self.database}"
        self.roles.add(real)
        return real

    def _one(self, found: re.Match[str]) -> str:
        words = Words.parse(found.group(1) + found.group(2))
        plain: dict[str, Callable[[], str]] = {
            "database": lambda: self.database,
            "role": lambda: self.role(*words.bare),
            "index": lambda: self._index(words),
        }
        if words.kind in plain:
            return plain[words.kind]()
        stored = stored_format(words, _FORMAT_OPTIONS | _SEALED_OPTIONS)
        value = self._sealed(words, stored).written(stored)
        payload = value.removeprefix("\\x").removeprefix(stored.prefix)
        if len(payload) >= 2 * SHORTEST_TEXT:
            self.stored.add(payload)
        return value

    def _index(self, words: Words) -> str:
        if words.text is None or len(words.bare) != 1 or not set(words.options) <= {"bits"}:
            raise CaseError('an index is {{index v1 bits=64 "plain text"}}')
        self.plaintexts.add(words.text)
        digest = blind_index(key_of(words.bare[0], self.key_bytes), words.text)
        return digest[: int(words.options.get("bits", 256)) // 8].hex()

    def _sealed(self, words: Words, stored: Format) -> Sealed:
        if words.text is None:
            raise CaseError(f"{words.kind} {stored.version} has no plaintext")
        if 0 < len(words.text) < SHORTEST_TEXT:
            raise CaseError(f"a plaintext is empty or has {SHORTEST_TEXT} bytes or more: {words.text!r}")
        plain = words.text
        if "size" in words.options:
            size = int(words.options["size"])
            plain = (plain * (size // len(plain) + 1))[:size]
        if plain:
            self.plaintexts.add(words.text)
        key, aad = words.options.get("key", stored.version), words.options.get("aad", "")
        # the pieces of one value may stand in several columns: whatever does not change the value itself
        # (order, encoding, marker) does not change the nonce either
        same = [stored.kind, stored.version, key, aad, plain.hex(), words.options.get("id", "")]
        nonce = hashlib.sha512(json.dumps(same).encode()).digest()[: NONCE_BYTES[stored.kind]]
        sealed = seal(stored, key_of(key, self.key_bytes), nonce, plain, aad.encode())
        return _damaged(sealed, words.options.get("damage"))


def _damaged(sealed: Sealed, how: str | None) -> Sealed:
    """`bit`: one bit of the tag is another. `cut`: nothing is left but the nonce's first bytes."""
    if how is None:
        return sealed
    if how == "bit":
        return replace(sealed, tag=bytes([sealed.tag[0] ^ 1]) + sealed.tag[1:])
    if how == "cut":
        return Sealed(sealed.nonce[:6], b"", b"")
    raise CaseError(f"damage={how}: it is bit or cut")
