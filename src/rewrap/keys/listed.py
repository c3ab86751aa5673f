"""What a provider tells of a key's versions without using them: what `rewrap keys list` shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Permission:
    """Something that a provider lets this identity do with a version, or does not.

    `allowed` None: that cannot be known without doing it. `permission` is the provider's own name for it.
    """

    verb: str
    permission: str
    allowed: bool | None


@dataclass(frozen=True, slots=True)
class Listed:
    """One version. `fingerprint` is that of `Key`, where the key could be had; None where it could not.

    `labels` are names that point to it at present; `current` says whether writers are meant to use it, None
    where the provider has no such notion. `usable` is whether it opens values now, and `state` says why not.
    """

    version: str
    current: bool | None = None
    labels: tuple[str, ...] = ()
    usable: bool = True
    state: str = ""
    created: datetime | None = None
    fingerprint: str | None = None
    fingerprint_of: str = ""
    permissions: tuple[Permission, ...] = field(default=())
    text_fingerprint: str = ""
    """As `Key.text_fingerprint`."""
