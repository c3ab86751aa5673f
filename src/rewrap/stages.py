"""The public functions of a switch by labels: the gate, a new version, its proof, a label that moves."""

from __future__ import annotations

import hmac
import os
import shlex
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from rewrap.check import Findings
from rewrap.crypto.ciphers import OPEN_FAILURES
from rewrap.errors import KeyAccessError, KeyRefused
from rewrap.events import Finding
from rewrap.gate import Gate, gate_of, held_by_version
from rewrap.job import Job
from rewrap.keys.awssecret import CURRENT
from rewrap.keys.awsstages import PREVIOUS, Move, Stages, Versions, at, candidates, planned, rolled_back
from rewrap.keys.keyring import Key
from rewrap.keys.open import open_keyring
from rewrap.preflight import check

_SAMPLE = b"a value that rewrap made to try a key"


@dataclass(frozen=True, slots=True)
class Looked:
    """Versions with their labels, and what is stored under each."""

    versions: Versions
    gate: Gate
    unread: Mapping[str, KeyAccessError]
    """Why a version's key cannot be had, of those that cannot."""

    @property
    def candidates(self) -> list[str]:
        return candidates(self.versions)

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        return {one.version: one.labels for one in self.versions.values()}


@dataclass(frozen=True, slots=True)
class Minted:
    """A new version, and where AWSCURRENT still is."""

    key: Key
    stage: str
    current: str


@dataclass(frozen=True, slots=True)
class Moved:
    """A move of a label, and where labels are since then; before it where it was not done.

    `unproven` if what gets AWSCURRENT had no label before: it was no candidate, and never in use of late.
    """

    move: Move
    versions: Versions
    held: Mapping[str, int]
    unproven: bool

    @property
    def current(self) -> str | None:
        return at(CURRENT, self.versions)

    @property
    def previous(self) -> str | None:
        return at(PREVIOUS, self.versions)


async def look(job: Job, environ: Mapping[str, str] = os.environ) -> Looked:
    """Which versions there are, and how many values are under each."""
    async with _opened(job) as stages:
        return await _looked(stages, job, environ)


async def mint(job: Job, stage: str, environ: Mapping[str, str] = os.environ) -> Minted:
    """A new version under a label of rewrap's own. Raises GateClosed where it would strand values."""
    async with _opened(job) as stages:
        looked = await _looked(stages, job, environ)
        looked.gate.require_open(f" {shlex.quote(str(job.path))}")
        key = await stages.mint(stage, looked.versions)
        return Minted(key, stage, stages.current(looked.versions))


async def move(
    job: Job,
    label: str,
    source: str,
    target: str | None,
    *,
    confirmed: bool,
    environ: Mapping[str, str] = os.environ,
) -> Moved:
    """Moves a label, naming both ends; without a target it is taken off. Unless confirmed it only says."""
    async with _opened(job) as stages:
        looked = await _looked(stages, job, environ, target)
        plan = planned(label, source, target, looked.versions, looked.gate.held)
        if target is not None:
            # what nobody can fetch, no application can
            await stages.key(target, looked.versions)
        unproven = label == CURRENT and target is not None and not looked.versions[target].labels
        now = await stages.move(plan) if confirmed else looked.versions
        return Moved(plan, now, looked.gate.held, unproven)


async def canary(job: Job, name: str, environ: Mapping[str, str] = os.environ) -> list[Finding]:
    """What was proven of a candidate before anybody uses it, errors first; none is an error if it passes."""
    out = Findings()
    async with _opened(job) as stages:
        looked = await _looked(stages, job, environ)
        versions, held = looked.versions, looked.gate.held
        version = stages.version_of(name, versions)
        subject = f"key {version}"
        for path in await stages.by_every_path(version):
            out.add("info", "key-fetched", subject, f"is fetched by its id as {path}")
        key = await stages.key(version, versions)
        current = stages.current(versions)
        others = [one for one in versions if one != version]
        await _compare(out, stages, versions, key, current, others)
        _round_trip(out, job, key)
    old = [one for one in others if held.get(one)] or [one for one in (current,) if one != version]
    if not old:
        return list(out.ordered())
    found = await check(job, from_versions=",".join(old), to_version=version, environ=environ)
    for one in found.findings:
        if one.subject.startswith(("key ", "keys ", "table ")) or one.severity == "error":
            out.add(one.severity, one.code, one.subject, one.reason, one.hint)
    return list(out.ordered())


