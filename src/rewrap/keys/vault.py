"""The keys of a job whose `[keys]` are in Azure Key Vault, each with what opens its values there."""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from azure.core.credentials_async import AsyncTokenCredential

from rewrap.crypto.ciphers import CIPHERS
from rewrap.errors import KeyAccessError, KeyRefused
from rewrap.job import Job
from rewrap.keys.azure import ROLE, KeyVault, VaultVersion
from rewrap.keys.keyring import Doubt, Key, Keyring
from rewrap.keys.listed import Listed, Permission
from rewrap.ledgers.opened import latest_run

DESCRIBED = 25
"""Versions that are listed with their public keys: each takes a call."""

TRIED_BYTES = 32
"""Bytes of the random key that a trial wraps: what a data key of AES-256 has."""


async def open_keys(
    job: Job, required: Sequence[str], wanted: Sequence[str] | None, environ: Mapping[str, str]
) -> Keyring:
    """As `open_vault`, with azure-identity's default credential."""
    return await open_vault(job, required, wanted)


async def open_vault(
    job: Job,
    required: Sequence[str],
    wanted: Sequence[str] | None,
    credential: AsyncTokenCredential | None = None,
) -> Keyring:
    """The versions required, and of those wanted what the vault lets be used; None wants every enabled one.

    A required version that is not there, disabled or not to be read raises KeyAccessError. `credential` is
    azure-identity's default one unless given.
    """
    vault = _vault(job, credential)
    try:
        return await _open(job, required, wanted, vault)
    except BaseException:
        await vault.close()
        raise


def _vault(job: Job, credential: AsyncTokenCredential | None = None) -> KeyVault:
    section = job.keys
    assert section.vault is not None
    assert section.name is not None
    return KeyVault(
        section.vault,
        section.name,
        calls_per_s=section.max_calls_per_s,
        in_flight=section.in_flight,
        patience_s=section.patience_s,
        credential=credential,
    )


async def list_keys(job: Job, environ: Mapping[str, str]) -> list[Listed]:
    """Every version of the key, the oldest first, the newest DESCRIBED of them with their public keys.

    Where this identity may not list them, those that the newest run has to do with. Raises KeyAccessError
    where there are none, or the vault cannot be asked.
    """
    vault = _vault(job)
    try:
        there = await vault.versions()
        may_list = there is not None
        if there is None:
            latest = await latest_run(job, environ)
            if latest is None:
                raise _not_listed(vault)
            names = dict.fromkeys((*latest.from_versions, latest.to_version))
            there = [VaultVersion(name, True, None, None) for name in names]
        found = []
        for at, one in enumerate(there):
            # whoever asks for "the latest" gets the one made last, enabled or not
            current = at == len(there) - 1 if may_list else None
            described = at >= len(there) - DESCRIBED
            found.append(await _listed(vault, one, current, described=described, may_list=may_list))
        return found
    finally:
        await vault.close()


async def _listed(
    vault: KeyVault, one: VaultVersion, current: bool | None, *, described: bool, may_list: bool
) -> Listed:
    state, may_get = "", None
    if described:
        try:
            one, may_get = await vault.describe(one.version), True
        except KeyAccessError as exc:
            if exc.code in ("key-away", "key-no-identity"):
                raise
            may_get = None if exc.code != "key-not-permitted" else False
            state = exc.message.partition(f'version "{one.version}"')[2].lstrip(": ") or exc.message
    now = datetime.now(UTC)
    if not one.enabled:
        state = "disabled"
    elif one.expires is not None and one.expires <= now:
        state = f"expired {one.expires:%Y-%m-%d}: unwraps, does not wrap"
    elif one.not_before is not None and one.not_before > now:
        state = f"not valid before {one.not_before:%Y-%m-%d}"
    key = Key(one.version, one.der) if one.der else None

    def allowed(operation: str) -> bool | None:
        """Whether the key itself allows it; whether the identity may, only doing it tells."""
        return False if not one.enabled or (one.der and operation not in one.operations) else None

    return Listed(
        one.version,
        current=current,
        usable=one.enabled and (key is not None or not described),
        state=state or ("enabled" if may_list or key is not None else "not known"),
        created=one.created,
        fingerprint=None if key is None else key.fingerprint,
        fingerprint_of="sha256 of the public key in DER" if key is not None else "",
        permissions=(
            Permission("list", "keys/list", may_list),
            Permission("read", "keys/get", may_get),
            Permission("unwrap", "keys/unwrapKey", allowed("unwrapKey")),
            Permission("wrap", "keys/wrapKey", allowed("wrapKey")),
        ),
    )


def _not_listed(vault: KeyVault) -> KeyAccessError:
    return KeyAccessError(
        f"{vault.shown}: this identity may not list the versions that there are",
        hint=f'name them in --from, or grant it keys/list, or the role "{ROLE}"',
        code="key-not-permitted",
    )


