"""The keys of a job whose `[keys]` are in AWS KMS, each with what opens and wraps its values there."""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import anyio

from rewrap.crypto.aad import AadObject
from rewrap.crypto.elsewhere import Opening, Rewrapped, Sealing, descriptor
from rewrap.errors import KeyAccessError
from rewrap.job import Job
from rewrap.keys.aws import ALLOW_WHERE
from rewrap.keys.keyring import Doubt, Key, Keyring, RewrappingKey
from rewrap.keys.kms import CIPHERTEXT_BYTES_MAX, USABLE, Kms, KmsVersion, unusable
from rewrap.keys.listed import Listed, Permission

T = TypeVar("T")
S = TypeVar("S")

TRIED_BYTES = 32
"""Bytes of the random key that a trial wraps: what a data key of AES-256 has."""

TRIED = "rewrap check"
"""Stands in a trial's encryption context for what a row would have there."""


async def open_keys(
    job: Job, required: Sequence[str], wanted: Sequence[str] | None, environ: Mapping[str, str]
) -> Keyring:
    """The versions required, and of those wanted what may be used; None wants every one the job names.

    Raises KeyAccessError for a required one that is not there, not enabled, or of another kind.
    """
    kms = Kms(job.keys)
    try:
        return await _open(job, required, wanted, kms)
    except BaseException:
        await kms.close()
        raise


async def _open(job: Job, required: Sequence[str], wanted: Sequence[str] | None, kms: Kms) -> Keyring:
    if wanted is None and not kms.named:
        raise KeyAccessError(
            "aws kms: the job names no keys, and which ones there may be nobody tells",
            hint='name them in keys.aws-kms.keys = { v1 = "arn:…" }, or in --from',
            code="key-not-permitted",
        )
    wanted = kms.named if wanted is None else wanted
    context = _trial_context(job)
    keys: list[Key] = []
    for version in dict.fromkeys((*required, *wanted)):
        try:
            found = await kms.described(version)
            if refused := unusable(found):
                raise refused
        except KeyAccessError:
            if version in required:
                raise
            continue
        keys.append(Key(version, _descriptor(found), remote=KmsKey(kms, found, context)))
    known = dict.fromkeys((*kms.named, *required, *wanted))
    return Keyring(keys, known=tuple(known), keeper=kms, reopen=job.keys.reopen, unlisted=not kms.named)


def _descriptor(version: KmsVersion) -> bytes:
    return descriptor("aws-kms", version.arn)


def _trial_context(job: Job) -> dict[str, str]:
    """An encryption context with the members that the job's first layout has, and nobody's values."""
    aad = job.layout(job.keyed[0].layout).aad if job.keyed else None
    return {name: TRIED for name, _ in aad.members} if isinstance(aad, AadObject) else {}


