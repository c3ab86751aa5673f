"""Pure: do the engine's classes and verify's independent count speak of the same values?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rewrap.model import Activity, Outcome, tally_total


@dataclass(frozen=True, slots=True)
class Account:
    """One table: what the engine classified, and how often rows came and went since it began."""

    relation: str
    fields: int
    tally: Mapping[str, Mapping[str, int]]
    before: Activity

    @property
    def expected(self) -> int:
        """Values that should be there, had nobody inserted or deleted rows: all classes but gone."""
        gone = sum(counts.get(Outcome.GONE, 0) for counts in self.tally.values())
        return tally_total(self.tally) - gone

    def closes(self, counted: int, after: Activity) -> bool:
        """Whether `counted` values can be explained by what was classified and the rows since.

        Exact on a quiet table. On a live one the difference is at most the rows that the server itself
        counted as inserted or deleted.
        """
        inserted = after.inserted - self.before.inserted
        deleted = after.deleted - self.before.deleted
        if inserted < 0 or deleted < 0:
            # the server lost its counters (a crash): they started from nothing again
            inserted, deleted = after.inserted, after.deleted
        drift = counted - self.expected
        return -deleted * self.fields <= drift <= inserted * self.fields
