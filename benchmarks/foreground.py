"""foreground: what pgbench feels of a run beside it, and how fast that run is beside it and without it."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from functools import partial
from typing import Any

from benchmarks.command import COMMAND, environment, job_folder, rotate, warm_up
from benchmarks.data import SECRETBOX, Data
from benchmarks.errors import BenchError
from benchmarks.journal import Journal, Line
from benchmarks.measure import summarise
from benchmarks.options import Options
from benchmarks.pgbench import CLIENTS, SCALE, Application, at_work, prepare
from benchmarks.rounds import run_rounds
from benchmarks.server import running
from benchmarks.values import Keys
from benchmarks.writer import percentile

ROWS = 1_000_000
QUICK_ROWS = 3_000
ROUNDS = 3

TRANSACTIONS_PER_S = 200.0

QUIET_S, BESIDE_S = 20.0, 60.0
QUICK_S = 2.0
"""Seconds of pgbench alone, and beside the run at most: then it ends, and the run goes on alone."""

BACK_S = 3.0
"""Seconds after its end from which the run should have its speed again."""

ALONE, BESIDE = "alone", "beside"


def run(journal: Journal, options: Options) -> None:
    rows = options.rows_or(ROWS, QUICK_ROWS)
    rounds = options.rounds_or(ROUNDS)
    quiet_s, beside_s = (QUICK_S, QUICK_S) if options.quick else (QUIET_S, BESIDE_S)
    with running({}) as server:
        journal.record(
            type="setting",
            **options.setting(server),
            rows=rows,
            rounds=rounds,
            pgbench={"scale": SCALE, "clients": CLIENTS, "transactions_per_s": TRANSACTIONS_PER_S},
        )
        data = Data(server, Keys.fresh(), rows)
        journal.say(f"sealing {rows:,} rows")
        data.load(secretbox=True)
        prepare(server)
        warm_up(data, SECRETBOX, rows)
        runs = {
            ALONE: partial(_alone, data, rows),
            BESIDE: partial(_beside, data, rows, quiet_s, beside_s),
        }
        measured = run_rounds(journal, runs, rounds)
    felt = sorted({name for line in measured.lines[BESIDE].values() for name in line} - {"rows"})
    medians, ranges = summarise(
        {
            **{name: measured.figures(BESIDE, name) for name in felt},
            "rows_per_s_alone": measured.figures(ALONE, "rows_per_s"),
            "speed_beside": measured.ratios(BESIDE, ALONE),
            "speed_back": [
                ratio for ratio in measured.ratios(BESIDE, ALONE, of="rows_per_s_after") if ratio > 0
            ],
        }
    )
    journal.summarise(rows=rows, rounds=rounds, **medians, ranges=ranges)


def _alone(data: Data, rows: int) -> Line:
    data.renew(SECRETBOX)
    return {"rows": rows, "rows_per_s": round(rotate(data, SECRETBOX, rows).sweep_rows_per_s)}


def _beside(data: Data, rows: int, quiet_s: float, beside_s: float) -> Line:
    """pgbench alone, then with a run beside it; then the run alone."""
    data.renew(SECRETBOX)
    with at_work(data.server, TRANSACTIONS_PER_S) as application:
        # its connections and caches warm up first
        time.sleep(quiet_s / 5)
        quiet_from = time.time()
        time.sleep(quiet_s)
        began = time.time()
        progress, done = _rotate(data, application, beside_s)
    quiet, during = (quiet_from, began), (began, done.stop)
    line: Line = {"rows": rows, "rows_per_s": round(_speed(progress, during))}
    line["rows_per_s_after"] = round(_speed(progress, (done.stop + BACK_S, float("inf"))))
    for phase, span in (("quiet", quiet), ("during", during)):
        latencies = done.latencies_ms(span)
        if not latencies:
            raise BenchError("pgbench did nothing")
        line[f"transactions_{phase}"] = len(latencies)
        for name, share in (("p50", 0.5), ("p99", 0.99)):
            line[f"{name}_ms_{phase}"] = round(percentile(latencies, share), 2)
    line["p99_ratio"] = round(line["p99_ms_during"] / line["p99_ms_quiet"], 2)
    data.check_markers(SECRETBOX, rows)
    return line


def _rotate(data: Data, application: Application, beside_s: float) -> tuple[list[tuple[float, int]], Any]:
    """Runs the command to its end, and stops the application before; when it had come how far, and what
    the application did."""
    progress: list[tuple[float, int]] = []
    with job_folder(SECRETBOX) as folder:
        process = subprocess.Popen(
            COMMAND,
            cwd=folder,
            env=environment(data),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                event = json.loads(line) if line.startswith("{") else {}
                if event.get("type") in ("progress", "sweep_done") and event.get("sweep") == 1:
                    progress.append((time.time(), event["rows_done"]))

        reader = threading.Thread(target=read)
        reader.start()
        try:
            deadline = time.monotonic() + beside_s
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            done = application.stop()
            code = process.wait(600)
        finally:
            if process.poll() is None:
                process.kill()
            reader.join()
    if code != 0:
        raise BenchError(f"rewrap run ended with exit code {code}")
    return progress, done


def _speed(progress: list[tuple[float, int]], span: tuple[float, float]) -> float:
    """Rows a second of what was told in a span of time; 0 where too little was."""
    told = [entry for entry in progress if span[0] <= entry[0] < span[1]]
    if len(told) < 2 or told[-1][0] - told[0][0] < 0.5:
        return 0.0
    return (told[-1][1] - told[0][1]) / (told[-1][0] - told[0][0])