class KmsKey:
    """One key: opens and wraps there, or rewraps there once it was aimed. `context` is for trials."""

    def __init__(self, kms: Kms, version: KmsVersion, context: Mapping[str, str]) -> None:
        self._kms, self._version, self._context = kms, version, context
        self._in_place = False
        self._target: KmsKey | None = None

    def aim(self, target: RewrappingKey | None) -> None:
        self._in_place = True
        self._target = target if isinstance(target, KmsKey) else None

    async def opened(self, items: Sequence[Opening]) -> list[bytes | None]:
        """As `WrappingKey` has it. In place, one ReEncrypt each; to itself where it is to stay as it is."""
        return await self._each(self._open_one, items)

    async def sealed(self, items: Sequence[Sealing]) -> list[bytes]:
        """Each plaintext wrapped, by an Encrypt."""

        async def one(item: Sealing) -> bytes:
            plain, aad, _ = item
            return await self._kms.encrypted(self._version, plain, _context(aad))

        return await self._each(one, items)

    async def _open_one(self, item: Opening) -> bytes | None:
        wrapped, aad = item
        # what KMS cannot have made needs no call to be known
        if not 1 <= len(wrapped) <= CIPHERTEXT_BYTES_MAX:
            return None
        if not self._in_place:
            return await self._kms.decrypted(self._version, wrapped, _context(aad))
        target = self._version if self._target is None else self._target._version
        new = await self._kms.rewrapped(self._version, target, wrapped, _context(aad))
        if new is None:
            return None
        # to itself it was only to show that it opens, as what it is bound to says
        return Rewrapped(wrapped, wrapped if self._target is None else new)

    async def _each(self, work: Callable[[S], Awaitable[T]], items: Sequence[S]) -> list[T]:
        """What each item comes to, in order, as many at a time as may be under way.

        The first KeyAccessError ends them all: then nothing is known of any.
        """
        out: dict[int, T] = {}
        rest = iter(enumerate(items))
        refused: list[KeyAccessError] = []

        async def worker(scope: anyio.CancelScope) -> None:
            for at, one in rest:
                try:
                    out[at] = await work(one)
                except KeyAccessError as exc:
                    refused.append(exc)
                    scope.cancel()
                    return

        async with anyio.create_task_group() as group:
            for _ in range(min(self._kms.in_flight, len(items))):
                group.start_soon(worker, group.cancel_scope)
        if refused:
            raise refused[0]
        return [out[at] for at in range(len(items))]

    @property
    def waiting_for(self) -> str:
        return self._kms.gate.reason

    @property
    def calls(self) -> int:
        return self._kms.calls(self._version.version)

    @property
    def calls_per_s(self) -> float:
        """Calls a second that are made at most."""
        return self._kms.calls_per_s

    @property
    def budget(self) -> str:
        """Where that comes from, in words."""
        return self._kms.budget

    async def tried(self, *, target: bool) -> list[Doubt]:
        """What KMS says to a random key that is wrapped under it, and goes the way that values will go."""
        doubts = self._noted()
        secret = os.urandom(TRIED_BYTES)
        try:
            wrapped = await self._kms.encrypted(self._version, secret, self._context)
        except KeyAccessError as exc:
            return [*doubts, self._unwrapped_trial(exc, target)]
        try:
            if self._in_place:
                await self._tried_in_place(wrapped)
            else:
                opened = await self._kms.decrypted(self._version, wrapped, self._context)
                if opened is None or not hmac.compare_digest(opened, secret):
                    return [*doubts, Doubt("error", "key-unfit", "KMS does not open what it wrapped", None)]
        except KeyAccessError as exc:
            denied = exc.code == "key-not-permitted"
            # a policy may allow the contexts of rows, and not that of a trial: stored values show it
            severity = "warning" if denied and self._context else "error"
            return [*doubts, Doubt(severity, "key-no-unwrap" if denied else exc.code, exc.message, exc.hint)]
        way = (
            "rewrapped a test key from it" if self._in_place else "wrapped and unwrapped a test key under it"
        )
        return [*doubts, Doubt("info", "key-unwraps", f"KMS {way} ({self._version.arn})", None)]

    async def _tried_in_place(self, wrapped: bytes) -> None:
        """The way of a value: to the target, and there once more; each has to open."""
        at = self
        for to in (self._target or self, self._target or self):
            new = await self._kms.rewrapped(at._version, to._version, wrapped, self._context)
            if new is None:
                raise KeyAccessError("KMS does not open what it wrapped", code="key-unfit")
            at, wrapped = to, new

    def _unwrapped_trial(self, exc: KeyAccessError, target: bool) -> Doubt:
        """What it means that a test key could not be wrapped."""
        if exc.code != "key-not-permitted":
            return Doubt("error", exc.code, exc.message, exc.hint)
        if self._in_place or not target:
            return Doubt(
                "info", "key-no-wrap",
                "this identity may not kms:Encrypt, which this rotation does not need; so nothing was tried "
                "but stored values",
                None,
            )  # fmt: skip
        severity = "warning" if self._context else "error"
        return Doubt(severity, "key-no-wrap", exc.message, exc.hint)

    def _noted(self) -> list[Doubt]:
        """What is worth knowing of the key itself."""
        doubts = []
        if not self._version.state:
            what = "this identity may not kms:DescribeKey: whether the key is enabled, its first use shows"
            hint = f"allow it kms:DescribeKey {ALLOW_WHERE}"
            doubts.append(Doubt("warning", "key-not-described", what, hint))
        if self._version.multi_region:
            what = f"is a multi-Region key: replicas of it open the same values ({self._version.arn})"
            doubts.append(Doubt("info", "key-multi-region", what, None))
        return doubts


def _context(aad: bytes | None) -> dict[str, str]:
    """The encryption context that associated data stand for: a JSON object of texts."""
    return {} if aad is None else dict(json.loads(aad))


async def list_keys(job: Job, environ: Mapping[str, str]) -> list[Listed]:
    """The keys that the job gives names to. Takes some calls for each, and uses no stored value."""
    kms = Kms(job.keys)
    try:
        return [await _listed(kms, version) for version in kms.named]
    finally:
        await kms.close()


async def _listed(kms: Kms, version: str) -> Listed:
    try:
        found = await kms.described(version)
    except KeyAccessError as exc:
        if exc.code in ("key-no-identity", "key-away"):
            raise
        return Listed(version, usable=False, state=exc.message)
    usable = found.state in ("", *USABLE)
    words = [found.state.lower() or "not described", await kms.rotation(found)]
    allowed = [Permission("describe", "kms:DescribeKey", bool(found.state))]
    key = Key(version, _descriptor(found), remote=KmsKey(kms, found, {}))
    return Listed(
        version,
        labels=await kms.aliases(found),
        usable=usable,
        state=", ".join(filter(None, words)),
        created=found.created,
        fingerprint=key.fingerprint,
        fingerprint_of=key.fingerprint_of,
        permissions=(*allowed, *(await _permissions(kms, found) if usable else ())),
    )


async def _permissions(kms: Kms, version: KmsVersion) -> list[Permission]:
    """What this identity may do: from a random key that is wrapped, and from dry runs with that."""
    may: dict[str, bool | None] = {}
    try:
        wrapped = await kms.encrypted(version, os.urandom(TRIED_BYTES), {})
        may["encrypt"] = True
    except KeyAccessError as exc:
        # a dry run takes a value under the key: without one, nothing more can be known
        may["encrypt"] = False if exc.code == "key-not-permitted" else None
    else:
        for verb, trial in (
            ("re-encrypt", partial(kms.rewrapped, version, version)),
            ("decrypt", partial(kms.decrypted, version)),
        ):
            try:
                may[verb] = await trial(wrapped, {}, DryRun=True) is not None
            except KeyAccessError as exc:
                may[verb] = {"key-dry": True, "key-not-permitted": False}.get(exc.code)
    names = {"re-encrypt": "kms:ReEncrypt*", "encrypt": "kms:Encrypt", "decrypt": "kms:Decrypt"}
    return [Permission(verb, name, may.get(verb)) for verb, name in names.items()]
