"""New versions of a secret in AWS Secrets Manager, and the labels that say which of them is in use.

AWS itself moves two labels: whoever stores a version without naming one moves AWSCURRENT to it at once, and
wherever AWSCURRENT leaves, AWSPREVIOUS goes. A version without a label may be deleted. So a new version is
stored under a label of rewrap's own, proven, and then AWSCURRENT is moved; and what stored values still need
gets a label of rewrap's own before it would lose its last one.
"""

from __future__ import annotations

import base64
import json
import secrets
import string
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rewrap.errors import GateClosed, KeyAccessError, KeyRefused, UsageError
from rewrap.job import Job
from rewrap.keys.aws import Aws
from rewrap.keys.awssecret import CURRENT, Secret, StoredVersion
from rewrap.keys.keyring import Key
from rewrap.labels import values_are
from rewrap.pace.gate import Cap

PREVIOUS = "AWSPREVIOUS"

OWN = "rewrap-"
"""What labels of rewrap's own begin with: nobody else's are ever taken off a version."""

CANDIDATE = "rewrap-candidate"

KEPT = "rewrap-keep-"

_KEPT_CHARACTERS = 8
"""Of an id, in the label that keeps its version."""

_PLAIN = string.ascii_letters + string.digits
"""What AWS's own generator has without punctuation."""

_LIMIT = Cap(50.0, "what Secrets Manager lets secrets be changed at")

_MADE = ("utf8", "hex", "base64")
"""Encodings of keys that are random all through."""

Versions = Mapping[str, StoredVersion]


@dataclass(frozen=True, slots=True)
class Move:
    """What moving a label from one version to another comes to.

    `done` if it is there already. `kept` are labels that versions get beforehand, since stored values need
    them; `lost` are versions that lose their last label, and that no stored value is under.
    """

    label: str
    source: str
    target: str | None
    done: bool
    kept: Mapping[str, str]
    lost: tuple[str, ...]


