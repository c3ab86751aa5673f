"""The client: one account of a job's store, its containers, and every request to them.

The SDK is imported when the first request is made: no command that needs no Cosmos DB waits for it.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

import anyio

from rewrap.errors import JobError, SchemaMismatch, StoreUnavailable
from rewrap.job import Job
from rewrap.stores.cosmos.faults import BadRequest, Missing, Throttled, translated
from rewrap.stores.cosmos.gate import Gate

T = TypeVar("T")

REQUEST_TIMEOUT_S = 10.0
"""Seconds that a write may take; far beyond any, so silence is a broken line."""

READ_TIMEOUT_S = 30.0
"""Seconds without a byte of an answer; a query over much is given more time than a write."""

CONNECT_TIMEOUT_S = 5.0

THROTTLE_PATIENCE_S = 10.0
"""Seconds that one request tries again while nothing but 429 comes back; then its caller decides."""

ATTEMPT_PAUSES_S = (0.05, 0.2, 0.8)
"""Seconds before the further attempts at a request that failed for a passing reason."""

EVERYTHING = {"Range": {"min": "", "max": "FF", "isMinInclusive": True, "isMaxInclusive": False}}
"""The feed range of a whole container."""

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Query:
    """A query's text and its parameters by name."""

    text: str
    parameters: tuple[tuple[str, Any], ...] = ()

    @property
    def sent(self) -> list[dict[str, Any]]:
        return [{"name": name, "value": value} for name, value in self.parameters]


@dataclass(frozen=True, slots=True)
class Answer:
    """One page of a query: what it found, and the token to go on with; None at the end."""

    found: list[Any] = field(repr=False)
    token: str | None = None


@dataclass(frozen=True, slots=True)
class Region:
    """What an account says of itself."""

    write_region: str
    regions: tuple[str, ...]
    consistency: str
    multiple_writes: bool


