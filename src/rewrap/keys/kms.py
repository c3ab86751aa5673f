"""AWS KMS, as rewrap asks it: symmetric keys, which never leave it.

    DescribeKey   which key it is, its state and kind: once for each version that is opened
    ReEncrypt     takes a value from one key to another; from a key to itself it shows that the value opens
    Decrypt       where a plaintext has to come here: fresh DEKs, a change of layout
    Encrypt       there too; and `check` tries it

A key is named by its ARN in each of these calls, and what an answer says of keys is compared with it. An
alias is resolved once, when a key is opened: it may move under a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

from rewrap.errors import KeyAccessError, KeyRefused
from rewrap.keys.aws import ALLOW_WHERE, Aws, Explain, is_denied
from rewrap.keysections import AwsKms, Keys
from rewrap.pace.gate import Cap, Gate

CALLS_PER_S = 10_000.0
"""Calls a second: the quota "Cryptographic operations (symmetric) request rate", where it is least.

From "Request quotas" in the AWS KMS Developer Guide, read in November 2026: 10,000, in some regions 20,000
or 100,000; older editions had 5,500. It is of an account in a region, and all its identities and keys share
it. ReEncrypt is listed there as one operation among the others, and is counted here as one. Keys in an AWS
CloudHSM key store have a lower quota of their own."""

CIPHERTEXT_BYTES_MAX, PLAINTEXT_BYTES_MAX = 6_144, 4_096
"""What KMS takes: longer ones are not what it made, or cannot be wrapped by it. From its API reference."""

_NOT_OPENED = ("InvalidCiphertextException", "IncorrectKeyException", "ValidationException")
"""Error codes that are of the value: damaged, bound to something else, another key's, or no ciphertext."""

USABLE = ("Enabled", "Updating")
"""Key states in which a key wraps and opens. From "Key states of AWS KMS keys" in the Developer Guide."""


@dataclass(frozen=True, slots=True)
class KmsVersion:
    """A version's key. `state` is KMS's own word, empty where the identity may not have keys described."""

    version: str
    arn: str
    state: str = ""
    multi_region: bool = False
    created: datetime | None = None

    @property
    def shown(self) -> str:
        return f'key "{self.version}" in aws kms'

    @property
    def region(self) -> str:
        return self.arn.split(":")[3]

    def command(self, verb: str) -> str:
        """A command that does something with the key."""
        return f"aws kms {verb} --key-id {self.arn} --region {self.region}"


