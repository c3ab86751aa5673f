"""`rewrap run` and `rewrap resume`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Annotated

import typer

from rewrap import api
from rewrap.cli import steer
from rewrap.cli.terminal import (
    DEFAULT_JOB,
    DebugOption,
    JobArgument,
    JsonOption,
    errors_shown,
    load_job,
    named,
    stdout_console,
    supervised,
)
from rewrap.engine import quiescence
from rewrap.engine.options import RunOptions
from rewrap.engine.pipeline import StopFlag
from rewrap.events import Event, RunEnded, Verdict
from rewrap.interfaces import Sink
from rewrap.job import Job
from rewrap.model import RunState
from rewrap.report import summary

SampleOption = Annotated[
    int | None,
    typer.Option("--sample", min=1, metavar="N", help="At most N rows of each table, then stop (exit 4)."),
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option("--batch-size", min=1, max=10_000, metavar="N", help="Rows a batch."),
]
MaxRateOption = Annotated[
    float | None,
    typer.Option("--max-rate", min=0.001, metavar="N", help="Rows a second at most, of each store."),
]


QuiescedOption = Annotated[
    bool,
    typer.Option(
        quiescence.FLAG,
        help="Nobody else is at work in the tables that the job calls quiesced: the service is stopped.",
    ),
]

NoteOption = Annotated[
    str, typer.Option("--note", metavar="TEXT", help="Why, in your words, for the rotation log.")
]


class Reason(StrEnum):
    """Why a key is rotated."""

    ROUTINE = "routine"
    COMPROMISE = "compromise"


def run(
    job: JobArgument = DEFAULT_JOB,
    from_versions: Annotated[
        str,
        typer.Option(
            "--from", metavar="VERSION", help="Version that values leave; several with commas; or any."
        ),
    ] = ...,  # type: ignore[assignment]  # typer's mark of a required option
    to_version: Annotated[
        str, typer.Option("--to", metavar="VERSION", help="Version that values get.")
    ] = ...,  # type: ignore[assignment]  # as above
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read and open everything, write nothing anywhere.")
    ] = False,
    sample: SampleOption = None,
    batch_size: BatchSizeOption = None,
    max_rate: MaxRateOption = None,
    from_start: Annotated[
        bool, typer.Option("--from-start", help="Ignore the checkpoint and read from the start.")
    ] = False,
    abandon: Annotated[
        str | None,
        typer.Option("--abandon", metavar="RUN", help="Give up this unfinished run first."),
    ] = None,
    to_fingerprint: Annotated[
        str | None,
        typer.Option(
            "--to-fingerprint",
            metavar="SHA256",
            help="The new key's fingerprint, as the application's owner states it.",
        ),
    ] = None,
    allow_unseen_target: Annotated[
        bool,
        typer.Option("--allow-unseen-target", help="Go on though no stored value proves the new key."),
    ] = False,
    allow_unopenable_target: Annotated[
        bool,
        typer.Option(
            "--allow-unopenable-target",
            help="Go on though some stored values marked with the new version do not open.",
        ),
    ] = False,
    reason: Annotated[
        Reason, typer.Option(help="Why the key is rotated; compromise adds to the report.")
    ] = Reason.ROUTINE,
    acknowledge_quiesced: QuiescedOption = False,
    note: NoteOption = "",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Rotate: reseal every value in scope, sweep until none is left, verify."""
    options = RunOptions(
        sample=sample,
        restart=from_start,
        abandon=abandon,
        to_fingerprint=to_fingerprint,
        allow_unseen_target=allow_unseen_target,
        allow_unopenable_target=allow_unopenable_target,
        compromised=reason is Reason.COMPROMISE,
        quiesced=acknowledge_quiesced,
        note=note,
    )
    with errors_shown(as_json=as_json, debug=debug):
        loaded = load_job(job).with_pace(batch_size=batch_size, max_rate=max_rate)
        finish(
            loaded,
            lambda sink, stop: api.run(
                loaded,
                from_versions=from_versions,
                to_version=to_version,
                options=options,
                dry=dry_run,
                sink=sink,
                stop=stop,
            ),
            as_json=as_json,
        )


def resume(
    job: JobArgument = DEFAULT_JOB,
    sample: SampleOption = None,
    batch_size: BatchSizeOption = None,
    max_rate: MaxRateOption = None,
    acknowledge_quiesced: QuiescedOption = False,
    note: NoteOption = "",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Let a paused run go on, or go on here with one that was stopped or has died."""
    with errors_shown(as_json=as_json, debug=debug):
        loaded = load_job(job).with_pace(batch_size=batch_size, max_rate=max_rate)
        # a process that is only paused writes again, too
        quiescence.require(loaded, acknowledge_quiesced)
        if steer.let_go(loaded, as_json=as_json):
            return
        options = RunOptions(resume=True, sample=sample, quiesced=acknowledge_quiesced, note=note)
        finish(
            loaded,
            lambda sink, stop: api.resume(loaded, options=options, sink=sink, stop=stop),
            as_json=as_json,
        )


def finish(job: Job, work: Callable[[Sink, StopFlag], Awaitable[RunEnded]], *, as_json: bool) -> None:
    """Runs to the end, prints the result and leaves with its exit code."""
    verdicts: list[Verdict] = []

    async def noted(sink: Sink, stop: StopFlag) -> RunEnded:
        def both(event: Event) -> None:
            if isinstance(event, Verdict):
                verdicts.append(event)
            sink(event)

        return await work(both, stop)

    ended = supervised(noted, as_json=as_json)
    if not as_json:
        console = stdout_console()
        for line in summary(ended, verdicts[-1] if verdicts else None):
            console.print(line)
        if ended.exit_code == 4 and ended.state != "dry-run":
            console.print(f"  go on with: {quiescence.resuming(job)}")
        if ended.state == RunState.COMPLETE and job.witnessed:
            console.print(f"  whether payloads are as they were: rewrap verify --deep{named(job)}")
    raise typer.Exit(ended.exit_code)
