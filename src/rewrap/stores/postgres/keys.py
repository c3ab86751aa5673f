"""How statements speak of a table's key: one column or several, of any type that has an order.

Order, comparison and bounds are always the server's, in the column's own type and collation. Integers and
uuids travel in arrays of their type. Any other type travels as the server's text, and is cast back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rewrap.model import KeyColumn, Table
from rewrap.stores.postgres.places import quote


@dataclass(frozen=True, slots=True)
class KeySql:
    """Pieces of SQL about a key. The table is `t`, what is compared with it `d`."""

    columns: tuple[KeyColumn, ...]

    @classmethod
    def of(cls, table: Table) -> KeySql:
        return cls(table.key)

    @property
    def width(self) -> int:
        return len(self.columns)

    @property
    def names(self) -> list[str]:
        """What the key's columns are called in what is joined to the table: k, or k0, k1 and so on."""
        return ["k"] if self.width == 1 else [f"k{at}" for at in range(self.width)]

    @property
    def stored(self) -> list[str]:
        """The columns, in their own types."""
        return [f"t.{quote(column.name)}" for column in self.columns]

    @property
    def values(self) -> list[str]:
        """The columns' values, as they travel."""
        return [
            stored if column.native else f"{stored}::text"
            for stored, column in zip(self.stored, self.columns, strict=True)
        ]

    @property
    def sorted(self) -> str:
        """The columns as a list to order by."""
        return ", ".join(self.stored)

    def compared(self, operator: str, first: int) -> str:
        """The key compared with texts in parameters from `first` on, one for each column."""
        texts = [f"(${first + at}::text)::{column.type_name}" for at, column in enumerate(self.columns)]
        return f"{_row(self.stored)} {operator} {_row(texts)}"

    def equal(self, first: int) -> str:
        """The condition that a row has the key in parameters from `first` on, as it travels."""
        given = [
            f"(${first + at}{'' if column.native else '::text'})::{column.type_name}"
            for at, column in enumerate(self.columns)
        ]
        return " AND ".join(f"{stored} = {key}" for stored, key in zip(self.stored, given, strict=True))

    def arrays(self, first: int) -> list[str]:
        """Parameters from `first` on that hold the keys of a batch, one array for each column."""
        return [
            f"${first + at}::{column.type_name if column.native else 'text'}[]"
            for at, column in enumerate(self.columns)
        ]

    def joined(self, other: str = "d") -> str:
        """The condition that a row is the one that `other` names."""
        return " AND ".join(
            f"{stored} = {other}.{name}{'' if column.native else f'::{column.type_name}'}"
            for stored, name, column in zip(self.stored, self.names, self.columns, strict=True)
        )

    def between_ends(self, first: int) -> str:
        """The condition that a row lies between the first and the last key of a batch in order."""
        lowest, highest = [], []
        for array, column in zip(self.arrays(first), self.columns, strict=True):
            cast = "" if column.native else f"::{column.type_name}"
            lowest.append(f"({array})[1]{cast}")
            highest.append(f"({array})[cardinality({array})]{cast}")
        stored = _row(self.stored)
        return f"{stored} >= {_row(lowest)} AND {stored} <= {_row(highest)}"

    def batch(self, keys: list[Any]) -> list[list[Any]]:
        """A batch's keys as arguments for `arrays`."""
        if self.width == 1:
            return [keys]
        return [[key[at] for key in keys] for at in range(self.width)]

    def one(self, key: Any) -> list[Any]:
        """A key as arguments for `equal`."""
        return [key] if self.width == 1 else list(key)

    def keys(self, arrays: Sequence[list[Any] | None]) -> list[Any]:
        """The keys of a page, from an array for each column (None where the page is empty)."""
        if self.width == 1:
            return arrays[0] or []
        return list(zip(*(array or [] for array in arrays), strict=True))

    def folded(self, row: Sequence[Any], start: int = 0) -> Sequence[Any]:
        """A row whose key's columns begin at `start`, from there on, with its key as one value."""
        if self.width == 1:
            return row[start:] if start else row
        end = start + self.width
        return (tuple(row[start:end]), *row[end:])


def _row(columns: Sequence[str]) -> str:
    return columns[0] if len(columns) == 1 else f"({', '.join(columns)})"