class Account:
    """One database of one account. Every request goes through one gate, whoever sends it."""

    def __init__(self, job: Job, environ: Mapping[str, str] = os.environ) -> None:
        self._job = job
        self._section = job.cosmos
        self._environ = environ
        self.gate = Gate(self._section.in_flight)
        self._turn = anyio.Lock()
        self._client: Any = None
        self._credential: Any = None
        self._region: Region | None = None
        self._containers: dict[str, Container] = {}
        self._proxies: dict[str, Any] = {}

    @property
    def host(self) -> str:
        # an endpoint's path or user has no meaning here, and might be a secret
        return urlsplit(self._section.endpoint).netloc.rpartition("@")[2]

    @property
    def database(self) -> str:
        return self._section.database

    @property
    def subject(self) -> str:
        """What messages call it."""
        return f"database {self.database} of {self.host}"

    def spent(self) -> dict[str, float]:
        return {"request_units": round(self.gate.request_units, 2)}

    async def region(self) -> Region:
        """What the account says of its regions and its consistency."""
        await self._connected()
        assert self._region is not None
        return self._region

    async def database_rid(self) -> str:
        """The database's own id, which another database of the same name does not have."""
        client = await self._connected()
        proxy = client.get_database_client(self.database)
        with _expected(f'database "{self.database}"', f"account {self.host}"):
            found = await self.patiently(proxy.read, self.subject)
        return str(found["_rid"])

    def container(self, name: str) -> Container:
        """A container by its name; whether it is there shows when it is asked."""
        return self._containers.setdefault(name, Container(self, name))

    async def ensure_container(self, name: str, partition_key: str) -> Container:
        """A container that is made unless it is there, partitioned by a path."""
        from azure.cosmos import PartitionKey

        client = await self._connected()
        proxy = client.get_database_client(self.database)
        container = self.container(name)
        try:
            await container.properties()
        except SchemaMismatch:
            await self.patiently(
                lambda: proxy.create_container_if_not_exists(name, PartitionKey(partition_key)),
                f"container {self.database}/{name}",
                writes=True,
            )
        return container

    async def proxy(self, name: str) -> Any:
        """The SDK's container."""
        client = await self._connected()
        if name not in self._proxies:
            self._proxies[name] = client.get_database_client(self.database).get_container_client(name)
        return self._proxies[name]

    async def patiently(
        self, attempt: Callable[[], Awaitable[T]], subject: str, *, writes: bool = False
    ) -> T:
        """The result of a request, tried again while it fails for a passing reason, and not for long.

        Each attempt passes the gate. A write that was carried out and whose answer was lost comes back as
        Changed from the next attempt: it is for the caller to look whether it was its own.
        """
        pauses = iter(ATTEMPT_PAUSES_S)
        while True:
            try:
                with translated(subject, writes=writes):
                    return await attempt()
            except Throttled:
                # the gate is shut by now: the next attempt waits there, as everybody's does
                if self.gate.throttled_for_s > THROTTLE_PATIENCE_S:
                    raise
            except StoreUnavailable:
                pause = next(pauses, None)
                if pause is None:
                    raise
                await anyio.sleep(pause)

    async def close(self) -> None:
        for held in (self._client, self._credential):
            if held is not None:
                await held.close()
        self._client = self._credential = None
        self._containers.clear()
        self._proxies.clear()

    # connecting

    async def _connected(self) -> Any:
        if self._client is None:
            async with self._turn:
                if self._client is None:
                    self._client = await self._connect()
        return self._client

    async def _connect(self) -> Any:
        client = await self._opened(())
        region = await self._ask(client)
        self._region = region
        if len(region.regions) == 1 or _is_local(self._section.endpoint):
            return client
        # another region may lag behind: what is read there is not what is
        await client.close()
        return await self._opened((region.write_region,))

    async def _ask(self, client: Any) -> Region:
        try:
            account = await self.patiently(client._get_database_account, self.subject)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await client.close()
            raise
        writable = [str(one["name"]) for one in account.WritableLocations]
        readable = [str(one["name"]) for one in account.ReadableLocations]
        consistency = (account.ConsistencyPolicy or {}).get("defaultConsistencyLevel", "")
        return Region(
            writable[0] if writable else "",
            tuple(readable),
            str(consistency),
            bool(account._EnableMultipleWritableLocations) or len(writable) > 1,
        )

    async def _opened(self, preferred: Sequence[str]) -> Any:
        from azure.cosmos.aio import CosmosClient
        from azure.cosmos.documents import ConnectionPolicy

        from rewrap.stores.cosmos.transport import PacedTransport

        policy = ConnectionPolicy()
        # with the SDK's own retries a 429 would be waited for out of the gate's sight; zero passed by any
        # other way is taken for "not given"
        policy.RetryOptions = type(policy.RetryOptions)(max_retry_attempt_count=0)
        options: dict[str, Any] = {}
        if self._section.low_priority:
            options["priority"] = "Low"
        if self._section.throughput_bucket is not None:
            options["throughput_bucket"] = self._section.throughput_bucket
        client: Any
        with translated(self.subject):
            try:
                client = CosmosClient(
                    self._section.endpoint,
                    await self._authority(),
                    connection_policy=policy,
                    transport=PacedTransport(self.gate, self._section.in_flight),
                    retry_connect=0,
                    retry_read=0,
                    retry_status=0,
                    connection_timeout=CONNECT_TIMEOUT_S,
                    read_timeout=READ_TIMEOUT_S,
                    enable_endpoint_discovery=not _is_local(self._section.endpoint),
                    preferred_locations=list(preferred),
                    no_response_on_write=False,
                    user_agent_suffix="rewrap",
                    **options,
                )
            except (ValueError, TypeError) as exc:
                raise _unusable(self.subject) from exc
            try:
                await client.__aenter__()
            except ValueError as exc:
                # the first request is the first that is signed
                await client.close()
                raise _unusable(self.subject) from exc
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await client.close()
                raise
        return client

    async def _authority(self) -> Any:
        """What requests are signed with: the account's key, or an identity that azure-identity finds."""
        reference = self._section.key
        if reference is None:
            from azure.identity.aio import DefaultAzureCredential

            self._credential = self._credential or DefaultAzureCredential()
            return self._credential
        from rewrap.stores.open import referred

        return referred(reference, self._job, self._environ, "key")