async def _open(job: Job, required: Sequence[str], wanted: Sequence[str] | None, vault: KeyVault) -> Keyring:
    listed = await vault.versions()
    there = None if listed is None else [one.version for one in listed]
    for version in required:
        if there is not None and version not in there:
            raise KeyRefused(
                f'{vault.shown} has no version "{version}"',
                hint=f"versions visible to this identity are {', '.join(there) or 'none'}",
                code="key-missing",
            )
    if wanted is None:
        if listed is None:
            raise _not_listed(vault)
        wanted = [one.version for one in listed if one.enabled]
    keys: list[Key] = []
    for version in dict.fromkeys((*required, *wanted)):
        try:
            keys.append(await _key(vault, version, job.remote_cipher))
        except KeyAccessError:
            if version in required:
                raise
    known = dict.fromkeys((*(there or ()), *required, *wanted))
    return Keyring(keys, known=tuple(known), keeper=vault, reopen=job.keys.reopen, unlisted=listed is None)


async def _key(vault: KeyVault, version: str, cipher: str) -> Key:
    described = await vault.describe(version)
    if not described.enabled:
        raise vault.disabled(version)
    return Key(version, described.der, remote=VaultKey(vault, described, cipher))


class VaultKey:
    """One version of a key in a vault: what opens values under it. `cipher` is the layouts' name of how."""

    def __init__(self, vault: KeyVault, described: VaultVersion, cipher: str) -> None:
        self._vault, self._described, self._cipher = vault, described, cipher

    async def unwrap(self, wrapped: Sequence[bytes]) -> list[bytes | None]:
        return await self._vault.unwrap(self._described.version, self._cipher, wrapped)

    @property
    def waiting_for(self) -> str:
        return self._vault.gate.reason

    @property
    def calls(self) -> int:
        return self._vault.calls[self._described.version]

    @property
    def calls_per_s(self) -> float:
        """Calls a second that are made at most."""
        return self._vault.calls_per_s

    @property
    def budget(self) -> str:
        """Where that comes from, in words."""
        return self._vault.budget

    async def tried(self, *, target: bool) -> list[Doubt]:
        """What the vault says to a key wrapped and unwrapped there, once; an "info" when it was one.

        Wrapping with the public key takes no permission and shows no state: only the vault's own answers do.
        `target` when values are to be written under this version.
        """
        doubts = self._validity(target)
        version, vault = self._described.version, self._vault
        secret = os.urandom(TRIED_BYTES)
        (wrapped_here,) = CIPHERS[self._cipher].sealer(self._described.der)([secret], None)
        try:
            (opened,) = await self.unwrap([wrapped_here])
        except KeyAccessError as exc:
            return [*doubts, Doubt("error", _apart(exc.code, "unwrap"), exc.message, exc.hint)]
        if opened is None or not hmac.compare_digest(opened, secret):
            what = f"the vault does not unwrap what was wrapped with its public key by {self._cipher}"
            return [*doubts, Doubt("error", "key-unfit", what, "see what operations the key allows")]
        try:
            wrapped_there = await vault.wrap(version, self._cipher, secret)
            again = None if wrapped_there is None else (await self.unwrap([wrapped_there]))[0]
        except KeyAccessError as exc:
            # new values are wrapped here; that the vault would not, an application finds out
            severity = "warning" if exc.code == "key-not-permitted" or not target else "error"
            return [*doubts, Doubt(severity, _apart(exc.code, "wrap"), exc.message, exc.hint)]
        if again is None or not hmac.compare_digest(again, secret):
            what = "the vault does not unwrap what it wrapped itself"
            return [*doubts, Doubt("error", "key-unfit", what, None)]
        if not doubts:
            what = f"the vault wrapped and unwrapped a test key under it (RSA-{self._described.bits})"
            doubts.append(Doubt("info", "key-unwraps", what, None))
        return doubts

    def _validity(self, target: bool) -> list[Doubt]:
        """A window of validity that is over, or not open yet: the vault still unwraps, and does not wrap."""
        now, severity = datetime.now(UTC), "error" if target else "warning"
        begin, end = self._described.not_before, self._described.expires
        if end is not None and end <= now:
            what = f"expired at {end:%Y-%m-%d %H:%M} UTC: it unwraps, and applications cannot wrap under it"
            return [Doubt(severity, "key-expired", what, "mint a new version, or move its date")]
        if begin is not None and begin > now:
            what = f"is not valid before {begin:%Y-%m-%d %H:%M} UTC: applications cannot wrap under it"
            return [Doubt(severity, "key-not-yet-valid", what, "wait until then, or move its date")]
        return []


def _apart(code: str, operation: str) -> str:
    """A finding's code: which operation it is that is not allowed."""
    return f"key-no-{operation}" if code == "key-not-permitted" else code
