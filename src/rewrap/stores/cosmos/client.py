"""The client: one account of a job's store, and how it is reached.

The SDK is imported when the first request is made: no command that needs no Cosmos DB waits for it.
"""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import anyio

from rewrap.errors import JobError, SchemaMismatch, StoreError, StoreUnavailable, UnsafeTarget
from rewrap.job import Job
from rewrap.pace.gate import Cap, Gate
from rewrap.stores.cosmos.container import EVERYTHING, Answer, Container, Document, Query
from rewrap.stores.cosmos.faults import Throttled, expected, translated
from rewrap.stores.cosmos.meter import Meter
from rewrap.stores.cosmos.throughput import Provisioned, account_gate, own_cap, provisioned, share_of, unknown

__all__ = ["EVERYTHING", "Account", "Answer", "Container", "Document", "Query", "Region", "guarded"]

T = TypeVar("T")

_UNHEARD = logging.NullHandler()

REQUEST_TIMEOUT_S = 10.0
"""Seconds that a write may take; far beyond any, so silence is a broken line."""

READ_TIMEOUT_S = 30.0
"""Seconds without a byte of an answer; a query over much is given more time than a write."""

CONNECT_TIMEOUT_S = 5.0

THROTTLE_PATIENCE_S = 10.0
"""Seconds that one request tries again after its first 429; then its caller decides."""

ATTEMPT_PAUSES_S = (0.05, 0.2, 0.8)
"""Seconds before the further attempts at a request that failed for a passing reason."""


@dataclass(frozen=True, slots=True)
class Region:
    """What an account says of itself."""

    write_region: str
    regions: tuple[str, ...]
    consistency: str
    multiple_writes: bool


class Account:
    """One database of one account. Every request goes through one gate, whoever sends it."""

    def __init__(self, job: Job, environ: Mapping[str, str] = os.environ, gate: Gate | None = None) -> None:
        self._job = job
        self._section = job.cosmos
        self._environ = environ
        # what else works with this account in the same process passes the same gate
        self.gate = gate or account_gate(self._section)
        self.meter = Meter()
        self._turn = anyio.Lock()
        self._client: Any = None
        self._credential: Any = None
        self._region: Region | None = None
        self._provisioned: list[Provisioned] | None = None
        self._share: Cap | None = None
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

    @property
    def cap(self) -> Cap | None:
        """What the job bounds it by: the lower of its cap and its share, which is known once it answers."""
        caps = [one for one in (own_cap(self._section), self._share) if one is not None]
        return min(caps, key=lambda one: one.rate, default=None)

    def spent(self) -> dict[str, float]:
        return {"request_units": round(self.meter.request_units, 2)}

    async def region(self) -> Region:
        """What the account says of its regions and its consistency."""
        await self._connected()
        assert self._region is not None
        return self._region

    async def database_rid(self) -> str:
        """The database's own id, which another database of the same name does not have."""
        client = await self._connected()
        proxy = client.get_database_client(self.database)
        with expected(f'database "{self.database}"', f"account {self.host}"):
            found = await self.patiently(proxy.read, self.subject)
        return str(found["_rid"])

    async def provisioned(self) -> list[Provisioned]:
        """The throughput that the job's containers have. StoreError where it cannot be known."""
        if self._provisioned is None:
            self._provisioned = await self._ask_throughput(await self._connected())
        return self._provisioned

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
        since: float | None = None
        while True:
            try:
                with translated(subject, writes=writes):
                    return await attempt()
            except Throttled:
                # the gate is shut by now: the next attempt waits there, as everybody's does. Its own time
                # counts: other containers, and other partitions, may well be answered all the while
                since = anyio.current_time() if since is None else since
                if anyio.current_time() - since > THROTTLE_PATIENCE_S:
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
                    client = await self._connect()
                    await self._take_share(client)
                    self._client = client
        return self._client

    async def _take_share(self, client: Any) -> None:
        """Bounds the gate by the job's share of what is provisioned, before anything is done."""
        if self._section.share is None:
            return
        try:
            self._provisioned = await self._ask_throughput(client)
            self._share = share_of(self._section, self._provisioned, self.subject)
            self.gate.cap("share", self._share)
        except BaseException as exc:
            with anyio.CancelScope(shield=True):
                await client.close()
            if isinstance(exc, StoreError) and not isinstance(exc, UnsafeTarget):
                raise unknown(self.subject, exc) from None
            raise

    async def _ask_throughput(self, client: Any) -> list[Provisioned]:
        placed = [target.table for target in self._job.targets]
        placed += [
            dek.table for dek in self._job.deks.values() if self._job.store_of(dek) in self._job.stores
        ]
        database = client.get_database_client(self.database)
        return await provisioned(self.patiently, database, list(dict.fromkeys(placed)))

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

        # without a handler of its own, what it warns of is written between a command's lines
        logging.getLogger("azure").addHandler(_UNHEARD)
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
                    transport=self._transport(),
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

    def _transport(self) -> Any:
        from rewrap.stores.cosmos.transport import PacedTransport

        return PacedTransport(self.gate, self.meter, self._section.in_flight)

    async def _authority(self) -> Any:
        """What requests are signed with: the account's key, or an identity that azure-identity finds."""
        key = self._key()
        if key is None:
            from azure.identity.aio import DefaultAzureCredential

            self._credential = self._credential or DefaultAzureCredential()
            return self._credential
        return key

    def _key(self) -> str | None:
        from rewrap.stores.open import referred

        reference = self._section.key
        return None if reference is None else referred(reference, self._job, self._environ, "key")

    def reached(self) -> tuple[dict[str, Any], str | None]:
        """The store's section and the account's key, for a process that is to reach it too. A secret."""
        return self._section.model_dump(mode="json"), self._key()


@contextmanager
def guarded(check: Callable[[], None], timeout_s: float, *, ahead: bool = False) -> Iterator[None]:
    """Within it, `check` is asked right before each request is sent, and none takes longer than that.

    What goes `ahead` does not wait for its turn at the gate.
    """
    from rewrap.stores.cosmos.transport import GUARDED, Guarded

    before = GUARDED.set(Guarded(check, timeout_s, ahead))
    try:
        yield
    finally:
        GUARDED.reset(before)


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
