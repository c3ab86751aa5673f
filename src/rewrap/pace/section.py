"""The `[pace]` of a job file: how hard a run works."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rewrap.pace.thresholds import Health, LoadProbe
from rewrap.targets import Section


class Pace(Section):
    """`[pace]`: how hard a run works. Not part of the job's identity: change it at any time.

    `max_rate` is in rows a second, of each store; `in_flight` is how many batches may be written at once.
    """

    batch_size: Annotated[int, Field(ge=1, le=10_000)] = 1_000
    batch_bytes: Annotated[int, Field(ge=65_536, le=64 * 2**20)] = 4 * 2**20
    shards: Annotated[int, Field(ge=1, le=32)] = 4
    max_value_bytes: Annotated[int, Field(ge=1_024, le=256 * 2**20)] = 64 * 2**20
    max_rate: Annotated[float, Field(gt=0, le=1e9)] | None = None
    in_flight: Annotated[int, Field(ge=1, le=64)] | None = None
    health: Health = Health()
    probe: list[LoadProbe] = Field(default_factory=list)
