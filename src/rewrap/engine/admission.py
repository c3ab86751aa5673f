"""Before the first write: which run this is, whether its keys are right, and whose the tables are."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from rewrap.engine import quiescence
from rewrap.engine.compile import Rotation
from rewrap.engine.course import Course
from rewrap.engine.health import Place
from rewrap.engine.options import RunOptions
from rewrap.engine.proof import Proof, gather_proof, judge_sources, judge_target, judge_unnamed
from rewrap.engine.retry import quiet, until_reachable
from rewrap.errors import KeyRefused, LedgerError, StoreUnavailable, UsageError
from rewrap.events import Notice, RunStarted
from rewrap.interfaces import Claim, Guard, Sink, Store
from rewrap.ledgers.sql import Ledger, RunRecord, now, operator
from rewrap.model import RunState, ServerIdentity, Table

T = TypeVar("T")

SEALS_WARN, SEALS_MAX = 2**31, 2**32
"""Values sealed under one AES-GCM key with random nonces (SP 800-38D 8.3)."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A run that may begin: its tables with their leases, and what the stored values proved."""

    run_id: str
    resumed: bool
    courses: list[Course]
    proof: Proof


@dataclass(frozen=True)
class Admission:
    """Admits a run, or raises. Writes nothing but the lock and the run's record, and those last."""

    rotation: Rotation
    store: Store
    guard: Guard
    ledger: Ledger
    sink: Sink
    options: RunOptions

    async def admit(self) -> Admitted:
        identity = await self._patiently(self.store.identity)
        tables = await self._patiently(self.store.tables)
        commitments = self._commitments()
        record, resumed = await self._record(identity, commitments)
        for table in tables:
            await self._patiently(
                partial(self.store.refuse_fenced, table, self.rotation.target_markers(table))
            )
        if not resumed:
            await self._refuse_renamed(commitments)
        proof = await self._prove(tables, commitments, resumed=resumed)
        await quiescence.begin(self.rotation, self.store, tables, self.sink)
        courses = await self._claim(tables, record, identity, resumed=resumed)
        await self.ledger.add_proof(
            {_proof_name(commitments, place): count for place, count in proof.opened.items() if count}
        )
        self._say_started(record, tables, resumed=resumed)
        for notice in self.store.notices:
            self.sink(Notice(level="info", message=notice))
        return Admitted(record.run_id, resumed, courses, proof)

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of an idempotent step, tried again while the store is away; says so once."""
        patience_s = self.rotation.job.limits.reconnect_s
        said = False

        async def told() -> T:
            nonlocal said
            try:
                return await attempt()
            except StoreUnavailable as exc:
                if not said and patience_s:
                    message = f"{exc.message}; it is tried again for up to {patience_s:g} s"
                    self.sink(Notice(level="warning", message=message, hint=exc.hint))
                said = True
                raise

        return await until_reachable(told, patience_s, quiet)

    def _commitments(self) -> dict[str, str]:
        versions = [*self.rotation.from_versions, self.rotation.to_version]
        return {version: self.rotation.keyring.get(version).commitment for version in versions}

    async def _record(self, identity: ServerIdentity, commitments: dict[str, str]) -> tuple[RunRecord, bool]:
        """The run to go on with, or a new one; refuses what would leave another one half done."""
        latest = await self.ledger.latest()
        if latest is not None:
            same = (latest.from_versions, latest.to_version) == (
                self.rotation.from_versions,
                self.rotation.to_version,
            )
            abandoned = self.options.abandon == latest.run_id
            if not latest.state.finished and not abandoned:
                self._check_unfinished(latest, same=same)
                _check_commitments(latest, commitments)
                return latest, True
            if latest.state.finished and same and self.options.sweeps_only:
                _check_commitments(latest, commitments)
                return latest, True
        if self.options.resume:
            raise UsageError(
                f'job "{self.rotation.job.name}" has no unfinished run',
                hint="start one with rewrap run --from … --to …",
            )
        fresh = RunRecord(
            run_id=secrets.token_hex(4),
            job=self.rotation.job.name,
            job_digest=self.rotation.job.digest,
            from_versions=self.rotation.from_versions,
            to_version=self.rotation.to_version,
            state=RunState.RUNNING,
            state_by=operator(),
            origin=identity.origin,
            commitments=commitments,
            started_at=now(),
            updated_at=now(),
        )
        return fresh, False

    def _check_unfinished(self, latest: RunRecord, *, same: bool) -> None:
        if not same:
            raise UsageError(
                f'job "{latest.job}" has an unfinished run {latest.run_id} '
                f"from {','.join(latest.from_versions)} to {latest.to_version} ({latest.state})",
                hint=f"finish it with rewrap resume, or give it up with --abandon {latest.run_id}; "
                "the values it has resealed stay readable under both keys",
            )
        if latest.job_digest != self.rotation.job.digest:
            raise LedgerError(
                f"the job file has changed since run {latest.run_id} began",
                hint="restore its targets, layouts and keys (pace and limits may change), or give "
                f"the run up with --abandon {latest.run_id} and start again",
            )

    async def _prove(
        self, tables: Sequence[Table], commitments: Mapping[str, str], *, resumed: bool
    ) -> Proof:
        rotation = self.rotation
        versions = [*rotation.from_versions, rotation.to_version]

        async def vouched(place: Place) -> int:
            return await self.ledger.proof(_proof_name(commitments, place))

        proof = await self._patiently(lambda: gather_proof(self.store, tables, rotation, vouched))
        # a key that opened a column's values once is the right one: what it fails on now is broken
        for table in tables:
            for place in ((table.relation, name, v) for name in table.field_names for v in versions):
                if not proof.opened[place]:
                    proof.opened[place] = await vouched(place)
        judge_sources(proof, rotation.from_versions, rotation.keyring)
        judge_unnamed(proof, rotation.from_versions, rotation.keyring)
        judge_target(
            proof,
            rotation.keyring.get(rotation.to_version),
            expected_fingerprint=self.options.to_fingerprint,
            # a resumed run's key was vouched for when it began, and is recognised by its commitment
            allow_unseen=self.options.allow_unseen_target,
            recognised=resumed,
            allow_unopenable=self.options.allow_unopenable_target,
        )
        await self._check_seals(tables)
        return proof

    async def _refuse_renamed(self, commitments: Mapping[str, str]) -> None:
        """Refuses to write under a name that stood for another key, unless its fingerprint vouches for it.

        A way back has no stored value left to prove its key with: what the ledger knows is all there is.
        """
        version = self.rotation.to_version
        run_id = await self.ledger.known_as(version, commitments[version])
        if run_id is None or self.options.to_fingerprint is not None:
            return
        key = self.rotation.keyring.get(version)
        raise KeyRefused(
            f'key version "{version}" is not the key that run {run_id} had under that name',
            hint="restore that one; or if the name was given to another key on purpose, compare its "
            f"fingerprint with the application's, and pass --to-fingerprint {key.fingerprint}",
        )

    async def _check_seals(self, tables: Sequence[Table]) -> None:
        """Random 96-bit nonces: refuses to go past 2^32 seals under a key, the application's included."""
        rotation, version = self.rotation, self.rotation.to_version
        ahead = sum(
            table.estimated_rows
            for table in tables
            for name in table.field_names
            if rotation.keyed_layout(table, name).cipher.seal_limit
        )
        if not ahead:
            return
        sealed = await self.ledger.sealed(rotation.keyring.get(version).fingerprint)
        # the application seals with the same key: at least as often as there are values, we assume
        expected = sealed + 2 * ahead
        if expected >= SEALS_MAX:
            raise KeyRefused(
                f'key version "{version}" would come to about {expected} seals, past the {SEALS_MAX} '
                "that random 96-bit nonces allow",
                hint="mint a new key and rotate to that one",
            )
        if expected >= SEALS_WARN:
            self.sink(
                Notice(
                    level="warning",
                    message=f'key version "{version}" comes to about {expected} seals of the '
                    f"{SEALS_MAX} that random nonces allow",
                    hint="plan the next rotation",
                )
            )

    async def _claim(
        self,
        tables: Sequence[Table],
        record: RunRecord,
        identity: ServerIdentity,
        *,
        resumed: bool,
    ) -> list[Course]:
        job = self.rotation.job
        ranges = {
            t.relation: await self._patiently(partial(self.store.split, t, job.pace.shards)) for t in tables
        }
        # the same owner in each attempt: what an earlier one has taken is ours
        claim = Claim(
            run_id=record.run_id,
            owner=f"{operator()} {secrets.token_hex(4)}",
            from_versions=self.rotation.from_versions,
            to_version=self.rotation.to_version,
            ranges=ranges,
            orders={table.relation: table.order for table in tables},
            ttl_s=job.limits.lease_s,
            restart=self.options.restart,
            abandon=self.options.abandon,
        )
        leases = await self._patiently(lambda: self.guard.claim(claim))
        await self._refuse_ended(record)
        for notice in self.guard.notices:
            self.sink(Notice(level="warning", message=notice))
        if not resumed:
            latest = await self.ledger.latest()
            if latest is not None and latest.run_id == self.options.abandon and not latest.state.finished:
                await self.ledger.set_state(latest.run_id, RunState.ABANDONED)
            await self.ledger.begin(record)
        else:
            if record.origin != identity.origin:
                self.sink(
                    Notice(
                        level="warning",
                        message="the database was restored or failed over since this run began: "
                        "it starts from the beginning",
                    )
                )
            await self.ledger.set_state(record.run_id, RunState.RUNNING, origin=identity.origin)
        await self.ledger.add_relations(record.run_id, [(t.oid, t.relation, t.target) for t in tables])
        return [Course(table, leases[table.relation]) for table in tables]

    async def _refuse_ended(self, record: RunRecord) -> None:
        """Raises when somebody cancelled the run while this process was on its way to the tables."""
        now = await self.ledger.latest()
        ours = now is not None and now.run_id == record.run_id
        if now is None or not ours or record.state.finished or not now.state.finished:
            return
        await self.guard.release(finished=True)
        raise UsageError(
            f"run {now.run_id} was {now.state} by {now.state_by} before it went on",
            hint="rewrap run begins anew; nothing was written",
        )

    def _say_started(self, record: RunRecord, tables: Sequence[Table], *, resumed: bool) -> None:
        keyring = self.rotation.keyring
        versions = [*self.rotation.from_versions, self.rotation.to_version]
        self.sink(
            RunStarted(
                run_id=record.run_id,
                job=record.job,
                from_versions=list(self.rotation.from_versions),
                to_version=self.rotation.to_version,
                targets=[table.name for table in tables],
                fingerprints={v: keyring.get(v).fingerprint for v in versions},
                resumed=resumed,
                dry_run=False,
                text_fingerprints=keyring.text_fingerprints(versions),
                quiesced=self.rotation.job.quiesced,
            )
        )


def _proof_name(commitments: Mapping[str, str], place: Place) -> str:
    """What the ledger calls a key that opened values of a column: a hash, and no name in it."""
    relation, column, version = place
    named = "\x00".join((commitments[version], relation, column))
    return hashlib.sha256(named.encode()).hexdigest()


def _check_commitments(latest: RunRecord, commitments: Mapping[str, str]) -> None:
    for version, commitment in commitments.items():
        if latest.commitments.get(version, commitment) != commitment:
            raise KeyRefused(
                f'key version "{version}" is not the key that run {latest.run_id} began with',
                hint="one name must not stand for two keys; restore the first one",
            )
