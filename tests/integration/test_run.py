"""A whole run against a real server: what it does to each kind of value."""

from __future__ import annotations

from tests.support.values import box, unbox
from tests.support.workbench import Workbench


def test_run_reseals_every_value_and_exits_0(bench: Workbench) -> None:
    """The plain case: every value under v1 ends under v2 and opens to the same plaintext."""
    bench.notes([box(f"note {i}") for i in range(2_500)])
    ran = bench.run()
    assert ran.code == 0, ran.err
    assert {i: unbox(body).decode() for i, body in bench.bodies().items()} == {
        i: f"note {i - 1}" for i in range(1, 2_501)
    }
    assert all(body.startswith("v2:") for body in bench.bodies().values())
    assert ran.event("run_ended")["outcomes"] == {"notes": {"body": {"resealed": 2_500}}}
    assert ran.event("verdict")["complete"] is True


def test_second_run_changes_nothing(bench: Workbench) -> None:
    """A run over rotated rows writes none of them again."""
    bench.notes([box(f"note {i}") for i in range(100)])
    assert bench.run().code == 0
    before = bench.sql("SELECT id, body, xmin::text FROM notes ORDER BY id")
    ran = bench.run()
    assert ran.code == 0
    assert ran.event("run_ended")["outcomes"] == {"notes": {"body": {"current": 100}}}
    assert bench.sql("SELECT id, body, xmin::text FROM notes ORDER BY id") == before