class Kms:
    """The service, for the keys of one job. Close it after use."""

    def __init__(self, keys: Keys) -> None:
        self._section = keys.aws_kms or AwsKms()
        self._aws = Aws(
            "kms",
            self._section,
            what="AWS KMS",
            shown="aws kms",
            limit=Cap(CALLS_PER_S, "the least quota of any region, which all of the account share"),
            calls_per_s=keys.max_calls_per_s,
            in_flight=keys.in_flight,
            patience_s=keys.patience_s,
        )

    @property
    def gate(self) -> Gate:
        return self._aws.gate

    @property
    def in_flight(self) -> int:
        return self._aws.service.in_flight

    @property
    def calls_per_s(self) -> float:
        """Calls a second that are made at most."""
        return self._aws.service.calls_per_s

    @property
    def budget(self) -> str:
        """The same in words, with where it comes from."""
        return self._aws.service.budget

    def calls(self, version: str) -> int:
        return self._aws.calls[version]

    @property
    def named(self) -> tuple[str, ...]:
        """The versions that the job gives names to."""
        return tuple(self._section.keys)

    async def close(self) -> None:
        await self._aws.close()

    async def described(self, version: str) -> KmsVersion:
        """A version's key as it is now. KeyAccessError where it is not there, or is none of those for this.

        Without the permission to have keys described, an ARN is taken at its word.
        """
        given = self._section.key_of(version)
        if given is None:
            named = ", ".join(self.named) or "none"
            raise KeyRefused(
                f'key "{version}" is not named in keys.aws-kms.keys, and is no id or ARN of a key',
                hint=f"versions named there are {named}",
                code="key-missing",
            )
        told = KmsVersion(version, given)
        missing = partial(
            KeyRefused,
            f"{told.shown} is not there: {given}",
            hint="aws kms list-keys and aws kms list-aliases show those that are; each region has its own",
            code="key-missing",
        )
        try:
            found = await self._aws.call(
                "describe_key",
                key=version,
                answers={"NotFoundException": missing, "InvalidArnException": missing},
                KeyId=given,
            )
        except KeyAccessError as exc:
            if exc.code != "key-not-permitted":
                raise
            if ":key/" in given:
                return told
            raise KeyAccessError(
                f"{told.shown}: this identity may not kms:DescribeKey, and {given} is no ARN of a key",
                hint=f"allow it kms:DescribeKey {ALLOW_WHERE}; or give the key's ARN in keys.aws-kms.keys",
                code=exc.code,
            ) from None
        return _checked(told, (found or {}).get("KeyMetadata") or {})

    async def rewrapped(
        self, source: KmsVersion, target: KmsVersion, wrapped: bytes, context: Mapping[str, str], **more: Any
    ) -> bytes | None:
        """A value under another key, bound to the same context, by ReEncrypt; None where it does not open."""
        bound = {"SourceEncryptionContext": context, "DestinationEncryptionContext": context}
        found = await self._operate(
            "re_encrypt", source, target,
            CiphertextBlob=wrapped, SourceKeyId=source.arn, DestinationKeyId=target.arn,
            **(bound if context else {}), **more,
        )  # fmt: skip
        if found is None:
            return None
        self._check(found, "SourceKeyId", source)
        return self._taken(found, "CiphertextBlob", target)

    async def decrypted(
        self, source: KmsVersion, wrapped: bytes, context: Mapping[str, str], **more: Any
    ) -> bytes | None:
        """What is wrapped under a key; None where it does not open."""
        bound = {"EncryptionContext": context} if context else {}
        found = await self._operate(
            "decrypt", source, source, CiphertextBlob=wrapped, KeyId=source.arn, **bound, **more
        )
        return None if found is None else self._taken(found, "Plaintext", source)

    async def encrypted(self, target: KmsVersion, plain: bytes, context: Mapping[str, str]) -> bytes:
        """A plaintext wrapped under a key. KeyRefused where KMS does not take it."""
        bound = {"EncryptionContext": context} if context else {}
        if not 1 <= len(plain) <= PLAINTEXT_BYTES_MAX:
            raise KeyRefused(
                f"{target.shown} takes no plaintext of {len(plain):,} bytes: "
                f"it wraps 1 to {PLAINTEXT_BYTES_MAX:,}",
                hint="what KMS cannot hold is sealed with a data key, and that wrapped by KMS",
                code="key-unfit",
            )
        found = await self._operate("encrypt", target, target, KeyId=target.arn, Plaintext=plain, **bound)
        return self._taken(found or {}, "CiphertextBlob", target)

    async def _operate(
        self, operation: str, source: KmsVersion, target: KmsVersion, **given: Any
    ) -> dict[str, Any] | None:
        codes = () if operation == "encrypt" else _NOT_OPENED
        return await self._aws.call(
            operation,
            key=source.version,
            answers=dict.fromkeys(codes, lambda: None),
            explain=self._explained(operation, source, target),
            words=(source.arn, target.arn, "kms:ReEncryptFrom", "kms:ReEncryptTo"),
            **given,
        )

    def _explained(self, operation: str, source: KmsVersion, target: KmsVersion) -> Explain:
        def explained(code: str, said: frozenset[str]) -> KeyAccessError | None:
            of_target = bool(said & {target.arn, "kms:ReEncryptTo"}) and not said & {
                source.arn,
                "kms:ReEncryptFrom",
            }
            one = target if of_target else source
            # an error that names neither may be of either
            which = one.shown if said or source == target else f'{source.shown}, or key "{target.version}",'
            if code == "DisabledException":
                return KeyRefused(f"{which} is disabled", hint=one.command("enable-key"), code="key-disabled")
            if code == "KMSInvalidStateException":
                what = f"{which} is in a state in which it opens nothing: deletion is pending, say"
                return KeyRefused(what, hint=_awake(one), code="key-disabled")
            if code == "NotFoundException":
                hint = f"{one.command('describe-key')}; a key that was deleted is gone for good"
                return KeyRefused(f"{which} is not there", hint=hint, code="key-missing")
            if code == "DryRunOperationException":
                return KeyAccessError(f"{which} would have done it", code="key-dry")
            if is_denied(code) and operation == "re_encrypt":
                ways = [way for way in ("kms:ReEncryptFrom", "kms:ReEncryptTo") if way in said]
                return KeyAccessError(
                    f"{which} may not be used by this identity: {' or '.join(ways or ('kms:ReEncrypt*',))}",
                    hint=f"allow it kms:ReEncryptFrom on {source.arn} and kms:ReEncryptTo on {target.arn}, "
                    f"{ALLOW_WHERE}; conditions there on the encryption context count too",
                    code="key-not-permitted",
                )
            if is_denied(code):
                permission = f"kms:{operation.capitalize()}"
                return KeyAccessError(
                    f"{which}: this identity may not {permission}",
                    hint=f"allow it {permission} on {one.arn}, {ALLOW_WHERE}",
                    code="key-not-permitted",
                )
            return None

        return explained

    def _check(self, found: Mapping[str, Any], member: str, version: KmsVersion) -> None:
        if found.get(member) != version.arn:
            # another key's answer: what it says is not what this one would
            wrong = (
                "is answered for by another key" if found.get(member) else "answers without naming its key"
            )
            what = f"{version.shown} {wrong}"
            raise KeyRefused(what, hint=_STRANGE, code="key-refused")

    def _taken(self, found: Mapping[str, Any], member: str, version: KmsVersion) -> bytes:
        self._check(found, "KeyId", version)
        taken = found.get(member)
        if not isinstance(taken, bytes) or not taken:
            what = f"{version.shown} answers without a {member}"
            raise KeyRefused(what, hint=_STRANGE, code="key-refused")
        return taken

    async def aliases(self, version: KmsVersion) -> tuple[str, ...]:
        """The aliases that point to a key now; none where they may not be listed."""
        with suppress(KeyAccessError):
            found = await self._aws.call("list_aliases", key=version.version, KeyId=version.arn, Limit=100)
            return tuple(one["AliasName"] for one in (found or {}).get("Aliases") or ())
        return ()

    async def rotation(self, version: KmsVersion) -> str:
        """Whether KMS changes the key's material by itself; empty where it does not say."""
        with suppress(KeyAccessError):
            found = (
                await self._aws.call("get_key_rotation_status", key=version.version, KeyId=version.arn) or {}
            )
            if found.get("KeyRotationEnabled"):
                days = found.get("RotationPeriodInDays")
                return f"material rotated every {days} days" if days else "material rotated"
            return "material not rotated"
        return ""


