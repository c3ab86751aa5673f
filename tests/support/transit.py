"""A Vault server with its transit engine for tests, as scripts/components builds it; a proxy is before it."""

from __future__ import annotations

import base64
import itertools
import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tests.support.proxy import Answer, FaultProxy

PROGRAM = Path(__file__).parents[1] / "components/vault/build/server"

_NUMBERS = itertools.count(1)

RULES = """
path "transit/keys/{name}" {{ capabilities = ["read"] }}
path "transit/rewrap/{name}" {{ capabilities = ["update"] }}
path "transit/decrypt/{name}" {{ capabilities = ["update"] }}
path "transit/encrypt/{name}" {{ capabilities = ["update"] }}
"""

RATE_LIMITED = Answer(429, {"Retry-After": "0"}, '{"errors": ["request path is rate limited"]}')
"""What a server with a rate limit quota answers."""


BUILDING = PROGRAM.parent / ".building"
"""There while scripts/test has the server built."""

BUILT_S = 1_300.0
"""Seconds that a loaded machine may take to build it."""


def missing_server() -> str:
    """Why there is none; empty when there is. Waits while it is being built."""
    limit = time.monotonic() + BUILT_S
    while BUILDING.exists() and time.monotonic() < limit:
        time.sleep(0.5)
    if PROGRAM.exists():
        return ""
    return "run scripts/components, which builds it with Go 1.21 or newer"


def transit_kind(method: str, path: str, _headers: Mapping[str, str]) -> str:
    """What a request wants: rewrap, decrypt, encrypt, keys, or else its last word."""
    parts = path.strip("/").split("/")
    return parts[2] if parts[1:2] == ["transit"] and len(parts) > 3 else parts[-1]


class TransitEngine:
    """The server, unsealed; `address` is the proxy's. Methods are those of its administrator."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL
        )
        assert self._process.stdout is not None
        told = json.loads(self._process.stdout.readline())
        self.upstream, self.root, self._unseal_key = told["address"], told["token"], told["unseal"]
        self.proxy = FaultProxy(self.upstream, transit_kind).__enter__()
        self.ask("sys/mounts/transit", {"type": "transit"})
        return self

    def __exit__(self, *exc: object) -> None:
        self.proxy.__exit__(*exc)
        self._process.terminate()
        self._process.communicate(timeout=20)

    @property
    def address(self) -> str:
        return self.proxy.endpoint

    def ask(self, path: str, body: object = None, method: str | None = None) -> dict[str, Any]:
        """One request past the proxy; the whole answer."""
        request = urllib.request.Request(
            f"{self.upstream}/v1/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"X-Vault-Token": self.root},
            method=method or ("GET" if body is None else "POST"),
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            raw = answer.read()
        return json.loads(raw) if raw else {}

    def new_key(self, versions: int = 2, **given: object) -> str:
        """A key that no other test has, in some versions."""
        name = f"test-{os.getpid()}-{next(_NUMBERS)}"
        self.ask(f"transit/keys/{name}", given)
        for _ in range(versions - 1):
            self.ask(f"transit/keys/{name}/rotate", {})
        return name

    def configure(self, name: str, **given: object) -> None:
        self.ask(f"transit/keys/{name}/config", given)

    def encrypt(self, name: str, version: int, plain: bytes, **bound: bytes) -> str:
        """A value as an application gets it from the server."""
        given = {key: base64.b64encode(value).decode() for key, value in bound.items()}
        text = base64.b64encode(plain).decode()
        body = {"plaintext": text, "key_version": version, **given}
        found: str = self.ask(f"transit/encrypt/{name}", body)["data"]["ciphertext"]
        return found

    def decrypt(self, name: str, value: str, **bound: bytes) -> bytes:
        given = {key: base64.b64encode(one).decode() for key, one in bound.items()}
        found = self.ask(f"transit/decrypt/{name}", {"ciphertext": value, **given})
        return base64.b64decode(found["data"]["plaintext"])

    def token(self, rules: str, policy: str = "") -> str:
        """A token of a policy: one of its own unless that has a name."""
        policy = policy or f"test-{next(_NUMBERS)}"
        self.permit(policy, rules)
        found: str = self.ask("auth/token/create", {"policies": [policy]})["auth"]["client_token"]
        return found

    def permit(self, policy: str, rules: str) -> None:
        self.ask(f"sys/policies/acl/{policy}", {"policy": rules}, "PUT")

    def revoke(self, token: str) -> None:
        self.ask("auth/token/revoke", {"token": token})

    def seal(self) -> None:
        self.ask("sys/seal", {}, "PUT")

    def unseal(self) -> None:
        self.ask("sys/unseal", {"key": self._unseal_key}, "PUT")
