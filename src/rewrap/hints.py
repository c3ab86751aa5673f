"""The commands that a hint names, as they can be typed."""

from __future__ import annotations

import shlex
from pathlib import Path

from rewrap.job import Job

DEFAULT_JOB = Path("rewrap.toml")


def named(job: Job) -> str:
    """The job as the next command has to name it: nothing where it would find it by itself."""
    return "" if job.path == DEFAULT_JOB else f" {shlex.quote(str(job.path))}"
