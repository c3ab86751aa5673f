"""From a job to its keyring, whoever keeps the keys.

What a provider needs is imported when a job names it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Protocol, cast, runtime_checkable

from rewrap.errors import KeyAccessError, UsageError
from rewrap.job import Job
from rewrap.keys.keyring import Keyring
from rewrap.keys.listed import Listed
from rewrap.keys.local import list_keys, local_key


async def open_keyring(
    job: Job,
    required: Sequence[str],
    environ: Mapping[str, str] = os.environ,
    *,
    wanted: Sequence[str] | None = None,
) -> Keyring:
    """The job's keys: those required, and what else is at hand. To be closed after use.

    Raises KeyAccessError where a required one is not there. Of a vault, only those `wanted` are looked at
    besides, None being every enabled version it lists: each takes a call. `known` of the keyring are the
    versions that exist as far as anybody told.
    """
    if not job.keys.provided:
        return open_local(job, required, environ)
    keyring = await _provider(job.keys.provider).open_keys(job, required, wanted, environ)
    if job.rewraps_in_place:
        keyring.rewrap_in_place(None)
    return keyring


async def versions_of(job: Job, names: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """The versions that those of these names that are labels point to now, by label.

    A label may point to another version in a moment: whoever begins something asks once, and goes on with the
    versions. Raises KeyAccessError where a name is neither a label nor a version.
    """
    provider = _provider(job.keys.provider) if job.keys.provided else None
    return await provider.versions_of(job, names, environ) if isinstance(provider, LabelProvider) else {}


async def listed_keys(job: Job, environ: Mapping[str, str] = os.environ) -> list[Listed]:
    """What the job's keeper tells of every version that there is; of a key that cannot be had, why.

    Raises KeyAccessError only where the keeper itself cannot be asked.
    """
    if not job.keys.provided:
        return await list_keys(job, environ)
    provider = _provider(job.keys.provider)
    if isinstance(provider, ListingProvider):
        return await provider.list_keys(job, environ)
    keyring = await provider.open_keys(job, [], None, environ)
    try:
        shown = {key.version: (key.fingerprint, key.fingerprint_of) for key in keyring}
        return [
            Listed(
                version,
                usable=version in shown,
                state="at hand" if version in shown else "not at hand",
                fingerprint=shown.get(version, (None,))[0],
                fingerprint_of=shown.get(version, ("", ""))[1],
            )
            for version in keyring.known
        ]
    finally:
        await keyring.close()


class Provider(Protocol):
    """A module that has the keys of one kind of keeper."""

    async def open_keys(
        self, job: Job, required: Sequence[str], wanted: Sequence[str] | None, environ: Mapping[str, str]
    ) -> Keyring:
        """The versions required, and of those wanted what may be used; None wants every one there is.

        A required version that is not there, or may not be used, raises KeyAccessError.
        """
        ...


@runtime_checkable
class LabelProvider(Provider, Protocol):
    """A provider whose versions have labels, which can be moved from one to another."""

    async def versions_of(
        self, job: Job, names: Sequence[str], environ: Mapping[str, str]
    ) -> dict[str, str]: ...


@runtime_checkable
class ListingProvider(Protocol):
    """A provider that tells of a key's versions without using them."""

    async def list_keys(self, job: Job, environ: Mapping[str, str]) -> list[Listed]: ...


_PROVIDERS = {
    "azure-key-vault": ("rewrap.keys.vault", ""),
    "aws-secrets-manager": ("rewrap.keys.awssecret", "aws"),
    "aws-kms": ("rewrap.keys.awskms", "aws"),
    "files": ("rewrap.keys.files", ""),
    "pkcs11": ("rewrap.keys.token", "pkcs11"),
    "vault-transit": ("rewrap.keys.transit", ""),
}
"""The module of each provider, and the extra that it takes to install what it needs."""


def _provider(name: str) -> Provider:
    module, extra = _PROVIDERS[name]
    try:
        return cast("Provider", import_module(module))
    except ModuleNotFoundError as exc:
        if not extra or (exc.name or "").startswith("rewrap"):
            raise
        raise UsageError(
            f'keys.provider "{name}" needs a package that is not installed: {exc.name}',
            hint=f"pip install 'rewrap[{extra}]'",
        ) from None


def open_local(job: Job, required: Sequence[str], environ: Mapping[str, str]) -> Keyring:
    """Keys from environment variables and files: those required, and whatever others are there."""
    keys = []
    for version in job.keys.versions:
        try:
            keys.append(local_key(job, version, environ))
        except KeyAccessError:
            if version in required:
                raise
    return Keyring(keys, known=job.versions)
