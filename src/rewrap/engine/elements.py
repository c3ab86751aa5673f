"""Pure: the transform of a field that has a value for each element of an array.

The values of a row are one text, U+001D between them, and one value of the account: what becomes of it is
what becomes of the element that is worst off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rewrap.crypto.layout import Layout, Value
from rewrap.engine.judged import AadPair, FieldTransform, Judged
from rewrap.interfaces import OversizeMark
from rewrap.keys.keyring import Digester
from rewrap.model import Fault, Outcome, Reason, key_text
from rewrap.packed import ELEMENT, Column, listed

_WORST_FIRST = (Outcome.OTHER_VERSION, Outcome.UNMARKED, Outcome.PLAINTEXT, Outcome.CURRENT)

_LEFT = (Outcome.QUARANTINED, Outcome.OTHER_VERSION, Outcome.UNMARKED)
"""What an element can be that keeps a rotation from being complete, the worst first."""


class OneTransform(FieldTransform, Protocol):
    """The transform of one element, in a table."""

    @property
    def table(self) -> str: ...


@dataclass(frozen=True)
class ElementsReseal:
    """Judges each element as `one` does, and a row by its elements.

    A row in which some elements can be resealed and others cannot has the first resealed; it is found again
    by the next sweep, and only then put aside for the others. So nothing that opens stays behind.
    """

    one: OneTransform

    @property
    def column(self) -> str:
        return self.one.column

    @property
    def old(self) -> Layout:
        return self.one.old

    @property
    def new(self) -> Layout:
        return self.one.new

    @property
    def probed(self) -> bool:
        return self.one.probed

    def version_of(self, value: Value) -> str | None:
        return self.one.version_of(value)

    @property
    def digester(self) -> Digester:
        return self.one.digester

    def judge(self, values: Column, aads: AadPair, row_ids: Sequence[Any]) -> Judged:
        """Classifies the lists of a column, and reseals their elements in scope."""
        rows = listed(values)
        places: list[int] = []
        olds: list[Any] = []
        news: list[Any] = []
        out = Judged(places, olds, news)
        for place, value in enumerate(rows):
            new = self._judge_row(value, aads, place, row_ids[place], out)
            if new is not None:
                places.append(place)
                olds.append(value)
                news.append(new)
        if len(places) == len(rows):
            out.places = None
        return out

    def _judge_row(self, value: Any, aads: AadPair, place: int, row_id: Any, out: Judged) -> str | None:
        """The new text of one row's list; or None, and what it is was counted."""
        if value is None:
            out.counts[Outcome.NULL] += 1
            return None
        if isinstance(value, OversizeMark):
            self._fault(out, row_id, value.stands_for, Reason.TOO_LARGE, None)
            return None
        parts = value.split(ELEMENT)
        old, new = (None if each is None else [each[place]] * len(parts) for each in aads)
        judged = self.one.judge(parts, (old, new), [row_id] * len(parts))
        out.opened += judged.opened
        fresh = dict(zip(judged.every(len(parts)), listed(judged.news), strict=True))
        if fresh:
            left = [outcome for outcome in _LEFT if judged.counts[outcome]]
            if left:
                out.postponed[place] = left[0]
            return ELEMENT.join([fresh.get(at, part) for at, part in enumerate(parts)])
        if judged.faults:
            first = judged.faults[0]
            self._fault(out, row_id, value, first.reason, first.version)
        else:
            out.counts[next(outcome for outcome in _WORST_FIRST if judged.counts[outcome])] += 1
        return None

    def _fault(self, out: Judged, row_id: Any, value: str, reason: Reason, version: str | None) -> None:
        out.counts[Outcome.QUARANTINED] += 1
        digest = self.one.digester.digest(self.one.table, self.one.column, key_text(row_id), value)
        out.faults.append(Fault(key_text(row_id), self.one.column, reason, digest, version))
