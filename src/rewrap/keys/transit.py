"""The keys of a job whose `[keys]` is a key of a transit engine: its versions, and what opens values there.

No key is ever here. A value goes from one version to another by `rewrap`, and its plaintext stays in the
engine; only where layouts change, or values are bound to associated data, which `rewrap` does not take, are
they decrypted and encrypted.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping, Sequence

from pybase64 import b64decode, b64encode

from rewrap.crypto.elsewhere import Opening, Rewrapped, Sealing, descriptor
from rewrap.errors import KeyAccessError
from rewrap.job import Job
from rewrap.keys.keyring import Doubt, Key, Keyring
from rewrap.keys.listed import Listed, Permission
from rewrap.keys.transitserver import Token, TransitKey, TransitServer

TRIED_BYTES = 32
"""Bytes of the random text that a trial encrypts, and of what it has opened that is no value."""

LATEST = 0
"""What `rewrap` takes for the latest version, which always may be encrypted under."""


async def open_keys(
    job: Job, required: Sequence[str], wanted: Sequence[str] | None, environ: Mapping[str, str]
) -> Keyring:
    """As `Provider`; None wants every version that opens values at present."""
    server = _server(job, environ)
    try:
        key = await server.described()
        if key.derived and not all(_aads(job)):
            raise server.no_context()
        if wanted is None:
            wanted = [one for one in key.versions if int(one) >= key.decrypts_from]
        # `rewrap` takes a context, and no associated data
        in_place = job.rewraps_in_place and (key.derived or not any(_aads(job)))
        keys: list[Key] = []
        for version in dict.fromkeys((*required, *wanted)):
            try:
                keys.append(_key(server, key, version, in_place=in_place))
            except KeyAccessError:
                if version in required:
                    raise
        server.watch(key, [int(one.version) for one in keys])
        known = dict.fromkeys((*key.versions, *required, *wanted))
        return Keyring(keys, known=tuple(known), keeper=server, reopen=job.keys.reopen)
    except BaseException:
        await server.close()
        raise


async def list_keys(job: Job, environ: Mapping[str, str]) -> list[Listed]:
    """Every version, the newest first, with what this token may do with the key."""
    server = _server(job, environ)
    try:
        key = await server.described()
        may = await server.capabilities("rewrap", "decrypt", "encrypt")
        return [_listed(server, key, int(version), may) for version in reversed(key.versions)]
    finally:
        await server.close()


def _server(job: Job, environ: Mapping[str, str]) -> TransitServer:
    section = job.keys.transit
    assert section is not None
    assert section.token is not None
    return TransitServer(
        section,
        Token(section.token, environ, job.folder),
        calls_per_s=job.keys.max_calls_per_s,
        in_flight=job.keys.in_flight,
        patience_s=job.keys.patience_s,
    )


def _aads(job: Job) -> list[bool]:
    """Of each layout in use, whether its values are bound to their rows."""
    return [job.layout(name).aad is not None for entry in job.keyed for name in entry.layouts]


def _key(server: TransitServer, key: TransitKey, version: str, *, in_place: bool) -> Key:
    if version not in key.versions:
        gone = version.isdecimal() and 0 < int(version) < key.available
        raise server.refused(
            f'has no version "{version}"' + (" any more: it was trimmed" if gone else ""),
            f"versions there are {', '.join(key.versions)}",
            "key-missing",
        )
    number = int(version)
    if number < key.decrypts_from:
        raise server.disabled(number)
    # with the moment it was made: a key of this name that is made anew is another one
    named = descriptor("vault-transit", server.path("keys"), version, str(key.created.get(number, "")))
    return Key(version, named, remote=TransitVersion(server, key, number, in_place=in_place))


def _listed(server: TransitServer, key: TransitKey, version: int, may: Mapping[str, bool]) -> Listed:
    opens = version >= key.decrypts_from
    state = "" if opens else f"disabled: min_decryption_version is {key.decrypts_from}"
    if opens and version < key.encrypts_from:
        state = f"no new values: min_encryption_version is {key.encrypts_from}"
    made = _key(server, key, str(version), in_place=True) if opens else None
    return Listed(
        str(version),
        current=version == key.latest,
        usable=opens,
        state=state,
        created=key.made(version),
        fingerprint=made.fingerprint if made else None,
        fingerprint_of=made.fingerprint_of if made else "",
        permissions=tuple(
            Permission(verb, f'update on "{server.path(verb)}"', may.get(verb))
            for verb in ("rewrap", "decrypt", "encrypt")
        ),
    )


class TransitVersion:
    """One version of a key in a transit engine. `in_place` says whether a trial is of `rewrap`."""

    def __init__(self, server: TransitServer, key: TransitKey, version: int, *, in_place: bool) -> None:
        self._server, self._key, self._version, self._in_place = server, key, version, in_place
        self._aimed, self._target = False, LATEST

    @property
    def waiting_for(self) -> str:
        return self._server.gate.reason

    @property
    def calls(self) -> int:
        return self._server.calls[str(self._version)]

    @property
    def calls_per_s(self) -> float:
        """Calls a second that are made at most."""
        return self._server.service.calls_per_s

    @property
    def budget(self) -> str:
        """Where that comes from, in words."""
        return self._server.service.budget

    def aim(self, target: object) -> None:
        self._aimed = True
        self._target = target._version if isinstance(target, TransitVersion) else LATEST

    async def opened(self, items: Sequence[Opening]) -> list[bytes | None]:
        """As `WrappingKey`. A value of a derived key without a context was never made: it does not open."""
        found: list[bytes | None] = [None] * len(items)
        by_rewrap: list[int] = []
        by_decrypt: list[int] = []
        for place, (_, aad) in enumerate(items):
            if self._key.derived and not aad:
                continue
            takes_rewrap = self._aimed and (self._key.derived or not aad)
            (by_rewrap if takes_rewrap else by_decrypt).append(place)
        if by_rewrap:
            for place, one in zip(
                by_rewrap, await self._rewrapped([items[at] for at in by_rewrap]), strict=True
            ):
                found[place] = one
        if by_decrypt:
            asked = [
                {"ciphertext": self._text(items[at][0]), **self._bound(items[at][1])} for at in by_decrypt
            ]
            texts = await self._server.batch("decrypt", self._version, asked)
            for place, text in zip(by_decrypt, texts, strict=True):
                found[place] = None if text is None else self._decoded(text)
        return found

    async def _rewrapped(self, items: Sequence[Opening]) -> list[bytes | None]:
        asked = [{"ciphertext": self._text(wrapped), **self._bound(aad)} for wrapped, aad in items]
        target = self._target
        texts = await self._server.batch("rewrap", self._version, asked, target)
        return [
            # without a target the new wrapping is of no use: only that there is one says that it opens
            None if text is None else Rewrapped(old, self._raw(text, target) if target else old)
            for (old, _), text in zip(items, texts, strict=True)
        ]

    async def sealed(self, items: Sequence[Sealing]) -> list[bytes]:
        """As `WrappingKey`."""
        if self._key.derived and not all(aad for _, aad, _ in items):
            raise self._server.no_context()
        asked = [
            {"plaintext": b64encode(plain).decode("ascii"), **self._bound(aad)} for plain, aad, _ in items
        ]
        texts = await self._server.batch("encrypt", self._version, asked, self._version)
        return [self._raw(text or "", self._version) for text in texts]

    def _text(self, wrapped: bytes) -> str:
        return f"vault:v{self._version}:{b64encode(wrapped).decode('ascii')}"

    def _bound(self, aad: bytes | None) -> dict[str, str]:
        """The row's data, in the one way in which a key of this kind takes them."""
        if not aad:
            return {}
        return {"context" if self._key.derived else "associated_data": b64encode(aad).decode("ascii")}

    def _raw(self, text: str, version: int) -> bytes:
        """What is wrapped in an answer; it has to be under the version that was asked for."""
        prefix = f"vault:v{version}:"
        if not text.startswith(prefix):
            raise self._server.refused(
                f'version "{version}": the server answers with a value of another version',
                "see what answers at that address, and its version",
            )
        return self._decoded(text[len(prefix) :])

    def _decoded(self, text: str) -> bytes:
        try:
            return b64decode(text, validate=True)
        except ValueError:
            raise self._server.refused(
                "is answered for with what is no base64", "see what answers at that address"
            ) from None

    async def tried(self, *, target: bool) -> list[Doubt]:
        """What the engine says to a value that is none, which shows that it may be asked; an "info" if so.

        Of a target whose values are encrypted from here, to a text encrypted and decrypted there.
        """
        if target and self._version < self._key.encrypts_from:
            what = f"takes no new values: min_encryption_version is {self._key.encrypts_from}"
            return [Doubt("error", "key-unfit", what, "name a later version as --to, or lower it")]
        # in place, associated data would take it the other way
        aad = os.urandom(TRIED_BYTES) if self._key.derived or not self._in_place else None
        try:
            if not self._in_place and target:
                secret = os.urandom(TRIED_BYTES)
                (wrapped,) = await self.sealed([(secret, aad, 0)])
                (opened,) = await self.opened([(wrapped, aad)])
                if opened is None or not hmac.compare_digest(opened, secret):
                    what = "the engine does not decrypt what it encrypted itself"
                    return [Doubt("error", "key-unfit", what, None)]
                what = "the engine encrypted and decrypted a test text under it"
            elif (await self.opened([(os.urandom(TRIED_BYTES), aad)]))[0] is not None:
                return [Doubt("error", "key-unfit", "the engine opens what is no value", None)]
            else:
                what = "the engine may be asked to open values under it, and refused one that is none"
        except KeyAccessError as exc:
            return [Doubt("error", exc.code, exc.message, exc.hint)]
        return [Doubt("info", "key-unwraps", f"{what} ({self._key.kind})", None)]
