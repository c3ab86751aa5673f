"""What a run shows while it works, and how it is stopped and gone on with."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import sqlite3
import struct
import subprocess
import sys
import termios
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from rewrap.events import Progress
from rewrap.report import LINE_INTERVAL_S, duration, eta
from tests.integration.test_safety import Holder
from tests.support.values import KEY_V3, box, unbox
from tests.support.workbench import NOTES, TIMEOUT_S, Result, Workbench, wait_for, wait_while

RUN = ("run", "--from", "v1", "--to", "v2", "--allow-unseen-target")
COLUMNS = ["target", "rows", "rows/s", "stale left", "quarantined", "ETA", "held back by"]


def slow_notes(bench: Workbench, rows: int, seconds: float) -> None:
    """Table notes, with a trigger that takes its time over every row that is written."""
    bench.notes([box(f"note {i}") for i in range(rows)])
    slow_down(bench, "notes", seconds)


def slow_down(bench: Workbench, table: str, seconds: float) -> None:
    bench.sql(
        f"""CREATE FUNCTION dawdle_{table}() RETURNS trigger LANGUAGE plpgsql AS
              'BEGIN PERFORM pg_sleep({seconds}); RETURN NULL; END';
            CREATE TRIGGER dawdling AFTER UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION dawdle_{table}();"""
    )


def stop_at(bench: Workbench, table: str, number: int) -> None:
    """The write of one row takes as long as somebody holds the advisory lock 1."""
    bench.sql(
        f"""CREATE FUNCTION stop_{table}() RETURNS trigger LANGUAGE plpgsql AS
              'BEGIN WHILE NOT pg_try_advisory_xact_lock_shared(1) LOOP PERFORM pg_sleep(0.05); END LOOP;
               RETURN NULL; END';
            CREATE TRIGGER stopping AFTER UPDATE ON {table} FOR EACH ROW WHEN (NEW.id = {number})
              EXECUTE FUNCTION stop_{table}();"""
    )


def speed_up(bench: Workbench) -> None:
    bench.sql("DROP TRIGGER dawdling ON notes")


def resealed(bench: Workbench) -> int:
    """Rows of notes under v2 by now."""
    return int(bench.value("SELECT count(*) FROM notes WHERE body LIKE 'v2:%'"))


def check_all_rotated(bench: Workbench, rows: int) -> None:
    """Every note is under v2 and opens to what it was."""
    bodies = bench.bodies()
    assert {at: unbox(body or "").decode() for at, body in bodies.items()} == {
        at: f"note {at - 1}" for at in range(1, rows + 1)
    }
    assert all(body and body.startswith("v2:") for body in bodies.values())


def finish(bench: Workbench, rows: int, *, killed: bool = False) -> Result:
    """Resumes the run, without the slow trigger; it must end complete.

    What a killed process had written last is found as current: its checkpoint rides in the next write.
    """
    speed_up(bench)
    ran = bench.rewrap("resume", "--json")
    assert ran.code == 0, ran.err
    assert ran.event("run_started")["resumed"] is True
    found = ran.event("run_ended")["outcomes"]["notes"]["body"]
    assert sum(found.values()) == rows
    assert set(found) <= ({"resealed", "current"} if killed else {"resealed"})
    check_all_rotated(bench, rows)
    return ran


# lines


@dataclass
class Recorded:
    """A slow run over two tables, with what `status` said in its middle."""

    ran: Result
    seconds: float
    status: Result
    status_json: dict[str, Any]


@pytest.fixture
def recorded(bench: Workbench) -> Recorded:
    slow_notes(bench, 130, 0.05)
    bench.sql("CREATE TABLE accounts (id bigint PRIMARY KEY, body text)")
    bench.insert("accounts", ["id", "body"], [(at, box("account")) for at in range(1, 131)])
    slow_down(bench, "accounts", 0.05)
    stop_at(bench, "notes", 125)
    bench.job(NOTES + NOTES.replace("notes", "accounts"))
    started = time.monotonic()
    with bench.started(*RUN, "--batch-size", "5") as running:
        with Holder(bench, "SELECT pg_advisory_xact_lock(1)"):
            wait_while(running, lambda: resealed(bench) > 30)
            status = bench.rewrap("status")
            status_json = json.loads(bench.rewrap("status", "--json").out)
            assert running.poll() is None
        out, err = running.communicate(timeout=TIMEOUT_S)
    ran = Result(running.returncode, out, err)
    return Recorded(ran, time.monotonic() - started, status, status_json)


def test_run_is_told_in_lines_where_there_is_no_terminal(recorded: Recorded) -> None:
    """A line for each table and interval that says how far, how fast and what holds it back; then the sum."""
    assert recorded.ran.code == 0
    assert "\x1b" not in recorded.ran.out + recorded.ran.err
    for table in ("notes", "accounts"):
        pattern = (
            rf"\[{table}\] (\d+)/130 rows — \1 resealed, 0 quarantined, [\d,]+ rows/s, "
            rf"ETA [\d.]+ s \(held back by writes\)"
        )
        lines = re.findall(pattern, recorded.ran.err)
        assert 1 <= len(lines) <= recorded.seconds / LINE_INTERVAL_S, recorded.ran.err
        assert f"[{table}] done — 130 rows" in recorded.ran.err
    head, *classes = recorded.ran.out.splitlines()
    assert re.fullmatch(
        r"run [0-9a-f]{8}: complete — 260 rows, 260 values in [\d.]+ s \([\d,]+ rows/s\)", head
    )
    assert classes[:2] == ["  notes.body: 130 resealed", "  accounts.body: 130 resealed"]
    assert classes[2].startswith("verify to v2: complete — 260 values counted in one snapshot; stale 0")
    # and in the middle of it
    assert ": running — v1 → v2, begun " in recorded.status.out
    assert re.search(r"public\.notes +1 +\d+/130 ", recorded.status.out)
    assert recorded.status_json["type"] == "status"
    assert recorded.status_json["run"]["state"] == "running"
    notes = next(one for one in recorded.status_json["progress"] if "notes" in one["relation"])
    assert 0 < notes["rows_done"] < 130
    assert notes["waiting_for"] == "writes"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.04, "0.0 s"), (9.96, "10.0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7_500, "2 h 05 min"),
     (172_799, "47 h 59 min"), (273_700, "3 d 4 h")],
)  # fmt: skip
def test_duration_is_said_as_people_say_it(seconds: float, said: str) -> None:
    """Two units at most, the smaller one dropped where it no longer matters."""
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("rate", "left_s", "waiting_for", "said"),
    [
        (50.0, 90.0, "writes", "1 min 30 s"),
        (50.0, 90.0, "row locks", "1 min 30 s"),
        (50.0, 0.0, "writes", ""),
        (50.0, None, "writes", ""),
        (0.3, 9e9, "writes", ""),
        (50.0, 90.0, "reconnecting", ""),
    ],
)
def test_eta_is_left_out_where_nobody_can_say(
    rate: float, left_s: float | None, waiting_for: str, said: str
) -> None:
    """A run that stands still has no end in sight, and shows none."""
    event = Progress(
        target="notes", sweep=1, rows_done=10, rows_estimated=100, resealed=10, quarantined=0,
        stale_left=90, rows_per_s=rate, eta_s=left_s, waiting_for=waiting_for,
    )  # fmt: skip
    assert eta(event) == said


def test_status_before_and_after_a_run(bench: Workbench) -> None:
    """Status knows of no run before the first, makes no ledger to say so, and keeps the last one's end."""
    bench.notes([box("note"), "v1:AAAA"])
    assert bench.rewrap("status").out == 'job "test" has not been run yet\n'
    assert not bench.ledger.exists()
    assert bench.run().code == 3
    after = bench.rewrap("status")
    assert after.code == 0
    assert ": incomplete — v1 → v2, begun " in after.out
    assert "put aside: 1 (rewrap quarantine list)" in after.out
    shown = json.loads(bench.rewrap("status", "--json").out)
    assert shown["run"]["state"] == "incomplete"
    assert shown["quarantined"] == 1


