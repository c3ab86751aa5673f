"""ciphers: what opening, sealing and opening again costs in this process, without a database."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.errors import BenchError
from benchmarks.journal import Journal
from benchmarks.options import Options
from rewrap.crypto.ciphers import CIPHERS
from rewrap.crypto.layout import Layout

ROUNDS = 5

PAGE_ROWS = 1_000
PAGE_BYTES = 4 << 20
"""A page of rewrap's: so many rows, and no more bytes than that."""

SIZES = (16, 120, 1_024, 16_384)
"""Bytes of plaintext."""

ROUND_S = 0.05
QUICK_ROUND_S = 0.002
"""Seconds that a figure is measured for in a round, at least."""

NAMES = ("secretbox", "aes-256-gcm", "aes-128-gcm")
LAYOUTS = {"text": "base64", "bytea": "raw"}


def run(journal: Journal, options: Options) -> None:
    rounds = options.rounds_or(ROUNDS)
    round_s = QUICK_ROUND_S if options.quick else ROUND_S
    journal.record(type="setting", **options.setting(), rounds=rounds, page_rows=PAGE_ROWS)
    totals: dict[str, float] = {}
    for cipher in NAMES:
        for column, encoding in LAYOUTS.items():
            for with_aad in (False, True) if CIPHERS[cipher].binds_aad else (False,):
                for size in SIZES:
                    figures = _measure(cipher, encoding, size, with_aad, rounds, round_s)
                    line = {"cipher": cipher, "column": column, "aad": with_aad, "bytes": size, **figures}
                    journal.record(type="run", **line)
                    totals[f"{cipher} {column} {size}{' aad' if with_aad else ''}"] = figures["us_per_row"]
                journal.say(f"{cipher}, {column}{', with AAD' if with_aad else ''}: done")
    journal.summarise(rounds=rounds, us_per_row=totals, us_per_row_default=totals["aes-256-gcm text 120"])


def _measure(
    cipher: str, encoding: str, size: int, with_aad: bool, rounds: int, round_s: float
) -> dict[str, Any]:
    """Microseconds of CPU a row, medians over the rounds: each step, and what a rotation does in all."""
    layout = Layout("bench", "{version}:", "v[0-9]+", encoding, cipher)
    old, new = (layout.bind(version, os.urandom(CIPHERS[cipher].key_bytes)) for version in ("v1", "v2"))
    rows = max(1, min(PAGE_ROWS, PAGE_BYTES // size))
    plain = [os.urandom(size) for _ in range(rows)]
    aads = [b"%d" % number for number in range(rows)] if with_aad else None
    values = old.seal_values(plain, aads)
    resealed = new.seal_values(old.open_values(values, aads), aads)
    if new.open_values(resealed, aads) != plain:
        raise BenchError(f"{cipher} does not open what it sealed")
    steps: dict[str, Callable[[], Any]] = {
        "open": lambda: old.open_values(values, aads),
        "seal": lambda: new.seal_values(plain, aads),
        "open_new": lambda: new.open_values(resealed, aads),
    }
    found: dict[str, list[float]] = {step: [] for step in steps}
    for _ in range(rounds):
        for step, work in steps.items():
            found[step].append(_cpu_s(work, round_s) / rows * 1e6)
    medians = {f"{step}_us": round(statistics.median(times), 3) for step, times in found.items()}
    totals = [sum(times) for times in zip(*found.values(), strict=True)]
    return medians | {
        "us_per_row": round(statistics.median(totals), 3),
        "us_per_row_range": [round(min(totals), 3), round(max(totals), 3)],
    }


def _cpu_s(work: Callable[[], Any], at_least_s: float) -> float:
    """CPU seconds of one call, from as many as fill the time."""
    calls, began = 0, time.process_time()
    while (spent := time.process_time() - began) < at_least_s or not calls:
        work()
        calls += 1
    return spent / calls