class Stages:
    """A job's secret, as somebody who changes it has it. To be closed after use."""

    def __init__(self, job: Job) -> None:
        section = job.keys.aws_secret
        if job.keys.provider != "aws-secrets-manager" or section is None:
            raise UsageError(
                f'job "{job.name}" has no secret in AWS Secrets Manager: its keys.provider is '
                f'"{job.keys.provider}"',
                hint="new versions are made where the keys are kept; see docs/keys.md",
            )
        self._job, self._section = job, section
        self._secret = Secret(job)
        self.shown = self._secret.shown
        self._aws = Aws(
            "secretsmanager",
            section,
            what="the secrets manager",
            shown=self.shown,
            limit=_LIMIT,
            calls_per_s=job.keys.max_calls_per_s,
            in_flight=job.keys.in_flight,
            patience_s=job.keys.patience_s,
        )

    async def close(self) -> None:
        await self._aws.close()
        await self._secret.close()

    async def versions(self) -> Versions:
        """Every version by its id, with its labels. KeyAccessError where they may not be listed."""
        found = await self._secret.listed()
        if found is None:
            raise self._secret.not_listed("")
        return found

    async def key(self, version: str, versions: Versions) -> Key:
        return await self._secret.key(version, versions)

    def version_of(self, name: str, versions: Versions) -> str:
        """The version that an id or a label names; KeyAccessError when there is none."""
        if name in versions:
            return name
        found = at(name, versions)
        if found is None:
            labels = sorted({label for one in versions.values() for label in one.labels})
            raise KeyAccessError(
                f'{self.shown} has no version and no label "{name}"',
                hint=f"its labels are {', '.join(labels) or 'none'}",
            )
        return found

    def none_readable(self) -> KeyAccessError:
        return KeyAccessError(f"{self.shown}: no version of it can be read", hint="see rewrap keys list")

    def current(self, versions: Versions) -> str:
        return self.version_of(CURRENT, versions)

    async def mint(self, stage: str, versions: Versions) -> Key:
        """A new version under a label of one's own; AWSCURRENT stays where it is.

        Its key is random, as long as the current one, and takes its place in a copy of what is stored there.
        Raises GateClosed where there is a candidate already.
        """
        if not stage.startswith(OWN) or stage.startswith(KEPT) or len(stage) > 256:
            raise UsageError(
                f'label "{stage}" is none that a new version may be under',
                hint=f"it begins with {OWN}, and not with {KEPT}: {CANDIDATE}",
            )
        if self._section.encoding not in _MADE:
            raise UsageError(
                f"a key in {self._section.encoding} is none that rewrap makes",
                hint="store it yourself, under a label of its own: aws secretsmanager put-secret-value "
                "--version-stages",
            )
        there = candidates(versions)
        if there:
            raise GateClosed(
                f"{self.shown} has a candidate already: "
                + ", ".join(f"{one} ({', '.join(versions[one].labels)})" for one in there),
                hint="go on with it: rewrap keys canary; or take its label off: rewrap keys move --label",
            )
        current = self.current(versions)
        stored = await self._stored(current, None)
        # the service keeps one version by a token, so that a call that is repeated makes no other
        token = str(uuid.uuid4())
        await self._aws.call(
            "put_secret_value",
            SecretId=self._section.secret,
            ClientRequestToken=token,
            SecretString=self._renewed(stored, await self.key(current, versions)),
            VersionStages=[stage],
        )
        now = await self.versions()
        if at(CURRENT, now) != current or at(stage, now) != token:
            raise KeyRefused(
                f"{self.shown} does not have its new version {token} under {stage}, or {CURRENT} has moved",
                hint="see rewrap keys gate, and AWS's own log",
                code="key-refused",
            )
        return await self.key(token, now)

    async def by_every_path(self, version: str) -> list[str]:
        """The ways by which a version could be fetched, all alike; KeyAccessError when one fails."""
        paths: list[tuple[str, str | None]] = [
            ("this identity" if self._section.role is None else self._section.role, None)
        ]
        if self._section.fallback_role is not None:
            paths.append((self._section.fallback_role, self._section.fallback_role))
        texts = [await self._stored(version, role) for _, role in paths]
        if len(set(texts)) != 1:
            raise KeyRefused(
                f"{self.shown} version {version} is not the same for every identity",
                hint="see whether the endpoint, and the account of the role, are those of the secret",
                code="key-refused",
            )
        return [name for name, _ in paths]

    async def move(self, move: Move) -> Versions:
        """The versions after a move. What it keeps is kept first, so that a crash leaves nothing without.

        An error says what was done before it; to move again does the rest.
        """
        did: list[str] = []
        try:
            return await self._move(move, did)
        except KeyAccessError as exc:
            if not did:
                raise
            raise type(exc)(
                f"{exc.message}; done by then: {', '.join(did)}",
                hint=f"{exc.hint or 'see rewrap keys gate'}; then give the same command again",
                code=exc.code,
            ) from None

    async def _move(self, move: Move, did: list[str]) -> Versions:
        for version, label in move.kept.items():
            await self._relabel(label, None, version)
            did.append(f"{version} has got {label}")
        if not move.done:
            await self._relabel(move.label, move.source, move.target)
            did.append(f"{move.label} has moved to {move.target or 'no version'}")
        now = await self.versions()
        if at(move.label, now) != move.target:
            did.clear()
            raise KeyRefused(
                f"{self.shown}: {move.label} is at {at(move.label, now) or 'no version'}, and was to be at "
                f"{move.target or 'none'}",
                hint="somebody else may have moved it",
                code="key-refused",
            )
        if move.label == CURRENT and move.target is not None:
            own = [label for label in now[move.target].labels if label.startswith(OWN)]
            for label in own:
                await self._relabel(label, move.target, None)
                did.append(f"{label} is off")
            now = await self.versions() if own else now
        return now

    async def _relabel(self, label: str, source: str | None, target: str | None) -> None:
        ends: dict[str, Any] = {"RemoveFromVersionId": source, "MoveToVersionId": target}
        await self._aws.call(
            "update_secret_version_stage",
            # an answer that was lost makes the next attempt one that finds it done: whoever asked looks
            answers={"InvalidParameterException": lambda: None},
            SecretId=self._section.secret,
            VersionStage=label,
            **{name: end for name, end in ends.items() if end is not None},
        )

    async def _stored(self, version: str, role: str | None) -> str:
        answer = await self._aws.call(
            "get_secret_value", role=role, SecretId=self._section.secret, VersionId=version
        )
        text = None if answer is None or answer.get("VersionId") != version else answer.get("SecretString")
        if not isinstance(text, str):
            raise KeyRefused(
                f"{self.shown} version {version} is no text, or is answered for by another",
                hint="a key is expected in a SecretString",
                code="key-unfit",
            )
        return text

    def _renewed(self, stored: str, key: Key) -> str:
        """What is stored, with another key in the current one's place; nothing of either is in a message."""
        if self._section.encoding == "hex":
            fresh = secrets.token_hex(len(key.secret))
        elif self._section.encoding == "base64":
            fresh = base64.b64encode(secrets.token_bytes(len(key.secret))).decode()
        else:
            fresh = "".join(secrets.choice(_PLAIN) for _ in key.secret)
        if self._section.field is None:
            return fresh
        return json.dumps({**json.loads(stored), self._section.field: fresh})


