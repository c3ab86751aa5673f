"""The ledger of a job, opened and closed again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from rewrap.job import Job
from rewrap.ledgers.records import RunRecord
from rewrap.ledgers.sql import Ledger


async def latest_run(job: Job, environ: Mapping[str, str]) -> RunRecord | None:
    """The newest run of a job, if it has a ledger with one."""
    async with opened_ledger(job, environ, create=False) as ledger:
        return await ledger.latest() if ledger else None


@asynccontextmanager
async def opened_ledger(
    job: Job, environ: Mapping[str, str], *, create: bool = True
) -> AsyncIterator[Ledger | None]:
    """The ledger; None where there is none and none is to be made."""
    ledger = await Ledger.open(job.name, Path(job.path), environ, create=create)
    try:
        yield ledger
    finally:
        if ledger is not None:
            await ledger.close()
