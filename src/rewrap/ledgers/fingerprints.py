"""The fingerprints that a run took before its first write, as the ledger keeps them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from rewrap.fingerprint import Fingerprint
from rewrap.ledgers.records import now
from rewrap.ledgers.tables import fingerprint_rows, fingerprints, runs
from rewrap.model import RunState
from rewrap.untouched import Witnessed


@dataclass(frozen=True, slots=True)
class KeptFingerprint:
    """A table's fingerprint: what the job asked for, what that was when it was taken, and when."""

    run_id: str
    number: int
    declared: str
    witnessed: Witnessed
    fingerprint: Fingerprint
    taken_at: str


class KeptFingerprints:
    """The fingerprints in a ledger. One is there when its last part is: a torn one is taken anew."""

    def __init__(
        self,
        writing: Callable[[], AbstractAsyncContextManager[AsyncConnection]],
        rows: Callable[[sa.Select[Any]], Awaitable[Sequence[sa.Row[Any]]]],
    ) -> None:
        self._writing = writing
        self._rows = rows

    async def of(self, run_id: str) -> list[KeptFingerprint]:
        """Those of a run, in the order in which they were taken."""
        found = await self._rows(
            sa.select(fingerprints).where(fingerprints.c.run_id == run_id).order_by(fingerprints.c.number)
        )
        return [
            KeptFingerprint(
                row.run_id,
                row.number,
                row.declared,
                Witnessed.from_text(row.witnessed),
                Fingerprint(row.rows, row.sha256),
                row.taken_at,
            )
            for row in found
        ]

    async def carry(self, job: str, run_id: str) -> None:
        """Hands those of the run before to this one, if it goes on with the same rotation; else drops them.

        What a first run has left, the next one finishes: the proof speaks of both.
        """
        found = await self._rows(
            sa.select(runs.c.run_id, runs.c.to_version, runs.c.state)
            .where(runs.c.job == job)
            .order_by(runs.c.number.desc())
        )
        earlier = [row for row in found if row.run_id != run_id]
        this = next(row for row in found if row.run_id == run_id)
        before = earlier[0] if earlier else None
        goes_on = before and before.to_version == this.to_version and before.state != RunState.COMPLETE
        async with self._writing() as connection:
            for table in (fingerprints, fingerprint_rows):
                if before is not None and goes_on:
                    await connection.execute(
                        table.update().where(table.c.run_id == before.run_id).values(run_id=run_id)
                    )
                for row in earlier:
                    await connection.execute(table.delete().where(table.c.run_id == row.run_id))

    async def begin(self, run_id: str) -> int:
        """The number of the next one of a run; what a torn one has left is dropped."""
        taken = {one.number for one in await self.of(run_id)}
        number = max(taken, default=0) + 1
        async with self._writing() as connection:
            torn = sa.and_(fingerprint_rows.c.run_id == run_id, fingerprint_rows.c.number.not_in(taken))
            await connection.execute(fingerprint_rows.delete().where(torn))
        return number

    async def add(self, run_id: str, number: int, part: int, entries: bytes) -> None:
        async with self._writing() as connection:
            await connection.execute(
                fingerprint_rows.insert().values(run_id=run_id, number=number, part=part, entries=entries)
            )

    async def finish(
        self, run_id: str, number: int, declared: Witnessed, taken: Witnessed, found: Fingerprint
    ) -> None:
        async with self._writing() as connection:
            await connection.execute(
                fingerprints.insert().values(
                    run_id=run_id,
                    number=number,
                    declared=declared.text,
                    witnessed=taken.text,
                    rows=found.rows,
                    sha256=found.sha256,
                    taken_at=now(),
                )
            )

    async def entries(self, kept: KeptFingerprint) -> AsyncIterator[bytes]:
        """Its entries in order, part by part."""
        part = 0
        while True:
            rows = await self._rows(
                sa.select(fingerprint_rows.c.entries).where(
                    fingerprint_rows.c.run_id == kept.run_id,
                    fingerprint_rows.c.number == kept.number,
                    fingerprint_rows.c.part == part,
                )
            )
            if not rows:
                return
            yield bytes(rows[0].entries)
            part += 1
