"""Packed columns: the texts of a whole batch as one text, so that no object need be made for each.

    value ␟ value ␟ value            U+001F between them, nothing at the ends

Postgres joins a page's values into one such text, and takes it apart again on the way back; between them the
old values are passed on unread. U+001F is a control character that no marker and no text encoding of a sealed
value contains; a value that contains it nevertheless does not travel packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rewrap.errors import ResealMismatch

SEPARATOR = "\x1f"

PART = "\x1e"
"""Stands between the parts of one value that are stored apart: version, nonce, tag, payload, indexes."""

ELEMENT = "\x1d"
"""Stands between the values of an array's elements, which are one field of a row together."""

ABSENT = "\x01N"
"""Stands for NULL in a packed text, and for "leave alone" among new values."""

HELD_BACK = "\x01"
"""First character of what stands for a value over the page's size limit; its length follows.

A stored value may begin with it too: whatever begins with it is fetched again by key, and judged then.
"""


@dataclass(frozen=True, slots=True)
class Packed:
    """`count` texts, none of them NULL, joined by SEPARATOR."""

    text: str = field(repr=False)
    count: int

    def __len__(self) -> int:
        return self.count

    def split(self) -> list[str]:
        """The texts; raises ResealMismatch when it does not come apart into `count` of them."""
        parts = self.text.split(SEPARATOR)
        if len(parts) != self.count:
            raise _slipped()
        return parts


Column = Packed | list[Any]
"""One column of a batch, in row order: packed, or a list of values that may hold None."""


def listed(column: Column) -> list[Any]:
    """A column's values, one by one."""
    return column.split() if isinstance(column, Packed) else column


def packed(column: Column, count: int) -> str:
    """A column as one packed text, None as ABSENT.

    Raises ResealMismatch when the text would not come apart into `count` values again: then rows would get
    each other's values.
    """
    if isinstance(column, Packed):
        if column.count != count or not column.text:
            raise _slipped()
        return column.text
    text = SEPARATOR.join([ABSENT if value is None else value for value in column])
    if len(column) != count or text.count(SEPARATOR) != count - 1 or ABSENT in column or not text:
        raise _slipped()
    return text


def packable(column: Column) -> bool:
    """Whether a column can travel to the server packed.

    No value may hold the separator, or be taken for NULL; and Postgres takes an empty text apart into no
    value at all, where one empty value was meant.
    """
    if isinstance(column, Packed):
        return column.text != ""
    return column != [""] and not any(
        value is not None and (SEPARATOR in value or value == ABSENT) for value in column
    )


def unpacked(text: str | None, count: int, values: int) -> Column | None:
    """A column of `count` values from one packed text, `values` of them not NULL.

    None when a value in it cannot be told from two, or from NULL. Without a NULL it stays packed.
    """
    if text is None:
        return []
    if values == count:
        return Packed(text, count) if text.count(SEPARATOR) == count - 1 else None
    found = text.split(SEPARATOR)
    if len(found) != count or found.count(ABSENT) != count - values:
        return None
    return [None if value == ABSENT else value for value in found]


def picked(column: Column, places: Sequence[int]) -> list[Any]:
    """A column's values at some places."""
    values = listed(column)
    return [values[i] for i in places]


def _slipped() -> ResealMismatch:
    return ResealMismatch(
        "a batch does not come apart into its rows again; nothing was written",
        hint="this is a defect in rewrap, please report it",
    )
