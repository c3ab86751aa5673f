"""`rewrap audit send`."""

from __future__ import annotations

import json
from dataclasses import asdict

import anyio
import typer

from rewrap import api
from rewrap.cli.terminal import DEFAULT_JOB, DebugOption, JobArgument, JsonOption, errors_shown, load_job
from rewrap.errors import RewrapError
from rewrap.events import SCHEMA

app = typer.Typer(help="The records of runs.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """The records of runs."""


@app.command("send")
def send(job: JobArgument = DEFAULT_JOB, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Send the records that the webhook has not taken yet."""
    with errors_shown(as_json=as_json, debug=debug):
        loaded = load_job(job)
        found = anyio.run(lambda: api.send_audit(loaded))
        if as_json:
            typer.echo(json.dumps({"type": "audit_sent", "schema": SCHEMA, **asdict(found)}))
        else:
            typer.echo(f"sent {found.sent}, {found.waiting} waiting")
        if found.waiting:
            raise RewrapError(
                f"audit webhook {found.said}: {found.waiting} not sent",
                hint="they are kept; send them again when it answers",
            )