def test_status_says_when_a_running_run_has_fallen_silent(bench: Workbench) -> None:
    """A killed process cannot say that it stopped; the time since its last word does."""
    slow_notes(bench, 40, 0.0)
    with bench.started(*RUN, "--max-rate", "4") as running:
        wait_while(running, lambda: resealed(bench) > 2)
        running.kill()
    connection = sqlite3.connect(bench.ledger)
    for table in ("rewrap_run", "rewrap_progress"):
        connection.execute(f"UPDATE {table} SET updated_at = '2024-02-03T04:05:06.789+00:00'")
    connection.execute("UPDATE rewrap_control SET beat_at = '2024-02-03T04:05:06.789+00:00'")
    connection.commit()
    connection.close()
    silent = bench.rewrap("status").out
    assert "last changed 2024-02-03 04:05:06 UTC" in silent
    assert re.search(r"no sign of life for \d+ d \d+ h: if the process is gone, rewrap resume", silent)
    finish(bench, 40, killed=True)


@pytest.mark.parametrize(
    "command",
    [
        (*RUN, "--json"),
        (*RUN, "--json", "--dry-run"),
        ("plan", "--from", "v1", "--to", "v2", "--json"),
        ("verify", "--to", "v2", "--json"),
        ("status", "--json"),
    ],
    ids=lambda command: " ".join(command[:1] + command[-1:]),
)
def test_json_is_one_object_a_line_and_nothing_else(bench: Workbench, command: tuple[str, ...]) -> None:
    """Every line of stdout has a type and a schema; stderr stays empty."""
    bench.notes([box("note"), "v1:AAAA"])
    ran = bench.rewrap(*command)
    assert ran.err == ""
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert lines
    for line in lines:
        assert list(line)[:2] == ["type", "schema"]
        assert line["schema"] == 1


