"""`rewrap keys list`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

import anyio
import typer
from rich.console import Console
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rewrap.cli.terminal import (
    DEFAULT_JOB,
    UNCUT_COLUMNS,
    DebugOption,
    JobArgument,
    JsonOption,
    errors_shown,
    load_job,
    named,
    print_drawn,
    stdout_console,
)
from rewrap.keylist import KeyList, list_keys
from rewrap.keys.listed import Listed
from rewrap.model import RunState
from rewrap.report import JsonLines

STATE_COLUMNS = 22
"""Columns that a state takes at least, beside what may not be broken: it is words, and goes on below."""


def list_(
    job: JobArgument = DEFAULT_JOB,
    count: Annotated[
        bool, typer.Option("--count", help="Count the stored values under each: reads every table once.")
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """The versions there are: which is current, in what state, what may be done, what values are under it."""
    with errors_shown(as_json=as_json, debug=debug):
        loaded = load_job(job)

        async def work() -> KeyList:
            return await list_keys(loaded, count=count)

        found = anyio.run(work)
        if as_json:
            lines = JsonLines(sys.stdout)
            for one in found.events():
                lines(one)
            lines(found.end())
            return
        _show(found)


def _show(found: KeyList) -> None:
    console = stdout_console()
    console.print(
        f"keys of {found.job.name}: {found.job.keys.provider}, {_number(len(found.keys), 'version')}"
    )
    if not found.keys:
        return
    uncut = console.options.update(width=UNCUT_COLUMNS)
    if Measurement.get(console, uncut, _table(found, state=False)).maximum + STATE_COLUMNS <= console.width:
        print_drawn(console, _table(found))
    else:
        _stack(console, found)
    for line in _footers(found):
        console.print(line, soft_wrap=False)


def _table(found: KeyList, *, state: bool = True) -> Table:
    """A line for each version, with the columns that say anything."""
    columns: dict[str, list[Text]] = {
        "version": [Text(one.version, style="cyan") for one in found.keys],
        "labels": [_labels(one) for one in found.keys],
        "age": [Text(_age(one)) for one in found.keys],
        "values": [Text(_values(found, one)) for one in found.keys],
        "fingerprint": [Text(one.fingerprint or "") for one in found.keys],
    }
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    if state:
        columns["state"] = [_state(one) for one in found.keys]
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        counted = name == "values" and found.values is not None
        drawn.add_column(name, no_wrap=name != "state", justify="right" if counted else "left")
    for cells in zip(*columns.values(), strict=True):
        drawn.add_row(*cells)
    return drawn


def _stack(console: Console, found: KeyList) -> None:
    """Where a line is too narrow: what is said of a version stands below it."""
    for one in found.keys:
        labels = _labels(one)
        console.print(Text.assemble((one.version, "cyan"), "  " if labels else "", labels))
        values = _values(found, one)
        counted = f"values: {values}" if values else ""
        for line in ("  ".join(filter(None, (one.fingerprint, _age(one), counted))), _state(one)):
            if line:
                console.print(Padding(line, (0, 0, 0, 4)), soft_wrap=False)


def _labels(one: Listed) -> Text:
    labels = [label for label in one.labels if label.lower() != "current"]
    current = [("current", "bold green")] if one.current else []
    between = ", " if current and labels else ""
    return Text.assemble(*current, between, ", ".join(labels))


def _state(one: Listed) -> Text:
    return Text(one.state, style="" if one.usable else "yellow")


def _age(one: Listed) -> str:
    if one.created is None:
        return ""
    hours = max(0, int((datetime.now(UTC) - one.created).total_seconds()) // 3_600)
    return f"{hours // 24} d" if hours >= 48 else f"{hours} h" if hours else "new"


def _values(found: KeyList, one: Listed) -> str:
    if found.values is not None:
        return f"{found.values.get(one.version, 0):,}"
    return found.holds.get(one.version, "")


def _footers(found: KeyList) -> list[Text]:
    lines = []
    over = dict.fromkeys(one.fingerprint_of for one in found.keys if one.fingerprint_of)
    if over:
        lines.append(Text(f"fingerprint: {'; '.join(over)}", style="dim"))
    lines += _permitted(found.keys)
    run = found.run
    if found.values is not None:
        lines.append(
            Text("values: counted now, by the version that they name or that opens them", style="dim")
        )
    elif run is None:
        lines.append(
            Text(f"values: no run has told; rewrap keys list{named(found.job)} --count", style="dim")
        )
    else:
        when = f"{run.updated_at[:10]} {run.updated_at[11:19]} UTC"
        said = f"values: as run {run.run_id} left them: {run.state}, {when}"
        again = "" if run.state == RunState.COMPLETE else "; --count counts them"
        lines.append(Text(said + again, style="dim"))
    return lines


def _permitted(keys: Sequence[Listed]) -> list[Text]:
    """What may be done with which versions, what not, and what nobody has tried."""
    told: dict[bool | None, dict[tuple[str, ...], list[str]]] = {True: {}, False: {}, None: {}}
    asked = [one for one in keys if one.permissions]
    for name in dict.fromkeys(_name(each.verb, each.permission) for one in asked for each in one.permissions):
        for allowed, those in told.items():
            versions = tuple(
                one.version
                for one in asked
                if any(_name(p.verb, p.permission) == name and p.allowed is allowed for p in one.permissions)
            )
            if versions:
                those.setdefault(versions, []).append(name)
    said = {True: "permitted", False: "not permitted", None: "not known without a try"}
    lines = []
    for allowed, those in told.items():
        for versions, names in those.items():
            whose = "" if len(versions) == len(asked) else f", of {', '.join(versions)}"
            style = "yellow" if allowed is False else "dim"
            lines.append(Text(f"{said[allowed]}: {', '.join(names)}{whose}", style=style))
    return lines


def _name(verb: str, permission: str) -> str:
    return verb if permission in ("", verb) else f"{verb} ({permission})"


def _number(count: int, name: str) -> str:
    return f"{count} {name}{'' if count == 1 else 's'}"
