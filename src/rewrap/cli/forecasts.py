"""Forecasts on a screen and as JSON: of a run to come, and of what is left of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from rewrap.derived import Derivation
from rewrap.forecast import Forecast, Range
from rewrap.ledgers.sql import ExceptionRecord
from rewrap.remaining import Left
from rewrap.report import duration

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


def forecast_json(forecast: Forecast, names: Sequence[str] = tuple(_NAMES)) -> dict[str, object]:
    """The range of each figure."""
    return {name: getattr(forecast, name).as_json() for name in names}


def derived_json(derived: Mapping[str, Derivation]) -> dict[str, object]:
    """Where the figures come from: in words, of which kinds, and by which runs."""
    return {
        "derived_from": {name: one.said for name, one in derived.items()},
        "basis": {name: list(one.kinds) for name, one in derived.items()},
        "measured_by": {name: list(one.runs) for name, one in derived.items() if one.runs},
    }


def forecast_table(forecast: Forecast, derived: Mapping[str, Derivation], title: str = "forecast") -> Table:
    """A row for each figure that has one: low, high, and where it comes from."""
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    drawn.add_column(title, style="cyan")
    for name in ("low", "high"):
        drawn.add_column(name, justify="right")
    drawn.add_column("derived from", style="dim")
    metered = forecast.request_units.high > 0
    for name, shown in _NAMES.items():
        one: Range = getattr(forecast, name)
        if name not in derived:
            continue
        if not one.high and (name == "request_units" or (metered and name in _IN_POSTGRES)):
            continue
        low, high = (_amount(name, value) for value in (one.low, one.high))
        drawn.add_row(shown, low, high, derived[name].said)
    return drawn


def left_json(left: Left | None) -> dict[str, object] | None:
    """What is left of a run: a range for each figure that is known, and where it comes from."""
    if left is None:
        return None
    return {**forecast_json(left.forecast, tuple(left.derived)), **derived_json(left.derived)}


def left_drawn(left: Left | None) -> list[Table]:
    """The same as a table; none where nothing is known."""
    return [forecast_table(left.forecast, left.derived, "left")] if left and left.derived else []


def put_aside_said(entries: Sequence[ExceptionRecord]) -> str:
    """`3, and 2 waived`: what is accepted as it is, is told from what somebody has to look at."""
    waived = sum(1 for one in entries if one.state == "waived")
    rest = len(entries) - waived
    return f"{rest:,}" + (f", and {waived:,} waived" if waived else "")


def _amount(name: str, value: float) -> str:
    if name == "seconds":
        return duration(value)
    if not name.endswith("_bytes"):
        return f"{value:,.0f}"
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{value / size:,.1f} {unit}"
    return f"{value:,.0f} B"
