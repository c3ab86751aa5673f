"""The keyring: key versions readable now, each with a fingerprint that may be shown.

Key bytes live in `Key.secret` and are read nowhere but where a layout is bound.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, runtime_checkable

from rewrap.crypto.elsewhere import Opening, Sealing, is_descriptor, opening, sealing
from rewrap.errors import KeyAccessError, UsageError
from rewrap.keys.resolving import Source, resolved
from rewrap.pace.gate import Gate

T = TypeVar("T")


class RemoteKey(Protocol):
    """A key that never leaves where it is kept, or whose private half does not."""

    @property
    def waiting_for(self) -> str:
        """What its calls wait for just now, in words; empty when they do not wait."""
        ...

    @property
    def calls(self) -> int:
        """Calls made so far, repeated ones included."""
        ...


@runtime_checkable
class UnwrappingKey(RemoteKey, Protocol):
    """A key whose public half is here, and wraps: `Key.secret` is that."""

    async def unwrap(self, wrapped: Sequence[bytes]) -> Sequence[bytes | None]:
        """What each was before it was wrapped; None for what this key does not open.

        Waits where it is throttled. Raises KeyAccessError when the key is refused or its keeper away.
        """
        ...


@runtime_checkable
class WrappingKey(RemoteKey, Protocol):
    """A key no part of which is ever here: it is asked to wrap too. `Key.secret` is its descriptor."""

    async def opened(self, items: Sequence[Opening]) -> Sequence[bytes | None]:
        """What is wrapped in each (sealed bytes, associated data); None for what this key does not open.

        A `Rewrapped` where that stays with the keeper. Raises as `unwrap`.
        """
        ...

    async def sealed(self, items: Sequence[Sealing]) -> Sequence[bytes]:
        """Each (plaintext, associated data, number of its use) wrapped. Raises as `unwrap`."""
        ...


@runtime_checkable
class RewrappingKey(WrappingKey, Protocol):
    """A key whose keeper takes what is wrapped under it to another of its keys, and gives nothing out."""

    def aim(self, target: RewrappingKey | None) -> None:
        """From now on opening gives a `Rewrapped`: wrapped anew under the target, or None: as it was."""
        ...


@dataclass(frozen=True, slots=True)
class Doubt:
    """What is to be said of a key after it was tried where it is kept: as a finding of `check` says it."""

    severity: str
    code: str
    reason: str
    hint: str | None


@runtime_checkable
class TriedKey(RemoteKey, Protocol):
    """A remote key that can be tried before a run, and that has a budget."""

    async def tried(self, *, target: bool) -> list[Doubt]:
        """What there is to say after a key was wrapped and unwrapped under it; `target` if values get it."""
        ...

    @property
    def calls_per_s(self) -> float: ...

    @property
    def budget(self) -> str:
        """Where that many calls come from, in words."""
        ...


class Keeper(Protocol):
    """Whoever keeps remote keys, while they are in use."""

    @property
    def gate(self) -> Gate:
        """What every call to it passes."""
        ...

    async def close(self) -> None: ...


@runtime_checkable
class WatchedKeeper(Keeper, Protocol):
    async def still_there(self) -> None:
        """Raises KeyAccessError when a key in use is gone, disabled or another."""
        ...


@dataclass(frozen=True, slots=True)
class Key:
    """One key version. `secret` is the key's bytes; only its fingerprint is ever shown or stored.

    `index` is the secret that blind indexes are computed with, where it is another. Of a `remote` key the
    `secret` is its public half (DER, SubjectPublicKeyInfo), or a descriptor (`rewrap.crypto.elsewhere`).
    `text_fingerprint` is the SHA-256 of the text that the key is kept as, without white space around it, in
    64 hex digits: what `printf %s "$KEY" | sha256sum` prints. Empty where it is not kept as hex or base64.
    """

    version: str
    secret: bytes = field(repr=False)
    index: bytes | None = field(default=None, repr=False)
    remote: RemoteKey | None = field(default=None, repr=False, compare=False)
    text_fingerprint: str = field(default="", compare=False)

    @property
    def fingerprint(self) -> str:
        """`sha256:` and the first 16 hex digits of the SHA-256 of the key's bytes.

        An operator gets the same from `printf %s "$HEX_KEY" | xxd -r -p | sha256sum`. It says nothing
        useful about a random key of 128 bits or more; it would about a password.
        """
        return "sha256:" + hashlib.sha256(self.secret).hexdigest()[:16]

    @property
    def fingerprint_of(self) -> str:
        """What the fingerprint is taken over, for a person who compares it."""
        if self.remote is None:
            return "sha256 of the key's bytes"
        return "sha256 of " + (
            "what names the key where it is kept" if is_descriptor(self.secret) else "the public key in DER"
        )

    @property
    def commitment(self) -> str:
        """What a ledger keeps to recognise this key again: a hash for this purpose alone, in hex."""
        apart = b"" if self.index is None else b"\x00" + hashlib.sha256(self.index).digest()
        return hashlib.sha256(b"rewrap key commitment\x00" + self.secret + apart).hexdigest()

    def digester(self) -> Digester:
        """Digests of stored values, keyed so that whoever has only the ledger cannot test guesses."""
        derived = hmac.new(self.secret, b"rewrap quarantine digest", hashlib.sha256).digest()
        return Digester(derived)


@dataclass(frozen=True, slots=True)
class Digester:
    """A keyed digest binds a quarantine entry to the bytes it speaks of (HMAC-SHA256, 128 bits)."""

    derived: bytes = field(repr=False)

    def digest(self, table: str, column: str, row_id: str, value: str | bytes) -> str:
        mac = hmac.new(self.derived, digestmod=hashlib.sha256)
        for part in (table, column, row_id, value):
            encoded = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
            mac.update(len(encoded).to_bytes(8, "big"))
            mac.update(encoded)
        return mac.hexdigest()[:32]


class Keyring:
    """The key versions at hand, by version name.

    `known` are versions that exist, at hand or not; there may be others where their keeper does not list
    them (`unlisted`). `reopen` is the share of new values under remote keys that are opened again before they
    are written. `doubts` are what there is to say of keys before they are used, by version.
    """

    def __init__(
        self,
        keys: Iterable[Key],
        *,
        known: Iterable[str] = (),
        keeper: Keeper | None = None,
        reopen: float = 1.0,
        unlisted: bool = False,
        doubts: Mapping[str, Sequence[Doubt]] | None = None,
    ) -> None:
        self.unlisted = unlisted
        self.doubts = doubts or {}
        self._keys = {key.version: key for key in keys}
        self.known = tuple(dict.fromkeys((*known, *self._keys)))
        self.reopen = reopen
        self._keeper = keeper
        self._sources: dict[Hashable, Source] = {}
        for key in self._keys.values():
            if isinstance(key.remote, WrappingKey):
                self._sources[opening(key.secret)] = key.remote.opened
                self._sources[sealing(key.secret)] = key.remote.sealed
            elif isinstance(key.remote, UnwrappingKey):
                self._sources[key.secret] = key.remote.unwrap

    def __repr__(self) -> str:
        shown = ", ".join(f"{key.version}={key.fingerprint}" for key in self)
        return f"Keyring({shown})"

    @property
    def watched(self) -> WatchedKeeper | None:
        """Who says whether keys whose bytes are here are still what they were; None where nobody does."""
        return self._keeper if isinstance(self._keeper, WatchedKeeper) else None

    async def close(self) -> None:
        """Ends the connection to whoever keeps the keys."""
        if self._keeper is not None:
            await self._keeper.close()

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys.values())

    def __contains__(self, version: str) -> bool:
        return version in self._keys

    def text_fingerprints(self, versions: Iterable[str]) -> dict[str, str]:
        """The fingerprints of the texts that some versions' keys are kept as, where they are."""
        texts = {version: self.get(version).text_fingerprint for version in versions}
        return {version: text for version, text in texts.items() if text}

    @property
    def sources(self) -> Mapping[Hashable, Source]:
        """Who answers what is asked of remote keys, by what their values are opened with."""
        return self._sources

    async def resolved(self, attempt: Callable[[], T]) -> T:
        """What a pure computation gives that may open values under remote keys."""
        return await resolved(attempt, self._sources, self.reopen) if self._sources else attempt()

    @property
    def gate(self) -> Gate | None:
        """What calls to remote keys pass; None where all keys are at hand."""
        return None if self._keeper is None else self._keeper.gate

    @property
    def waiting_for(self) -> str:
        """What calls to remote keys wait for just now; empty when none waits."""
        return next((key.remote.waiting_for for key in self if key.remote and key.remote.waiting_for), "")

    def rewrap_in_place(self, to_version: str | None) -> None:
        """Has keepers that can take what is wrapped to the key of a version, and give nothing out.

        Without a version it stays where it is: opening only says that it opens.
        """
        target = self.get(to_version).remote if to_version is not None else None
        for key in self:
            if isinstance(key.remote, RewrappingKey):
                mine = isinstance(target, RewrappingKey) and key.version != to_version
                key.remote.aim(target if mine else None)  # type: ignore[arg-type]  # mine says that it is one

    def spent(self) -> dict[str, float]:
        """Calls to remote keys so far."""
        calls = sum(key.remote.calls for key in self if key.remote)
        return {"vault_calls": float(calls)} if calls else {}

    def get(self, version: str) -> Key:
        """The key of a version; KeyAccessError when it is not at hand."""
        try:
            return self._keys[version]
        except KeyError:
            have = ", ".join(self._keys) or "none"
            raise KeyAccessError(
                f'key version "{version}" is not at hand', hint=f"versions at hand: {have}"
            ) from None

    def require_distinct(self, from_versions: Iterable[str], to_version: str) -> None:
        """Refuses a rotation onto the same bytes: it would change nothing and prove nothing."""
        to_secret = self.get(to_version).secret
        for version in from_versions:
            if hmac.compare_digest(self.get(version).secret, to_secret):
                raise UsageError(
                    f'key versions "{version}" and "{to_version}" hold the same bytes',
                    hint="a rotation needs a new key; check which variable or file each version names",
                )
