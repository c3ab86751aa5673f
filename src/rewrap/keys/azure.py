"""Keys in Azure Key Vault: their public halves by version, and unwrapping, which happens in the vault alone.

    GET  {vault}/keys/{name}/{version}             keys/get: the public key, its size and its state
    GET  {vault}/keys/{name}/versions              keys/list: which versions there are
    POST {vault}/keys/{name}/{version}/unwrapkey   keys/unwrapKey: one wrapped key a call, 400 if it is none
    POST {vault}/keys/{name}/{version}/wrapkey     keys/wrapKey: only `check` calls it; wrapping is local

The SDK's client carries the requests: authentication by challenge, TLS, connections. Its own retries are off,
so that each attempt goes through the gate. A version is always named: "the latest" changes under a run.
"""

from __future__ import annotations

import json
import re
import ssl
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any
from urllib.parse import quote, urlsplit

import anyio
from aiohttp import ClientSession, ClientSSLError, DummyCookieJar, TCPConnector
from azure.core.credentials_async import AsyncTokenCredential
from azure.core.exceptions import AzureError, ClientAuthenticationError
from azure.core.pipeline.transport import AioHttpTransport
from azure.core.rest import HttpRequest
from azure.identity.aio import DefaultAzureCredential
from azure.keyvault.keys.aio import KeyClient
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pybase64 import urlsafe_b64decode, urlsafe_b64encode

from rewrap.errors import KeyAccessError, KeyRefused
from rewrap.keys.service import KeyService, Throttled, Unanswered
from rewrap.pace.gate import Cap, Gate

API_VERSION = "7.4"
"""Of the service: the oldest that is still everywhere; nothing newer is needed."""

CONNECT_S, READ_S = 10.0, 30.0
"""Seconds to wait for a connection, and for an answer."""

CALLS_PER_10_S = {
    (2048, False): 4_000, (2048, True): 2_000,
    (3072, False): 1_000, (3072, True): 500,
    (4096, False): 500, (4096, True): 250,
}  # fmt: skip
"""The service's limits for RSA private key operations, by bits and HSM: of a vault and region, in 10 s."""

_NAME = re.compile(r"[0-9A-Za-z-]{1,127}")

_GRANTS = {
    "get": ("read", "keys/get"),
    "list": ("list the versions of", "keys/list"),
    "unwrapkey": ("unwrap with", "keys/unwrapKey"),
    "wrapkey": ("wrap with", "keys/wrapKey"),
}
"""What an operation does, and the permission of an access policy that it needs."""

ROLE = "Key Vault Crypto User"
"""The role that has all of these, where access goes by roles."""


@dataclass(frozen=True, slots=True)
class VaultVersion:
    """One version of a key as the vault describes it. `der` is its public key: a SubjectPublicKeyInfo."""

    version: str
    enabled: bool
    not_before: datetime | None
    expires: datetime | None
    der: bytes = field(default=b"", repr=False)
    bits: int = 0
    hsm: bool = False
    created: datetime | None = None
    operations: tuple[str, ...] = ()

    @property
    def calls_per_s(self) -> float:
        """The service's limit for keys of this kind; the least of all where the size is not in its table."""
        return CALLS_PER_10_S.get((self.bits, self.hsm), min(CALLS_PER_10_S.values())) / 10

    @property
    def kind(self) -> str:
        return f"RSA-{self.bits} {'HSM' if self.hsm else 'software'} keys"