def at(label: str, versions: Versions) -> str | None:
    """The version that has a label."""
    return next((one.version for one in versions.values() if label in one.labels), None)


def candidates(versions: Versions) -> list[str]:
    """Versions that were stored for a switch that has not been: with labels, and none of those in use."""
    return [
        one.version
        for one in versions.values()
        if not {CURRENT, PREVIOUS} & set(one.labels)
        and any(not label.startswith(KEPT) for label in one.labels)
    ]


def rolled_back(versions: Versions) -> bool:
    """Whether AWSCURRENT was moved back: what it left is younger than what it is at."""
    ends = [versions[one].created if one else None for one in (at(CURRENT, versions), at(PREVIOUS, versions))]
    current, previous = ends
    return current is not None and previous is not None and previous > current


def planned(label: str, source: str, target: str | None, versions: Versions, held: Mapping[str, int]) -> Move:
    """What moving a label comes to; without a target it is taken off. `held` are values by version.

    Raises KeyRefused where the label is not at the source, and GateClosed where values would lose the only
    label that keeps their key.
    """
    for version in (source, target):
        if version is not None and version not in versions:
            raise KeyAccessError(
                f'there is no version "{version}" of the secret',
                hint="name both ends by their ids: rewrap keys gate",
            )
    place = at(label, versions)
    if place is None:
        there = sorted({one for version in versions.values() for one in version.labels})
        raise UsageError(f'no version has the label "{label}"', hint=f"labels are {', '.join(there)}")
    done = place == target
    if not done and place != source:
        raise KeyRefused(
            f'label "{label}" is at {place or "no version"}, and not at {source}',
            hint="somebody has moved it: see rewrap keys gate, and name where it is",
            code="key-refused",
        )
    after = {one.version: set(one.labels) for one in versions.values()}
    if not done:
        after[source].discard(label)
        if target is not None:
            after[target].add(label)
        if label == CURRENT:
            for labels in after.values():
                labels.discard(PREVIOUS)
            after[source].add(PREVIOUS)
    bare = [version for version, labels in after.items() if not labels]
    needed = [version for version in bare if held.get(version)]
    if target is None and source in needed:
        raise GateClosed(
            f"{values_are(held[source])} under {source}, and {label} is its last label",
            hint="rotate them first: AWS may delete a version without a label",
        )
    return Move(
        label,
        source,
        target,
        done,
        {version: _keeping(version, versions) for version in needed},
        tuple(version for version in bare if versions[version].labels and not held.get(version)),
    )


def _keeping(version: str, versions: Versions) -> str:
    short = KEPT + version[:_KEPT_CHARACTERS]
    return short if at(short, versions) in (None, version) else KEPT + version
