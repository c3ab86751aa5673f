"""The `[stores]` of a job file: which databases, and how they are reached."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from rewrap.keysections import Reference
from rewrap.targets import CosmosName, Name, Section


def _endpoint(value: str) -> str:
    # what urlsplit itself says of a mistake repeats a part of it, and that may be an account's key
    try:
        found = urlsplit(value)
        fits = found.scheme in ("http", "https") and bool(found.hostname) and (found.port or 443) > 0
    except ValueError:
        fits = False
    if not fits or ";" in value:
        raise ValueError("is no URL like https://ACCOUNT.documents.azure.com:443/")
    return value


class PostgresStore(Section):
    """`[stores.NAME]`: one Postgres database."""

    kind: Literal["postgres"]
    url: Annotated[Name, Field(repr=False)]
    password: Reference | None = None
    guard_schema: Name = "rewrap"
    max_connections: Annotated[int, Field(ge=6, le=200)] = 12
    lock_timeout_ms: Annotated[int, Field(ge=10, le=5_000)] = 250


class CosmosStore(Section):
    """`[stores.NAME]` with `kind = "cosmos"`: one database of an Azure Cosmos DB account.

    Without `key`, azure-identity's default credential is used. `settle_s` is the pause, in seconds, between
    two clean counts where the account's consistency is below Strong. `max_rus` is in request units a second;
    `share` is of the least throughput that is provisioned for a container of the job. The lower one is kept.
    """

    kind: Literal["cosmos"]
    endpoint: Annotated[Name, AfterValidator(_endpoint), Field(repr=False)]
    database: CosmosName
    key: Reference | None = None
    guard_container: CosmosName = "rewrap"
    in_flight: Annotated[int, Field(ge=1, le=256)] = 16
    max_rus: Annotated[float, Field(ge=1, le=1e9)] | None = None
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    processes: Annotated[int, Field(ge=1, le=32)] = 1
    low_priority: bool = False
    throughput_bucket: Annotated[int, Field(ge=1, le=5)] | None = None
    settle_s: Annotated[float, Field(ge=0, le=600)] = 5.0


StoreSection = Annotated[PostgresStore | CosmosStore, Field(discriminator="kind")]