def test_json_ends_with_the_error_where_there_is_one(bench: Workbench) -> None:
    """A program reads the error and its exit code from stdout, a person from stderr."""
    bench.notes([box("note")])
    ran = bench.rewrap(*RUN, "--json", KEY_V1=KEY_V3.hex())
    assert ran.code == 10
    (event,) = ran.events
    assert (event["type"], event["schema"], event["exit_code"]) == ("error", 1, 10)
    assert ran.err == f"error: {event['message']}\nhint: {event['hint']}\n"


def test_reader_that_leaves_ends_the_run_cleanly(bench: Workbench) -> None:
    """`rewrap run --json | head -1` is no defect of rewrap's, and the run can be resumed."""
    bench.notes([box(f"note {i}") for i in range(20)])
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as nobody:
        ran = subprocess.run(
            [sys.executable, "-m", "rewrap", *RUN, "--json"],
            cwd=bench.folder, env=bench.environ, stdout=nobody, stderr=subprocess.PIPE, text=True,
            check=False, timeout=60,
        )  # fmt: skip
    assert ran.returncode == 1
    assert ran.stderr.startswith("error: stdout was closed by its reader\nhint: ")
    assert ran.stderr.count("\n") == 2
    assert bench.rewrap("resume").code == 0
    check_all_rotated(bench, 20)


# a terminal


@dataclass
class Terminal:
    """A command on a terminal of its own: 120 columns, 40 lines."""

    process: subprocess.Popen[bytes]
    master: int
    output: bytes = b""
    _open: bool = field(default=True)

    @property
    def text(self) -> str:
        """What was written so far, escape sequences included."""
        self._read(0)
        return self.output.decode(errors="replace")

    def _read(self, timeout_s: float) -> None:
        while self._open and select.select([self.master], [], [], timeout_s)[0]:
            try:
                chunk = os.read(self.master, 65_536)
            except OSError:
                # Linux: the last process on the terminal has left
                chunk = b""
            self._open = bool(chunk)
            self.output += chunk

    def press(self, key: bytes) -> None:
        os.write(self.master, key)

    def wait(self, timeout_s: float = TIMEOUT_S) -> int:
        deadline = time.monotonic() + timeout_s
        while self._open:
            assert time.monotonic() < deadline, self.output.decode(errors="replace")
            self._read(0.05)
        return self.process.wait(TIMEOUT_S)


@contextmanager
def terminal(bench: Workbench, *arguments: str, **environ: str) -> Iterator[Terminal]:
    """Runs `rewrap …` on a pseudo-terminal, as its foreground job."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    shown = {"TERM": "xterm-256color", **bench.environ, **environ}
    kept = {name: value for name, value in shown.items() if value and name not in ("COLUMNS", "CI")}
    process = subprocess.Popen(
        [sys.executable, "-c", FOREGROUND, "-m", "rewrap", *arguments],
        cwd=bench.folder, env=kept, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    found = Terminal(process, master)
    try:
        yield found
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(master)


FOREGROUND = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""Makes the terminal the controlling one, so that Ctrl-C on it is a signal."""


def test_terminal_shows_a_live_table(bench: Workbench) -> None:
    """On a terminal each table has one line that is drawn again in place, under named columns."""
    slow_notes(bench, 60, 0.05)
    with terminal(bench, *RUN, "--batch-size", "4") as shown:
        assert shown.wait() == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.text)
    for name in COLUMNS:
        assert name in plain
    drawn = re.findall(r"notes +(\d+)/60 +(\d+)% .* writes", plain)
    assert len(set(drawn)) >= 2, plain
    assert re.search(r"notes +60/60 +100% +\d+ +~0 +0 +done", plain)
    assert "\x1b[?25l" in shown.text
    assert shown.text.rindex("\x1b[?25h") > shown.text.rindex("\x1b[?25l")
    assert "complete — 60 rows" in plain


