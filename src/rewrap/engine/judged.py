"""What became of one column of a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rewrap.crypto.layout import Layout, Value
from rewrap.keys.keyring import Digester
from rewrap.model import Fault
from rewrap.packed import Column, listed

Aads = list[bytes] | None

AadPair = tuple[Aads, Aads]
"""The associated data of a batch, as the old layout binds them and as the new one does."""


@dataclass(slots=True)
class Judged:
    """One column of a batch: new values and the places they belong to, and everything else by class.

    `places` None is every row of the batch, in order. `postponed` are the places of rows that are resealed
    in part, with what they are for the rest: the next sweep, or verify, finds that. `probed` counts values
    that name no version and opened: all of them, and those that the key tried `first` has opened.
    """

    places: list[int] | None
    olds: Column
    news: Column
    counts: Counter[str] = field(default_factory=Counter)
    opened: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)
    postponed: dict[int, str] = field(default_factory=dict)
    probed: Counter[str] = field(default_factory=Counter)

    def every(self, count: int) -> Sequence[int]:
        """The places of the new values, in a batch of `count` rows."""
        return range(count) if self.places is None else self.places

    def drop(self, place: int, count: int) -> None:
        """Takes back the new value at a place."""
        places = list(self.every(count))
        at = places.index(place)
        olds, news = list(listed(self.olds)), list(listed(self.news))
        del places[at], olds[at], news[at]
        self.postponed.pop(place, None)
        self.places, self.olds, self.news = places, olds, news


class FieldTransform(Protocol):
    """What becomes of one field's values, whatever a value of it is."""

    @property
    def column(self) -> str: ...

    @property
    def old(self) -> Layout: ...

    @property
    def new(self) -> Layout: ...

    @property
    def digester(self) -> Digester: ...

    @property
    def probed(self) -> bool:
        """Whether some values name no version, and have to be opened to be told apart."""
        ...

    def version_of(self, value: Value) -> str | None:
        """The version that a value's marker names."""
        ...

    def judge(self, values: Column, aads: AadPair, row_ids: Sequence[Any]) -> Judged:
        """Classifies a column of values and reseals those in scope."""
        ...
