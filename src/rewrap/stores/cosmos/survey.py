"""What of a job's containers is there: their tables, and what speaks against rotating them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rewrap.errors import UnsafeTarget
from rewrap.job import Job
from rewrap.model import ServerIdentity, Table
from rewrap.stores.cosmos.client import Account, Query
from rewrap.stores.cosmos.setup import check_indexing, fields_of, key_of
from rewrap.stores.cosmos.shape import Shape, partition_paths
from rewrap.targets import TargetSection

_COUNT = Query("SELECT VALUE COUNT(1) FROM c WHERE true")


@dataclass(frozen=True, slots=True)
class Surveyed:
    """A container of a job: its table, how rows are made of its documents, and how it is set up."""

    table: Table
    shape: Shape
    properties: Mapping[str, Any]


async def identify(account: Account) -> ServerIdentity:
    """Which database this is; refuses one whose writes may be undone by another region."""
    region = await account.region()
    if region.multiple_writes:
        raise UnsafeTarget(
            f"{account.subject}: the account takes writes in several regions, and resolves conflicts by "
            "dropping one of them",
            hint="have it take writes in one region while keys are rotated",
        )
    return ServerIdentity(account.host, await account.database_rid(), account.database, 0)


async def survey(account: Account, job: Job) -> list[Surveyed]:
    """The job's containers, as they are; refuses what cannot be done safely."""
    return [await survey_one(account, job, target) for target in job.targets]


async def survey_one(account: Account, job: Job, target: TargetSection) -> Surveyed:
    container = account.container(target.table)
    properties = await container.properties()
    check_indexing(properties, container.subject)
    fields, aad_columns = fields_of(job, target, properties, container.subject)
    table = Table(
        name=target.table,
        relation=container.relation,
        oid=number_of(properties["_rid"]),
        key=key_of(properties),
        fields=fields,
        aad_columns=aad_columns,
        estimated_rows=await container.count(_COUNT),
        estimated_bytes=0,
    )
    return Surveyed(table, Shape(table, partition_paths(properties)), properties)


def number_of(rid: str) -> int:
    """The first 63 bits of the SHA-256 of a container's own id: made anew, it is another one."""
    return int.from_bytes(hashlib.sha256(rid.encode()).digest()[:8], "big") >> 1
