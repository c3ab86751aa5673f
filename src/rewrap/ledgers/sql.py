"""The ledger over SQLAlchemy: a SQLite file beside the job, or a Postgres database for several hosts.

It holds what people and later commands ask for. The cursors that decide what is read again are in the store
itself (docs/adr/0001-checkpoint-beside-the-rows.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from rewrap.ledgers.buckets import Buckets, of_one_job
from rewrap.ledgers.control import Control
from rewrap.ledgers.database import LedgerDatabase
from rewrap.ledgers.fingerprints import KeptFingerprints
from rewrap.ledgers.measured import Measurements
from rewrap.ledgers.records import (
    ExceptionRecord,
    RelationRecord,
    RunRecord,
    TableProgress,
    now,
    operator,
)
from rewrap.ledgers.tables import exceptions, progress, proofs, relations, runs, seals
from rewrap.model import Fault, RunState

__all__ = [
    "ExceptionRecord",
    "Ledger",
    "RelationRecord",
    "RunRecord",
    "TableProgress",
    "now",
    "operator",
]


_ROW_ID_MAX = 400
"""Characters of a key's text that the ledger's primary key holds. Longer ones are rare: an index entry may
have 2,700 bytes."""


class Ledger(LedgerDatabase):
    """One open ledger. Every method is durable when it returns.

    A new one is made by the first write to it: a run that is refused leaves none behind.
    """

    @property
    def fingerprints(self) -> KeptFingerprints:
        return KeptFingerprints(self.writing, self.rows)

    @property
    def measured(self) -> Measurements:
        return Measurements(self.job, self.writing, self.rows)

    @property
    def buckets(self) -> Buckets:
        """Raises LedgerError where no other process could see them."""
        if self._path is not None:
            raise of_one_job(self.shown)
        return Buckets(self.writing, self.rows)

    @property
    def control(self) -> Control:
        return Control(self.job, self.writing, self.rows)

    # runs

    async def known_as(self, version: str, commitment: str) -> str | None:
        """The job's newest run that had a version, if its name stood for another key then; else None."""
        query = sa.select(runs.c.run_id, runs.c.commitments).where(runs.c.job == self.job)
        for row in await self.rows(query.order_by(runs.c.number.desc())):
            if version in row.commitments:
                # what it stood for last counts
                return None if row.commitments[version] == commitment else str(row.run_id)
        return None

    async def latest(self) -> RunRecord | None:
        """The job's newest run."""
        rows = await self.rows(
            sa.select(runs).where(runs.c.job == self.job).order_by(runs.c.number.desc()).limit(1)
        )
        if not rows:
            return None
        (row,) = rows
        return RunRecord(
            row.run_id,
            row.job,
            row.job_digest,
            tuple(row.from_versions.split(",")),
            row.to_version,
            RunState(row.state),
            row.state_by,
            row.origin,
            dict(row.commitments),
            row.started_at,
            row.updated_at,
        )

    async def completed(self, to_version: str) -> bool:
        """Whether a run of the job to this version has ever completed."""
        mine = (runs.c.job == self.job, runs.c.to_version == to_version)
        return bool(await self.rows(sa.select(runs.c.run_id).where(*mine, runs.c.state == RunState.COMPLETE)))

    async def begin(self, record: RunRecord) -> None:
        async with self.writing() as connection:
            number = await connection.scalar(sa.select(sa.func.max(runs.c.number)))
            await connection.execute(
                runs.insert().values(
                    run_id=record.run_id,
                    job=record.job,
                    job_digest=record.job_digest,
                    from_versions=",".join(record.from_versions),
                    to_version=record.to_version,
                    state=record.state,
                    state_by=record.state_by,
                    origin=record.origin,
                    commitments=record.commitments,
                    started_at=record.started_at,
                    updated_at=record.updated_at,
                    number=(number or 0) + 1,
                )
            )

    async def set_state(
        self, run_id: str, state: RunState, *, origin: str | None = None, by: str | None = None
    ) -> None:
        """Notes a run's state, and who brought it about: this process's user where nobody else did."""
        values: dict[str, Any] = {"state": state, "state_by": by or operator(), "updated_at": now()}
        if origin is not None:
            values["origin"] = origin
        async with self.writing() as connection:
            await connection.execute(runs.update().where(runs.c.run_id == run_id).values(**values))

    # progress

    async def save_progress(self, run_id: str, entries: Iterable[TableProgress]) -> None:
        async with self.writing() as connection:
            for entry in sorted(entries, key=lambda one: (one.relation, one.sweep)):
                values = {
                    "rows_estimated": entry.rows_estimated,
                    "rows_done": entry.rows_done,
                    "found": entry.found,
                    "tally": {name: dict(counts) for name, counts in (entry.tally or {}).items()},
                    "done": entry.done,
                    "rows_per_s": entry.rows_per_s,
                    "waiting_for": entry.waiting_for,
                    "inserted_before": entry.inserted_before,
                    "deleted_before": entry.deleted_before,
                    "updated_at": now(),
                }
                # a run saves from beside its work too, and may do both at once
                first = self._insert(progress).values(
                    run_id=run_id, relation=entry.relation, sweep=entry.sweep, **values
                )
                await connection.execute(
                    first.on_conflict_do_update(index_elements=["run_id", "relation", "sweep"], set_=values)
                )

    async def progress(self, run_id: str) -> list[TableProgress]:
        """Every table and sweep of a run, sweeps in order."""
        rows = await self.rows(
            sa.select(progress)
            .where(progress.c.run_id == run_id)
            .order_by(progress.c.sweep, progress.c.relation)
        )
        return [
            TableProgress(
                row.relation, row.sweep, row.rows_estimated, row.rows_done, row.found,
                row.tally, row.done, row.rows_per_s, row.waiting_for, row.inserted_before,
                row.deleted_before, row.updated_at,
            )
            for row in rows
        ]  # fmt: skip

    async def forget_progress(self, run_id: str) -> None:
        async with self.writing() as connection:
            await connection.execute(progress.delete().where(progress.c.run_id == run_id))

    # tables

    async def add_relations(self, run_id: str, entries: Iterable[tuple[int, str, str]]) -> None:
        """Remembers what a run works on: oid, relation and target of each table."""
        async with self.writing() as connection:
            for oid, relation, target in entries:
                same = sa.and_(relations.c.run_id == run_id, relations.c.oid == oid)
                await connection.execute(relations.delete().where(same))
                await connection.execute(
                    relations.insert().values(run_id=run_id, oid=oid, relation=relation, target=target)
                )

    async def relations(self, to_version: str) -> list[RelationRecord]:
        """Every table that a run of the job to a version has worked on."""
        rows = await self.rows(
            sa.select(relations, runs.c.origin)
            .join(runs, runs.c.run_id == relations.c.run_id)
            .where(runs.c.job == self.job, runs.c.to_version == to_version)
            .order_by(relations.c.relation, runs.c.number)
        )
        return [RelationRecord(row.oid, row.relation, row.target, row.origin) for row in rows]

    # values put aside

    async def record(self, run_id: str, to_version: str, relation: str, faults: Sequence[Fault]) -> None:
        """Puts values aside, before a checkpoint passes them. A waiver survives only on equal bytes."""
        async with self.writing() as connection:
            for fault in faults:
                same = _same(self.job, to_version, relation, fault.field, fault.row_id)
                held = (await connection.execute(sa.select(exceptions).where(same))).first()
                kept = held is not None and held.state == "waived" and held.digest == fault.digest
                if held:
                    await connection.execute(exceptions.delete().where(same))
                await connection.execute(
                    exceptions.insert().values(
                        job=self.job,
                        to_version=to_version,
                        relation=relation,
                        field=fault.field,
                        row_id=_row_id(fault.row_id),
                        row_key=fault.row_id if len(fault.row_id) > _ROW_ID_MAX else None,
                        reason=fault.reason,
                        digest=fault.digest,
                        version=fault.version or None,
                        attempts=(held.attempts if held else 0) + 1,
                        state="waived" if kept else "open",
                        run_id=run_id,
                        note=held.note if held is not None and kept else "",
                        updated_at=now(),
                    )
                )

    async def exceptions(
        self, to_version: str, *, states: Sequence[str] = ("open", "waived", "retry")
    ) -> list[ExceptionRecord]:
        rows = await self.rows(
            sa.select(exceptions)
            .where(
                exceptions.c.job == self.job,
                exceptions.c.to_version == to_version,
                exceptions.c.state.in_(states),
            )
            .order_by(exceptions.c.relation, exceptions.c.field, exceptions.c.row_id)
        )
        return [
            ExceptionRecord(
                row.relation, row.field, row.row_key or row.row_id, row.reason, row.digest, row.version,
                row.attempts, row.state, row.note, row.updated_at,
            )
            for row in rows
        ]  # fmt: skip

    async def mark(self, to_version: str, entries: Iterable[ExceptionRecord], state: str, note: str) -> None:
        """Sets the state of values put aside: waived, retry or resolved."""
        async with self.writing() as connection:
            for entry in entries:
                await connection.execute(
                    exceptions.update()
                    .where(
                        _same(self.job, to_version, entry.relation, entry.field, entry.row_id),
                        exceptions.c.digest == entry.digest,
                    )
                    .values(state=state, note=note, updated_at=now())
                )

    async def withdraw(self, run_id: str) -> int:
        """Forgets what a run put aside: it had the wrong key. The number of entries forgotten."""
        async with self.writing() as connection:
            gone = await connection.execute(
                exceptions.delete().where(exceptions.c.run_id == run_id, exceptions.c.state == "open")
            )
        return gone.rowcount

    # keys

    async def proof(self, name: str) -> int:
        """How many stored values a key is known to have opened."""
        rows = await self.rows(sa.select(proofs.c.opened).where(proofs.c.name == name))
        return int(rows[0].opened) if rows else 0

    async def add_proof(self, opened: Mapping[str, int]) -> None:
        """Remembers that keys (by name) have opened stored values."""
        async with self.writing() as connection:
            # in one order: another job with the same keys may do the same now
            for name, count in sorted(opened.items()):
                proven = self._insert(proofs).values(name=name, opened=count)
                await connection.execute(
                    proven.on_conflict_do_update(index_elements=["name"], set_={"opened": count})
                )

    async def sealed(self, fingerprint: str) -> int:
        """How many values this ledger has seen sealed under a key."""
        rows = await self.rows(sa.select(seals.c.sealed).where(seals.c.fingerprint == fingerprint))
        return int(rows[0].sealed) if rows else 0

    async def add_sealed(self, fingerprint: str, count: int) -> None:
        async with self.writing() as connection:
            first = self._insert(seals).values(fingerprint=fingerprint, sealed=count)
            # whoever else seals under it, in another job of this ledger, counts it too
            more = {"sealed": seals.c.sealed + count}
            await connection.execute(first.on_conflict_do_update(index_elements=["fingerprint"], set_=more))


def _same(job: str, to_version: str, relation: str, column: str, row_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(
        exceptions.c.job == job,
        exceptions.c.to_version == to_version,
        exceptions.c.relation == relation,
        exceptions.c.field == column,
        exceptions.c.row_id == _row_id(row_id),
    )


def _row_id(text: str) -> str:
    """A key's text as far as it fits; a longer one by its beginning and a hash of the whole."""
    if len(text) <= _ROW_ID_MAX:
        return text
    return f"{text[: _ROW_ID_MAX - 67]}...{hashlib.sha256(text.encode()).hexdigest()}"
