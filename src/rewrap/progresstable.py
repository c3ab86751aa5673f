"""A run's tables on a terminal: numbers are never cut off, and what holds a table back is told in full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

LEAST_NAME = 8
"""Characters that a table's name keeps, however narrow the terminal is."""

_HEADS = ("rows", "rows/s", "stale left", "quarantined", "ETA")

_FEWER = (("rows", "rows/s", "quarantined", "ETA"), ("rows", "quarantined", "ETA"))
"""What is left of them on a terminal that is narrower still."""


@dataclass(frozen=True, slots=True)
class ProgressRow:
    """One table of a run. Numbers are None where they are not known yet; `reason` holds it back."""

    target: str
    rows: int | None = None
    estimated: int | None = None
    rows_per_s: float | None = None
    stale_left: int | None = None
    quarantined: int | None = None
    eta: str = ""
    reason: str = ""


def progress_drawn(rows: Sequence[ProgressRow], console: Console, width: int) -> Group:
    """The rows in one table that is no wider than `width` characters.

    Where that is too narrow for all of it, reasons stand below the table, and large numbers are rounded.
    """
    whole = _table(rows, short=False, reasons=True)
    if _width(whole, console) <= width:
        return Group(whole)
    for short in (False, True):
        drawn = _table(rows, short=short)
        if _width(drawn, console) <= width:
            return Group(drawn, *_reasons(rows))
    longest = max(len(row.target) for row in rows)
    room = LEAST_NAME
    for heads in (_HEADS, *_FEWER):
        room = longest - (_width(_table(rows, heads, short=True), console) - width)
        if room >= LEAST_NAME:
            break
    cut = [replace(row, target=_cut(row.target, max(room, LEAST_NAME))) for row in rows]
    return Group(_table(cut, heads, short=True), *_reasons(rows))


def _table(
    rows: Sequence[ProgressRow], heads: Sequence[str] = _HEADS, *, short: bool, reasons: bool = False
) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("target", style="cyan", no_wrap=True)
    for name in heads:
        table.add_column(name, justify="right", no_wrap=True)
    if reasons:
        table.add_column("held back by", no_wrap=True)
    for row in rows:
        put_aside = row.quarantined or 0
        cells: dict[str, str | Text] = {
            "rows": _done(row, short=short),
            "rows/s": _number(row.rows_per_s, short=short) if row.rows_per_s else "",
            "stale left": "" if row.stale_left is None else f"~{_number(row.stale_left, short=short)}",
            "quarantined": ""
            if row.quarantined is None
            else Text(_number(put_aside, short=short), style="yellow" if put_aside else ""),
            "ETA": row.eta,
        }
        table.add_row(row.target, *(cells[name] for name in heads), *([row.reason] if reasons else []))
    return table


def _done(row: ProgressRow, *, short: bool) -> str:
    if row.rows is None or row.estimated is None:
        return "…"
    share = row.rows / max(1, row.estimated)
    return f"{_number(row.rows, short=short)}/{_number(row.estimated, short=short)} {share:4.0%}"


def _number(count: float, *, short: bool) -> str:
    """`1,234,567`, or `1.2M` where there is little room."""
    if short:
        for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
            if count >= 10 * size or (count >= size and unit != "k"):
                shown = count / size
                return f"{shown:.0f}{unit}" if shown >= 100 else f"{shown:.1f}{unit}"
    return f"{count:,.0f}"


def _reasons(rows: Sequence[ProgressRow]) -> list[Text]:
    """What holds tables back, on lines of their own: once where it is the same."""
    said: dict[str, list[str]] = {}
    for row in rows:
        if row.reason:
            said.setdefault(row.reason, []).append(row.target)
    return [
        Text.assemble((", ".join(targets), "cyan"), f" held back by {reason}")
        for reason, targets in said.items()
    ]


def _cut(name: str, room: int) -> str:
    return name if len(name) <= room else f"{name[: room - 1]}…"


def _width(table: Table, console: Console) -> int:
    wide = console.options.update(width=10_000, max_width=10_000)
    return console.measure(table, options=wide).maximum
