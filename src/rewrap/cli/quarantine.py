"""`rewrap quarantine list|show|retry|waive`."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from typing import Annotated

import anyio
import typer
from rich.table import Table
from rich.text import Text

from rewrap import api
from rewrap.cli.run import QuiescedOption, finish
from rewrap.cli.terminal import (
    DEFAULT_JOB,
    DebugOption,
    JobArgument,
    JsonOption,
    errors_shown,
    load_job,
    named,
    stdout_console,
)
from rewrap.errors import UsageError
from rewrap.events import SCHEMA
from rewrap.job import Job
from rewrap.ledgers.sql import ExceptionRecord
from rewrap.model import shown_key

app = typer.Typer(
    help="Values that could not be resealed: where they are and why, never what they hold.",
    no_args_is_help=True,
)

TableOption = Annotated[str | None, typer.Option("--table", help="Only this table, or container.")]
RowOption = Annotated[str | None, typer.Option("--row", help="Only the row with this key, or this #mark.")]
KeysOption = Annotated[
    bool, typer.Option("--keys", help="Show keys of text in full; they may be personal data.")
]
FieldOption = Annotated[str | None, typer.Option("--field", help="Only this column.")]

EXPLAINED = {
    "malformed": "names its version, but what follows is not in the layout's encoding or too short",
    "unopenable": "does not open: damaged, sealed with another key, or bound to other associated data",
    "too_large": "is larger than pace.max_value_bytes",
    "rejected": "opens, but the database refused the new value (a constraint, a trigger, a length)",
    "ambiguous_key": "carries no marker and opens under more than one key",
    "no_dek": "names a DEK that has no record, or looks sealed and names none",
    "linked": "shares its stored version with another value of the row that cannot be resealed",
    "contended": "was locked or changed by others three times running; the next run takes it",
}


@app.command("list")
def list_(
    job: JobArgument = DEFAULT_JOB,
    table: TableOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Also those that were resolved since.")] = False,
    keys: KeysOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """The values put aside, by table and row."""
    with errors_shown(as_json=as_json, debug=debug):
        found = _load(load_job(job), everything, table)
        if as_json:
            for entry in found:
                typer.echo(json.dumps({"type": "quarantine", "schema": SCHEMA, **_shown(entry)}))
            return
        if not found:
            typer.echo("nothing is put aside")
            return
        drawn = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("table", "row", "field", "reason", "version", "attempts", "state", "since"):
            drawn.add_column(name)
        for entry in found:
            drawn.add_row(
                entry.relation.replace('"', ""), Text(_row(entry, keys)), entry.field, entry.reason,
                entry.version or "", str(entry.attempts), entry.state, entry.updated_at[:19],
            )  # fmt: skip
        stdout_console().print(drawn)


@app.command("show")
def show(
    job: JobArgument = DEFAULT_JOB,
    row: RowOption = None,
    table: TableOption = None,
    field: FieldOption = None,
    keys: KeysOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """What is known about one value, and what can be done."""
    with errors_shown(as_json=as_json, debug=debug):
        loaded = load_job(job)
        path = named(loaded)
        found = _required(_chosen(_load(loaded, True, table), row, field))
        for entry in found:
            if as_json:
                typer.echo(json.dumps({"type": "quarantine", "schema": SCHEMA, **_shown(entry)}))
                continue
            plain = entry.relation.replace('"', "")
            typer.echo(f"{plain} row {_row(entry, keys)}, column {entry.field}")
            typer.echo(f"  reason: {entry.reason}: it {EXPLAINED[entry.reason]}")
            typer.echo(f"  version in its marker: {entry.version or 'none'}")
            typer.echo(f"  state: {entry.state}{' — ' + entry.note if entry.note else ''}")
            typer.echo(f"  attempts: {entry.attempts}, last {entry.updated_at}")
            key = entry.row_id if shown_key(entry.row_id) == entry.row_id else _mark(entry)
            chosen = (
                f"--table {shlex.quote(plain)} --row {shlex.quote(key)} --field {shlex.quote(entry.field)}"
            )
            if entry.deferred:
                either = f"rewrap run{path} …, or rewrap resume{path}"
                typer.echo(f"  next: nothing; the next run takes it ({either})")
                continue
            typer.echo(f"  next: repair or restore the value, then rewrap quarantine retry{path} {chosen};")
            typer.echo(f'        or accept it: rewrap quarantine waive{path} {chosen} --reason "…"')


@app.command("retry")
def retry(
    job: JobArgument = DEFAULT_JOB,
    row: RowOption = None,
    table: TableOption = None,
    field: FieldOption = None,
    acknowledge_quiesced: QuiescedOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Try values again (all of them, or those chosen), in one more sweep, and verify."""
    with errors_shown(as_json=as_json, debug=debug):
        loaded = load_job(job)
        found = _required(_chosen(_load(loaded, False, table), row, field))
        finish(
            loaded,
            lambda sink, stop: api.retry(loaded, found, quiesced=acknowledge_quiesced, sink=sink, stop=stop),
            as_json=as_json,
        )


@app.command("waive")
def waive(
    job: JobArgument = DEFAULT_JOB,
    row: RowOption = None,
    table: TableOption = None,
    field: FieldOption = None,
    reason: Annotated[str, typer.Option("--reason", help="Why; it is kept with your name.")] = ...,  # type: ignore[assignment]  # typer's mark of a required option
    every: Annotated[bool, typer.Option("--all", help="Every value put aside.")] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Accept that values stay as they are. A waiver ends when the value's bytes change."""
    with errors_shown(as_json=as_json, debug=debug):
        loaded = load_job(job)
        if row is None and not every:
            raise UsageError("name the row to waive", hint="--row KEY, or --all")
        if not reason.strip():
            raise UsageError("a waiver needs a reason", hint='--reason "restored from paper"')
        found = _required(_chosen(_load(loaded, False, table), row, field))

        async def work() -> None:
            await api.waive(loaded, found, reason)

        anyio.run(work)
        typer.echo(f"waived {len(found)}; rewrap verify counts them apart")


def _load(job: Job, everything: bool, table: str | None) -> list[ExceptionRecord]:
    async def work() -> list[ExceptionRecord]:
        return await api.quarantined(job, everything=everything, table=table)

    return anyio.run(work)


def _chosen(entries: list[ExceptionRecord], row: str | None, field: str | None) -> list[ExceptionRecord]:
    return [
        entry
        for entry in entries
        if (row is None or row in (entry.row_id, _mark(entry))) and (field is None or entry.field == field)
    ]


def _row(entry: ExceptionRecord, keys: bool) -> str:
    """A row as a screen shows it: by its key, or masked and with a mark that --row takes in its place."""
    shown = shown_key(entry.row_id)
    return entry.row_id if keys or shown == entry.row_id else f"{shown} {_mark(entry)}"


def _mark(entry: ExceptionRecord) -> str:
    # of the keyed digest: it says nothing about the key
    return f"#{entry.digest[:10]}"


def _required(entries: list[ExceptionRecord]) -> list[ExceptionRecord]:
    if not entries:
        raise UsageError("no such value is put aside", hint="see rewrap quarantine list for tables and rows")
    return entries


def _shown(entry: ExceptionRecord) -> dict[str, object]:
    shown = asdict(entry)
    del shown["digest"]
    return shown
