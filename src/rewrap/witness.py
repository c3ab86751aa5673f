"""The proof that a rotation left alone what it must leave alone.

Before a run's first write every table that the job names is fingerprinted, and the ledger keeps it. A deep
verification takes the fingerprint again, in its own snapshot, and says what differs. It cannot say by whom:
an application that goes on writing changes its rows too.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from rewrap.errors import SchemaMismatch, UnsafeTarget
from rewrap.events import FingerprintTaken, Notice, Untouched
from rewrap.fingerprint import Difference, Summed, compared
from rewrap.interfaces import Census, Sink
from rewrap.job import Job
from rewrap.ledgers.fingerprints import KeptFingerprint, KeptFingerprints
from rewrap.stores.fleet import fingerprinting
from rewrap.untouched import Witnessed


async def take(job: Job, census: Census, kept: KeptFingerprints, run_id: str, sink: Sink) -> None:
    """Fingerprints what the job wants witnessed and the run has not yet, before its first write."""
    wanted = {one.text: one for one in job.witnessed}
    if not wanted.keys() - await _declared(kept, run_id):
        return
    if not await kept.of(run_id):
        await kept.carry(job.name, run_id)
    missing = wanted.keys() - await _declared(kept, run_id)
    await census.tables()
    async with census:
        for text in (text for text in wanted if text in missing):
            await _take(census, kept, run_id, wanted[text], sink)


async def check(job: Job, census: Census) -> None:
    """Raises SchemaMismatch or UnsafeTarget where something cannot be fingerprinted; takes nothing."""
    await census.tables()
    async with census:
        for declared in job.witnessed:
            await fingerprinting(census, declared).settled(declared)


async def _declared(kept: KeptFingerprints, run_id: str) -> set[str]:
    return {one.declared for one in await kept.of(run_id)}


async def _take(census: Census, kept: KeptFingerprints, run_id: str, declared: Witnessed, sink: Sink) -> None:
    started = time.monotonic()
    looking = fingerprinting(census, declared)
    settled = await looking.settled(declared)
    sink(Notice(level="info", message=f'taking the fingerprint of "{declared.table}", which must not change'))
    number = await kept.begin(run_id)
    total, part = Summed(), 0
    async for entries in looking.entries(settled):
        total.add(entries)
        await kept.add(run_id, number, part, entries)
        part += 1
    await kept.finish(run_id, number, declared, settled, total.fingerprint)
    sink(
        FingerprintTaken(
            target=declared.table,
            columns=list(declared.places),
            rows=total.fingerprint.rows,
            fingerprint=total.fingerprint.sha256,
            seconds=round(time.monotonic() - started, 3),
        )
    )


class Witness:
    """What was fingerprinted before a run, for a later look. `kept` and `run_id` are None without a run."""

    def __init__(self, job: Job, kept: KeptFingerprints | None, run_id: str | None) -> None:
        self._job = job
        self._kept = kept
        self._run_id = run_id
        self.counts: dict[str, int] = {}

    async def look(self, census: Census, sink: Sink) -> list[str]:
        """Compares everything with the fingerprints; the reasons why the verification is not complete."""
        wanted = {one.text: one for one in self._job.witnessed}
        reasons: list[str] = []
        there: dict[str, KeptFingerprint] = {}
        if self._kept is not None and self._run_id is not None:
            there = {one.declared: one for one in await self._kept.of(self._run_id)}
        for text, declared in wanted.items():
            if self._kept is None or text not in there:
                sink(_never_taken(declared))
                continue
            entries = self._kept.entries(there[text])
            reasons += await self._compare(census, declared, there[text], entries, sink)
        return reasons

    async def _compare(
        self,
        census: Census,
        declared: Witnessed,
        kept: KeptFingerprint,
        entries: AsyncIterator[bytes],
        sink: Sink,
    ) -> list[str]:
        try:
            # what was left to the table to say is what it said then: a new column is no change
            looking = fingerprinting(census, kept.witnessed)
            now = await looking.settled(kept.witnessed)
        except (SchemaMismatch, UnsafeTarget) as exc:
            return [f"{exc.message}: what it held when the run began cannot be compared any more"]
        found = await compared(entries, looking.entries(now))
        if found.before != kept.fingerprint:
            return [f'the ledger has lost part of the fingerprint of "{declared.table}": nothing is proved']
        self._add(found)
        sink(_event(declared, kept, found))
        if not found.changed:
            return []
        told = (
            f"{declared.table}: {found.changed} rows that were there when the run began hold something else "
            f"in {', '.join(declared.places) or 'their columns'}"
        )
        if self._job.limits.changed_payloads == "fail":
            return [told]
        sink(
            Notice(
                level="warning",
                message=f"{told}; who wrote it cannot be said",
                hint="the application may have: compare with what it was asked to do since, or set "
                'limits.changed_payloads = "fail" where nobody writes meanwhile',
            )
        )
        return []

    def _add(self, found: Difference) -> None:
        said = {
            "rows_before": found.before.rows,
            "rows": found.now.rows,
            "unchanged": found.unchanged,
            "changed": found.changed,
            "inserted": found.inserted,
            "deleted": found.deleted,
        }
        self.counts = {name: self.counts.get(name, 0) + number for name, number in said.items()}


def _never_taken(declared: Witnessed) -> Notice:
    return Notice(
        level="warning",
        message=f'no fingerprint of "{declared.table}" is in this ledger: what became of it is not known',
        hint="a run to this version takes it when it begins; what was written before that cannot be told",
    )


def _event(declared: Witnessed, kept: KeptFingerprint, found: Difference) -> Untouched:
    return Untouched(
        target=declared.table,
        columns=list(declared.places),
        since=kept.taken_at,
        rows_before=found.before.rows,
        rows=found.now.rows,
        unchanged=found.unchanged,
        changed=found.changed,
        inserted=found.inserted,
        deleted=found.deleted,
        fingerprint_before=found.before.sha256,
        fingerprint=found.now.sha256,
    )
