"""latency: rewrap at the far end of a longer line, and what an application's writers feel of a run."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import asyncpg

from benchmarks.command import rotate, rotate_beside_writers, warm_up
from benchmarks.data import TEXT, Data
from benchmarks.journal import Journal, Line
from benchmarks.measure import summarise
from benchmarks.options import Options
from benchmarks.proxy import Proxy, proxy_to
from benchmarks.rounds import run_rounds
from benchmarks.server import QUIET, running
from benchmarks.values import Keys
from benchmarks.writer import percentile, writing

ROWS = 1_000_000
QUICK_ROWS = 3_000
ROUNDS = 3

DELAY_MS = 2.0
"""Added in each direction: a round trip is 4 ms longer."""

WRITES_PER_S = 200.0

QUIET_S = 10.0
QUICK_QUIET_S = 1.0
"""Seconds of writing before the run begins."""

DIRECT, NEAR, FAR = "direct", "proxy", "proxy-delayed"
WRITERS = "writers"


def run(journal: Journal, options: Options) -> None:
    rows = options.rows_or(ROWS, QUICK_ROWS)
    rounds = options.rounds_or(ROUNDS)
    quiet_s = QUICK_QUIET_S if options.quick else QUIET_S
    with running(QUIET) as server, ExitStack() as proxies:
        ways: dict[str, Proxy | None] = {
            DIRECT: None,
            NEAR: proxies.enter_context(proxy_to(server.port, 0)),
            FAR: proxies.enter_context(proxy_to(server.port, DELAY_MS)),
        }
        journal.record(
            type="setting",
            **options.setting(server),
            rows=rows,
            rounds=rounds,
            delay_ms=DELAY_MS,
            writes_per_s=WRITES_PER_S,
        )
        data = Data(server, Keys.fresh(), rows)
        journal.say(f"sealing {rows:,} rows")
        data.load()
        warm_up(data, TEXT, rows)
        round_trips = {
            name: _round_trip_ms(server.dsn_at(proxy.port if proxy else None)) for name, proxy in ways.items()
        }
        runs: dict[str, Callable[[], Line]] = {
            name: partial(_rotate_through, data, rows, proxy) for name, proxy in ways.items()
        }
        measured = run_rounds(journal, runs | {WRITERS: partial(_feel, data, rows, quiet_s)}, rounds)
    felt = {name for line in measured.lines[WRITERS].values() for name in line if name.startswith("writ")}
    medians, ranges = summarise(
        {
            "ratio_with_latency": measured.ratios(FAR, DIRECT),
            "ratio_with_latency_to_proxy": measured.ratios(FAR, NEAR),
            "ratio_of_proxy": measured.ratios(NEAR, DIRECT),
            "rows_per_s": measured.figures(DIRECT, "rows_per_s"),
            "rows_per_s_proxy": measured.figures(NEAR, "rows_per_s"),
            "rows_per_s_with_latency": measured.figures(FAR, "rows_per_s"),
            "rows_per_s_with_writers": measured.figures(WRITERS, "rows_per_s"),
            **{name: measured.figures(WRITERS, name) for name in sorted(felt)},
        }
    )
    journal.summarise(
        rows=rows, rounds=rounds, delay_ms=DELAY_MS, round_trip_ms=round_trips, **medians, ranges=ranges
    )


def _rotate_through(data: Data, rows: int, proxy: Proxy | None) -> Line:
    data.renew(TEXT)
    if proxy is None:
        return rotate(data, TEXT, rows).as_json()
    before = proxy.cpu_s()
    line = rotate(data, TEXT, rows, port=proxy.port).as_json()
    return line | {"proxy_us_per_row": round((proxy.cpu_s() - before) / rows * 1e6, 2)}


def _feel(data: Data, rows: int, quiet_s: float) -> Line:
    """What writers feel before a run and during it."""
    data.renew(TEXT)
    with writing(data, rows, WRITES_PER_S) as writes:
        # connections and caches of the writer warm up first
        time.sleep(quiet_s / 5)
        quiet_from = time.monotonic()
        time.sleep(quiet_s)
        quiet = (quiet_from, time.monotonic())
        run = rotate_beside_writers(data, TEXT, rows)
    line: Line = {"rows": rows, "rows_per_s": round(rows / (run[1] - run[0]))}
    for phase, span in (("quiet", quiet), ("during", run)):
        latencies = writes.latencies_ms(span)
        line[f"writes_{phase}"] = len(latencies)
        line[f"writer_p50_ms_{phase}"] = round(percentile(latencies, 0.5), 2)
        line[f"writer_p99_ms_{phase}"] = round(percentile(latencies, 0.99), 2)
        line[f"writer_max_ms_{phase}"] = round(latencies[-1], 2)
    line["writer_p99_ratio"] = round(line["writer_p99_ms_during"] / line["writer_p99_ms_quiet"], 2)
    return line


def _round_trip_ms(dsn: str) -> float:
    """The median time of a statement that does nothing."""

    async def ask() -> float:
        connection = await asyncpg.connect(dsn)
        try:
            took = []
            for _ in range(100):
                began = time.perf_counter()
                await connection.fetchval("SELECT 1")
                took.append(time.perf_counter() - began)
            return statistics.median(took) * 1_000
        finally:
            await connection.close()

    return round(asyncio.run(ask()), 2)
