"""The forecast of `rewrap plan` holds: what a run then writes, and what it leaves, lies in its range."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.values import box
from tests.support.workbench import Workbench

ROWS = 20_000

SHAPES = {
    "narrow": ("CREATE TABLE notes (id bigint PRIMARY KEY, body text)", [], ""),
    "wide with three indexes": (
        "CREATE TABLE notes (id bigint PRIMARY KEY, body text, a text DEFAULT repeat('a', 300), "
        "b text DEFAULT repeat('b', 300), c int DEFAULT (random() * 1000000)::int)",
        [f"CREATE INDEX ON notes ({columns})" for columns in ("c", "a", "b, c")],
        "",
    ),
    "indexed column": (
        "CREATE TABLE notes (id bigint PRIMARY KEY, body text)",
        ["CREATE INDEX by_body ON notes (body)"],
        "",
    ),
    "with room on pages": (
        "CREATE TABLE notes (id bigint PRIMARY KEY, body text) WITH (fillfactor = 50)", [], ""
    ),
    "after a checkpoint": ("CREATE TABLE notes (id bigint PRIMARY KEY, body text)", [], "CHECKPOINT"),
    "keys in no order": (
        "CREATE TABLE notes (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), n bigint, body text)",
        [],
        "CHECKPOINT",
    ),
    "large values": ("CREATE TABLE notes (id bigint PRIMARY KEY, body text)", [], ""),
}  # fmt: skip


def sizes(bench: Workbench) -> tuple[int, int, int]:
    """Position of the log, bytes of the table with its indexes, dead rows."""
    row = bench.sql(
        "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::int8 AS position, "
        "pg_total_relation_size('notes') AS bytes, pg_stat_get_dead_tuples('notes'::regclass) AS dead"
    )[0]
    return row["position"], row["bytes"], row["dead"]


def within(found: float, said: dict[str, Any]) -> bool:
    return bool(said["low"] <= found <= said["high"])


@pytest.mark.parametrize("name", SHAPES)
def test_run_stays_within_its_forecast(bench: Workbench, name: str) -> None:
    """WAL and growth as the server measures them; dead rows as it counts them; time is not asserted."""
    make, indexes, after = SHAPES[name]
    large = name == "large values"
    rows = 1_500 if large else ROWS
    bench.sql(make)
    bench.sql("ALTER TABLE notes SET (autovacuum_enabled = off)")
    sealed = [box("x" * (9_000 if large else 40 + n % 60)) for n in range(rows)]
    key = "n" if "uuid" in make else "id"
    bench.insert("notes", [key, "body"], list(enumerate(sealed)))
    for statement in [*indexes, "ANALYZE notes", *([after] if after else [])]:
        bench.sql(statement)
    planned = bench.rewrap("plan", "--from", "v1", "--to", "v2", "--json")
    assert planned.code == 0, planned.err
    said = json.loads(planned.out)["forecast"]
    before = sizes(bench)
    assert bench.run().code == 0
    wal, growth, dead = (now - then for now, then in zip(sizes(bench), before, strict=True))
    assert within(wal, said["wal_bytes"]), (wal, said["wal_bytes"])
    assert within(growth, said["growth_bytes"]), (growth, said["growth_bytes"])
    assert dead <= said["dead_rows"]["high"]
    assert said["opens"]["low"] == 2 * rows
    assert said["seals"]["low"] == rows
    assert said["remote_calls"] == {"low": 0, "high": 0}
    # a range so wide that it says nothing would hold too
    assert said["wal_bytes"]["high"] < 40 * max(1, said["wal_bytes"]["low"])