_STRANGE = "see whether keys.aws-kms.endpoint is KMS itself, and what CloudTrail has of this call"


def _checked(told: KmsVersion, found: Mapping[str, Any]) -> KmsVersion:
    """A version from the answer to DescribeKey. KeyRefused where it is no symmetric key for encryption."""
    spec = str(found.get("KeySpec", found.get("CustomerMasterKeySpec", "SYMMETRIC_DEFAULT")))
    usage = str(found.get("KeyUsage", "ENCRYPT_DECRYPT"))
    if (spec, usage) != ("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT"):
        raise KeyRefused(
            f"{told.shown} is no symmetric key for encryption: its kind is {spec}, for {usage}",
            hint="values under keys of other kinds are not supported: name a key of SYMMETRIC_DEFAULT",
            code="key-unfit",
        )
    return replace(
        told,
        arn=str(found["Arn"]),
        state=str(found.get("KeyState", "Enabled")),
        multi_region=bool(found.get("MultiRegion")),
        created=found.get("CreationDate"),
    )


def unusable(version: KmsVersion) -> KeyRefused | None:
    """Why a key wraps and opens nothing in the state that it is in; None where it does, or nobody knows."""
    if version.state in ("", *USABLE):
        return None
    if version.state == "Disabled":
        hint = version.command("enable-key")
        return KeyRefused(f"{version.shown} is disabled", hint=hint, code="key-disabled")
    pending = version.state in ("PendingDeletion", "PendingReplicaDeletion")
    what = "is pending deletion" if pending else f"opens nothing, its state is {version.state}"
    return KeyRefused(f"{version.shown} {what}", hint=_awake(version), code="key-disabled")


def _awake(version: KmsVersion) -> str:
    """What to type for a key that waits for its deletion, or is in some other state."""
    if version.state == "PendingImport":
        return f"import its material: {version.command('get-parameters-for-import')}"
    if version.state == "Unavailable":
        return "connect its key store: aws kms connect-custom-key-store"
    undo, enable = version.command("cancel-key-deletion"), version.command("enable-key")
    return f"{undo} && {enable}; {version.command('describe-key')} shows its state"