class Container:
    """One container: documents by id and partition key, and queries."""

    def __init__(self, account: Account, name: str) -> None:
        self.account = account
        self.name = name
        self.relation = f"{account.database}/{name}"

    @property
    def subject(self) -> str:
        return f"container {self.relation}"

    async def properties(self) -> Document:
        """How it is set up: its _rid, partition key, indexing, time to live. SchemaMismatch without it."""
        proxy = await self.account.proxy(self.name)
        with _expected(f'container "{self.name}"', self.account.subject):
            return dict(await self.account.patiently(proxy.read, self.subject))

    async def date(self) -> str:
        """The server's time, as its answers are dated (RFC 9110)."""
        proxy = await self.account.proxy(self.name)
        heads: list[Mapping[str, str]] = []
        await self.account.patiently(
            lambda: proxy.read(response_hook=lambda headers, _: heads.append(headers)), self.subject
        )
        return heads[-1]["date"]

    async def feed_ranges(self) -> list[dict[str, Any]]:
        """The ranges that are one partition of the server's each, as it has them now."""
        proxy = await self.account.proxy(self.name)

        async def listed() -> list[dict[str, Any]]:
            return [one async for one in proxy.read_feed_ranges(force_refresh=True)]

        with _expected(f'container "{self.name}"', self.account.subject):
            return await self.account.patiently(listed, self.subject)

    async def query(
        self, query: Query, *, limit: int, token: str | None = None, scope: Mapping[str, Any] = EVERYTHING
    ) -> Answer:
        """One page of at most `limit` results within a feed range."""
        proxy = await self.account.proxy(self.name)

        async def page() -> Answer:
            # the SDK keeps the headers of the last answer in one place for all requests under way: only
            # those handed to this query's own hook are surely its own
            heads: list[Mapping[str, str]] = []
            pages = proxy.query_items(
                query.text,
                parameters=query.sent,
                feed_range=dict(scope),
                max_item_count=limit,
                response_hook=lambda headers, _: heads.append(headers),
            ).by_page(token)
            async for found in pages:
                rows = [row async for row in found]
                return Answer(rows, heads[-1].get("x-ms-continuation") if heads else None)
            return Answer([])

        with _expected(f'container "{self.name}"', self.account.subject):
            return await self.account.patiently(page, self.subject)

    async def every(
        self, query: Query, *, limit: int = 1_000, scope: Mapping[str, Any] = EVERYTHING
    ) -> AsyncIterator[list[Any]]:
        """All pages of a query. StoreUnavailable when the server forgets where it was: ask once more."""
        token: str | None = None
        while True:
            try:
                answer = await self.query(query, limit=limit, token=token, scope=scope)
            except BadRequest:
                if token is None:
                    raise
                raise StoreUnavailable(
                    f"{self.subject}: the server does not go on where it was",
                    hint="it is asked from the start",
                ) from None
            yield answer.found
            token = answer.token
            if token is None:
                return

    async def count(self, query: Query) -> int:
        """The sum of what a `SELECT VALUE COUNT(1)` counts in each part of the container."""
        total = 0
        async for found in self.every(query):
            total += sum(int(one) for one in found)
        return total

    async def read(self, name: str, partition: Any) -> Document | None:
        """A document; None when it is not there."""
        proxy = await self.account.proxy(self.name)
        try:
            found = await self.account.patiently(lambda: proxy.read_item(name, partition), self.subject)
        except Missing:
            return None
        return dict(found)

    async def create(self, document: Document) -> Document:
        """Writes a document that is not there; Changed when it is."""
        proxy = await self.account.proxy(self.name)
        return dict(
            await self.account.patiently(lambda: proxy.create_item(document), self.subject, writes=True)
        )

    async def replace(self, document: Document, etag: str) -> Document:
        """Writes over a document while it has this etag; Changed or Missing when it has not."""
        from azure.core import MatchConditions

        proxy = await self.account.proxy(self.name)
        return dict(
            await self.account.patiently(
                lambda: proxy.replace_item(
                    document["id"], document, etag=etag, match_condition=MatchConditions.IfNotModified
                ),
                self.subject,
                writes=True,
            )
        )

    async def patch(self, name: str, partition: Any, operations: list[Document], etag: str) -> str:
        """Changes some places of a document while it has this etag; its new etag.

        Raises Changed or Missing when it has not.
        """
        from azure.core import MatchConditions

        proxy = await self.account.proxy(self.name)
        answered = await self.account.patiently(
            lambda: proxy.patch_item(
                name,
                partition,
                operations,
                etag=etag,
                match_condition=MatchConditions.IfNotModified,
                # what is written is known: it need not come back
                no_response=True,
            ),
            self.subject,
            writes=True,
        )
        return str(answered.get_response_headers().get("etag", "")).strip('"')

    async def delete(self, name: str, partition: Any) -> None:
        """Removes a document, whatever it holds."""
        proxy = await self.account.proxy(self.name)
        try:
            await self.account.patiently(
                lambda: proxy.delete_item(name, partition), self.subject, writes=True
            )
        except Missing:
            return


@contextmanager
def guarded(check: Callable[[], None], timeout_s: float) -> Iterator[None]:
    """Within it, `check` is asked right before each request is sent, and none takes longer than that."""
    from rewrap.stores.cosmos.transport import GUARDED, Guarded

    before = GUARDED.set(Guarded(check, timeout_s))
    try:
        yield
    finally:
        GUARDED.reset(before)


@contextmanager
def _expected(what: str, where: str) -> Iterator[None]:
    """Turns 404 into the error of a job that names what is not there."""
    try:
        yield
    except Missing:
        raise SchemaMismatch(
            f"{where} has no {what}", hint="see stores.*.database and targets.container, and the endpoint"
        ) from None


def _is_local(endpoint: str) -> bool:
    """Whether an endpoint is of this machine: an emulator's, which names itself as others cannot reach it."""
    host = urlsplit(endpoint).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _unusable(subject: str) -> JobError:
    return JobError(
        f"{subject} cannot be opened with this endpoint and key",
        hint="stores.*.endpoint is like https://ACCOUNT.documents.azure.com:443/, and the key is base64",
    )
