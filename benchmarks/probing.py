"""probing: what it costs to find by trying which key values are under, in this process, without a database.

Side by side in each round: rewrap's transform, and one that tries the new key first, value by value, and
settles each value for itself, as rewrap did before. On a fresh table (all values under the old key: they are
resealed) and on one that is read again (all under the new key: nothing is to be done).
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchError
from benchmarks.journal import Journal
from benchmarks.options import Options
from rewrap.crypto.ciphers import OPEN_FAILURES
from rewrap.engine.compile import Rotation
from rewrap.engine.judged import AadPair, Judged
from rewrap.engine.probe import ProbedReseal
from rewrap.engine.reseal import Form, Reseal
from rewrap.interfaces import Page, Row
from rewrap.job import Job
from rewrap.keys.keyring import Key, Keyring
from rewrap.model import FieldColumn, KeyColumn, Location, Role, Table

ROUNDS = 7

VALUES, QUICK_VALUES = 50_000, 2_000

PAGE_ROWS = 1_000

PLAIN_BYTES = 120

JOB = """
name = "bench"
[stores.main]
kind = "postgres"
url = "postgresql://localhost/none"
[keys.versions.v1]
material = "env:KEY_V1"
[keys.versions.v2]
material = "env:KEY_V2"
[layouts.bare]
encoding = "base64"
cipher = "aes-256-gcm"
aad = "{account}"
[[targets]]
table = "t"
fields = [{ column = "a", layout = "bare" }]
"""


@dataclass(frozen=True)
class OneByOne(ProbedReseal):
    """Tries the keys in a fixed order, the new one first, and settles each value for itself."""

    def _judge_rest(
        self, rest: Sequence[int], values: list[Any], aads: AadPair, row_ids: Sequence[Any], out: Judged
    ) -> list[tuple[int, bytes]]:
        tried = [i for i in rest if not self._classified(values[i], row_ids[i], out)]
        found: dict[int, list[tuple[Form, bytes]]] = {}
        for form in self.unnamed:
            bound = aads[form.new] or []
            plains = _opened(form, [values[i] for i in tried], [bound[i] for i in tried])
            for i, plain in zip(tried, plains, strict=True):
                if plain is not None:
                    found.setdefault(i, []).append((form, plain))
        adopted = []
        for i in tried:
            plain = self._classify_opened(values[i], found[i], row_ids[i], out)
            if plain is not None:
                adopted.append((i, plain))
        return adopted


def _opened(form: Form, values: list[Any], aads: list[bytes]) -> Sequence[bytes | None]:
    try:
        return form.bound.open_values(values, aads)
    except OPEN_FAILURES:
        pass
    plains: list[bytes | None] = []
    for value, aad in zip(values, aads, strict=True):
        try:
            plains += form.bound.open_values([value], [aad])
        except OPEN_FAILURES:
            plains.append(None)
    return plains


def run(journal: Journal, options: Options) -> None:
    rounds, count = options.rounds_or(ROUNDS), options.rows_or(VALUES, QUICK_VALUES)
    journal.record(type="setting", **options.setting(), rounds=rounds, rows=count, plain_bytes=PLAIN_BYTES)
    keys = {version: os.urandom(32) for version in ("v1", "v2")}
    job = Job.parse(JOB, path=Path("rewrap.toml"), environ={})
    column = FieldColumn("a", "text", True, (Location(Role.PAYLOAD, "a", "text", "text"),), ("account",))
    table = Table("t", '"public"."t"', 1, (KeyColumn("id", "bigint"),), (column,), ("account",), 0, 0)
    rotation = Rotation(job, Keyring([Key(*pair) for pair in keys.items()]), ("v1",), "v2")
    now = rotation.reseal(table)
    (field,) = now.fields
    if not isinstance(field, ProbedReseal):
        raise BenchError("the values name their version: nothing is tried")
    before = Reseal(table, [OneByOne(**{one.name: getattr(field, one.name) for one in fields(field)})])
    plain, aads = [os.urandom(PLAIN_BYTES) for _ in range(count)], [b"%d" % at for at in range(count)]
    layout = job.layout("bare")
    pages = {}
    for state, version in (("fresh", "v1"), ("again", "v2")):
        values = layout.bind(version, keys[version]).seal_values(plain, aads)
        rows: list[Row] = [(at, value, str(at)) for at, value in enumerate(values)]
        pages[state] = [Page.of(rows[at : at + PAGE_ROWS], table) for at in range(0, count, PAGE_ROWS)]
    rates: dict[str, list[float]] = {}
    for number in range(rounds):
        for state, read in pages.items():
            for name, reseal in (("now", now), ("one by one", before)):
                found = _measure(reseal, read, count, state)
                rates.setdefault(f"{name}, {state}", []).append(found["values_per_s"])
                journal.record(type="run", run=f"{name}, {state}", round=number, **found)
    medians = {name: round(statistics.median(found)) for name, found in rates.items()}
    ratios = {
        state: [a / b for a, b in zip(rates[f"now, {state}"], rates[f"one by one, {state}"], strict=True)]
        for state in pages
    }
    journal.summarise(
        rounds=rounds,
        values_per_s=medians,
        times_faster={state: round(statistics.median(found), 2) for state, found in ratios.items()},
        ranges={state: [round(min(found), 2), round(max(found), 2)] for state, found in ratios.items()},
    )


def _measure(reseal: Reseal, pages: Sequence[Page], count: int, state: str) -> dict[str, Any]:
    """Values a second of CPU, and how many of them the key tried first has opened."""
    began = time.process_time()
    done = [reseal.page(page) for page in pages]
    seconds = time.process_time() - began
    resealed, current = sum(len(one.swap) for one in done), sum(one.tally["a"]["current"] for one in done)
    if (resealed, current) != ((count, 0) if state == "fresh" else (0, count)):
        raise BenchError(f"{resealed} values were resealed, and {current} are current")
    first = sum(one.probed["first"] for one in done)
    return {"values_per_s": round(count / seconds), "first": first}
