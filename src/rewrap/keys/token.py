"""The keys of a job whose `[keys]` are in a PKCS#11 token, each with what opens and wraps values there."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, time
from pathlib import Path
from typing import Any, TypeVar

from pkcs11 import Attribute

from rewrap.crypto.ciphers import CIPHERS
from rewrap.crypto.elsewhere import Opening, Rewrapped, Sealing, descriptor
from rewrap.crypto.keywrap import AesKeyWrap
from rewrap.errors import KeyAccessError, KeyRefused
from rewrap.job import Job
from rewrap.keys.cryptoki import Token, attribute
from rewrap.keys.datakeys import DataKeys
from rewrap.keys.keyring import Doubt, Key, Keyring, RewrappingKey
from rewrap.keys.listed import Listed, Permission
from rewrap.keysections import Pkcs11

T = TypeVar("T")

AT_ONCE = 16
"""Values of one turn in the token: enough that a thread's switch is not what takes the time, and so few that
a pause or Ctrl-C is not kept waiting."""


async def open_keys(
    job: Job, required: Sequence[str], wanted: Sequence[str] | None, environ: Mapping[str, str]
) -> Keyring:
    """The versions required, and of those wanted what is in the token; None wants every one of its labels."""
    token, section = _token(job, environ)
    try:
        there = await token.call("look", lambda: _versions(token, section))
        keys: dict[str, Key] = {}
        cipher = CIPHERS[job.remote_cipher]
        assert isinstance(cipher, AesKeyWrap)
        data_keys = DataKeys(token, cipher)
        for version in dict.fromkeys((*required, *(there if wanted is None else wanted))):
            try:
                keys[version] = await _key(token, data_keys, section, version, there)
            except KeyRefused:
                if version in required:
                    raise
        _require_distinct(token, [keys[version] for version in dict.fromkeys(required)])
    except BaseException:
        await token.close()
        raise
    return Keyring(keys.values(), known=there, keeper=token, reopen=job.keys.reopen)


async def list_keys(job: Job, environ: Mapping[str, str]) -> list[Listed]:
    """The token's keys whose labels the job's label fits, in the order of their versions."""
    token, section = _token(job, environ)

    def listed() -> list[Listed]:
        return [
            _listed(token, version, _label(section, version)) for version in sorted(_versions(token, section))
        ]

    try:
        return await token.call("look", listed)
    finally:
        await token.close()


def _token(job: Job, environ: Mapping[str, str]) -> tuple[Token, Pkcs11]:
    section = job.keys.pkcs11
    assert section is not None
    token = Token(
        section,
        _pin(section, environ, job.folder),
        calls_per_s=job.keys.max_calls_per_s,
        patience_s=job.keys.patience_s,
    )
    return token, section


def _pin(section: Pkcs11, environ: Mapping[str, str], folder: Path) -> str:
    assert section.pin is not None
    scheme, _, place = section.pin.partition(":")
    if scheme == "env":
        pin = environ.get(place)
        why = "is not set"
    else:
        try:
            pin, why = (folder / Path(place).expanduser()).read_text(encoding="utf-8").rstrip("\r\n"), ""
        except (OSError, UnicodeDecodeError) as exc:
            pin, why = None, getattr(exc, "strerror", None) or "is not UTF-8 text"
    if not pin:
        # an empty one would count as a wrong one
        raise KeyAccessError(
            f'the PIN of token "{section.token}" is missing: {section.pin} {why or "is empty"}',
            hint="set it to the user's PIN, or correct keys.pkcs11.pin",
            code="key-no-identity",
        )
    return pin


def _label(section: Pkcs11, version: str) -> str:
    return section.label.replace("{version}", version)


def _versions(token: Token, section: Pkcs11) -> list[str]:
    """The versions that labels in the token speak of, each once."""
    first, *rest = (re.escape(part) for part in section.label.split("{version}"))
    pattern = re.compile(f"{first}(?P<version>.+){'(?P=version)'.join(rest)}", re.DOTALL)
    labels = (attribute(one, Attribute.LABEL) or "" for one in token.labelled())
    found = (pattern.fullmatch(label) for label in labels)
    return sorted({one["version"] for one in found if one})


async def _key(token: Token, data_keys: DataKeys, section: Pkcs11, version: str, there: Sequence[str]) -> Key:
    label = _label(section, version)
    if version not in there:
        raise KeyRefused(
            f'{token.shown} has no key "{label}"',
            hint=f"versions that its labels speak of are {', '.join(there) or 'none'}",
            code="key-missing",
        )
    said = await token.call("look", lambda: token.identity(token.key(label)))
    return Key(version, _descriptor(label, said), remote=TokenKey(token, data_keys, label))


def _descriptor(label: str, said: str) -> bytes:
    # neither the token's serial number nor the key's id: the same key in another token is the same key
    return descriptor("pkcs11", label, said)


def _require_distinct(token: Token, keys: Sequence[Key]) -> None:
    """Refuses one key under two labels, as far as check values tell: it would change nothing."""
    seen: dict[str, str] = {}
    for key in keys:
        said = key.secret.decode().rpartition("\x00")[2]
        if said.startswith("kcv ") and said in seen:
            raise KeyRefused(
                f'{token.shown}: versions "{seen[said]}" and "{key.version}" have the same check value',
                hint="it is one key under two labels; a rotation needs a new key",
                code="key-unfit",
            )
        seen[said] = key.version


def _listed(token: Token, version: str, label: str) -> Listed:
    try:
        key = token.key(label)
    except KeyRefused as exc:
        return Listed(version, labels=(label,), usable=False, state=exc.message)
    made = Key(version, _descriptor(label, token.identity(key)), remote=None)
    started = attribute(key, Attribute.START_DATE)
    may_unwrap = attribute(key, Attribute.UNWRAP)
    stored_id = attribute(key, Attribute.ID)
    return Listed(
        version,
        labels=(label, *((f"CKA_ID {stored_id.hex()}",) if stored_id else ())),
        usable=bool(may_unwrap),
        state="" if may_unwrap else "it may not unwrap: CKA_UNWRAP is false",
        created=datetime.combine(started, time(), UTC) if started is not None else None,
        fingerprint=made.fingerprint,
        fingerprint_of=FINGERPRINT_OF,
        permissions=(
            Permission("unwrap", "CKA_UNWRAP", may_unwrap),
            Permission("wrap", "CKA_WRAP", attribute(key, Attribute.WRAP)),
            Permission(
                "read its value", "CKA_SENSITIVE false", _negated(attribute(key, Attribute.SENSITIVE))
            ),
            Permission("take it out wrapped", "CKA_EXTRACTABLE", attribute(key, Attribute.EXTRACTABLE)),
        ),
    )


FINGERPRINT_OF = "sha256 of the label and the key's check value"


def _negated(told: Any) -> bool | None:
    return None if told is None else not told


class TokenKey:
    """One key of a token: what opens values under it, and wraps them."""

    def __init__(self, token: Token, data_keys: DataKeys, label: str) -> None:
        self._token, self._data_keys, self._label = token, data_keys, label
        self._in_place = False
        self._target: TokenKey | None = None
        self.calls = 0

    def __repr__(self) -> str:
        return f"TokenKey({self._label!r})"

    @property
    def waiting_for(self) -> str:
        return self._token.gate.reason

    @property
    def calls_per_s(self) -> float:
        """Values a second that are opened or wrapped at most."""
        return self._token.service.calls_per_s

    @property
    def budget(self) -> str:
        """Where that comes from, in words."""
        return self._token.service.budget

    def aim(self, target: RewrappingKey | None) -> None:
        self._in_place = True
        self._target = target if isinstance(target, TokenKey) else None

    async def opened(self, items: Sequence[Opening]) -> list[bytes | None]:
        return await self._each("unwrap", [wrapped for wrapped, _ in items], self._opened)

    async def sealed(self, items: Sequence[Sealing]) -> list[bytes]:
        plain = [text for text, _, _ in items]
        return await self._each("wrap", plain, lambda text: self._data_keys.sealed(self._label, text))

    def _opened(self, wrapped: bytes) -> bytes | None:
        if not self._in_place:
            return self._data_keys.value(self._label, wrapped)
        if self._target is None:
            return Rewrapped(wrapped, wrapped) if self._data_keys.opens(self._label, wrapped) else None
        new = self._data_keys.rewrapped(self._label, self._target._label, wrapped)
        return None if new is None else Rewrapped(wrapped, new)

    async def _each(self, operation: str, values: Sequence[bytes], work: Callable[[bytes], T]) -> list[T]:
        found: list[T] = []
        for at in range(0, len(values), AT_ONCE):
            some = values[at : at + AT_ONCE]

            def do(some: Sequence[bytes] = some) -> list[T]:
                return [work(one) for one in some]

            self.calls += len(some)
            found += await self._token.call(operation, do, cost=len(some))
        return found

    async def tried(self, *, target: bool) -> list[Doubt]:
        """What the token says to a data key of its own making, wrapped and unwrapped; an "info" when it did.

        Of a key that may not wrap only stored values can show that it unwraps.
        """
        try:
            return await self._token.call("try", lambda: self._tried(target))
        except KeyAccessError as exc:
            return [Doubt("error", exc.code, exc.message, exc.hint)]

    def _tried(self, target: bool) -> list[Doubt]:
        doubts: list[Doubt] = []
        try:
            key = self._token.require(self._label, Attribute.UNWRAP)
        except KeyAccessError as exc:
            return [Doubt("error", _apart(exc.code, "unwrap"), exc.message, exc.hint)]
        if attribute(key, Attribute.SENSITIVE) is False or attribute(key, Attribute.EXTRACTABLE):
            what = "the key can be taken out of the token: it is extractable, or not sensitive"
            doubts.append(Doubt("warning", "key-extractable", what, "make keys that are neither"))
        if self._token.identity(key).startswith("id "):
            what = "the token gives no check value of it: another key under its label and id is not noticed"
            doubts.append(Doubt("warning", "key-unidentified", what, None))
        try:
            self._data_keys.try_key(self._label, in_place=self._in_place)
        except KeyAccessError as exc:
            if exc.code != "key-not-permitted" or target:
                return [*doubts, Doubt("error", _apart(exc.code, "wrap"), exc.message, exc.hint)]
            what = "it may not wrap, so no data key was made to try it: stored values show whether it unwraps"
            return [*doubts, Doubt("info", "key-not-tried", what, None)]
        what = "the token wrapped and unwrapped a test key under it, and found them to be the same"
        return [*doubts, Doubt("info", "key-unwraps", what, None)]


def _apart(code: str, operation: str) -> str:
    """A finding's code: which operation it is that is not allowed."""
    return f"key-no-{operation}" if code == "key-not-permitted" else code
