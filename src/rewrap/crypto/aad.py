"""Associated data: what a value is bound to, from columns of its row."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

from rewrap.crypto.failures import LayoutError

_COLUMN = re.compile(r"\{([^{}]+)\}")

_LEFT, _RIGHT = "\x00", "\x01"
"""Stand for doubled braces while a template is taken apart."""


@dataclass(frozen=True, slots=True)
class AadTemplate:
    """Associated data built from row columns: `"{account_id}"`, `"acct:{account_id}:{kind}"`, as UTF-8.

    A column's value is its text form in the database; NULL is the empty string. A brace is written twice:
    `{{"id":"{account_id}"}}`.
    """

    text: str
    parts: tuple[str, ...]
    columns: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> AadTemplate:
        if not text:
            raise LayoutError("an AAD template is not empty; leave it out for no associated data")
        if _LEFT in text or _RIGHT in text:
            raise LayoutError("an AAD template is without control characters")
        parts = _COLUMN.split(text.replace("{{", _LEFT).replace("}}", _RIGHT))
        if any("{" in part or "}" in part for part in parts[::2]):
            raise LayoutError("braces in an AAD template name a column, like {account_id}")
        whole = [part.replace(_LEFT, "{").replace(_RIGHT, "}") for part in parts]
        return cls(text, tuple(whole), tuple(whole[1::2]))

    def render(self, values: dict[str, str | None]) -> bytes:
        """The associated data of one row, from its columns' text forms."""
        out = [part if at % 2 == 0 else (values[part] or "") for at, part in enumerate(self.parts)]
        return _bytes("".join(out))

    def render_all(self, columns: Mapping[str, Sequence[str | None]], count: int) -> list[bytes]:
        """The associated data of a batch of `count` rows, from each column's texts."""
        if len(self.parts) == 3 and self.parts[0] == self.parts[2] == "":
            return [_bytes(text or "") for text in columns[self.parts[1]]]
        # a template without columns is the same for every row
        pieces = [
            repeat(part, count) if at % 2 == 0 else [text or "" for text in columns[part]]
            for at, part in enumerate(self.parts)
        ]
        return [_bytes("".join(row)) for row in zip(*pieces, strict=True)]


@dataclass(frozen=True, slots=True)
class AadObject:
    """Associated data that are a JSON object of texts: `{ account_id = "{account_id}" }`.

    As Python's `json.dumps(…, sort_keys=True, separators=(",", ":"))` writes it: members in the order of
    their names, no space, ASCII alone. A service's encryption context is such an object too.
    """

    text: str
    members: tuple[tuple[str, AadTemplate | None], ...]
    columns: tuple[str, ...]

    @classmethod
    def parse(cls, declared: Mapping[str, str]) -> AadObject:
        if not declared:
            raise LayoutError("an AAD object is not empty; leave it out for no associated data")
        members = tuple(
            (name, AadTemplate.parse(text) if text else None) for name, text in sorted(declared.items())
        )
        columns = (column for _, template in members if template for column in template.columns)
        return cls(_compact(dict(declared)), members, tuple(dict.fromkeys(columns)))

    def render(self, values: dict[str, str | None]) -> bytes:
        """The associated data of one row, from its columns' text forms."""
        shown = {name: "" if one is None else one.render(values).decode() for name, one in self.members}
        return _compact(shown).encode()

    def render_all(self, columns: Mapping[str, Sequence[str | None]], count: int) -> list[bytes]:
        """The associated data of a batch of `count` rows, from each column's texts."""
        names = [name for name, _ in self.members]
        texts = [
            repeat(b"", count) if one is None else one.render_all(columns, count) for _, one in self.members
        ]
        return [
            _compact(dict(zip(names, (text.decode() for text in row), strict=True))).encode()
            for row in zip(*texts, strict=True)
        ]


Aad = AadTemplate | AadObject


def parse_aad(declared: str | Mapping[str, str]) -> Aad:
    """Associated data as a descriptor declares them: a template, or an object of templates."""
    return AadTemplate.parse(declared) if isinstance(declared, str) else AadObject.parse(declared)


def _compact(members: dict[str, str]) -> str:
    return json.dumps(members, sort_keys=True, separators=(",", ":"))


def _bytes(text: str) -> bytes:
    """A text as UTF-8. For a lone surrogate stands U+FFFD, as Node, .NET and Go have it."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()
