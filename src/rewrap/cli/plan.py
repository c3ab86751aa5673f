"""`rewrap plan`."""

from __future__ import annotations

import json
from typing import Annotated

import anyio
import typer

from rewrap import api
from rewrap.cli.forecasts import derived_json, forecast_json, forecast_table
from rewrap.cli.terminal import (
    DEFAULT_JOB,
    DebugOption,
    JobArgument,
    JsonOption,
    errors_shown,
    load_job,
    print_drawn,
    stdout_console,
)
from rewrap.events import SCHEMA, FieldVerdict
from rewrap.plan import Plan
from rewrap.report import field_lines


def plan(
    job: JobArgument = DEFAULT_JOB,
    from_versions: Annotated[
        str,
        typer.Option(
            "--from", metavar="VERSION", help="Version that values leave; several with commas; or any."
        ),
    ] = ...,  # type: ignore[assignment]  # typer's mark of a required option
    to_version: Annotated[
        str, typer.Option("--to", metavar="VERSION", help="Version that values get.")
    ] = ...,  # type: ignore[assignment]  # as above
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Look: the tables, their values by class and version, and what to know before a run."""
    with errors_shown(as_json=as_json, debug=debug):
        loaded = load_job(job)

        async def work() -> Plan:
            return await api.plan(loaded, from_versions=from_versions, to_version=to_version)

        found = anyio.run(work)
        fields = [
            FieldVerdict(
                target=one.target, field=one.column, values=one.values,
                classes=dict(+one.classes), versions=dict(one.versions),
            )
            for one in found.fields
        ]  # fmt: skip
        if as_json:
            shown = {
                "type": "plan", "schema": SCHEMA, "in_scope": found.in_scope,
                "notices": list(found.notices), "fields": [one.as_json() for one in fields],
                "forecast": {
                    **forecast_json(found.forecast),
                    "tables": {name: forecast_json(one) for name, one in found.forecasts.items()},
                    **derived_json(found.derived),
                },
            }  # fmt: skip
            typer.echo(json.dumps(shown, ensure_ascii=False))
            return
        console = stdout_console()
        print_drawn(console, field_lines(fields))
        for notice in found.notices:
            console.print(f"note: {notice}")
        console.print(f"in scope of {from_versions} → {to_version}: {found.in_scope:,} values")
        if found.in_scope:
            console.print()
            print_drawn(console, forecast_table(found.forecast, found.derived))
