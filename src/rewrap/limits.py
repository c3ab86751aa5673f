"""The `[pace]` and `[limits]` of a job file: how hard a run works, and when it gives up."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rewrap.targets import Section


class Pace(Section):
    """`[pace]`: how hard a run works. Not part of the job's identity: change it at any time."""

    batch_size: Annotated[int, Field(ge=1, le=10_000)] = 1_000
    batch_bytes: Annotated[int, Field(ge=65_536, le=64 * 2**20)] = 4 * 2**20
    shards: Annotated[int, Field(ge=1, le=32)] = 4
    max_value_bytes: Annotated[int, Field(ge=1_024, le=256 * 2**20)] = 64 * 2**20


class Limits(Section):
    """`[limits]`: when a run gives up."""

    max_quarantine: Annotated[int, Field(ge=0)] = 100
    max_quarantine_share: Annotated[float, Field(ge=0, le=1)] = 0.001
    max_sweeps: Annotated[int, Field(ge=2, le=50)] = 5
    drain_s: Annotated[float, Field(ge=0, le=3_600)] = 30.0
    lease_s: Annotated[float, Field(ge=2, le=3_600)] = 30.0
    reconnect_s: Annotated[float, Field(ge=0, le=3_600)] = 60.0
    changed_payloads: Literal["warn", "fail"] = "warn"
