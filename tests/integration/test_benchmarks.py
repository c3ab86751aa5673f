"""The benchmarks run from end to end on tiny tables. How fast anything is does not matter here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def bench(*arguments: str) -> list[dict[str, Any]]:
    """The lines of `scripts/bench --quick …`, in the environment that is there already."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A folder for results, with a RESULTS.md that somebody has written into."""
    (tmp_path / "RESULTS.md").write_text("<!-- by hand: hotpath -->\nA reason.\n<!-- end by hand -->\n")
    return tmp_path


def test_hotpath_ends_with_its_figures(output: Path) -> None:
    """Every variant runs and is checked, the last line has the figures, and words in RESULTS.md stay."""
    *lines, summary = bench("hotpath", "--output", str(output))
    assert {line["run"] for line in lines if line.get("type") == "run"} >= {
        "floor",
        "floor-2conn",
        *("text", "secretbox", "bytea", "three", "uuid", "hot"),
    }
    ratios = ["", "_2conn", "_secretbox", "_bytea", "_three", "_uuid", "_hot"]
    fields = [f"ratio_to_floor{which}" for which in ratios]
    fields += ["rss_mb", "client_us_per_row", "server_us_per_row", "wal_ratio"]
    assert summary["bench"] == "hotpath"
    assert [field for field in fields if not summary[field] > 0] == []
    page = (output / "RESULTS.md").read_text(encoding="utf-8")
    assert "A reason." in page
    assert "| bytea |" in page


def test_latency_ends_with_its_figures() -> None:
    """The proxy is as slow as it says, and writers are measured before and during a run."""
    *_, summary = bench("latency")
    assert summary["bench"] == "latency"
    assert summary["round_trip_ms"]["proxy-delayed"] >= 2 * summary["delay_ms"]
    fields = ["ratio_with_latency", "writer_p99_ms_quiet", "writer_p99_ms_during"]
    assert [field for field in fields if not summary[field] > 0] == []


def test_foreground_ends_with_its_figures() -> None:
    """pgbench is at work before a run and beside it, and both are measured."""
    *_, summary = bench("foreground")
    assert summary["bench"] == "foreground"
    fields = ["p99_ms_quiet", "p99_ms_during", "p99_ratio", "transactions_during", "rows_per_s_alone"]
    assert [field for field in fields if not summary[field] > 0] == []
