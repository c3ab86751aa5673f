"""The `[limits]` of a job file: when a run gives up."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rewrap.targets import Section


class Limits(Section):
    """`[limits]`: when a run gives up."""

    max_quarantine: Annotated[int, Field(ge=0)] = 100
    max_quarantine_share: Annotated[float, Field(ge=0, le=1)] = 0.001
    max_sweeps: Annotated[int, Field(ge=2, le=50)] = 5
    drain_s: Annotated[float, Field(ge=0, le=3_600)] = 30.0
    lease_s: Annotated[float, Field(ge=2, le=3_600)] = 30.0
    reconnect_s: Annotated[float, Field(ge=0, le=3_600)] = 60.0
    changed_payloads: Literal["warn", "fail"] = "warn"
