"""`rewrap job init|schema`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from rewrap.cli.discover import SampleOption, draft_of, look, show, write_new
from rewrap.cli.terminal import DebugOption, JsonOption, errors_shown, stdout_console
from rewrap.errors import UsageError
from rewrap.jobschema import job_schema
from rewrap.stores.postgres.connection import address_of

app = typer.Typer(help="Make a job file, or describe job files to an editor.", no_args_is_help=True)


@app.command("init")
def init(
    url: Annotated[
        str | None,
        typer.Argument(help="The database; $DATABASE_URL if not named.", metavar="URL", show_default=False),
    ] = None,
    write: Annotated[
        Path, typer.Option("--write", metavar="FILE", help="The file to write; never overwrites one.")
    ] = Path("rewrap.toml"),
    sample: SampleOption = 200,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Build a first job file from what discover finds in a database, and say what comes next."""
    with errors_shown(as_json=as_json, debug=debug):
        given = url or os.environ.get("DATABASE_URL")
        if not given:
            raise UsageError(
                "no database is named", hint="rewrap job init postgresql://…, or set DATABASE_URL"
            )
        if write.exists():
            raise UsageError(f"file {write} is there already, and is not overwritten", hint="--write FILE")
        address = address_of(given)
        found = look(address, None, sample)
        text = draft_of(found, address, None)
        write_new(write, text)
        if as_json:
            typer.echo(json.dumps(found.event(str(write)).as_json(), ensure_ascii=False))
            return
        console = stdout_console()
        show(console, found)
        name = "" if write == Path("rewrap.toml") else f" {write}"
        console.print(f"written: {write}")
        console.print("next:")
        if url:
            console.print("  set DATABASE_URL to this database: the file does not hold the URL")
        if "\n[[targets]]" not in text:
            for step in (
                "no column could be made a target: the file says why, and is no whole job yet",
                "set the variables that it names to the keys, and correct their encoding",
                f"rewrap discover {write} --write NEW.toml     tries the keys; makes targets of what opens",
                "if nothing opens: declare the layout (docs/layouts.md), and complete a target in the file",
            ):
                console.print(f"  {step}")
            return
        for step in (
            f"read {write}, and compare it with the application's code: name every encrypted column",
            "set the variables that it names to the keys",
            f"rewrap discover{name or ' rewrap.toml'}     which layouts the keys open",
            f"rewrap check{name}",
            f"rewrap plan{name} --from … --to …",
        ):
            console.print(f"  {step}")


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema of job files, for an editor's completion and checks."""
    typer.echo(json.dumps(job_schema(), indent=2, ensure_ascii=False))
