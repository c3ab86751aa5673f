"""A key of the transit engine of HashiCorp Vault or OpenBao: its HTTP API, and what its answers mean.

    GET  /v1/{mount}/keys/{name}       read: the versions there are, and which may be used
    POST /v1/{mount}/rewrap/{name}     update: wrapped values from one version to another, nothing given out
    POST /v1/{mount}/decrypt/{name}    update
    POST /v1/{mount}/encrypt/{name}    update
    POST /v1/sys/capabilities-self     what this token may do, for `rewrap keys list`

Values go in batches. Each has a `reference`, which the answer must repeat at the same place: an answer that
belongs to another value would open all the same, and be written into the wrong row. The version is given
with each value, for a batch's own is not looked at.

What an error says is compared with texts that are known, and never repeated: it may hold what was sent.
"""

from __future__ import annotations

import json
import os
import ssl
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
from aiohttp import (
    ClientError,
    ClientSession,
    ClientSSLError,
    ClientTimeout,
    DummyCookieJar,
    TCPConnector,
)

from rewrap.errors import KeyAccessError, KeyRefused
from rewrap.keys.service import KeyService, Throttled, Unanswered
from rewrap.keysections import Transit
from rewrap.pace.gate import Cap, Gate

CONNECT_S, READ_S = 10.0, 30.0
"""Seconds to wait for a connection, and for an answer."""

BATCH = 250
"""Values in one call at most."""

BATCH_CHARACTERS = 4 * 1024 * 1024
"""Characters of values in one call at most, but for a single one. Servers take 32 MiB unless told more."""

_LIMIT = Cap(50.0, "a transit engine names no limit, and applications call it too")

_UNOPENED = {
    "cipher: message authentication failed",
    "chacha20poly1305: message authentication failed",
    "invalid ciphertext: no prefix",
    "invalid ciphertext: wrong number of fields",
    "invalid ciphertext: version number could not be decoded",
    "invalid ciphertext: could not decode base64",
    "invalid ciphertext length",
}
"""What the engine says of a value that does not open. Whatever else it says is no value's fault."""

_TOO_OLD = "ciphertext or signature version is disallowed by policy (too old)"

_KINDS = ("aes128-gcm96", "aes256-gcm96", "chacha20-poly1305")
"""Keys that say of one value that it does not open. With RSA one such value fails the whole batch."""

_VERBS = {"keys": "read", "rewrap": "update", "decrypt": "update", "encrypt": "update"}
"""The capability of a policy that each path takes."""


@dataclass(frozen=True, slots=True)
class TransitKey:
    """A key as the engine describes it: versions are counted from 1 to `latest`.

    Versions below `available` were trimmed and are gone for good; those below `decrypts_from` open nothing
    until that is lowered; new values may be made under `encrypts_from` and later ones.
    """

    kind: str
    latest: int
    available: int
    decrypts_from: int
    encrypts_from: int
    derived: bool
    created: Mapping[int, int]

    @property
    def versions(self) -> list[str]:
        return [str(one) for one in range(self.available, self.latest + 1)]

    def made(self, version: int) -> datetime | None:
        seconds = self.created.get(version)
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


class Token:
    """The token, read again for each call where it is in a file: an agent writes a new one there."""

    def __init__(self, reference: str, environ: Mapping[str, str], folder: Path) -> None:
        scheme, _, self._place = reference.partition(":")
        self._path = folder / os.path.expanduser(self._place) if scheme == "file" else None
        self._environ = environ

    def read(self) -> str:
        """The token as it is now. KeyAccessError where there is none."""
        if self._path is None:
            where, text = f"environment variable {self._place}", self._environ.get(self._place, "")
        else:
            where = f"file {self._place}"
            try:
                text = self._path.read_text("utf-8")
            except (OSError, UnicodeDecodeError) as exc:
                why = exc.strerror if isinstance(exc, OSError) else "it is no text"
                raise self._missing(f"{where}: {why}") from None
        token = text.strip()
        if not token:
            raise self._missing(f"{where} holds none")
        if not token.isascii() or not token.isprintable() or " " in token:
            raise self._missing(f"what {where} holds is no token")
        return token

    def _missing(self, why: str) -> KeyAccessError:
        return KeyAccessError(
            f"the token of the transit engine is missing: {why}",
            hint="sign in with vault login, have an agent write a token there, or correct "
            "keys.vault-transit.token",
            code="key-no-identity",
        )


