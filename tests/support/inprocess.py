"""Runs the engine inside the test's process, where a seam can be disturbed."""

from __future__ import annotations

import asyncio
from typing import Any

from rewrap import RunOptions, StopFlag, run
from rewrap.events import Event, RunEnded
from rewrap.job import Job
from tests.support.workbench import Workbench


def load(bench: Workbench) -> Job:
    return Job.load(bench.folder / "rewrap.toml", bench.environ)


def run_here(
    bench: Workbench,
    *,
    from_versions: str = "v1",
    to_version: str = "v2",
    events: list[Event] | None = None,
    stop: StopFlag | None = None,
    dry: bool = False,
    **options: Any,
) -> RunEnded:
    """`rewrap run` in this process; raises what it raises."""
    seen = events if events is not None else []

    async def work() -> RunEnded:
        return await run(
            load(bench),
            from_versions=from_versions,
            to_version=to_version,
            options=RunOptions(**{"allow_unseen_target": True, **options}),
            dry=dry,
            sink=seen.append,
            stop=stop,
            environ=bench.environ,
        )

    return asyncio.run(work())
