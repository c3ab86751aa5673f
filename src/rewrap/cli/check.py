"""`rewrap check`."""

from __future__ import annotations

import sys
from typing import Annotated

import anyio
import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rewrap import preflight
from rewrap.check import Check
from rewrap.cli.terminal import (
    DEFAULT_JOB,
    DebugOption,
    JobArgument,
    JsonOption,
    errors_shown,
    load_job,
    named,
    print_drawn,
    stdout_console,
)
from rewrap.events import Finding
from rewrap.report import JsonLines

_STYLES = {"error": "red", "warning": "yellow", "info": ""}


def check(
    job: JobArgument = DEFAULT_JOB,
    from_versions: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="VERSION", help="Version that values leave; several with commas; or any."
        ),
    ] = None,
    to_version: Annotated[
        str | None, typer.Option("--to", metavar="VERSION", help="Version that values get.")
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Say everything that would stop, spoil or slow a rotation: tables, privileges, keys, probes."""
    with errors_shown(as_json=as_json, debug=debug):
        loaded = load_job(job)

        async def work() -> Check:
            return await preflight.check(loaded, from_versions=from_versions, to_version=to_version)

        found = anyio.run(work)
        if as_json:
            lines = JsonLines(sys.stdout)
            for one in found.findings:
                lines(one)
            lines(found.event())
        else:
            _show(found, from_versions, to_version)
        raise typer.Exit(found.exit_code)


def _show(found: Check, from_versions: str | None, to_version: str | None) -> None:
    console = stdout_console()
    # the subjects in the order of their gravest finding
    for subject in dict.fromkeys(one.subject for one in found.findings):
        console.print(Text(subject, style="bold"))
        drawn = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 1))
        drawn.add_column(no_wrap=True, min_width=8)
        drawn.add_column(no_wrap=True, min_width=19, style="dim")
        drawn.add_column()
        for one in found.findings:
            if one.subject == subject:
                drawn.add_row(Text(one.severity, style=_STYLES[one.severity]), Text(one.code), _said(one))
        print_drawn(console, Padding(drawn, (0, 0, 0, 2), expand=False))
    errors, warnings, infos = (found.count(severity) for severity in ("error", "warning", "info"))
    counted = f"{_number(errors, 'error')}, {_number(warnings, 'warning')}, {_number(infos, 'note')}"
    console.print(f"check of {found.job.name}: {counted}")
    if errors:
        return
    if from_versions is None or to_version is None:
        again = f"rewrap check{named(found.job)} --from … --to …"
        console.print(f"next: name the versions, to try keys and writes: {again}")
    else:
        console.print(f"next: rewrap plan{named(found.job)} --from {from_versions} --to {to_version}")


def _said(one: Finding) -> Text:
    text = Text(one.reason)
    if one.hint:
        text.append(f"\n→ {one.hint}", style="dim")
    return text


def _number(count: int, name: str) -> str:
    return f"{count} {name}{'' if count == 1 else 's'}" if count else f"no {name}s"
