"""hotpath: the whole of `rewrap run` against the floor, over kinds of tables."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks.command import rotate, warm_up
from benchmarks.data import BYTEA, HOT, SECRETBOX, TEXT, THREE, UUID, Data, Shape
from benchmarks.floor import run_floor
from benchmarks.journal import Journal, Line
from benchmarks.measure import summarise
from benchmarks.options import Options
from benchmarks.rounds import Rounds, run_rounds
from benchmarks.server import QUIET, running
from benchmarks.values import Keys

ROWS = 1_500_000
QUICK_ROWS = 3_000
ROUNDS = 3

VARIANTS = (SECRETBOX, BYTEA, THREE, UUID, HOT)
"""Beside AES-GCM as text under a bigint key, which the others are compared with."""

WITH_FLOOR = (BYTEA, THREE, UUID, HOT)
"""Those with a floor of their own. A secretbox value is 16 characters longer, and the same to the server."""

FLOOR = "floor"
FLOOR_2 = "floor-2conn"


def run(journal: Journal, options: Options) -> None:
    rows = options.rows_or(ROWS, QUICK_ROWS)
    rounds = options.rounds_or(ROUNDS)
    with running(QUIET) as server:
        journal.record(type="setting", **options.setting(server), rows=rows, rounds=rounds)
        data = Data(server, Keys.fresh(), rows)
        journal.say(f"sealing {rows:,} rows")
        data.load(secretbox=True)
        warm_up(data, TEXT, rows)
        measured = run_rounds(journal, _runs(data, rows), rounds)
    journal.summarise(rows=rows, rounds=rounds, **_summary(measured))


def _runs(data: Data, rows: int) -> dict[str, Callable[[], Line]]:
    """Every run by its name. Each makes its table first."""

    def floor(shape: Shape, connections: int = 1) -> Line:
        data.renew(shape)
        row_bytes = round(data.row_bytes(rows))
        line = run_floor(data, shape, rows, connections=connections).as_json()
        return {**line, "row_bytes": row_bytes, "hot_share": data.hot_share()}

    def rewrap(shape: Shape) -> Line:
        data.renew(shape)
        row_bytes = round(data.row_bytes(rows))
        line = rotate(data, shape, rows).as_json()
        return {**line, "row_bytes": row_bytes, "hot_share": data.hot_share()}

    runs: dict[str, Callable[[], Line]] = {
        FLOOR: partial(floor, TEXT),
        FLOOR_2: partial(floor, TEXT, connections=2),
        TEXT.name: partial(rewrap, TEXT),
    }
    for shape in VARIANTS:
        runs[shape.name] = partial(rewrap, shape)
        if shape in WITH_FLOOR:
            runs[_own_floor(shape)] = partial(floor, shape)
    return runs


def _own_floor(shape: Shape) -> str:
    return f"{FLOOR}-{shape.name}"


def _summary(measured: Rounds) -> Line:
    figures, ratios, text = measured.figures, measured.ratios, TEXT.name
    medians, ranges = summarise(
        {
            "ratio_to_floor": ratios(text, FLOOR),
            "ratio_to_floor_2conn": ratios(text, FLOOR_2),
            **{f"ratio_to_floor_{shape.name}": ratios(shape.name, FLOOR) for shape in VARIANTS},
            **{
                f"ratio_to_own_floor_{shape.name}": ratios(shape.name, _own_floor(shape))
                for shape in WITH_FLOOR
            },
            "ratio_to_floor_sweep1": ratios(text, FLOOR, of="sweep_rows_per_s"),
            "floor_2conn_ratio": ratios(FLOOR_2, FLOOR),
            "rss_mb": figures(text, "rss_mb"),
            "client_us_per_row": figures(text, "client_us_per_row"),
            "server_us_per_row": figures(text, "server_us_per_row"),
            "server_ratio": ratios(text, FLOOR, "server_us_per_row"),
            "wal_ratio": ratios(text, FLOOR, "wal_bytes_per_row"),
            "rows_per_s": figures(text, "rows_per_s"),
            "floor_rows_per_s": figures(FLOOR, "rows_per_s"),
        }
    )
    memory = [figure for shape in (TEXT, *VARIANTS) for figure in figures(shape.name, "rss_mb")]
    return {**medians, "rss_mb_highest": max(memory, default=None), "ranges": ranges}
