"""The command that is measured: `rewrap run --from v1 --to v2 --json`, whole, with every default."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.data import TABLE, Data, Shape
from benchmarks.errors import BenchError
from benchmarks.measure import Cost, Ended, cost_of_program, run_program

_JOB = """\
name = "bench"

[stores.main]
kind = "postgres"
url = "${{DATABASE_URL}}"

[keys.versions.v1]
material = "env:KEY_V1"

[keys.versions.v2]
material = "env:KEY_V2"

[layouts.stored]
marker = "{{version}}:"
version = "v[0-9]+"
encoding = "{encoding}"
cipher = "{cipher}"

[[targets]]
table = "{table}"
fields = [{fields}]
"""

COMMAND = [sys.executable, "-m", "rewrap", "run", "--from", "v1", "--to", "v2", "--json"]

_NOT_OURS = ("REWRAP_", "PG", "PYTHONDONTWRITEBYTECODE")
"""Variables the command does not inherit: settings of rewrap's and libpq's, and what makes each start compile
its modules anew."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """One measured run of rewrap."""

    cost: Cost
    sweep_rows_per_s: float
    """Rows a second of the first sweep alone, as rewrap says: without start, proof, later sweeps, verify."""

    def as_json(self) -> dict[str, Any]:
        return self.cost.as_json() | {"sweep_rows_per_s": round(self.sweep_rows_per_s)}


def rotate(data: Data, shape: Shape, rows: int, *, port: int | None = None) -> Rotation:
    """Rotates the fresh table and checks, without rewrap, what it left; BenchError when that is wrong.

    `port` is where to find the server, if not where it listens.
    """
    with job_folder(shape) as folder:
        cost, ended = cost_of_program(data.server, rows, lambda: _run(data, folder, port))
    return Rotation(cost, _check(data, shape, rows, ended))


def rotate_beside_writers(data: Data, shape: Shape, rows: int) -> tuple[float, float]:
    """The same while others write: from exec to exit, in seconds of the monotonic clock."""
    with job_folder(shape) as folder:
        ended = _run(data, folder)
    _check(data, shape, rows, ended)
    return ended.span


def warm_up(data: Data, shape: Shape, rows: int) -> None:
    """Starts the command once, so that no measured run compiles modules or reads them from a cold disk."""
    data.renew(shape, rows)
    with job_folder(shape) as folder:
        ended = _run(data, folder, None, "--dry-run", "--sample", "1000")
    if ended.code != 0:
        raise BenchError(f"rewrap run --dry-run ended with exit code {ended.code}: {_complaint(ended)}")


@contextmanager
def job_folder(shape: Shape) -> Iterator[Path]:
    """A folder with the job file, for the ledger too."""
    column = shape.columns[0]
    job = _JOB.format(
        encoding="raw" if column.binary else "base64",
        cipher="secretbox" if column.form == "box" else "aes-256-gcm",
        table=TABLE,
        fields=", ".join(f'{{ column = "{field.name}", layout = "stored" }}' for field in shape.columns),
    )
    with tempfile.TemporaryDirectory(prefix="rewrap-bench-") as folder:
        (Path(folder) / "rewrap.toml").write_text(job)
        yield Path(folder)


def _run(data: Data, folder: Path, port: int | None = None, *options: str) -> Ended:
    return run_program([*COMMAND, *options], environ=environment(data, port), folder=folder)


def environment(data: Data, port: int | None = None) -> dict[str, str]:
    """The command's variables: the caller's own, less what would change what is measured."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_OURS)}
    return inherited | {"DATABASE_URL": data.server.dsn_at(port), "NO_COLOR": "1", **data.keys.environ}


def _check(data: Data, shape: Shape, rows: int, ended: Ended) -> float:
    """Rows a second of sweep 1; BenchError unless all values are under v2 and a sample of them opens."""
    sweep = _check_events(ended, rows)
    data.check_markers(shape, rows)
    data.check_sample(shape, rows)
    return sweep


def _check_events(ended: Ended, rows: int) -> float:
    """Rows a second of sweep 1; BenchError unless the run says that it is complete."""
    events = [json.loads(line) for line in ended.out.splitlines() if line.startswith("{")]
    if ended.code != 0:
        raise BenchError(f"rewrap run ended with exit code {ended.code}: {_complaint(ended)}")
    verdicts = [event for event in events if event["type"] == "verdict"]
    if not verdicts or not verdicts[-1]["complete"]:
        raise BenchError("rewrap run ended with exit code 0 and no complete verdict")
    done = [event for event in events if event["type"] == "sweep_done" and event["sweep"] == 1]
    if len(done) != 1 or done[0]["rows_done"] != rows:
        raise BenchError(f"sweep 1 of {rows:,} rows was reported as {[event['rows_done'] for event in done]}")
    return float(done[0]["rows_done"] / done[0]["seconds"])


def _complaint(ended: Ended) -> str:
    """What the command said last: its error, or else what it left."""
    said = ended.err.strip().splitlines()[-3:]
    for line in ended.out.splitlines():
        said += json.loads(line).get("reasons", []) if line.startswith("{") else []
    return " / ".join(dict.fromkeys(said))