class KeyVault:
    """One key in one vault. Close it after use; not to be used from two event loops.

    `calls_per_s` None takes the service's limit for the key's size. `patience_s` is how long the vault may
    throttle, or not answer, before it counts as away.
    """

    def __init__(
        self,
        url: str,
        name: str,
        *,
        calls_per_s: float | None = None,
        in_flight: int = 16,
        patience_s: float = 300.0,
        credential: AsyncTokenCredential | None = None,
    ) -> None:
        self._url, self._name = url.rstrip("/"), name
        self._credential = credential or DefaultAzureCredential()
        self._service = KeyService(
            "the vault",
            self.shown,
            calls_per_s=calls_per_s,
            limit=Cap(min(CALLS_PER_10_S.values()) / 10, "whatever key it is"),
            in_flight=in_flight,
            patience_s=patience_s,
        )
        # a context of its own reads SSL_CERT_FILE now, and not when some library was imported
        connector = TCPConnector(limit=in_flight, ssl=ssl.create_default_context())
        session = ClientSession(
            connector=connector, cookie_jar=DummyCookieJar(), trust_env=True, auto_decompress=False
        )
        self._client = KeyClient(
            self._url,
            self._credential,
            api_version=API_VERSION,
            transport=AioHttpTransport(session=session, session_owner=True),
            # the gate paces: what the SDK tried again by itself would be counted by nobody
            retry_total=0,
            connection_timeout=CONNECT_S,
            read_timeout=READ_S,
            # a vault on this very machine is an emulator, and its challenge names the real service
            verify_challenge_resource=not _is_loopback(self._url),
        )
        self._described: dict[str, VaultVersion] = {}
        self.calls: Counter[str] = Counter()

    @property
    def shown(self) -> str:
        """The key and its vault, for a message."""
        host = urlsplit(self._url).hostname or self._url
        label = host if _is_loopback(self._url) else host.partition(".")[0]
        return f'key "{self._name}" in azure key vault "{label}"'

    @property
    def _vault_name(self) -> str:
        """The vault as the Azure CLI names it; a placeholder where the address does not tell."""
        name, _, domain = (urlsplit(self._url).hostname or "").partition(".")
        return name if domain == "vault.azure.net" else "…"

    @property
    def gate(self) -> Gate:
        return self._service.gate

    @property
    def calls_per_s(self) -> float:
        """Calls a second that are made at most."""
        return self._service.calls_per_s

    @property
    def budget(self) -> str:
        """The same in words, with where it comes from."""
        return self._service.budget

    async def close(self) -> None:
        await self._client.close()
        await self._credential.close()

    async def describe(self, version: str) -> VaultVersion:
        """One version with its public key. KeyAccessError when it is not there or may not be read."""
        if version not in self._described:
            if not _NAME.fullmatch(version):
                raise KeyAccessError(
                    f'"{version}" is no version of a key in a key vault',
                    hint="name the version itself, 32 hex digits: az keyvault key list-versions shows them",
                )
            found = await self._call("get", version, "GET", f"keys/{quote(self._name)}/{version}")
            described = self._described[version] = _described(version, found, self.shown)
            # one gate for all versions: the slowest kind sets the pace
            slowest = min(self._described.values(), key=lambda one: one.calls_per_s)
            self._service.limited(Cap(slowest.calls_per_s, f"the limit for {slowest.kind}"))
            return described
        return self._described[version]

    async def versions(self) -> list[VaultVersion] | None:
        """The key's versions without their public keys, the oldest first; None where that is not allowed."""
        found: list[tuple[float, VaultVersion]] = []
        path: str | None = f"keys/{quote(self._name)}/versions?maxresults=25"
        while path:
            try:
                page = await self._call("list", None, "GET", path)
            except KeyAccessError as exc:
                if exc.code == "key-not-permitted":
                    return None
                raise
            for item in page.get("value") or ():
                version = str(item.get("kid", "")).rpartition("/")[2]
                found.append((_number(item, "created"), _state(version, item)))
            following = page.get("nextLink")
            # a link that leads elsewhere would take the token with it
            path = following if following and following.startswith(f"{self._url}/") else None
        return [one for _, one in sorted(found, key=lambda pair: pair[0])]

    async def unwrap(self, version: str, algorithm: str, wrapped: Sequence[bytes]) -> list[bytes | None]:
        """What each of some wrapped keys holds, in order; None for what does not open under this version.

        One call each, as many at a time as the gate lets through. Raises KeyAccessError when the vault
        refuses the key itself, or stays away: then nothing is known of any of them.
        """
        out: list[bytes | None] = [None] * len(wrapped)
        size = (await self.describe(version)).bits // 8
        # RSA takes nothing but its own length: that needs no call to be known
        rest = iter([(at, one) for at, one in enumerate(wrapped) if len(one) == size])
        refused: list[KeyAccessError] = []

        async def work(scope: anyio.CancelScope) -> None:
            for at, one in rest:
                try:
                    out[at] = await self._unwrap(version, algorithm, one)
                except KeyAccessError as exc:
                    refused.append(exc)
                    scope.cancel()
                    return

        async with anyio.create_task_group() as group:
            for _ in range(min(self._service.in_flight, len(wrapped))):
                group.start_soon(work, group.cancel_scope)
        if refused:
            raise refused[0]
        return out

    async def _unwrap(self, version: str, algorithm: str, wrapped: bytes) -> bytes | None:
        return await self._operate("unwrapkey", version, algorithm, wrapped)

    async def wrap(self, version: str, algorithm: str, secret: bytes) -> bytes | None:
        """A key wrapped by the vault itself, which shows that this identity may; None if it takes no such."""
        return await self._operate("wrapkey", version, algorithm, secret)

    async def _operate(self, operation: str, version: str, algorithm: str, value: bytes) -> bytes | None:
        body = {"alg": algorithm.upper(), "value": urlsafe_b64encode(value).rstrip(b"=").decode()}
        path = f"keys/{quote(self._name)}/{version}/{operation}"
        answer = await self._call(operation, version, "POST", path, body)
        if not answer:
            return None
        if str(answer.get("kid", "")).rpartition("/")[2].lower() != version.lower():
            # another key's answer: what it says is not what this one would
            raise self._refused("is answered for by another key", version, "key-refused", _STRANGE)
        text = str(answer.get("value", ""))
        try:
            return urlsafe_b64decode(text + "=" * (-len(text) % 4))
        except ValueError:
            raise self._refused("answers with what is no key", version, "key-refused", _STRANGE) from None

    async def _call(
        self,
        operation: str,
        version: str | None,
        method: str,
        path: str,
        body: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """The JSON of an answer; empty when the vault calls what it was sent bad."""

        async def attempt() -> dict[str, Any]:
            self.calls[version or ""] += 1
            status, headers, found = await self._attempt(method, path, body)
            if status == 429:
                raise Throttled(_retry_after(headers))
            if status is None or status >= 500 or status == 408:
                said = "does not answer" if status is None else f"answers {status}"
                raise Unanswered(said, _retry_after(headers))
            if status == 200:
                return found
            if status == 400 and body is not None:
                return {}
            raise self._explained(operation, version, status, found)

        return await self._service.call(operation, attempt)

    async def _attempt(
        self, method: str, path: str, body: Mapping[str, str] | None
    ) -> tuple[int | None, Mapping[str, str], dict[str, Any]]:
        """One request: status, headers and JSON; a status of None is no answer."""
        try:
            answer = await self._client.send_request(HttpRequest(method, path, json=body))
            raw = await answer.read()
        except ClientAuthenticationError:
            raise self._unauthenticated() from None
        except ValueError:
            # the challenge names another service than the one that was asked
            raise KeyAccessError(
                f"{self.shown}: what answers there is not that vault",
                hint="check keys.vault",
                code="key-refused",
            ) from None
        except AzureError as exc:
            if isinstance(exc.inner_exception, ClientSSLError):
                raise KeyAccessError(
                    f"{self.shown}: the certificate shown there is not trusted here",
                    hint="check keys.vault; where a proxy opens TLS, name its authority in SSL_CERT_FILE",
                    code="key-away",
                ) from None
            return None, {}, {}
        try:
            found = json.loads(raw)
        except ValueError:
            found = {}
        return answer.status_code, answer.headers, found if isinstance(found, dict) else {}

    def _explained(
        self, operation: str, version: str | None, status: int, found: Mapping[str, Any]
    ) -> KeyAccessError:
        """Why the vault refuses, by its status and codes alone: its texts may repeat what was sent."""
        codes = _codes(found)
        named = f' version "{version}"' if version else ""
        does, permission = _GRANTS[operation]
        if status == 401:
            return self._unauthenticated()
        if "KeyDisabled" in codes and version is not None:
            return self.disabled(version)
        if status == 404:
            return self._refused(
                "is not there", version, "key-missing",
                f"az keyvault key list-versions --vault-name {self._vault_name} --name {self._name} shows "
                "the versions there are",
            )  # fmt: skip
        if codes & {"ForbiddenByFirewall", "ForbiddenByConnection"}:
            return self._refused(
                "is behind a firewall that refuses this address", version, "key-not-permitted",
                "run where the vault may be reached, or add this address to its network rules",
            )  # fmt: skip
        if status == 403:
            return KeyAccessError(
                f"{self.shown}{named}: this identity may not {does} it",
                hint=f'grant it {permission} in the access policy, or the role "{ROLE}"; it may also be that '
                "the key's own operations or dates do not allow it",
                code="key-not-permitted",
            )
        return self._refused(
            f"is refused: the vault answers {status} {' '.join(sorted(codes))}".rstrip(),
            version, "key-refused", _STRANGE,
        )  # fmt: skip

    def disabled(self, version: str) -> KeyRefused:
        return self._refused(
            "is disabled", version, "key-disabled",
            f"az keyvault key set-attributes --vault-name {self._vault_name} --name {self._name} "
            f"--version {version} --enabled true",
        )  # fmt: skip

    def _refused(self, what: str, version: str | None, code: str, hint: str) -> KeyRefused:
        named = f' version "{version}"' if version else ""
        return KeyRefused(f"{self.shown}{named} {what}", hint=hint, code=code)

    def _unauthenticated(self) -> KeyAccessError:
        return KeyAccessError(
            f"{self.shown}: no identity that the vault accepts is at hand",
            hint="sign in with az login, or set up workload identity (AZURE_CLIENT_ID, AZURE_TENANT_ID, "
            "AZURE_FEDERATED_TOKEN_FILE) or a managed identity; see docs/keys.md",
            code="key-no-identity",
        )


_STRANGE = "see whether keys.vault is the vault itself, and what it logs of this call"


def _described(version: str, found: Mapping[str, Any], shown: str) -> VaultVersion:
    """A version from the answer to keys/get. KeyAccessError where it is no RSA key."""
    key = found.get("key")
    key = key if isinstance(key, dict) else {}
    kind = str(key.get("kty", ""))
    try:
        if kind not in ("RSA", "RSA-HSM"):
            raise ValueError
        public = RSAPublicNumbers(_integer(key["e"]), _integer(key["n"])).public_key()
    except (KeyError, TypeError, ValueError, UnsupportedAlgorithm):
        raise KeyRefused(
            f'{shown} version "{version}" is no RSA key',
            hint="keys are wrapped with RSA-OAEP here; other kinds of keys in a vault are not supported",
            code="key-unfit",
        ) from None
    state = _state(version, found)
    return replace(
        state,
        der=public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        bits=public.key_size,
        hsm=kind.endswith("-HSM"),
        operations=tuple(str(one) for one in key.get("key_ops") or ()),
    )


def _state(version: str, found: Mapping[str, Any]) -> VaultVersion:
    def moment(name: str) -> datetime | None:
        seconds = _number(found, name)
        return datetime.fromtimestamp(seconds, UTC) if seconds else None

    enabled = (found.get("attributes") or {}).get("enabled", True)
    return VaultVersion(version, bool(enabled), moment("nbf"), moment("exp"), created=moment("created"))


def _number(found: Mapping[str, Any], name: str) -> float:
    value = (found.get("attributes") or {}).get(name)
    return float(value) if isinstance(value, int | float) else 0.0


def _integer(text: str) -> int:
    return int.from_bytes(urlsafe_b64decode(text + "=" * (-len(text) % 4)), "big")


def _codes(found: Mapping[str, Any]) -> set[str]:
    """The codes of an error, from the outermost to the innermost: words, never sentences."""
    codes: set[str] = set()
    error = found.get("error")
    while isinstance(error, dict):
        code = error.get("code")
        if isinstance(code, str) and re.fullmatch(r"[A-Za-z0-9_.]{1,60}", code):
            codes.add(code)
        error = error.get("innererror", error.get("innerError"))
    return codes


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the service asks to wait for, from either form of Retry-After or its own header."""
    milliseconds = headers.get("x-ms-retry-after-ms", headers.get("retry-after-ms"))
    if milliseconds is not None and milliseconds.isdecimal():
        return int(milliseconds) / 1000
    text = headers.get("Retry-After")
    if text is None:
        return None
    if text.strip().isdecimal():
        return float(text)
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (at - datetime.now(at.tzinfo or UTC)).total_seconds())


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
