"""`rewrap verify`."""

from __future__ import annotations

import sys
from typing import Annotated

import anyio
import typer

from rewrap import api
from rewrap.cli.terminal import (
    DEFAULT_JOB,
    DebugOption,
    JobArgument,
    JsonOption,
    errors_shown,
    load_job,
    stdout_console,
)
from rewrap.events import Event, FieldVerdict, Notice, Untouched, Verdict
from rewrap.interfaces import Sink
from rewrap.job import Job
from rewrap.report import JsonLines, field_lines, notice_text, untouched_line, verdict_lines
from rewrap.verify import Verification


def verify(
    job: JobArgument = DEFAULT_JOB,
    to_version: Annotated[
        str | None,
        typer.Option("--to", metavar="VERSION", help="The new version; the last run's if not named."),
    ] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Open every value with the new key, compare fingerprints.")
    ] = False,
    print_queries: Annotated[
        bool,
        typer.Option(
            "--print-queries", help="Print the census as SQL, for psql or Data Explorer, and leave."
        ),
    ] = False,
    fence: Annotated[
        bool,
        typer.Option("--fence", help="When complete, add a constraint that refuses old values."),
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Count every configured value, by version and class. Exit 0 only when complete."""
    with errors_shown(as_json=as_json, debug=debug):
        loaded = load_job(job)
        if print_queries:
            _print_queries(loaded, to_version)
            return
        fields: list[FieldVerdict] = []
        notices: list[Notice] = []
        untouched: list[Untouched] = []
        verdicts: list[Verdict] = []
        lines = JsonLines(sys.stdout)

        def sink(event: Event) -> None:
            if as_json:
                lines(event)
            elif isinstance(event, FieldVerdict):
                fields.append(event)
            elif isinstance(event, Notice):
                notices.append(event)
            elif isinstance(event, Untouched):
                untouched.append(event)
            elif isinstance(event, Verdict):
                verdicts.append(event)

        try:
            found = anyio.run(_work, loaded, to_version, deep, fence, sink)
        finally:
            # with a fence that could not be added, too
            if verdicts and not as_json:
                _show(fields, untouched, notices, verdicts[-1])
        raise typer.Exit(found.exit_code)


def _show(
    fields: list[FieldVerdict], untouched: list[Untouched], notices: list[Notice], verdict: Verdict
) -> None:
    console = stdout_console()
    console.print(field_lines(fields))
    for compared in untouched:
        console.print(untouched_line(compared))
    for notice in notices:
        console.print(notice_text(notice), soft_wrap=True, highlight=False)
    for line in verdict_lines(verdict):
        console.print(line)


async def _work(job: Job, to_version: str | None, deep: bool, fence: bool, sink: Sink) -> Verification:
    return await api.verify(job, to_version=to_version, deep=deep, fence=fence, sink=sink)


def _print_queries(job: Job, to_version: str | None) -> None:
    async def work() -> list[tuple[str, str]]:
        return await api.queries(job, to_version=to_version)

    for says, statement in anyio.run(work):
        typer.echo(f"-- {says}\n{statement}")
