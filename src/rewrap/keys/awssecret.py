"""The keys of a job whose `[keys]` are the versions of a secret in AWS Secrets Manager.

A version is fetched by its id, never by a label: a label points to another version in a moment. The bytes of
the keys are in memory from then on; the secret is looked at again while they are used.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rewrap.crypto.rsa import private_key
from rewrap.errors import KeyAccessError
from rewrap.job import Job
from rewrap.keys.aws import Aws
from rewrap.keys.keyring import Doubt, Key, Keyring
from rewrap.keys.listed import Listed, Permission
from rewrap.keys.local import key_from
from rewrap.pace.gate import Cap, Gate

READ = "secretsmanager:GetSecretValue"
LIST = "secretsmanager:ListSecretVersionIds"
ASSUME = "sts:AssumeRole"

CURRENT = "AWSCURRENT"

_LIMIT = Cap(50.0, "few are needed, and an application's own go first")
"""Calls a second. The service's quotas are by account and region; reading values has one of 10,000."""

_PAGE = 100
"""Versions in one answer, the service's most."""

_ID = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
"""The form of the ids that AWS and its clients make. Whoever stores a version may give it another."""

ID_MIN = 32
"""Characters that an id has at least: a shorter name can only be a label."""


async def open_keys(
    job: Job, required: Sequence[str], wanted: Sequence[str] | None, environ: Mapping[str, str]
) -> Keyring:
    """As `Provider`; the keyring watches the secret, and has a doubt for each version without a label."""
    secret = Secret(job)
    try:
        listed = await secret.listed()
        if wanted is None:
            if listed is None:
                raise secret.not_listed("name them in --from, or ")
            wanted = list(listed)
        keys = []
        for version in dict.fromkeys((*required, *wanted)):
            try:
                keys.append(await secret.key(version, listed))
            except KeyAccessError:
                if version in required:
                    raise
        secret.watch(keys, listed)
        return Keyring(
            keys,
            known=dict.fromkeys((*(listed or ()), *required, *wanted)),
            keeper=secret,
            unlisted=listed is None,
            doubts={key.version: secret.doubts(key, listed) for key in keys},
        )
    except BaseException:
        await secret.close()
        raise