def test_refused_run_draws_no_empty_table(bench: Workbench) -> None:
    """An error stands alone on the terminal, without the head of a table that never was."""
    bench.notes([box("note")])
    with terminal(bench, "run", "--from", "v1", "--to", "v2") as shown:
        assert shown.wait() == 10
    assert "held back by" not in shown.text
    assert "error: no stored value" in shown.text


@pytest.mark.parametrize("no_color", ["1", ""])
def test_no_color_is_honoured(bench: Workbench, no_color: str) -> None:
    """With NO_COLOR set nothing is coloured, not even on a terminal; without it something is."""
    bench.notes([box("note"), "v1:AAAA"])
    with terminal(bench, *RUN, NO_COLOR=no_color) as shown:
        assert shown.wait() == 3
    coloured = re.search(r"\x1b\[(\d+;)*(3[0-7]|9[0-7]|38)[;m]", shown.text)
    assert bool(coloured) is not bool(no_color), shown.text


def test_ctrl_c_on_a_terminal_pauses_the_run(bench: Workbench) -> None:
    """Ctrl-C says what it does, restores the cursor, and leaves a run that can be gone on with."""
    slow_notes(bench, 200, 0.05)
    with terminal(bench, *RUN, "--max-rate", "10") as shown:
        wait_for(lambda: "/200" in shown.text)
        shown.press(b"\x03")
        assert shown.wait() == 4
    assert "SIGINT: finishing the batch in hand (again: leave at once)" in shown.text
    assert "go on with: rewrap resume" in shown.text
    assert shown.text.rindex("\x1b[?25h") > shown.text.rindex("\x1b[?25l")
    finish(bench, 200)


# stopping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_ends_at_a_batchs_edge(bench: Workbench, number: signal.Signals) -> None:
    """The batch in hand is finished and checkpointed, the exit code is 4, and resume has the rest."""
    slow_notes(bench, 200, 0.02)
    with bench.started(*RUN, "--batch-size", "10", "--max-rate", "20") as running:
        wait_while(running, lambda: resealed(bench) >= 10 and bench.value(WRITING))
        running.send_signal(number)
        out, err = running.communicate(timeout=TIMEOUT_S)
    assert running.returncode == 4, err
    assert f"{number.name}: finishing the batch in hand" in err
    assert f"left: stopped by {number.name}" in out
    done = resealed(bench)
    assert 0 < done < 200
    assert done % 10 == 0
    assert bench.value("SELECT sum(row_count)::int FROM rewrap.shard") == done
    ran = finish(bench, 200)
    assert ran.event("sweep_started")["target"] == "notes"
    assert next(e for e in ran.events if e["type"] == "sweep_started")["rows_done"] == done


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_leaves_at_once(bench: Workbench, number: signal.Signals) -> None:
    """Whoever signals twice does not wait for the batch, and loses nothing by it."""
    slow_notes(bench, 80, 0.0)
    stop_at(bench, "notes", 15)
    with (
        Holder(bench, "SELECT pg_advisory_xact_lock(1)"),
        bench.started(*RUN, "--batch-size", "30") as running,
    ):
        # a batch is in the server's hands, and will be for as long as the test lasts
        wait_while(running, lambda: bench.value(WRITING))
        running.send_signal(number)
        assert running.stderr is not None
        for line in running.stderr:
            if "again: leave at once" in line:
                break
        running.send_signal(number)
        assert running.wait(TIMEOUT_S) == 128 + number
        assert bench.value(WRITING)
    finish(bench, 80, killed=True)


WRITING = """
SELECT EXISTS (SELECT FROM pg_stat_activity
                WHERE application_name = 'rewrap writer' AND wait_event = 'PgSleep')
"""


def test_signal_is_heeded_while_writers_are_waited_for(bench: Workbench) -> None:
    """A transaction of somebody else's may stay open for long; whoever signals does not wait for it."""
    bench.notes([box("note"), None])
    bench.job(more="[limits]\ndrain_s = 120.0")
    bench.sql("BEGIN; UPDATE notes SET other = 'x' WHERE id = 2; PREPARE TRANSACTION 'held'")
    try:
        with bench.started(*RUN) as running:
            assert running.stderr is not None
            for line in running.stderr:
                if "] done" in line:
                    break
            running.send_signal(signal.SIGINT)
            assert running.wait(60) == 4
    finally:
        bench.sql("ROLLBACK PREPARED 'held'")