class TransitServer:
    """One key in one transit engine. Close it after use; not to be used from two event loops."""

    def __init__(
        self,
        section: Transit,
        token: Token,
        *,
        calls_per_s: float | None = None,
        in_flight: int = 16,
        patience_s: float = 300.0,
    ) -> None:
        self._section, self._token = section, token
        self._root = section.address.rstrip("/") + "/v1/"
        self._mount = section.mount.strip("/")
        self.service = KeyService(
            "the transit engine",
            self.shown,
            calls_per_s=calls_per_s,
            limit=_LIMIT,
            in_flight=in_flight,
            patience_s=patience_s,
        )
        self._session = ClientSession(
            connector=TCPConnector(limit=in_flight, ssl=ssl.create_default_context()),
            cookie_jar=DummyCookieJar(),
            timeout=ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=READ_S),
            trust_env=True,
        )
        self.calls: Counter[str] = Counter()
        self._in_use: dict[int, int | None] = {}

    @property
    def shown(self) -> str:
        """The key and its engine, for a message."""
        return f'key "{self._section.name}" in transit engine "{self._mount}"'

    @property
    def gate(self) -> Gate:
        return self.service.gate

    async def close(self) -> None:
        await self._session.close()

    def path(self, operation: str) -> str:
        """The path that a policy names for an operation."""
        return f"{self._mount}/{operation}/{self._section.name}"

    async def described(self) -> TransitKey:
        """The key's versions and state. KeyAccessError when it is not there, may not be read or is unfit."""
        found = await self._call("keys", None)
        try:
            kind = str(found["type"])
            latest = int(found["latest_version"])
            described = TransitKey(
                kind,
                latest,
                max(1, int(found.get("min_available_version") or 1)),
                max(1, int(found["min_decryption_version"])),
                # 0 is the latest: a call that names a version may name any that opens
                max(1, int(found["min_encryption_version"])),
                bool(found.get("derived")),
                {int(version): int(at) for version, at in found["keys"].items()} if kind in _KINDS else {},
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise self.refused("is described by what is no key", "see what answers at that address") from None
        if kind not in _KINDS:
            known = ", ".join(_KINDS)
            raise self.refused("is of a kind that is not supported", f"supported are {known}", "key-unfit")
        return described

    def watch(self, key: TransitKey, versions: Iterable[int]) -> None:
        """These are in use from now on."""
        self._in_use = {version: key.created.get(version) for version in versions}

    async def still_there(self) -> None:
        """As `WatchedKeeper`: a key made anew under the name would open nothing, and no value be at fault."""
        key = await self.described()
        for version, made in self._in_use.items():
            if version < key.decrypts_from:
                raise self.disabled(version)
            if key.created.get(version) != made:
                raise self.refused(
                    f'version "{version}" is another one than when the run began',
                    "the key was deleted and made anew, or restored from an older backup",
                )

    def disabled(self, version: int) -> KeyRefused:
        return self.refused(
            f'version "{version}" is disabled: it is below min_decryption_version',
            f"vault write {self.path('keys')}/config min_decryption_version={version}",
            "key-disabled",
        )

    async def capabilities(self, *operations: str) -> dict[str, bool]:
        """Whether this token may do each; nothing where the server does not tell."""
        paths = [self.path(operation) for operation in operations]
        try:
            found = await self._call("", {"paths": paths}, path="sys/capabilities-self")
        except KeyAccessError as exc:
            if exc.code in ("key-away", "key-no-identity"):
                raise
            return {}
        told = {}
        for operation, path in zip(operations, paths, strict=True):
            if isinstance(found.get(path), list):
                told[operation] = bool({"root", _VERBS[operation]} & set(map(str, found[path])))
        return told

    async def batch(
        self, operation: str, version: int, items: Sequence[Mapping[str, str]], key_version: int | None = None
    ) -> list[str | None]:
        """What the engine makes of each, in order; None for what does not open.

        `version` is whose calls they count as, `key_version` the version to make new values under. Raises
        KeyAccessError for everything that is no value's fault.
        """
        out: list[str | None] = [None] * len(items)
        rest = iter(_chunks(items))
        stopped: list[KeyAccessError] = []

        async def work(scope: anyio.CancelScope) -> None:
            for at in rest:
                try:
                    chunk = [(place, items[place]) for place in at]
                    for place, text in zip(
                        at, await self._asked(operation, version, chunk, key_version), strict=True
                    ):
                        out[place] = text
                except KeyAccessError as exc:
                    stopped.append(exc)
                    scope.cancel()
                    return

        async with anyio.create_task_group() as group:
            for _ in range(min(self.service.in_flight, -(-len(items) // BATCH) + 4)):
                group.start_soon(work, group.cancel_scope)
        if stopped:
            raise stopped[0]
        return out

    async def _asked(
        self,
        operation: str,
        version: int,
        chunk: Sequence[tuple[int, Mapping[str, str]]],
        key_version: int | None,
    ) -> list[str | None]:
        """One call. `chunk` has each item behind the number that it is known by."""
        given: dict[str, object] = {} if key_version is None else {"key_version": key_version}
        asked = [{**item, **given, "reference": str(number)} for number, item in chunk]
        found = await self._call(operation, {"batch_input": asked}, version=version)
        results = found.get("batch_results")
        if not isinstance(results, list) or len(results) != len(chunk):
            raise self._strange(version)
        return [
            self._answer(operation, version, str(number), one)
            for (number, _), one in zip(chunk, results, strict=True)
        ]

    def _answer(self, operation: str, version: int, reference: str, result: object) -> str | None:
        if not isinstance(result, dict) or result.get("reference") != reference:
            raise self._strange(version)
        error = result.get("error")
        if error:
            if error in _UNOPENED and operation != "encrypt":
                return None
            raise self._said(operation, version, str(error))
        text = result.get("plaintext" if operation == "decrypt" else "ciphertext")
        # an empty plaintext is left out of the answer
        if text is None and operation == "decrypt":
            return ""
        if not isinstance(text, str):
            raise self._strange(version)
        return text

    def _said(self, operation: str, version: int, text: str) -> KeyAccessError:
        """What an error of the engine comes to that is no value's."""
        named = self.path("keys")
        if text == _TOO_OLD:
            return self.disabled(version)
        if "version is too new" in text or "no such key version" in text or "higher than the latest" in text:
            return self.refused(
                f'version "{version}" is not there any more',
                f"vault read {named} shows what there is; see whether the key was restored or made anew",
                "key-missing",
            )
        if "less than the minimum encryption key version" in text:
            return self.refused(
                f'version "{version}" takes no new values: it is below min_encryption_version',
                f"name a later version as --to, or lower it: vault write {named}/config "
                f"min_encryption_version={version}",
                "key-unfit",
            )
        if text.startswith("missing 'context'"):
            return self.no_context()
        if "key not found" in text:
            return self.missing()
        return self.refused(
            f"is refused: the server answers with an error to {operation}", "see the server's own log"
        )

    def no_context(self) -> KeyRefused:
        return self.refused(
            "derives its keys from a context, and a layout gives none",
            'set aad in the layout to what the application gives as context: aad = "{account_id}"',
            "key-unfit",
        )

    def missing(self) -> KeyRefused:
        return self.refused(
            "is not there",
            "check keys.vault-transit.name, mount and namespace; without a namespace it is the root's",
            "key-missing",
        )

    async def _call(
        self, operation: str, body: Mapping[str, object] | None, *, path: str = "", version: int = 0
    ) -> dict[str, Any]:
        """The `data` of an answer."""
        asked = path or self.path(operation)

        async def attempt() -> dict[str, Any]:
            self.calls[str(version)] += 1
            token = self._token.read()
            status, retry_after_s, found = await self._attempt(asked, token, body)
            if status == 403 and self._token.read() != token:
                # an agent has just written another one
                status, retry_after_s, found = await self._attempt(asked, self._token.read(), body)
            data = found.get("data")
            if status == 200 and isinstance(data, dict):
                return data
            if status == 400 and isinstance(data, dict) and "batch_results" in data:
                return data
            raise await self._explained(operation, version, asked, status, retry_after_s, found)

        return await self.service.call(operation or "answer", attempt)

    async def _attempt(
        self, path: str, token: str, body: Mapping[str, object] | None
    ) -> tuple[int, float | None, dict[str, Any]]:
        """One request: its status, the seconds to wait that it names, and its JSON."""
        headers = {"X-Vault-Token": token, "X-Vault-Request": "true"}
        if self._section.namespace:
            headers["X-Vault-Namespace"] = self._section.namespace
        try:
            async with self._session.request(
                "GET" if body is None else "POST",
                self._root + quote(path),
                json=body,
                headers=headers,
                # whoever is sent on takes the token along
                allow_redirects=False,
            ) as answer:
                raw = await answer.read()
                status, after = answer.status, answer.headers.get("Retry-After", "")
        except ClientSSLError:
            raise KeyAccessError(
                f"{self.shown}: the certificate shown there is not trusted here",
                hint="check keys.vault-transit.address; name the authority in SSL_CERT_FILE",
                code="key-away",
            ) from None
        except (ClientError, TimeoutError, OSError):
            raise Unanswered("does not answer") from None
        try:
            found = json.loads(raw)
        except ValueError:
            found = {}
        return status, float(after) if after.isdigit() else None, found if isinstance(found, dict) else {}

    async def _explained(
        self,
        operation: str,
        version: int,
        path: str,
        status: int,
        retry_after_s: float | None,
        found: Mapping[str, Any],
    ) -> Exception:
        """What an answer comes to that is none."""
        errors = [str(one) for one in found.get("errors") or ()]
        if status == 429:
            return Throttled(retry_after_s)
        if status == 503 and any("sealed" in one for one in errors):
            return Unanswered("answers 503, for it is sealed,", retry_after_s)
        # 307: a standby that has no way to the active server; 412: one that is not as far yet
        if status >= 500 or status in (307, 308, 408, 412, 472, 473):
            return Unanswered(f"answers {status}", retry_after_s)
        if status in (401, 403):
            return await self._forbidden(operation, path)
        if status == 404:
            return self.missing()
        return self._said(operation, version, errors[0] if errors else "")

    async def _forbidden(self, operation: str, path: str) -> KeyAccessError:
        """A token that may not, or is none any more: the server says the same to both."""
        status, _, _ = await self._attempt("auth/token/lookup-self", self._token.read(), None)
        if status in (401, 403):
            return KeyAccessError(
                f"{self.shown}: the server takes no such token",
                hint="it has expired, was revoked, or is of another namespace: vault login, or see to the "
                "agent that writes it",
                code="key-no-identity",
            )
        verb = _VERBS.get(operation, "update")
        return KeyAccessError(
            f"{self.shown}: this token may not {operation or 'ask'}",
            hint=f'grant it in a policy: path "{path}" {{ capabilities = ["{verb}"] }}',
            code="key-not-permitted",
        )

    def _strange(self, version: int) -> KeyRefused:
        return self.refused(
            f'version "{version}": an answer does not belong to what was asked',
            "see what answers at that address; a server must repeat each value's reference, as 1.14 does",
        )

    def refused(self, what: str, hint: str, code: str = "key-refused") -> KeyRefused:
        return KeyRefused(f"{self.shown} {what}", hint=hint, code=code)


def _chunks(items: Sequence[Mapping[str, str]]) -> list[list[int]]:
    """The places of what goes in one call. All of a call has a context, or nothing of it has."""
    chunks: list[list[int]] = []
    for with_context in (False, True):
        size, chunk = 0, [0] * 0
        for place, item in enumerate(items):
            if ("context" in item) is not with_context:
                continue
            length = sum(map(len, item.values()))
            if chunk and (len(chunk) >= BATCH or size + length > BATCH_CHARACTERS):
                chunks.append(chunk)
                size, chunk = 0, []
            chunk.append(place)
            size += length
        if chunk:
            chunks.append(chunk)
    return chunks
