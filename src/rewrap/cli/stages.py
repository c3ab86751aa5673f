"""`rewrap keys gate`, `mint`, `canary` and `move`: a switch of keys whose labels say which is in use."""

from __future__ import annotations

import json
import shlex
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import anyio
import typer
from rich.table import Table
from rich.text import Text

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
from rewrap.errors import UsageError
from rewrap.events import SCHEMA
from rewrap.job import Job
from rewrap.report import JsonLines

_CANDIDATE = "rewrap-candidate"


def gate(job: JobArgument = DEFAULT_JOB, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Say what is stored under each version. Exit 3 while a new version would strand values."""
    with errors_shown(as_json=as_json, debug=debug):
        loaded = _loaded(job)
        from rewrap import stages

        found = anyio.run(stages.look, loaded)
        stranded = found.gate.stranded
        if as_json:
            _print(
                "keys_gate", open=not stranded, held=dict(found.gate.held), stranded=stranded,
                foreign=dict(found.gate.foreign),
                unreadable={version: exc.message for version, exc in found.unread.items()},
                labels={version: list(labels) for version, labels in found.labels.items()},
            )  # fmt: skip
            raise typer.Exit(3 if stranded else 0)
        drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        drawn.add_column("version", no_wrap=True)
        drawn.add_column("values", justify="right")
        drawn.add_column("labels", no_wrap=True)
        labels = found.labels
        for version in dict.fromkeys((*labels, *found.gate.held)):
            shown = ", ".join(labels[version]) or "none" if version in labels else "not in the secret"
            drawn.add_row(Text(version), f"{found.gate.held.get(version, 0):,}", Text(shown))
        console = stdout_console()
        print_drawn(console, drawn)
        for version, exc in found.unread.items():
            console.print(Text(f"cannot be read: {version}: {exc.message}"))
        for name, number in found.gate.foreign.items():
            console.print(Text(f"sealed otherwise: {number:,} as {name}"))
        if not stranded:
            console.print(f"gate: open, next: {_next(loaded, found.candidates)}")
        found.gate.require_open(named(loaded))


def _next(job: Job, candidates: list[str]) -> str:
    """What comes after an open gate: a candidate that is there is gone on with."""
    if candidates:
        return f"rewrap keys canary{named(job)} --to {shlex.quote(candidates[0])}"
    return f"rewrap keys mint{named(job)}"


def mint(
    job: JobArgument = DEFAULT_JOB,
    stage: Annotated[
        str, typer.Option("--stage", metavar="LABEL", help="The new version's label; it begins with rewrap-.")
    ] = _CANDIDATE,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Make a new version that nobody uses yet. Exit 3 while it would strand values."""
    with errors_shown(as_json=as_json, debug=debug):
        loaded = _loaded(job)
        from rewrap import stages

        made = anyio.run(stages.mint, loaded, stage)
        if as_json:
            _print(
                "keys_minted", version=made.key.version, fingerprint=made.key.fingerprint, stage=made.stage,
                current=made.current,
            )  # fmt: skip
            return
        console = stdout_console()
        console.print(f"minted {made.key.version} under {made.stage} ({made.key.fingerprint})")
        console.print(f"AWSCURRENT is still {made.current}")
        console.print(f"next: rewrap keys canary{named(loaded)} --to {shlex.quote(made.stage)}")


def canary(
    job: JobArgument = DEFAULT_JOB,
    to: Annotated[
        str, typer.Option("--to", metavar="VERSION", help="The new version, by its id or its label.")
    ] = _CANDIDATE,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Prove a new version before the switch, and the old ones on stored values. Exit 10 if it fails."""
    with errors_shown(as_json=as_json, debug=debug):
        loaded = _loaded(job)
        from rewrap import stages

        found = anyio.run(stages.canary, loaded, to)
        wrong = sum(one.severity == "error" for one in found)
        code = 10 if wrong else 0
        if as_json:
            lines = JsonLines(sys.stdout)
            for one in found:
                lines(one)
            _print("keys_canary", passed=not wrong, errors=wrong, exit_code=code)
            raise typer.Exit(code)
        console = stdout_console()
        for one in found:
            console.print(Text(f"{one.severity:<8}  {one.code:<15}  {one.subject}: {one.reason}"))
            if one.hint and one.severity == "error":
                console.print(Text(f"          → {one.hint}"))
        console.print(f"canary: failed, {wrong} errors" if wrong else "canary: passed")
        raise typer.Exit(code)


def move(
    job: JobArgument = DEFAULT_JOB,
    label: Annotated[
        str, typer.Option("--label", metavar="LABEL", help="The label that moves.")
    ] = "AWSCURRENT",
    source: Annotated[str, typer.Option("--from", metavar="ID", help="The version that has it now.")] = ...,  # type: ignore[assignment]  # typer's mark of a required option
    target: Annotated[
        str | None, typer.Option("--to", metavar="ID", help="The version that gets it; none to take it off.")
    ] = None,
    confirm: Annotated[
        bool, typer.Option("--confirm", help="Do it; without it, only say what it does.")
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Move a label from one version to another, and keep what stored values need."""
    with errors_shown(as_json=as_json, debug=debug):
        loaded = _loaded(job)
        from rewrap import stages
        from rewrap.labels import values_are

        if label == "AWSCURRENT" and target is None:
            raise UsageError("AWSCURRENT is taken off no version", hint="name the one that gets it: --to ID")

        async def work() -> stages.Moved:
            return await stages.move(loaded, label, source, target, confirmed=confirm)

        done = anyio.run(work)
        plan = done.move
        if as_json:
            _print(
                "keys_moved", label=label, source=source, target=target, done=confirm or plan.done,
                kept=dict(plan.kept), lost=list(plan.lost), current=done.current, previous=done.previous,
                unproven=done.unproven,
            )  # fmt: skip
        else:
            console = stdout_console()
            for version, kept in plan.kept.items():
                told = f"{values_are(done.held[version])} under it"
                console.print(f"{version} {'keeps' if confirm else 'would get'} the label {kept}: {told}")
            for version in plan.lost:
                lost = "has lost" if confirm else "would lose"
                console.print(f"{version} {lost} its last label: AWS may delete it; no value is under it")
            if done.unproven:
                told = "no candidate, and not in use; prove it first with rewrap keys canary --to"
                console.print(f"warning: {target} had no label: {told} {target}")
            where = target or "no version"
            if plan.done:
                console.print(f"{label} was at {where} already")
            elif confirm:
                console.print(f"{label} moved from {source} to {where}")
            else:
                console.print(f"{label} would move from {source} to {where}")
            console.print(f"AWSCURRENT is {done.current}, AWSPREVIOUS is {done.previous or 'no version'}")
            if not confirm:
                console.print("nothing was done: add --confirm")
        if not confirm:
            raise typer.Exit(2)


def _loaded(path: Path) -> Job:
    """The job. Raises UsageError where what it takes to speak to AWS is not installed."""
    loaded = load_job(path)
    try:
        import_module("boto3")
    except ModuleNotFoundError:
        raise UsageError(
            "rewrap keys needs a package that is not installed: boto3", hint="pip install 'rewrap[aws]'"
        ) from None
    return loaded


def _print(kind: str, **told: Any) -> None:
    typer.echo(json.dumps({"type": kind, "schema": SCHEMA, **told}))
