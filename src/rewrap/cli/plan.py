"""`rewrap plan`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated

import anyio
import typer
from rich.table import Table

from rewrap import api
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
from rewrap.forecast import Forecast, Range
from rewrap.plan import Plan
from rewrap.report import duration, field_lines


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
                    **_as_json(found.forecast),
                    "tables": {name: _as_json(one) for name, one in found.forecasts.items()},
                    "derived_from": _derived(found),
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
            print_drawn(console, _drawn(found.forecast, _derived(found)))


DERIVED = {
    "seconds": "measured: reading, opening, sealing; assumed: 3 to 120 µs a row to write, "
    "0.6 to 5 ms a patch",
    "wal_bytes": "row width, indexes; high: pages after checkpoints, index splits, vacuum",
    "growth_bytes": "rows that leave their page, index entries; until vacuum",
    "dead_rows": "rows in scope; low: what is cleared on the way",
    "opens": "each value, and each new one before it is sent; high: batches repeated",
    "seals": "each value; high: batches repeated after a stop",
    "remote_calls": "the local provider makes none",
    "request_units": "measured: reading; assumed: 6 to 20 a patch, of documents of about 1 KB",
}
"""Where each figure of a forecast comes from."""

_NAMES = {
    "seconds": "time",
    "wal_bytes": "WAL",
    "growth_bytes": "growth on disk",
    "dead_rows": "dead rows",
    "opens": "key opens",
    "seals": "key seals",
    "remote_calls": "remote key calls",
    "request_units": "request units",
}


_IN_POSTGRES = ("wal_bytes", "growth_bytes", "dead_rows")
"""What a container does not have."""


def _as_json(forecast: Forecast) -> dict[str, dict[str, int | float]]:
    return {name: getattr(forecast, name).as_json() for name in _NAMES}


def _derived(found: Plan) -> dict[str, str]:
    return DERIVED | ({"remote_calls": found.calls_from} if found.calls_from else {})


def _drawn(forecast: Forecast, derived: Mapping[str, str]) -> Table:
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    drawn.add_column("forecast", style="cyan")
    for name in ("low", "high"):
        drawn.add_column(name, justify="right")
    drawn.add_column("derived from", style="dim")
    metered = forecast.request_units.high > 0
    for name, shown in _NAMES.items():
        one: Range = getattr(forecast, name)
        if not one.high and (name == "request_units" or (metered and name in _IN_POSTGRES)):
            continue
        low, high = (_amount(name, value) for value in (one.low, one.high))
        drawn.add_row(shown, low, high, derived[name])
    return drawn


def _amount(name: str, value: float) -> str:
    if name == "seconds":
        return duration(value)
    if not name.endswith("_bytes"):
        return f"{value:,.0f}"
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{value / size:,.1f} {unit}"
    return f"{value:,.0f} B"