async def _compare(
    out: Findings, stages: Stages, versions: Versions, key: Key, current: str, others: list[str]
) -> None:
    subject, alike, unread = f"key {key.version}", [], 0
    for other in others:
        try:
            known = await stages.key(other, versions)
        except KeyAccessError:
            unread += 1
            continue
        if hmac.compare_digest(known.secret, key.secret):
            alike.append(other)
        if other == current and len(known.secret) != len(key.secret):
            out.add(
                "error", "key-length", subject,
                f"is {len(key.secret)} bytes long, and the current one {len(known.secret)}",
                "take its label off, and mint one of the same form",
            )  # fmt: skip
    for other in alike:
        out.add(
            "error", "key-alike", subject, f"holds the same bytes as {other}",
            "a rotation needs a new key; take its label off, and mint another",
        )  # fmt: skip
    if not alike:
        told = f" ({unread} more could not be read)" if unread else ""
        out.add("info", "key-differs", subject, f"is none of {len(others) - unread} others{told}")


def _round_trip(out: Findings, job: Job, key: Key) -> None:
    """Seals and opens a value in every layout of the job, as it would be in that field."""
    for target, entry in [(one, entry) for one in job.targets if one.dek is None for entry in one.fields]:
        layout = job.new_layout(entry)
        bound = layout.bind(key.version, key.secret, target.table, entry.name, index_key=key.index)
        aads = None if layout.aad is None else [b"rewrap canary"]
        carry = layout.fresh_carry()
        try:
            sealed = bound.seal_values([carry + _SAMPLE], aads)
            opened = bound.open_values(sealed, aads)
        except OPEN_FAILURES as exc:
            raise KeyRefused(
                f"key {key.version} does not open what it sealed for {target.table}.{entry.name}",
                hint="see the layout's cipher and kdf",
                code="key-refused",
            ) from exc
        if list(opened) != [carry + _SAMPLE]:
            raise KeyRefused(f"key {key.version} opens something else than it sealed", code="key-refused")
        out.add(
            "info", "key-round-trip", f"key {key.version}",
            f"seals and opens a value for {target.table}.{entry.name} ({layout.name})",
        )  # fmt: skip


async def _looked(stages: Stages, job: Job, environ: Mapping[str, str], target: str | None = None) -> Looked:
    """What there is. It takes one key that can be had, `target`'s or another, and not the current one."""
    versions = await stages.versions()
    current = stages.current(versions)
    keyring = await open_keyring(job, [], environ)
    try:
        unread = {}
        for version in versions:
            if version not in keyring:
                try:
                    await stages.key(version, versions)
                except KeyAccessError as exc:
                    unread[version] = exc
        first = [one for one in (target, current, *versions) if one is not None and one in keyring]
        if not first:
            raise unread[current] if current in unread else stages.none_readable()
        held = await held_by_version(job, keyring, first[0], environ)
    finally:
        await keyring.close()
    previous = at(PREVIOUS, versions)
    # after a switch was taken back, one more version would strand what is under the one that was given up
    both = previous is not None and not rolled_back(versions)
    allowed = [current, str(previous)] if both else [current]
    return Looked(versions, gate_of(held, list(versions), allowed), unread)


@asynccontextmanager
async def _opened(job: Job) -> AsyncIterator[Stages]:
    stages = Stages(job)
    try:
        yield stages
    finally:
        await stages.close()
