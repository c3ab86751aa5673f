"""A run's tables on a terminal: whatever its width, numbers and reasons are there in full."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from rewrap.progresstable import ProgressRow, progress_drawn

LONG = "replication lag of 12.3 s on the replica at 10.0.0.3, which is more than the limit of 5 s"
HUGE = ProgressRow("customers", 1_234_567, 100_000_000, 12_345.0, 98_765_432, 12, "3 h 25 min", LONG)
SMALL = ProgressRow("organisation_settings_of_members", 1_234, 5_000, 12.0, 98, 0, "45 s", "writes")
WAITING = ProgressRow("notes")


def drawn(width: int, *rows: ProgressRow) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    with console.capture() as shown:
        console.print(progress_drawn(rows, console, width))
    return shown.get()


@pytest.mark.parametrize("width", [56, 60, 70, 80, 100, 120, 200])
def test_nothing_but_a_name_is_cut_off(width: int) -> None:
    """Numbers, times and reasons are whole, and no line is wider than the terminal."""
    text = drawn(width, HUGE, SMALL, WAITING)
    assert max(len(line) for line in text.splitlines()) <= width
    assert " ".join(text.split()).count(LONG) == 1
    head, *lines = text.splitlines()
    assert {"target", "rows", "quarantined", "ETA"} <= set(head.split())
    assert any(line.rstrip().endswith("3 h 25 min") or "3 h 25 min  " in line for line in lines)
    for line in lines:
        _name, _, numbers = line.partition("  ")
        assert "%" not in line or "…" not in numbers
    assert ("1,234,567/100,000,000" in text) is (width >= 110)
    assert ("1.2M/100M" in text) is (width < 110)


def test_a_short_reason_stands_beside_its_table() -> None:
    """Where all of it fits, one line says it all."""
    text = drawn(80, ProgressRow("notes", 30, 60, 12.0, 30, 0, "2.5 s", "writes"))
    head, line = text.splitlines()
    assert head.rstrip().endswith("held back by")
    assert line.rstrip().endswith("writes")


def test_a_reason_that_several_tables_have_is_told_once() -> None:
    """And says of which."""
    other = ProgressRow("accounts", 5, 10, 1.0, 5, 0, "5.0 s", LONG)
    text = " ".join(drawn(80, HUGE, other).split())
    assert f"customers, accounts held back by {LONG}" in text


def test_an_unread_table_has_no_numbers() -> None:
    """Three dots until the first row of it is read."""
    assert drawn(80, WAITING).splitlines()[1].split() == ["notes", "…"]
