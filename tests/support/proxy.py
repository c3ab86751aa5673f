"""A proxy that makes faults: between a client under test and a real server, it answers, cuts and counts."""

from __future__ import annotations

import asyncio
import json
import random
import re
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web
from yarl import URL

CHARGE = "x-ms-request-charge"
CONTINUATION = "x-ms-continuation"

_HOP_BY_HOP = {
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}
"""Headers of one connection: RFC 9110 section 7.6.1, and the length, which is computed anew."""


@dataclass(frozen=True)
class Seen:
    """One request, as it was answered."""

    kind: str
    method: str
    path: str
    status: int | None
    """None: the connection was dropped."""
    fault: bool
    """Whether a rule had a hand in it."""
    at: float
    """Seconds of `time.monotonic` when it came in."""
    charge: float = 0.0
    """Request units that the client was told."""


@dataclass(frozen=True)
class Answer:
    """Answers in the server's place; nothing is forwarded."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = '{"code": "Fault", "message": "made by the tests"}'


@dataclass(frozen=True)
class Drop:
    """Resets the connection: before the request is forwarded, or after the server has carried it out."""

    applied: bool = False


@dataclass(frozen=True)
class CutShort:
    """Forwards, announces the whole answer, sends the first half of it, and resets the connection."""


@dataclass(frozen=True)
class Delay:
    """Forwards after a while."""

    seconds: float


@dataclass(frozen=True)
class Meanwhile:
    """Calls a function with the path before it forwards: a writer who comes between."""

    act: Callable[[str], None]


Fault = Answer | Drop | CutShort | Delay | Meanwhile


def throttled(retry_after_ms: int | None = None) -> Answer:
    """429, as Cosmos DB says it; without a time to wait where none is given."""
    headers = {"x-ms-substatus": "3200", CHARGE: "0.38"}
    if retry_after_ms is not None:
        headers["x-ms-retry-after-ms"] = str(retry_after_ms)
    return Answer(429, headers)


def slowed_down(retry_after_s: int | None = None) -> Answer:
    """429, as Key Vault says it."""
    body = '{"error": {"code": "Throttled", "message": "Request was not processed: too many requests"}}'
    return Answer(429, {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}, body)


def forbidden(code: str = "Forbidden") -> Answer:
    """403, as Key Vault says it."""
    return Answer(403, body=f'{{"error": {{"code": "{code}", "message": "the operation is not allowed"}}}}')


REFUSED_TOKEN = Answer(400, body='{"code": "BadRequest", "message": "Invalid Continuation Token"}')


@dataclass
class Rule:
    """A fault and the requests that it befalls; what is None befalls all."""

    fault: Fault
    kind: str | None = None
    path: str | None = None
    """A regular expression, searched for."""
    token: bool | None = None
    """Whether the request has a continuation token."""
    skip: int = 0
    """So many matching requests pass first."""
    times: int | None = None
    """So many are befallen; None: all."""
    every: int = 1
    """Each so-many-th of them."""
    chance: float = 1.0
    matched: int = 0
    befallen: int = 0

    def befalls(self, kind: str, path: str, token: bool, dice: random.Random) -> bool:
        if self.kind is not None and self.kind != kind:
            return False
        if self.token is not None and self.token != token:
            return False
        if self.path is not None and not re.search(self.path, path):
            return False
        self.matched += 1
        if self.matched <= self.skip or (self.matched - self.skip) % self.every:
            return False
        if self.times is not None and self.befallen >= self.times:
            return False
        if dice.random() >= self.chance:
            return False
        self.befallen += 1
        return True


def cosmos_kind(method: str, path: str, headers: Mapping[str, str]) -> str:
    """What a request to Cosmos DB wants: patch, query, read, upsert, container, …"""
    parts = path.strip("/").split("/")
    if parts == [""]:
        return "account"
    if "docs" not in parts:
        return "ranges" if "pkranges" in parts else "container" if "colls" in parts else "database"
    if method == "POST":
        flags = {name.lower() for name, value in headers.items() if value.lower() == "true"}
        if "x-ms-cosmos-is-query-plan-request" in flags:
            return "query_plan"
        if "x-ms-cosmos-is-batch-request" in flags:
            return "batch"
        if "query" in headers.get("Content-Type", "") or "x-ms-documentdb-isquery" in flags:
            return "query"
        return "upsert" if "x-ms-documentdb-is-upsert" in flags else "create"
    if method == "GET":
        return "feed" if parts[-1] == "docs" else "read"
    return {"PUT": "replace"}.get(method, method.lower())


def vault_kind(method: str, path: str, _headers: Mapping[str, str]) -> str:
    """What a request to Key Vault wants: unwrapkey, wrapkey, create, key, versions, …"""
    last = path.strip("/").split("/")[-1].lower()
    if method == "POST":
        return last
    return last if last in ("versions", "keys") else {"GET": "key"}.get(method, method.lower())


def _offered(throughput: Mapping[str, Mapping[str, object]], query: bytes) -> web.Response:
    """The answer to a query for the throughput of what a link leads to."""
    (link,) = [one["value"] for one in json.loads(query)["parameters"]]
    content = throughput.get(link)
    offers = [] if content is None else [{"id": "one", "resource": link, "content": content}]
    body = {"_rid": "", "Offers": offers, "_count": len(offers)}
    return web.json_response(body, headers={CHARGE: "2.0"})


class FaultProxy:
    """Serves on the loopback, in a thread of its own, and forwards to one server.

    The first rule that befalls a request decides what becomes of it. Rules may be added and taken away at
    any time. Without one a request passes, with the charge of its kind in `charges`.
    """

    def __init__(
        self,
        upstream: str,
        kind_of: Callable[[str, str, Mapping[str, str]], str] = cosmos_kind,
        *,
        seed: int = 0,
        tls: ssl.SSLContext | None = None,
        upstream_tls: ssl.SSLContext | None = None,
        keeps_host: bool = False,
    ) -> None:
        self.upstream = upstream.rstrip("/")
        self.endpoint = ""
        self.charges: dict[str, float] = {}
        """Request units of each kind, instead of those that the server says."""
        self.capacity: float | None = None
        """Request units that are served in each second of the clock; what comes after is told to wait."""
        self.throughput: dict[str, dict[str, object]] | None = None
        """The contents of offers by the link of what they are for; None: asking is the server's to answer."""
        self._served: tuple[int, float] = (0, 0.0)
        self.rules: list[Rule] = []
        self.seen: list[Seen] = []
        self.charged = 0.0
        """The sum of the charges that clients were told."""
        self.most_at_once: Counter[str] = Counter()
        """The most requests of a kind that were under way together."""
        self._at_once: Counter[str] = Counter()
        self._kind_of = kind_of
        self._dice = random.Random(seed)
        self._tls, self._upstream_tls, self._keeps_host = tls, upstream_tls, keeps_host
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault proxy", daemon=True)
        self._session: aiohttp.ClientSession | None = None
        self._runner: web.ServerRunner | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(20)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()

    def add(self, fault: Fault, kind: str | None = None, **more: object) -> Rule:
        """A rule behind those there are; `more` are fields of Rule."""
        rule = Rule(fault, kind, **more)  # type: ignore[arg-type]  # names and types are Rule's to refuse
        self.rules.append(rule)
        return rule

    def clear(self) -> None:
        """Takes all rules away."""
        self.rules = []

    def reset(self) -> None:
        """Takes all rules away and forgets what was seen."""
        self.clear()
        self.seen, self.charged, self.charges = [], 0.0, {}
        self.capacity = self.throughput = None
        self.most_at_once.clear()

    def counts(self) -> Counter[str]:
        """Requests by kind, with those that a fault befell."""
        return Counter(each.kind for each in self.seen)

    def faults(self) -> Counter[str]:
        """Requests that a fault befell, by kind."""
        return Counter(each.kind for each in self.seen if each.fault)

    async def _start(self) -> None:
        self._session = aiohttp.ClientSession(
            auto_decompress=False,
            connector=aiohttp.TCPConnector(limit=0, ssl=self._upstream_tls or True),
            timeout=aiohttp.ClientTimeout(total=120),
        )
        # one handler for everything, without a router that would decode paths
        self._runner = web.ServerRunner(web.Server(self._serve), shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls)
        await site.start()
        port = self._runner.addresses[0][1]
        self.endpoint = f"{'https' if self._tls else 'http'}://127.0.0.1:{port}"

    async def _stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        if self._session is not None:
            await self._session.close()

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        at = time.monotonic()
        path = request.raw_path.partition("?")[0].rstrip("/") or "/"
        kind = self._kind_of(request.method, path, request.headers)
        token = CONTINUATION in request.headers
        rule = next((r for r in self.rules if r.befalls(kind, path, token, self._dice)), None)
        self._at_once[kind] += 1
        self.most_at_once[kind] = max(self.most_at_once[kind], self._at_once[kind])
        status: int | None = None
        charge = 0.0
        fault = rule.fault if rule else self._used_up(kind)
        try:
            response = await self._carry_out(fault, request, kind, path)
            if isinstance(response, web.Response):
                status = response.status
                charge = float(response.headers.get(CHARGE, 0))
                self.charged += charge
            return response
        finally:
            self._at_once[kind] -= 1
            self.seen.append(Seen(kind, request.method, path, status, fault is not None, at, charge))

    def _used_up(self, kind: str) -> Answer | None:
        """429 for what would take more than a second's request units, until the next second begins."""
        if self.capacity is None or kind not in self.charges:
            return None
        now = time.monotonic()
        second, used = self._served
        if second != int(now):
            second, used = int(now), 0.0
        if used + self.charges[kind] > self.capacity:
            return throttled(round((second + 1 - now) * 1000) + 1)
        self._served = second, used + self.charges[kind]
        return None

    async def _carry_out(
        self, fault: Fault | None, request: web.BaseRequest, kind: str, path: str
    ) -> web.StreamResponse:
        # all of it, also where it goes nowhere: a client that is still writing would see a reset instead
        body = await request.read()
        if isinstance(fault, Answer):
            return web.Response(
                status=fault.status,
                headers={"Content-Type": "application/json", **fault.headers},
                text=fault.body,
            )
        if isinstance(fault, Drop) and not fault.applied:
            return self._cut(request)
        if isinstance(fault, Delay):
            await asyncio.sleep(fault.seconds)
        if isinstance(fault, Meanwhile):
            await asyncio.to_thread(fault.act, path)
        if path == "/offers" and self.throughput is not None:
            return _offered(self.throughput, body)
        response = await self._forward(request, body, kind)
        if isinstance(fault, Drop):
            return self._cut(request)
        if isinstance(fault, CutShort) and isinstance(response, web.Response):
            assert isinstance(response.body, bytes)
            half = web.StreamResponse(status=response.status, headers=response.headers)
            half.content_length = len(response.body)
            await half.prepare(request)
            await half.write(response.body[: len(response.body) // 2])
            return self._cut(request)
        return response

    def _cut(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        # never sent: there is nobody to send it to
        return web.StreamResponse()

    async def _forward(self, request: web.BaseRequest, body: bytes, kind: str) -> web.StreamResponse:
        assert self._session is not None
        drop = _HOP_BY_HOP if self._keeps_host else {*_HOP_BY_HOP, "host"}
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in drop]
        url = URL(self.upstream + request.raw_path, encoded=True)
        try:
            async with self._session.request(
                request.method, url, headers=headers, data=body, allow_redirects=False
            ) as answered:
                content = await answered.read()
        except aiohttp.ClientError:
            # the server is away: for the client that is a connection lost
            return self._cut(request)
        kept = {n: v for n, v in answered.headers.items() if n.lower() not in _HOP_BY_HOP}
        if kind in self.charges:
            kept[CHARGE] = str(self.charges[kind])
        if kind == "account":
            # a client that looks for the account's regions must find the proxy there
            port = urlsplit(self.upstream).port
            content = re.sub(rb"https?://[\w.-]+:%d" % (port or 443), self.endpoint.encode(), content)
        return web.Response(status=answered.status, headers=kept, body=content)
