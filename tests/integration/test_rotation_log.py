"""The rotation log: one row for each rotation that completed, whatever crashed on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from rewrap import api
from rewrap.audit import auditor
from rewrap.engine.options import RunOptions
from rewrap.errors import JobError
from rewrap.job import Job
from tests.support.values import box
from tests.support.workbench import Workbench

ROWS = """
[[audit.rows]]
file = "rotations.md"
columns = { Date = "{date}", Partition = "${PARTITION}", Operator = "{operator}", From = "{from_versions}", \
To = "{to_version}", "Key | print" = "{to_fingerprint}", Reason = "{reason}" }
"""

HEAD = "| Date | Partition | Operator | From | To | Key \\| print | Reason |"


def rows(folder: Path) -> list[list[str]]:
    """The cells of each row, without those of heads."""
    lines = (folder / "rotations.md").read_text().splitlines()
    told = [line for line in lines if line.startswith("|") and line != HEAD and "---" not in line[:7]]
    return [[cell.strip() for cell in line.replace("\\|", "¦").strip("|").split("|")] for line in told]


def test_rotation_gets_one_row_whoever_completes_it(bench: Workbench) -> None:
    """Not each process: stopped, resumed and repeated runs are one rotation; the way back is another."""
    bench.notes([box(f"note {i}", "v1") for i in range(30)])
    bench.environ["PARTITION"] = "dev"
    bench.job(more=ROWS)
    log = bench.folder / "rotations.md"
    assert bench.run("--sample", "5").code == 4
    assert log.read_text() == ""
    done = bench.rewrap("resume", "--note", "90 days | <!-- over\nand done")
    assert done.code == 0, done.err
    assert bench.run().code == 0
    assert log.read_text().splitlines()[0] == HEAD
    assert len(rows(bench.folder)) == 1
    [date, partition, operator, left, to, fingerprint, reason] = rows(bench.folder)[0]
    assert (partition, left, to) == ("dev", "v1", "v2")
    assert len(date) == 10
    assert operator
    assert fingerprint.startswith("sha256:")
    assert reason.startswith(r"90 days ¦ \<!-- over and done <!-- rewrap ")
    # somebody writes under the table, and a write was cut short
    with log.open("a") as out:
        out.write("\nSigned off by two.\n| 20")
    back = bench.rewrap(
        "run", "--from", "v2", "--to", "v1", "--allow-unseen-target", "--reason", "compromise"
    )
    assert back.code == 0, back.err
    assert bench.run().code == 0
    text = log.read_text().splitlines()
    assert text.count(HEAD) == 2
    assert [row[3:5] for row in rows(bench.folder) if len(row) > 1] == [
        ["v1", "v2"],
        ["v2", "v1"],
        ["v1", "v2"],
    ]
    assert rows(bench.folder)[2][-1].startswith("compromise <!-- rewrap ")


def test_row_is_made_up_for_after_a_crash_before_it(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verified complete, and killed before the row: the same run again finds nothing to do, and writes it."""
    bench.notes([box(f"note {i}", "v1") for i in range(5)])
    bench.environ["PARTITION"] = "dev"
    job = Job.load(bench.job(more=ROWS), bench.environ)

    class Killed(BaseException):
        pass

    def killed(*_given: Any) -> bool:
        raise Killed

    def rotate() -> int:
        options = RunOptions(allow_unseen_target=True, note="scheduled")

        async def work() -> int:
            ended = await api.run(
                job, from_versions="v1", to_version="v2", options=options, environ=bench.environ
            )
            return ended.exit_code

        return anyio.run(work)

    with monkeypatch.context() as patched:
        patched.setattr(auditor, "append_row", killed)
        with pytest.raises(Killed):
            rotate()
    assert (bench.folder / "rotations.md").read_text() == ""
    assert rotate() == 0
    assert rotate() == 0
    assert len(rows(bench.folder)) == 1


def test_column_that_names_nothing_known_is_refused(bench: Workbench) -> None:
    """When the job is read, and not when the rotation is over."""
    with pytest.raises(JobError, match="a column may name date, from_fingerprints"):
        Job.load(bench.job(more='[[audit.rows]]\nfile = "r.md"\ncolumns = { A = "{key}" }\n'), bench.environ)
