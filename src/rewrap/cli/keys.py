"""`rewrap keys …`: the versions of a job's keys, where they are kept."""

from __future__ import annotations

import typer

from rewrap.cli import keylist, stages

app = typer.Typer(help="Key versions, where they are kept.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Key versions, where they are kept."""


app.command("list")(keylist.list_)
app.command("gate")(stages.gate)
app.command("mint")(stages.mint)
app.command("canary")(stages.canary)
app.command("move")(stages.move)
