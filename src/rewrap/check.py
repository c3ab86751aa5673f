"""Check: everything that would stop a rotation, spoil it or surprise its owner, each thing as a finding.

Nothing stops at the first error: each table, each key and each probe is asked on its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from rewrap.crypto.layout import LayoutError
from rewrap.deks import DekStore
from rewrap.engine.compile import Rotation
from rewrap.engine.proof import Proof, gather_proof, judge_target, source_faults, unnamed_faults
from rewrap.engine.rehearsal import REHEARSED_ROWS
from rewrap.errors import KeyRefused, RewrapError, StoreError
from rewrap.events import Checked, Finding
from rewrap.interfaces import Store, SwapBatch
from rewrap.job import Job
from rewrap.keys.keyring import Keyring, TriedKey
from rewrap.model import Table
from rewrap.packed import listed
from rewrap.probes.ask import Answer
from rewrap.storage import PostgresStore

Canary = Callable[[Table, SwapBatch], Awaitable[bool]]
"""Swaps a row, reads it back and rolls back; False when it was locked."""

Lengths = Callable[[Table, Sequence[str]], Awaitable[Mapping[str, tuple[int, int]]]]
"""For columns of limited length: the most characters they take, and the longest value seen."""

_FITNESS = {"22": "data", "23": "integrity", "44": "a view's condition"}
"""SQLSTATE classes with which a database refuses a value, and not the way it was sent."""


@dataclass(frozen=True, slots=True)
class Check:
    """All findings, the gravest first, and the fingerprints of the keys that were at hand."""

    job: Job
    findings: tuple[Finding, ...]
    fingerprints: dict[str, str]

    def count(self, severity: str) -> int:
        return sum(1 for one in self.findings if one.severity == severity)

    @property
    def exit_code(self) -> int:
        return 1 if self.count("error") else 0

    def event(self) -> Checked:
        return Checked(
            job=self.job.name,
            targets=[target.table for target in self.job.targets],
            errors=self.count("error"),
            warnings=self.count("warning"),
            infos=self.count("info"),
            fingerprints=self.fingerprints,
            exit_code=self.exit_code,
        )


@dataclass
class Findings:
    """Collects findings, each once."""

    found: list[Finding] = field(default_factory=list)

    def add(self, severity: str, code: str, subject: str, reason: str, hint: str | None = None) -> None:
        one = Finding(severity=severity, code=code, subject=subject, reason=reason, hint=hint)
        if one not in self.found:
            self.found.append(one)

    def refused(self, exc: RewrapError, code: str, subject: str, severity: str = "error") -> None:
        self.add(severity, code, subject, exc.message, exc.hint)

    def ordered(self) -> tuple[Finding, ...]:
        """Errors first, then warnings; within them as they were found."""
        rank = ("error", "warning", "info")
        return tuple(sorted(self.found, key=lambda one: rank.index(one.severity)))


async def try_remote(out: Findings, rotation: Rotation | None) -> bool:
    """Has each key of a rotation tried where it is kept. False when one is refused there."""
    if rotation is None:
        return True
    fit = True
    for version in (*rotation.from_versions, rotation.to_version):
        remote = rotation.keyring.get(version).remote
        if not isinstance(remote, TriedKey):
            continue
        for doubt in await remote.tried(target=version == rotation.to_version):
            out.add(doubt.severity, doubt.code, f"key {version}", doubt.reason, doubt.hint)
            fit = fit and doubt.severity != "error"
    return fit


async def check_keys(
    out: Findings,
    job: Job,
    keyring: Keyring,
    store: Store,
    tables: Sequence[Table],
    rotation: Rotation | None,
    deks: Mapping[str, DekStore],
) -> Proof:
    """Tries the keys on stored values: those of the rotation, or all that are at hand without one."""
    if rotation is None:
        versions = [key.version for key in keyring if _fits(job, key.version)]
    else:
        versions = [*rotation.from_versions, rotation.to_version]
    if not versions or not tables:
        return Proof()
    tried = rotation or Rotation(job, keyring, tuple(versions[1:]), versions[0], deks)
    proof = Proof()
    for table in tables:
        subject = f"table {table.name}"
        try:
            one = await gather_proof(store, [table], tried)
        except StoreError as exc:
            out.refused(exc, "unreadable", subject)
            continue
        except KeyRefused as exc:
            out.refused(exc, "key-unfit", subject)
            continue
        proof.opened.update(one.opened)
        proof.failed.update(one.failed)
        proof.where = one.where | proof.where
        proof.rows |= one.rows
        proof.unnamed |= one.unnamed
    for version in versions:
        _judge(out, job, proof, keyring, version, rotation)
    for fault in unnamed_faults(proof, rotation.from_versions if rotation else versions, keyring):
        out.refused(fault, "key-refused", f"keys {', '.join(versions)}")
    return proof


def _fits(job: Job, version: str) -> bool:
    """Whether every layout in use can carry a version."""
    try:
        for entry in job.keyed:
            job.old_layout(entry).prefix_of(version)
    except LayoutError:
        return False
    return True


def _judge(
    out: Findings, job: Job, proof: Proof, keyring: Keyring, version: str, rotation: Rotation | None
) -> None:
    key, subject = keyring.get(version), f"key {version}"
    opened, failed = proof.count(version)
    is_target = rotation is not None and version == rotation.to_version
    try:
        if is_target:
            judge_target(
                proof, key, expected_fingerprint=None, allow_unseen=True, allow_unopenable=False
            )  # fmt: skip
    except KeyRefused as exc:
        out.refused(exc, "key-refused", subject)
        return
    faults = [] if is_target else list(source_faults(proof, [version], keyring))
    for fault in faults:
        out.refused(fault, "key-refused", subject)
    if faults:
        return
    if opened:
        out.add(
            "warning" if failed else "info", "key-proven", subject,
            f"opens {opened} of {opened + failed} stored values that were tried ({key.fingerprint})",
            "a run puts aside what does not open" if failed else None,
        )  # fmt: skip
    elif is_target:
        out.add(
            "warning", "key-unseen", subject,
            f"{_none(proof)} is under it{'' if proof.unnamed else ' yet'}, so nothing proves that it is the "
            f"application's ({key.fingerprint})",
            f"compare the fingerprint with the owner's, and run with --to-fingerprint {key.fingerprint}",
        )  # fmt: skip
    elif rotation is not None:
        sampled = any(isinstance(one, PostgresStore) for one in job.stores.values())
        out.add(
            "warning", "nothing-in-scope", subject,
            f"{_none(proof)} is under it ({key.fingerprint})",
            "check --from, and the layout's marker"
            + (": rewrap discover says what values begin with" if sampled else ""),
        )  # fmt: skip
    else:
        out.add(
            "info", "key-at-hand", subject, f"is at hand, and {_none(proof)} is under it ({key.fingerprint})"
        )


def _none(proof: Proof) -> str:
    """No value, and how that is known: of values that name no version only some were opened."""
    return "none of the stored values that were tried" if proof.unnamed else "no stored value"


async def check_writes(
    out: Findings,
    rotation: Rotation,
    store: Store,
    tables: Sequence[Table],
    proof: Proof,
    canary: Canary | None,
    lengths: Lengths,
) -> None:
    """What becomes of new values: fences, lengths, and one row of each table written and rolled back."""
    for table in tables:
        subject = f"table {table.name}"
        try:
            await store.refuse_fenced(table, rotation.target_markers(table))
        except StoreError as exc:
            out.refused(exc, "fenced", subject)
        batches = await _resealed(rotation, table, proof)
        await _check_lengths(out, table, batches, lengths)
        if canary is None:
            out.add(
                "warning", "canary-not-tried", subject,
                "no row was written for trial: this role may not make temporary tables",
                "GRANT TEMPORARY ON DATABASE … TO the role; a run rehearses one write in any case",
            )  # fmt: skip
        elif not batches:
            out.add("info", "canary-not-tried", subject, "no row was written for trial: none is in scope")
        else:
            await _try(out, table, batches, canary)


async def _resealed(rotation: Rotation, table: Table, proof: Proof) -> list[SwapBatch]:
    if table.relation not in proof.rows:
        return []
    reseal = rotation.reseal(table)
    batches = [
        (await rotation.resolved(partial(reseal, [row]))).swap
        for row in proof.rows.get(table.relation, [])[:REHEARSED_ROWS]
    ]
    return [batch for batch in batches if len(batch)]


async def _try(out: Findings, table: Table, batches: Sequence[SwapBatch], canary: Canary) -> None:
    subject = f"table {table.name}"
    refused: StoreError | None = None
    for batch in batches:
        try:
            if await canary(table, batch):
                out.add(
                    "info", "canary", subject,
                    "one row was resealed, read back byte for byte and rolled back",
                )  # fmt: skip
                return
        except StoreError as exc:
            refused = exc
    if refused is None:
        out.add(
            "warning", "canary-not-tried", subject, "no row was written for trial: those tried were locked",
            "check again; a run waits for locks, and puts off what stays locked",
        )  # fmt: skip
        return
    of_value = refused.sqlstate[:2] in _FITNESS
    out.add(
        "error", "canary-refused", subject,
        f"the database refused or changed the row written for trial: {refused.message}",
        "see the constraint or trigger named; as it is, values would be put aside"
        if of_value
        else refused.hint,
    )  # fmt: skip


async def _check_lengths(out: Findings, table: Table, batches: Sequence[SwapBatch], lengths: Lengths) -> None:
    grown: dict[str, int] = {}
    for batch in batches:
        for name, news in batch.news.items():
            for old, new in zip(listed(batch.olds[name]), listed(news), strict=True):
                if isinstance(old, str) and isinstance(new, str):
                    grown[name] = max(grown.get(name, 0), len(new) - len(old))
    for column, (most, longest) in (await lengths(table, list(grown))).items():
        if longest + grown[column] > most:
            out.add(
                "error", "too-long", f"table {table.name}",
                f'column "{column}" takes {most:,} characters; values of up to {longest:,} grow by '
                f"{grown[column]}",
                f"ALTER TABLE … ALTER COLUMN … TYPE varchar({longest + grown[column]}) or longer, or text",
            )  # fmt: skip


def report_probes(out: Findings, answers: Sequence[Answer]) -> None:
    """Probes as findings: whether they passed and how long they took."""
    for answer in answers:
        subject = f'probe "{answer.name}"'
        if answer.passed:
            out.add("info", "probe", subject, f"passed in {answer.seconds:.1f} s")
        else:
            out.add(
                "error", "probe-failed", subject, answer.said,
                "ask it by hand as the job file has it; rewrap does not show what it answers",
            )  # fmt: skip
