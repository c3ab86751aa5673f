"""Job files that are not whole yet."""

from __future__ import annotations

from pydantic import Field

from rewrap.job import Job
from rewrap.targets import TargetSection


class UnfinishedJob(Job):
    """A job that may name no targets yet: enough to look at a database, and to try keys."""

    targets: list[TargetSection] = Field(default_factory=list)
