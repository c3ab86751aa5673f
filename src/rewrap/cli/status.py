"""`rewrap status`."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Annotated

import anyio
import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rewrap import api
from rewrap.cli.forecasts import left_drawn, left_json, put_aside_said
from rewrap.cli.steer import tuned_said
from rewrap.cli.terminal import (
    DEFAULT_JOB,
    DebugOption,
    JobArgument,
    JsonOption,
    errors_shown,
    load_job,
    stdout_console,
)
from rewrap.control import standing
from rewrap.events import SCHEMA
from rewrap.job import Job
from rewrap.ledgers.control import CANCEL, PAUSE, ControlRecord
from rewrap.model import RunState
from rewrap.report import classes, duration

WATCH_S = 1.0

SILENCE_S = 30.0
"""A run writes to its ledger once a second; after this many without, status says so."""


def status(
    job: JobArgument = DEFAULT_JOB,
    watch: Annotated[bool, typer.Option("--watch", help="Keep looking, once a second.")] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Where the newest run stands. Reads the ledger, not the database."""
    with errors_shown(as_json=as_json, debug=debug):
        loaded = load_job(job)
        if not watch:
            _show(loaded, as_json)
            return
        if as_json or not stdout_console().is_terminal:
            while _show(loaded, as_json):
                time.sleep(WATCH_S)
            return
        _watch(loaded)


def _look(job: Job) -> api.Status | None:
    async def work() -> api.Status | None:
        return await api.status(job)

    return anyio.run(work)


def _show(job: Job, as_json: bool) -> bool:
    """Prints the status once; whether there is a run that may still move."""
    found = _look(job)
    if as_json:
        typer.echo(json.dumps(_as_json(found), ensure_ascii=False))
    else:
        stdout_console().print(_drawn(job, found))
    return found is not None and not found.run.state.finished


def _watch(job: Job) -> None:
    console = stdout_console()
    with Live(console=console, refresh_per_second=2) as live:
        while True:
            found = _look(job)
            live.update(_drawn(job, found), refresh=True)
            if found is None or found.run.state.finished:
                return
            time.sleep(WATCH_S)


def _as_json(found: api.Status | None) -> dict[str, object]:
    shown: dict[str, object] = {"type": "status", "schema": SCHEMA, "run": None}
    if found is not None:
        run = asdict(found.run)
        del run["commitments"]
        shown["run"] = run
        shown["progress"] = [asdict(entry) for entry in found.progress]
        shown["quarantined"] = sum(1 for e in found.put_aside if not e.deferred)
        shown["deferred"] = sum(1 for e in found.put_aside if e.deferred)
        shown["waived"] = sum(1 for e in found.put_aside if e.state == "waived")
        shown["left"] = left_json(found.left)
        shown["control"] = asdict(found.control)
    return shown


def _shown(moment: str) -> str:
    """A moment of the ledger, to the second."""
    return f"{moment[:10]} {moment[11:19]} UTC"


def _drawn(job: Job, found: api.Status | None) -> Group:
    if found is None:
        control = anyio.run(partial(standing, job))
        waits = control.state == PAUSE
        asked = [_asked("its first run is to be paused", control.state_by, control.state_at)] if waits else []
        return Group(Text(f'job "{job.name}" has not been run yet'), *asked)
    run = found.run
    head = Text.assemble(
        f"run {run.run_id}: ",
        (run.state, "bold"),
        f" — {', '.join(run.from_versions)} → {run.to_version}, begun {_shown(run.started_at)}, "
        f"last changed {_shown(run.updated_at)} by {run.state_by}",
    )
    live = run.state.live
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("target", style="cyan")
    for name in ("sweep", "rows", "rows/s"):
        table.add_column(name, justify="right")
    table.add_column("outcomes")
    table.add_column("held back by")
    for entry in found.progress:
        total: dict[str, int] = {}
        for counts in (entry.tally or {}).values():
            for name, count in counts.items():
                total[name] = total.get(name, 0) + count
        table.add_row(
            entry.relation.replace('"', ""),
            str(entry.sweep),
            f"{entry.rows_done:,}/{max(entry.rows_done, entry.rows_estimated):,}"
            if entry.sweep == 1
            else f"{entry.rows_done:,}",
            f"{entry.rows_per_s:,.0f}" if live else "",
            classes(total),
            "done" if entry.done else entry.waiting_for if live else "",
        )
    lines: list[Text | Table] = [head, table, *_steered(found)]
    seen = max([run.updated_at, found.control.beat_at, *(entry.updated_at for entry in found.progress)])
    silent_s = (datetime.now(UTC) - datetime.fromisoformat(seen)).total_seconds()
    if live and silent_s > SILENCE_S:
        lines.append(
            Text(
                f"no sign of life for {duration(silent_s)}: if the process is gone, rewrap resume goes on",
                style="yellow",
            )
        )
    lines += left_drawn(found.left)
    if found.put_aside:
        lines.append(Text(f"put aside: {put_aside_said(found.put_aside)} (rewrap quarantine list)"))
    return Group(*lines)


def _steered(found: api.Status) -> list[Text | Table]:
    """What somebody has asked of the run, and what its process keeps to."""
    run, control = found.run, found.control
    lines: list[Text | Table] = []
    if control.state == PAUSE and run.state.finished:
        lines.append(_asked("the next run is to be paused", control.state_by, control.state_at))
    elif control.state == PAUSE and run.state not in (RunState.PAUSING, RunState.PAUSED):
        lines.append(_asked("to be paused", control.state_by, control.state_at))
    if control.state == CANCEL and not run.state.finished:
        lines.append(_asked("to be cancelled", control.state_by, control.state_at))
    if control.tuned and not run.state.finished:
        lines.append(_asked(f"tuned to {tuned_said(control.tuned)}", control.tuned_by, control.tuned_at))
    if run.state.live and control.run_id == run.run_id and control.budgets:
        lines.append(_budgets(control))
    return lines


def _asked(what: str, by: str, at: str) -> Text:
    return Text.assemble((what, "yellow"), f", asked by {by} at {_shown(at)}")


def _budgets(control: ControlRecord) -> Table:
    """What the process keeps to, store by store, and what it waits for there."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("budget", style="cyan")
    for name in ("at most", "in flight", "batch"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("because of")
    for one in control.budgets:
        digits = ",.0f" if (one["rate"] or 0) >= 10 else ",.3g"
        rate = f"{one['rate']:{digits}} {one['unit']}/s" if one["rate"] is not None else "any"
        batch = f"{one['batch_size']:,}"
        why = one["waiting_for"] or one["why"]
        table.add_row(one["name"], rate, f"{one['in_flight']}", batch, why)
    return table
