"""A job's probes, once its run has ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rewrap.events import Notice, RunEnded
from rewrap.hints import named
from rewrap.interfaces import Sink
from rewrap.job import Job
from rewrap.probes.ask import ask
from rewrap.stores.open import Stores


async def probed(
    job: Job, to_version: str, ended: RunEnded, sink: Sink, environ: Mapping[str, str]
) -> RunEnded:
    """The end of a run that finished, once the job's probes were asked: what fails, values remain or not, is
    for the operator to see before anybody retires a key.

    An application that had to be stopped for the run is not asked: it could not answer.
    """
    if not job.probe or ended.exit_code not in (0, 3):
        return ended
    if job.quiesced:
        sink(
            Notice(
                level="info",
                message="the probes were not asked: the application is stopped",
                hint="once every job of the application's tables is complete, start it with the key of "
                f"{to_version}; then rewrap check{named(job)} asks them",
            )
        )
        return ended
    asked = Stores(job, environ).asked
    failed = [answer for answer in await ask(job.probe, asked, job.folder) if not answer.passed]
    for answer in failed:
        sink(
            Notice(
                level="warning",
                message=f'probe "{answer.name}" fails after the run: {answer.said}',
                hint="see whether the application can read; both keys still open what they opened before",
            )
        )
    if not failed:
        return ended
    reasons = [f'probe "{answer.name}" fails: {answer.said}' for answer in failed]
    return replace(ended, exit_code=3, reasons=[*ended.reasons, *reasons])