def test_signal_to_status_watch_leaves_without_a_traceback(bench: Workbench) -> None:
    """Ctrl-C is how one stops watching."""
    bench.notes([box(f"note {i}") for i in range(10)])
    assert bench.run("--sample", "5").code == 4
    with bench.started("status", "--watch") as watching:
        assert watching.stdout is not None
        wait_for(lambda: select.select([watching.stdout], [], [], 0)[0])
        watching.send_signal(signal.SIGINT)
        _, err = watching.communicate(timeout=TIMEOUT_S)
    assert watching.returncode == 130
    assert err == ""


# parts of a run


def test_sample_does_n_rows_of_each_table(bench: Workbench) -> None:
    """`--sample` tries the whole way on a few rows, stops with 4, and is gone on with like any stop."""
    bench.notes([box(f"note {i}") for i in range(50)])
    bench.sql("CREATE TABLE accounts (id bigint PRIMARY KEY, body text)")
    bench.insert("accounts", ["id", "body"], [(at, box("account")) for at in range(1, 31)])
    bench.job(NOTES + NOTES.replace("notes", "accounts"))
    ran = bench.rewrap(*RUN, "--sample", "7")
    assert ran.code == 4
    assert "left: the sample is done" in ran.out
    assert "go on with: rewrap resume" in ran.out
    count = "SELECT count(*) FROM {} WHERE body LIKE 'v2:%'"
    assert [bench.value(count.format(table)) for table in ("notes", "accounts")] == [7, 7]
    assert bench.rewrap("resume", "--sample", "7").code == 4
    assert [bench.value(count.format(table)) for table in ("notes", "accounts")] == [14, 14]
    ran = bench.rewrap("resume", "--json")
    assert ran.code == 0
    assert ran.event("run_ended")["outcomes"] == {
        "notes": {"body": {"resealed": 50}},
        "accounts": {"body": {"resealed": 30}},
    }
    check_all_rotated(bench, 50)


@pytest.mark.parametrize("size", [7, 1])
def test_batch_size_is_how_many_rows_are_written_at_once(bench: Workbench, size: int) -> None:
    """Rows of one batch are written by one transaction, and no transaction writes more."""
    bench.notes([box(f"note {i}") for i in range(20)])
    assert bench.run("--batch-size", str(size)).code == 0
    batches = Counter(row[0] for row in bench.sql("SELECT xmin::text FROM notes"))
    assert max(batches.values()) == size
    assert len(batches) == -(-20 // size)


def test_dry_run_writes_nothing_and_foresees_the_run(bench: Workbench) -> None:
    """No row version, no schema, no ledger; and the classes are those that the run then finds."""
    values = [box(f"note {i}") for i in range(30)]
    values += [box("new", "v2"), box("third", "v3"), "v9:unknown", "v1:AAAA", "plain words", box("bare")[3:]]
    bench.notes([*values, None])
    rows = "SELECT id, body, other, xmin::text, ctid::text FROM notes ORDER BY id"
    before = bench.sql(rows)
    dry = bench.rewrap(*RUN, "--dry-run", "--json")
    assert dry.code == 3, dry.err
    assert bench.sql(rows) == before
    assert bench.value("SELECT to_regnamespace('rewrap') IS NULL")
    assert [path.name for path in bench.folder.iterdir()] == ["rewrap.toml"]
    foreseen = dry.event("run_ended")
    assert foreseen["state"] == "dry-run"
    real = bench.run()
    assert real.code == 3
    assert foreseen["outcomes"] == real.event("run_ended")["outcomes"]


def test_dry_run_does_not_touch_a_paused_run(bench: Workbench) -> None:
    """A look in between leaves lock, cursor and ledger of the paused run alone."""
    bench.notes([box(f"note {i}") for i in range(30)])
    assert bench.run("--sample", "10").code == 4
    shards = bench.sql("SELECT s::text, xmin::text FROM rewrap.shard s")
    ledger = bench.ledger.read_bytes()
    dry = bench.rewrap(*RUN, "--dry-run")
    assert dry.code == 0
    assert "dry run: nothing was written — 30 rows" in dry.out
    assert "notes.body: would be 20 resealed, 10 current" in dry.out
    assert bench.sql("SELECT s::text, xmin::text FROM rewrap.shard s") == shards
    assert bench.ledger.read_bytes() == ledger


def test_dry_run_says_what_would_stop_the_run(bench: Workbench) -> None:
    """An unproven new key does not keep a dry run from looking, and is not passed over either."""
    bench.notes([box(f"note {i}") for i in range(3)])
    dry = bench.rewrap("run", "--from", "v1", "--to", "v2", "--dry-run")
    assert dry.code == 0
    assert 'warning: a run would stop here: no stored value is under "v2" yet' in dry.err
    assert "--to-fingerprint sha256:" in dry.err
