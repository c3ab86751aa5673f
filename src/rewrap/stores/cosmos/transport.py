"""The line to an account: the SDK's transport, with the gate in front of every single request.

Here, below everything that the SDK does by itself, nothing gets past the gate: neither its own retries nor
what it asks about containers and partitions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

import aiohttp
from azure.core.exceptions import ServiceRequestError, ServiceResponseError
from azure.core.pipeline.transport import AioHttpTransport

from rewrap.pace.gate import Gate, Passage
from rewrap.stores.cosmos.faults import elsewhere
from rewrap.stores.cosmos.meter import Kind, Meter, kind_of

CHARGE = "x-ms-request-charge"
CONTINUATION = "x-ms-continuation"
_IS_QUERY = "x-ms-documentdb-isquery"
RETRY_AFTER_MS = "x-ms-retry-after-ms"
RETRY_AFTER_S = "retry-after"

MAX_PAUSE_S = 30.0
"""Longest pause of one 429, in seconds, whatever it asks for: an hour is no answer to a burst."""


@dataclass(frozen=True, slots=True)
class Guarded:
    """What holds for the requests of one task: asked right before each is sent, and how long one may take.

    Those that go `ahead` keep a lease: they cost what they cost, and do not wait for what others have spent.
    """

    check: Callable[[], None]
    timeout_s: float
    ahead: bool = False


ASKED: ContextVar[list[bool] | None] = ContextVar("rewrap_cosmos_asked", default=None)
"""Of each query that a task has sent: whether it said where to go on."""

GUARDED: ContextVar[Guarded | None] = ContextVar("rewrap_cosmos_guarded", default=None)


class PacedTransport(AioHttpTransport):  # type: ignore[misc]  # azure-core exports it lazily, untyped
    """Sends requests through a gate, and tells it and a meter what came back."""

    def __init__(self, gate: Gate, meter: Meter, in_flight: int) -> None:
        self._gate = gate
        self._meter = meter
        self._connections = in_flight
        self.session: Any = None
        super().__init__(session=None, session_owner=True)

    async def open(self) -> None:
        if self.session is None and not self._has_been_opened:
            # as many connections as there may be requests; the default of 100 a host would do, and no limit
            # of a pool shall be what paces
            connector = aiohttp.TCPConnector(limit=self._connections + 4)
            self.session = aiohttp.ClientSession(
                connector=connector,
                # it looks for a proxy, and for a .netrc, in a thread at each request
                trust_env=bool(getproxies_environment()),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        await super().open()

    async def send(self, request: Any, **config: Any) -> Any:
        guarded, asked = GUARDED.get(), ASKED.get()
        if asked is not None and _IS_QUERY in request.headers:
            asked.append(CONTINUATION in request.headers)
        kind = kind_of(request.method, urlsplit(request.url).path, is_query=_IS_QUERY in request.headers)
        ahead = guarded is not None and guarded.ahead
        async with self._gate.ahead() if ahead else self._gate.passed(self._meter.expected(kind)) as passage:
            if guarded is None:
                response = await super().send(request, **config)
            else:
                # only now: a request may have waited for long, and the lease may have run out meanwhile
                guarded.check()
                response = await self._bounded(request, config, guarded.timeout_s)
            self._note(kind, passage, response.status_code, response.headers)
        if _is_elsewhere(request.method, response.status_code, response.headers):
            # the SDK takes what it cannot read for an empty answer: a container would have no documents
            response.internal_response.close()
            raise elsewhere(urlsplit(request.url).netloc.rpartition("@")[2], response.status_code)
        return response

    async def _bounded(self, request: Any, config: dict[str, Any], timeout_s: float) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                return await super().send(request, **config)
        except TimeoutError as exc:
            raise ServiceResponseError("no answer in time", error=exc) from exc
        except ServiceRequestError as exc:
            # it may well have been carried out: what broke was found when the answer did not come
            raise ServiceResponseError("no answer", error=exc) from exc

    def _note(self, kind: Kind, passage: Passage, status: int, headers: Any) -> None:
        charge = _number(headers.get(CHARGE)) or 0.0
        if status == 429:
            self._meter.refused(charge)
            passage.throttled(_retry_after_s(headers), charge)
        else:
            self._meter.charged(kind, charge)
            passage.accepted(charge)


def _is_elsewhere(method: str, status: int, headers: Any) -> bool:
    """Whether an answer is none that Cosmos DB gives: a redirection, nothing at all, a page of HTML."""
    if status == 204:
        return method != "DELETE"
    html = str(headers.get("content-type", "")).lower().startswith("text/html")
    return (300 <= status < 400 and status != 304) or (status < 300 and html)


def _retry_after_s(headers: Any) -> float | None:
    milliseconds = _number(headers.get(RETRY_AFTER_MS))
    asked = milliseconds / 1000 if milliseconds is not None else _number(headers.get(RETRY_AFTER_S))
    return None if asked is None else min(asked, MAX_PAUSE_S)


def _number(text: str | None) -> float | None:
    try:
        found = None if text is None else float(text)
    except ValueError:
        return None
    return found if found is not None and 0 <= found < float("inf") else None
