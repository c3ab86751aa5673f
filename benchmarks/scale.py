"""scale: the whole of `rewrap run` over small and large tables, and what it holds in memory."""

from __future__ import annotations

from functools import partial

from benchmarks.command import rotate, warm_up
from benchmarks.data import TEXT, Data
from benchmarks.floor import run_floor
from benchmarks.journal import Journal, Line
from benchmarks.measure import Spread
from benchmarks.options import Options
from benchmarks.rounds import run_rounds
from benchmarks.server import running
from benchmarks.values import Keys

ROWS = 5_000_000
QUICK_ROWS = 20_000
ROUNDS = 1

FRACTIONS = (50, 5, 1)
"""The tables hold a fiftieth, a fifth and all of the rows: 100,000, a million and five million."""


def run(journal: Journal, options: Options) -> None:
    rounds = options.rounds_or(ROUNDS)
    smallest = max(1_000, options.rows_or(ROWS, QUICK_ROWS) // FRACTIONS[0])
    sizes = [smallest * FRACTIONS[0] // fraction for fraction in FRACTIONS]
    # autovacuum is as it comes: a run over a large table lives with it
    with running({}) as server:
        journal.record(type="setting", **options.setting(server), sizes=sizes, rounds=rounds)
        data = Data(server, Keys.fresh(), sizes[-1])
        journal.say(f"sealing {data.rows:,} rows")
        data.load(smallest=smallest)
        warm_up(data, TEXT, smallest)
        runs = {str(size): partial(_run_size, data, size) for size in sizes}
        measured = run_rounds(journal, runs, rounds)
    if journal.failed:
        journal.summarise()
        return

    def medians(field: str) -> list[float]:
        return [Spread.of(measured.figures(str(size), field)).median for size in sizes]

    memory = medians("rss_mb")
    fields = ("rows_per_s", "sweep_rows_per_s", "floor_rows_per_s", "ratio_to_floor", "rss_mb")
    journal.summarise(
        rows=sizes,
        rounds=rounds,
        **{field: medians(field) for field in fields},
        # from the smallest table to the largest, and to the one between, which is ten times as large
        rss_growth_mb=round(memory[-1] - memory[0], 1),
        rss_growth_mb_tenfold=round(memory[1] - memory[0], 1),
        rss_mb_highest=max(memory),
    )


def _run_size(data: Data, rows: int) -> Line:
    """The floor and rewrap, each on a fresh table of that size."""
    data.renew(TEXT, rows)
    floor = run_floor(data, TEXT, rows)
    data.renew(TEXT, rows)
    rotation = rotate(data, TEXT, rows)
    return {
        **rotation.as_json(),
        "floor_rows_per_s": round(floor.rows_per_s),
        "ratio_to_floor": round(rotation.cost.rows_per_s / floor.rows_per_s, 3),
    }
