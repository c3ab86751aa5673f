"""From the versions on a command line to a rotation: the keys that they name, at hand or in a vault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from rewrap.engine.compile import Rotation
from rewrap.errors import KeyAccessError, UsageError
from rewrap.events import Notice
from rewrap.job import Job, split_versions
from rewrap.keys.keyring import Keyring
from rewrap.keys.open import open_keyring, open_local, versions_of
from rewrap.ledgers.opened import latest_run
from rewrap.stores.open import Stores


class Closing(Protocol):
    async def close(self) -> None: ...


async def close_all(*opened: Closing) -> None:
    """Closes what was opened, in this order."""
    for one in opened:
        await one.close()


def with_deks(rotation: Rotation, stores: Stores) -> Rotation:
    """A rotation with those who keep the records of DEKs, which are to be closed after use."""
    return replace(rotation, deks=stores.deks())


async def rotation_of(job: Job, from_versions: str, to_version: str, environ: Mapping[str, str]) -> Rotation:
    """The rotation that a `--from` and a `--to` ask for, with its keys; `any` is all others at hand.

    Its keyring is to be closed after use. Its job knows every version that anybody told of.
    """
    if job.keys.provided:
        return await _provided_rotation(job, from_versions, to_version, environ)
    if from_versions == "any":
        at_hand = [key.version for key in open_local(job, [], environ) if key.version != to_version]
        if not at_hand and to_version in job.versions:
            raise _nothing_at_hand(job, to_version, "set their variables or files")
        from_versions = ",".join(at_hand)
    versions = job.resolve_from(from_versions, to_version)
    keyring = open_local(job, [*versions, to_version], environ)
    keyring.require_distinct(versions, to_version)
    return Rotation(job, keyring, versions, to_version)


async def _provided_rotation(
    job: Job, from_versions: str, to_version: str, environ: Mapping[str, str]
) -> Rotation:
    every = from_versions == "any"
    named = [] if every else split_versions(from_versions)
    # once, and before anything else: a label that moves from now on changes nothing
    labels = await versions_of(job, [*named, to_version], environ)
    named, to_version = [labels.get(name, name) for name in named], labels.get(to_version, to_version)
    if labels and to_version in named:
        raise UsageError(
            f"--from and --to both stand for version {to_version}: "
            + ", ".join(label for label, version in labels.items() if version == to_version),
            hint="--from is the version that values leave; rewrap keys list shows where labels point",
        )
    latest = await latest_run(job, environ)
    keyring = await open_keyring(job, [*named, to_version], environ, wanted=None if every else [])
    try:
        earlier = () if latest is None else (*latest.from_versions, latest.to_version)
        job = job.with_versions((*keyring.known, *earlier))
        if every:
            named = [key.version for key in keyring if key.version != to_version]
            if not named:
                raise _nothing_at_hand(job, to_version, "enable the version that values are under")
        versions = job.resolve_from(",".join(named), to_version)
        keyring.require_distinct(versions, to_version)
        if job.rewraps_in_place:
            keyring.rewrap_in_place(to_version)
    except BaseException:
        await keyring.close()
        raise
    return Rotation(job, keyring, versions, to_version, labels=labels)


def notices_of(rotation: Rotation) -> list[Notice]:
    """What there is to say of a rotation's versions before it begins."""
    versions = (*rotation.from_versions, rotation.to_version)
    doubts = [(version, doubt) for version in versions for doubt in rotation.keyring.doubts.get(version, ())]
    return label_notices(rotation.labels) + [
        Notice(level=doubt.severity, message=f"key {version} {doubt.reason}", hint=doubt.hint)
        for version, doubt in doubts
    ]


def label_notices(labels: Mapping[str, str]) -> list[Notice]:
    """What labels were taken for."""
    return [
        Notice(level="info", message=f'label "{label}" is taken for version {version}')
        for label, version in labels.items()
    ]


async def version_to_verify(
    job: Job, version: str | None, environ: Mapping[str, str]
) -> tuple[str, Mapping[str, str]]:
    """The version named, or else the last run's, and what labels were taken for.

    Raises UsageError for one that the job does not have.
    """
    if version is None:
        latest = await latest_run(job, environ)
        if latest is None:
            raise UsageError(f'job "{job.name}" has no run to verify', hint="name the version: --to v2")
        version = latest.to_version
    # what versions a vault has, only the vault can say
    if version not in job.versions and not job.keys.provided:
        raise UsageError(
            f'job "{job.name}" has no key version "{version}"',
            hint=f"versions in the job are {', '.join(job.versions)}",
        )
    labels = await versions_of(job, [version], environ)
    return labels.get(version, version), labels


async def keys_to_verify(
    job: Job, to_version: str, left: Sequence[str], environ: Mapping[str, str]
) -> Keyring:
    """The new key, and those that values may have come from: whatever there is, if no ledger tells."""
    try:
        return await open_keyring(job, [to_version], environ, wanted=left or None)
    except KeyAccessError as exc:
        if left or exc.code != "key-not-permitted":
            raise
    # what may not be listed cannot be looked at: verify says so where it matters
    return await open_keyring(job, [to_version], environ, wanted=[])


def _nothing_at_hand(job: Job, to_version: str, what_to_do: str) -> KeyAccessError:
    return KeyAccessError(
        f'no key but that of "{to_version}" is at hand to open values with',
        hint=f"versions in the job are {', '.join(job.versions)}; {what_to_do}",
    )
