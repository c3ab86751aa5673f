"""What the engine, and verify on its own, ask of whoever keeps the records of DEKs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rewrap.envelopes import DekSection, ReferenceSection
from rewrap.interfaces import Prefix

NO_DEK_ID = ("", "(no place for it)")
"""What stands for the id of a DEK where there is none, and where a document has no object to hold one."""


@dataclass(frozen=True, slots=True)
class DekRecord:
    """A record as it is stored: its id, the wrapped DEK (its parts joined), texts of what it is bound to."""

    id: str
    wrapped: str | bytes | None = field(repr=False)
    texts: tuple[str | None, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class NewRecord:
    """A record to be made. `like` is the id of the one whose other properties it gets; empty for none."""

    id: str
    like: str
    wrapped: str | bytes = field(repr=False)


class DekStore(Protocol):
    """The records of one `[deks.NAME]`. What it does may be done again."""

    async def find(self, ids: Sequence[str]) -> dict[str, DekRecord]:
        """The records of some ids, by id; those without a record are left out."""
        ...

    async def add(self, records: Sequence[NewRecord]) -> set[str]:
        """Makes records, durably; those whose id is there already stay as they are.

        The ids of those that were surely made by this call.
        """
        ...

    def spent(self) -> dict[str, float]:
        """What was used up so far, by unit; empty where nothing is metered."""
        ...

    async def sample(self, prefix: Prefix, count: int) -> list[DekRecord]:
        """Some records whose wrapped DEK begins with a marker."""
        ...

    async def close(self) -> None: ...


class DekCensus(Protocol):
    """Verify's own look at one store: all of the records in it, and all places that name one."""

    def records(self, section: DekSection) -> AsyncIterator[list[DekRecord]]:
        """Pages of every record, in no order."""
        ...

    async def find(self, section: DekSection, ids: Sequence[str]) -> list[DekRecord]:
        """Those of some ids' records that are there."""
        ...

    def references(self, place: ReferenceSection) -> AsyncIterator[list[str]]:
        """Pages of the ids that stand in a place, as often as they do; what is no text is left out."""
        ...

    async def close(self) -> None: ...