async def versions_of(job: Job, names: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """As `LabelProvider`. Names that have the form of ids are not asked about."""
    if all(_ID.fullmatch(name) for name in names):
        return {}
    secret = Secret(job)
    try:
        listed = await secret.listed()
        if listed is None:
            if any(len(name) < ID_MIN for name in names):
                raise secret.not_listed("name versions by their ids, or ")
            return {}
        there = {label: one.version for one in listed.values() for label in one.labels}
        found = {}
        for name in dict.fromkeys(names):
            if name in listed or _ID.fullmatch(name):
                continue
            if name not in there:
                raise KeyAccessError(
                    f'{secret.shown} has no version and no label "{name}"',
                    hint=f"its labels are {', '.join(sorted(there)) or 'none'}",
                )
            found[name] = there[name]
        return found
    finally:
        await secret.close()


async def list_keys(job: Job, environ: Mapping[str, str]) -> list[Listed]:
    """Every version of the secret, the newest first, each fetched to see whether it can be.

    Raises KeyAccessError where this identity may not list them.
    """
    secret = Secret(job)
    try:
        listed = await secret.listed()
        if listed is None:
            raise secret.not_listed("")
        ordered = sorted(listed.values(), key=lambda one: one.created.timestamp() if one.created else 0.0)
        return [await _listed(secret, one, listed) for one in reversed(ordered)]
    finally:
        await secret.close()


async def _listed(secret: Secret, one: StoredVersion, listed: Mapping[str, StoredVersion]) -> Listed:
    key, state, read = None, "at hand", True
    try:
        key = await secret.key(one.version, listed)
    except KeyAccessError as exc:
        if exc.code in ("key-away", "key-no-identity"):
            raise
        read = exc.code not in ("key-not-permitted", "key-no-role", "key-missing")
        said = exc.message.removeprefix(f'key version "{one.version}" ').removeprefix(secret.shown)
        state = said.removeprefix(f' version "{one.version}"').strip(": ")
    permissions = [Permission("list", LIST, True), Permission("read", READ, read)]
    if secret.fallback is not None:
        permissions.append(Permission("assume", ASSUME, await secret.may_assume(one.version)))
    return Listed(
        one.version,
        current=CURRENT in one.labels,
        labels=one.labels,
        usable=key is not None,
        state=state,
        created=one.created,
        fingerprint=None if key is None else key.fingerprint,
        fingerprint_of="" if key is None else key.fingerprint_of,
        permissions=tuple(permissions),
    )


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """What the secret's list says of a version. Without a label it may be deleted by AWS at any time."""

    version: str
    labels: tuple[str, ...]
    created: datetime | None


class Secret:
    """A job's secret: its list of versions, and their keys. To be closed after use."""

    def __init__(self, job: Job) -> None:
        section = job.keys.aws_secret
        assert section is not None
        self._job, self._section = job, section
        place = "" if section.region is None else f' "{section.region}"'
        self._aws = Aws(
            "secretsmanager",
            section,
            what="the secrets manager",
            shown=f'secret "{section.secret}" in aws secrets manager{place}',
            limit=_LIMIT,
            calls_per_s=job.keys.max_calls_per_s,
            in_flight=job.keys.in_flight,
            patience_s=job.keys.patience_s,
        )
        self._in_use: dict[str, Key] = {}
        self._labelled: set[str] = set()
        self._assumed: bool | None = None

    @property
    def shown(self) -> str:
        return self._aws.shown

    @property
    def gate(self) -> Gate:
        return self._aws.gate

    @property
    def fallback(self) -> str | None:
        """The role that fetches what the identity may not."""
        return self._section.fallback_role

    async def close(self) -> None:
        await self._aws.close()

    async def listed(self) -> dict[str, StoredVersion] | None:
        """Every version by its id, those without a label too; None where this identity may not list them."""
        found: dict[str, StoredVersion] = {}
        more: dict[str, Any] = {}
        while True:
            answer = await self._aws.call(
                "list_secret_version_ids",
                answers={
                    "AccessDeniedException": lambda: None,
                    "ResourceNotFoundException": self._no_secret,
                    "InvalidRequestException": self._marked,
                },
                SecretId=self._section.secret,
                IncludeDeprecated=True,
                MaxResults=_PAGE,
                **more,
            )
            if answer is None:
                return None
            for one in answer.get("Versions", ()):
                version = one["VersionId"]
                labels = tuple(sorted(one.get("VersionStages") or ()))
                found[version] = StoredVersion(version, labels, one.get("CreatedDate"))
            if not answer.get("NextToken"):
                return found
            more = {"NextToken": answer["NextToken"]}

    async def key(self, version: str, listed: Mapping[str, StoredVersion] | None) -> Key:
        """A version's key. KeyAccessError when it is not there, not to be read, or not what it should be."""
        if listed is not None and version not in listed:
            raise self._no_version(version, listed)
        stored = self._stored(version, await self._fetched(version, listed))
        key = key_from(
            version, stored, self._section.encoding, self._job.key_lengths,
            where=self.shown, setting="keys.aws-secrets-manager.encoding",
        )  # fmt: skip
        if self._job.wraps_by_rsa and private_key(key.secret) is None:
            raise self._refused(
                version, "is no RSA key, and its layouts wrap with RSA",
                'set keys.aws-secrets-manager.encoding = "pem" for a key in PEM', "key-unfit",
            )  # fmt: skip
        return key

    async def _fetched(
        self, version: str, listed: Mapping[str, StoredVersion] | None
    ) -> Mapping[str, object]:
        """GetSecretValue's answer, as the fallback role for what has no label or is not to be read."""
        unlabelled = listed is not None and not listed[version].labels
        if self.fallback is None:
            answer = await self._get(version, None, denied=self._denied(version))
        else:
            answer = None if unlabelled else await self._get(version, None, denied=None)
            if answer is None:
                answer = await self._get_as_fallback(version)
        assert answer is not None
        return answer

    async def _get_as_fallback(self, version: str) -> Mapping[str, object] | None:
        try:
            answer = await self._get(version, self.fallback, denied=self._denied(version, self.fallback))
        except KeyAccessError as exc:
            if exc.code == "key-no-role":
                self._assumed = False
            elif exc.code != "key-away":
                self._assumed = True
            raise
        self._assumed = True
        return answer

    async def may_assume(self, version: str) -> bool | None:
        """Whether the fallback role can be assumed: as it was, or with one call to see; None if unknown."""
        if self._assumed is None:
            with contextlib.suppress(KeyAccessError):
                await self._get_as_fallback(version)
        return self._assumed

    async def _get(
        self, version: str, role: str | None, *, denied: KeyAccessError | None
    ) -> Mapping[str, object] | None:
        """GetSecretValue's answer; None when it is denied and that is no error."""
        return await self._aws.call(
            "get_secret_value",
            key=version,
            role=role,
            answers={
                "AccessDeniedException": lambda: denied,
                "ResourceNotFoundException": lambda: self._no_value(version),
                "InvalidRequestException": self._marked,
                "DecryptionFailure": lambda: self._refused(
                    version, "cannot be decrypted by Secrets Manager",
                    "see whether the KMS key of the secret is enabled, and allow this identity kms:Decrypt",
                    "key-not-permitted",
                ),
            },
            SecretId=self._section.secret,
            VersionId=version,
        )  # fmt: skip

    def _stored(self, version: str, answer: Mapping[str, object]) -> bytes:
        """What is kept of the key, still in its encoding. Nothing of it is in a message."""
        if answer.get("VersionId") != version:
            raise self._refused(
                version,
                "is answered for by another version",
                "see what answers at that endpoint",
                "key-refused",
            )
        text = answer.get("SecretString")
        if not isinstance(text, str):
            raise self._refused(
                version, "is binary, and a key is expected in a text",
                "store it as a SecretString: bytes in hex or base64, and set encoding", "key-unfit",
            )  # fmt: skip
        name = self._section.field
        if name is None:
            return text.encode("utf-8", "surrogatepass")
        found = _object(text)
        if found is None:
            raise self._refused(
                version, f'is no JSON object, and its field "{name}" is to hold the key',
                "leave out keys.aws-secrets-manager.field where the secret is the key itself", "key-unfit",
            )  # fmt: skip
        member = found.get(name)
        if not isinstance(member, str):
            lacks = "is no text" if name in found else "is missing"
            raise self._refused(
                version, f'has no key in it: its field "{name}" {lacks}',
                "correct keys.aws-secrets-manager.field, or store the key under that name", "key-unfit",
            )  # fmt: skip
        return member.encode("utf-8", "surrogatepass")

    def doubts(self, key: Key, listed: Mapping[str, StoredVersion] | None) -> list[Doubt]:
        """What there is to say of a key that was fetched."""
        found = []
        if listed is not None and not listed[key.version].labels:
            why = "has no label: AWS may delete it, and values under it could never be opened again"
            found.append(Doubt("warning", "key-unlabelled", why, self._label_it(key.version)))
        if self._section.field is None and _object(key.secret.decode(errors="replace")) is not None:
            why = "is a JSON object, and the whole of it is taken as the key"
            hint = "if the key is a member of it, set keys.aws-secrets-manager.field to its name"
            found.append(Doubt("warning", "key-is-json", why, hint))
        return found

    # while the keys are in use

    def watch(self, keys: Sequence[Key], listed: Mapping[str, StoredVersion] | None) -> None:
        """These are in use from now on."""
        self._in_use = {key.version: key for key in keys}
        self._labelled = {one for one in self._in_use if listed is not None and listed[one].labels}

    async def still_there(self) -> None:
        """As `WatchedKeeper`: a version that lost its last label, or a secret marked for deletion, too."""
        listed = await self.listed()
        for version, key in self._in_use.items():
            again = await self.key(version, listed)
            if not hmac.compare_digest(again.secret, key.secret):
                raise self._refused(
                    version, "holds another key than when it was fetched", "see who changed it", "key-refused"
                )
            if listed is not None and version in self._labelled and not listed[version].labels:
                raise self._refused(
                    version, "has lost its last label: AWS may delete it, and values are under it",
                    self._label_it(version), "key-unlabelled",
                )  # fmt: skip

    # what is said

    def not_listed(self, otherwise: str) -> KeyAccessError:
        return KeyAccessError(
            f"{self.shown}: this identity may not list the versions that there are",
            hint=f"{otherwise}allow it {LIST}",
            code="key-not-permitted",
        )

    def _no_secret(self) -> KeyAccessError:
        return KeyAccessError(
            f"{self.shown} is not there", hint="check keys.aws-secrets-manager.secret, and the region"
        )

    def _no_version(self, version: str, listed: Mapping[str, StoredVersion]) -> KeyAccessError:
        there = [f"{one.version} ({', '.join(one.labels) or 'no label'})" for one in listed.values()]
        return KeyAccessError(
            f'{self.shown} has no version "{version}"',
            hint=f"versions there are {', '.join(there) or 'none'}; one without a label may have been "
            "deleted by AWS: label what values still need",
        )

    def _no_value(self, version: str) -> KeyAccessError:
        return self._refused(
            version, "is not there",
            "AWS may delete a version without a label, and one that is pending has no value yet; "
            f"aws secretsmanager list-secret-version-ids --secret-id {self._section.secret} "
            "--include-deprecated shows what there is",
        )  # fmt: skip

    def _marked(self) -> KeyAccessError:
        return KeyAccessError(
            f"{self.shown} is marked for deletion",
            hint=f"aws secretsmanager restore-secret --secret-id {self._section.secret}",
            code="key-disabled",
        )

    def _denied(self, version: str, role: str | None = None) -> KeyAccessError:
        who = "this identity" if role is None else f"role {role}"
        hint = f"allow it {READ} on the secret, and kms:Decrypt on the secret's KMS key if that is its own"
        if role is None:
            hint += "; or set keys.aws-secrets-manager.fallback_role to a role that may"
        return KeyAccessError(
            f'{self.shown} version "{version}": {who} may not read it', hint=hint, code="key-not-permitted"
        )

    def _label_it(self, version: str) -> str:
        return (
            f"aws secretsmanager update-secret-version-stage --secret-id {self._section.secret} "
            f"--version-stage NAME --move-to-version-id {version}"
        )

    def _refused(self, version: str, what: str, hint: str, code: str = "key-missing") -> KeyAccessError:
        return KeyAccessError(f'{self.shown} version "{version}" {what}', hint=hint, code=code)


def _object(text: str) -> dict[str, object] | None:
    """A JSON object; None for what is none. What fails to be read as one is never repeated."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
