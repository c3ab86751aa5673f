"""The data plane of a Key Vault over real RSA keys, as its REST reference describes it, with its tokens.

It is the tests' own: written by the reference and run with Microsoft's client, it is no proof of what the
service does where the reference is silent. The same tests run against a vault, see tests/support/vault.py.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

TENANT = "6f1d3a52-0a63-4b1c-9d55-7a6d0b1e2c34"

ALL_PERMISSIONS = frozenset(
    {"get", "list", "create", "update", "delete", "wrapKey", "unwrapKey", "encrypt", "decrypt"}
)
READ_AND_UNWRAP = frozenset({"get", "list", "wrapKey", "unwrapKey"})

PAGE = 3
"""Versions a page of a list: few, so that every test with more of them follows a link."""

WINDOW_S = 10.0
"""The service's limits are requests in ten seconds."""

_OPERATIONS = {"wrapkey": "wrapKey", "unwrapkey": "unwrapKey", "encrypt": "encrypt", "decrypt": "decrypt"}

_HASHES: dict[str, Callable[[], hashes.HashAlgorithm]] = {
    "RSA-OAEP": hashes.SHA1,
    "RSA-OAEP-256": hashes.SHA256,
}


class Refused(Exception):
    """An error answer: status, code, message, and the inner code that tells the reasons of a 403 apart."""

    def __init__(
        self, status: int, code: str, message: str, inner: str | None = None, **headers: str
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers
        error: dict[str, Any] = {"code": code, "message": message}
        if inner is not None:
            error["innererror"] = {"code": inner}
        self.body = {"error": error}


@dataclass
class KeyVersion:
    """One version with its private key, which never leaves."""

    name: str
    version: str
    key: rsa.RSAPrivateKey = field(repr=False)
    key_ops: list[str] = field(default_factory=lambda: list(_OPERATIONS.values()))
    enabled: bool = True
    not_before: int | None = None
    expires: int | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    def attributes(self) -> dict[str, Any]:
        times = {
            "nbf": self.not_before,
            "exp": self.expires,
            "created": self.created,
            "updated": self.created,
        }
        return {
            "enabled": self.enabled,
            "recoveryLevel": "Recoverable+Purgeable",
            **{name: value for name, value in times.items() if value is not None},
        }

    def change(self, attributes: Mapping[str, Any]) -> None:
        self.enabled = attributes.get("enabled", self.enabled)
        self.not_before = attributes.get("nbf", self.not_before)
        self.expires = attributes.get("exp", self.expires)


@dataclass
class Principal:
    """Who may ask for tokens, and what he may do with them."""

    client_id: str
    secret: str = field(repr=False)
    permissions: frozenset[str] = READ_AND_UNWRAP


class KeyVaultService:
    """Keys, principals and tokens; answers requests on any loop, and may be changed from any thread."""

    def __init__(self) -> None:
        self.keys: dict[str, list[KeyVersion]] = {}
        self.deleted: dict[str, list[KeyVersion]] = {}
        self.principals: dict[str, Principal] = {}
        self.tokens: dict[str, tuple[str, float]] = {}
        """Client id and end of each token, in seconds of `time.monotonic`."""
        self.token_s = 3600.0
        self.unwraps_per_window: int | None = None
        """The service's limit; beyond it 429. None: no limit."""
        self.retry_after_s: int | None = 1
        self._recent: deque[float] = deque()
        self._lock = threading.Lock()

    def principal(self, client_id: str, permissions: frozenset[str]) -> Principal:
        """A new principal, or new permissions of one."""
        known = self.principals.get(client_id)
        secret = known.secret if known else secrets.token_urlsafe(24)
        self.principals[client_id] = Principal(client_id, secret, permissions)
        return self.principals[client_id]

    def token(self, client_id: str) -> str:
        """A new token of a principal."""
        token = secrets.token_urlsafe(32)
        self.tokens[token] = (client_id, time.monotonic() + self.token_s)
        return token

    def revoke_tokens(self) -> None:
        """Every token ends now."""
        self.tokens.clear()

    def create(self, name: str, size: int) -> KeyVersion:
        made = rsa.generate_private_key(public_exponent=65537, key_size=size)
        version = KeyVersion(name, secrets.token_hex(16), made)
        with self._lock:
            self.keys.setdefault(name, []).append(version)
        return version

    def version(self, name: str, version: str = "") -> KeyVersion:
        """A version, the latest without its id; Refused where there is none."""
        for each in reversed(self.keys.get(name, [])):
            if version in ("", each.version):
                return each
        raise Refused(
            404, "KeyNotFound", f"A key with (name/id) {name}/{version} was not found in this key vault."
        )

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """The one handler of the server."""
        path = [part for part in request.path.split("/") if part]
        try:
            if path[-2:] == ["v2.0", "token"]:
                return web.json_response(await self._token(request))
            allowed = self._authorise(request)
            if "api-version" not in request.query:
                raise Refused(400, "BadParameter", "api-version must be specified")
            body = await request.json() if request.can_read_body else {}
            return web.json_response(await self._route(request, path, body, allowed))
        except Refused as refused:
            return web.json_response(refused.body, status=refused.status, headers=refused.headers)
        except (KeyError, ValueError, TypeError, json.JSONDecodeError):
            malformed = Refused(400, "BadParameter", "The request is malformed.")
            return web.json_response(malformed.body, status=400)

    async def _token(self, request: web.BaseRequest) -> dict[str, Any]:
        form = await request.post()
        principal = self.principals.get(str(form.get("client_id")))
        if principal is None or str(form.get("client_secret")) != principal.secret:
            raise Refused(401, "invalid_client", "AADSTS7000215: Invalid client secret provided.")
        token = self.token(principal.client_id)
        return {"token_type": "Bearer", "access_token": token, "expires_in": int(self.token_s)}

    def _authorise(self, request: web.BaseRequest) -> frozenset[str]:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        client_id, ends = self.tokens.get(token, ("", 0.0))
        if time.monotonic() < ends:
            return self.principals[client_id].permissions
        host = request.host
        # the host without its first label, as vault.azure.net is of a vault's: clients check that
        challenge = (
            f'Bearer authorization="https://{host}/{TENANT}", resource="https://{host.partition(".")[2]}"'
        )
        raise Refused(
            401,
            "Unauthorized",
            "AKV10000: Request is missing a Bearer or PoP token.",
            **{"WWW-Authenticate": challenge},
        )

    async def _route(
        self, request: web.BaseRequest, path: list[str], body: dict[str, Any], allowed: frozenset[str]
    ) -> dict[str, Any]:
        host, method = request.host, request.method

        def need(permission: str) -> None:
            if permission not in allowed:
                raise Refused(
                    403,
                    "Forbidden",
                    f"Caller is not authorized to perform action on resource: no {permission} on keys.",
                    "ForbiddenByRbac",
                )

        match method, path:
            case "POST", ["keys", name, "create"]:
                need("create")
                if body["kty"] != "RSA":
                    raise Refused(400, "BadParameter", "only RSA keys are made here")
                made = await asyncio.to_thread(self.create, name, body.get("key_size", 2048))
                made.key_ops = body.get("key_ops") or made.key_ops
                made.change(body.get("attributes") or {})
                return bundle(host, made)
            case "GET", ["keys"]:
                need("list")
                return self._page(request, [versions[-1] for versions in self.keys.values()])
            case "GET", ["keys", name, "versions"]:
                need("list")
                self.version(name)
                return self._page(request, self.keys[name])
            case "GET", ["keys", name, *version]:
                need("get")
                return bundle(host, self.version(name, *version))
            case "PATCH", ["keys", name, *version]:
                need("update")
                changed = self.version(name, *version)
                changed.change(body.get("attributes") or {})
                changed.key_ops = body.get("key_ops") or changed.key_ops
                return bundle(host, changed)
            case "DELETE", ["keys", name]:
                need("delete")
                latest = self.version(name)
                self.deleted[name] = self.keys.pop(name)
                return bundle(host, latest) | {"recoveryId": f"https://{host}/deletedkeys/{name}"}
            case "GET", ["deletedkeys", name] if name in self.deleted:
                need("get")
                return bundle(host, self.deleted[name][-1])
            case "POST", ["keys", name, version, operation] if operation in _OPERATIONS:
                need(_OPERATIONS[operation])
                return await self._crypto(host, self.version(name, version), operation, body)
        raise Refused(404, "NotFound", f"there is no {method} {request.path}")

    def _page(self, request: web.BaseRequest, found: list[KeyVersion]) -> dict[str, Any]:
        start = int(request.query.get("$skiptoken", 0))
        items = [
            {"kid": kid(request.host, each), "attributes": each.attributes()}
            for each in found[start : start + PAGE]
        ]
        link = f"https://{request.host}{request.path}?api-version={request.query['api-version']}"
        more = start + PAGE < len(found)
        return {"value": items, "nextLink": f"{link}&$skiptoken={start + PAGE}" if more else None}

    async def _crypto(
        self, host: str, key: KeyVersion, operation: str, body: dict[str, Any]
    ) -> dict[str, Any]:
        name = _OPERATIONS[operation]
        opens = operation in ("unwrapkey", "decrypt")
        if opens:
            self._count()
        if not key.enabled:
            raise Refused(
                403, "Forbidden", f"Operation {name} is not allowed on a disabled key.", "KeyDisabled"
            )
        if name not in key.key_ops:
            raise Refused(
                403, "Forbidden", f"Operation {name} is not permitted on this key.", "KeyOperationForbidden"
            )
        now = time.time()
        # what was wrapped can be unwrapped outside of these times too
        if not opens and (now < (key.not_before or 0) or now >= (key.expires or now + 1)):
            raise Refused(
                403, "Forbidden", f"Operation {name} is not allowed on an expired or not yet valid key."
            )
        if body["alg"] not in _HASHES:
            raise Refused(400, "BadParameter", "Key does not support this algorithm.")
        value = base64.urlsafe_b64decode(body["value"] + "==")
        algorithm = _HASHES[body["alg"]]()
        oaep = padding.OAEP(mgf=padding.MGF1(algorithm), algorithm=algorithm, label=None)
        try:
            if opens:
                result = await asyncio.to_thread(key.key.decrypt, value, oaep)
            else:
                result = key.key.public_key().encrypt(value, oaep)
        except ValueError as exc:
            raise Refused(400, "BadParameter", "The parameter is incorrect.") from exc
        return {"kid": kid(host, key), "value": b64(result)}

    def limit(self, unwraps: int | None, retry_after_s: int | None = 1) -> None:
        """How many unwrappings ten seconds may hold from now on; None: as many as come."""
        with self._lock:
            self._recent.clear()
            self.unwraps_per_window, self.retry_after_s = unwraps, retry_after_s

    def _count(self) -> None:
        """Refuses what is beyond the limit of the last ten seconds."""
        with self._lock:
            while self._recent and self._recent[0] <= time.monotonic() - WINDOW_S:
                self._recent.popleft()
            if self.unwraps_per_window is not None and len(self._recent) >= self.unwraps_per_window:
                after = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
                message = "Request was not processed because too many requests were received."
                raise Refused(429, "Throttled", message, **after)
            self._recent.append(time.monotonic())


def b64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def kid(host: str, key: KeyVersion) -> str:
    return f"https://{host}/keys/{key.name}/{key.version}"


def bundle(host: str, key: KeyVersion) -> dict[str, Any]:
    """A version as it is shown: the public key and the attributes."""
    public = key.key.public_key().public_numbers()
    size = (public.n.bit_length() + 7) // 8
    jwk = {
        "kid": kid(host, key),
        "kty": "RSA",
        "key_ops": key.key_ops,
        "n": b64(public.n.to_bytes(size, "big")),
        "e": b64(public.e.to_bytes(3, "big")),
    }
    return {"key": jwk, "attributes": key.attributes()}


class KeyVaultServer:
    """Serves a service over plain HTTP on the loopback, in a thread; what stands before it does TLS."""

    def __init__(self, service: KeyVaultService) -> None:
        self.service = service
        self.endpoint = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="key vault", daemon=True)
        self._runner: web.ServerRunner | None = None

    def start(self) -> None:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(20)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()

    async def _start(self) -> None:
        self._runner = web.ServerRunner(web.Server(self.service.answer), shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.endpoint = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        await self._loop.shutdown_default_executor()
