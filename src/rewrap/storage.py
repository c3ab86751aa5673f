"""The `[stores]` of a job file: which databases, and how they are reached."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rewrap.formats import Reference
from rewrap.targets import Name, Section


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
    two clean counts where the account's consistency is below Strong.
    """

    kind: Literal["cosmos"]
    endpoint: Annotated[Name, Field(repr=False)]
    database: Name
    key: Reference | None = None
    guard_container: Name = "rewrap"
    in_flight: Annotated[int, Field(ge=1, le=256)] = 16
    low_priority: bool = False
    throughput_bucket: Annotated[int, Field(ge=1, le=5)] | None = None
    settle_s: Annotated[float, Field(ge=0, le=600)] = 5.0


StoreSection = Annotated[PostgresStore | CosmosStore, Field(discriminator="kind")]
