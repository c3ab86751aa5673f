"""`rewrap keys …`: the versions of a job's keys, where they are kept."""

from __future__ import annotations

import typer

from rewrap.cli import keylist

app = typer.Typer(help="Key versions, where they are kept.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Key versions, where they are kept."""


app.command("list")(keylist.list_)
