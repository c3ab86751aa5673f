"""20,000 DEK records over two containers, a live writer, and ten kills at random moments: nothing is lost."""

from __future__ import annotations

import json
import queue
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import IO, Any

from tests.support.cosmos import CosmosDatabase
from tests.support.notelett import NoteLett, merged
from tests.support.workbench import TIMEOUT_S

RECORDS = 10_000
"""In each of the two containers: what the emulator reads a page of in 0.1 s."""

NOTES = 1_500

KILLS = 10

SEED = 20_261_121

LEASE_HELD = 11
"""The exit code while the lease of a process that was killed still holds."""

LONGEST_S = 5.0
"""Seconds after a process began to sweep within which it is killed."""

RATE = 500
"""Rows a second of a process that is to be killed: on no machine the ten have done all."""

SHARE = 800
"""Values written by one process at which it is killed in any case: some have to be left for all of them."""

MORE = """
[[targets]]
container = "user_dek_store"

[[targets.fields]]
column = "wrappedDek"
layout = "dek-${FIELD_ENCRYPT_KEY_PROVIDER:-akv}"
version = { column = "mekVersion" }

[limits]
lease_s = 5.0
"""


def test_twenty_thousand_deks_survive_ten_kills(cosmos: CosmosDatabase, tmp_path: Path) -> None:
    """Every DEK unwraps with the new MEK alone to what it was; every note is the byte-identical document."""
    notelett = NoteLett(cosmos, tmp_path, more_deks=("user_dek_store",))
    job = tmp_path / "notelett-deks.toml"
    text = job.read_text().replace('kind = "cosmos"', 'kind = "cosmos"\nsettle_s = 1.0')
    # no vault is asked here; and the emulator reads a small page as slowly as a large one
    job.write_text(text.replace("batch_size = 100", "batch_size = 500") + MORE)
    made = notelett.node(
        "make", json.dumps({"dek_store": RECORDS, "user_dek_store": RECORDS, "notes": NOTES})
    )
    before = notelett.node("read")
    chance = random.Random(SEED)
    with notelett.writing(SEED, new=200, pause_ms=20) as told:
        for kill in range(KILLS):
            assert killed(notelett, chance.uniform(0.0, LONGEST_S)), f"it ended before kill {kill + 1}"
        ended = finished(notelett)
    assert (ended["exit_code"], ended["state"]) == (0, "complete"), ended
    verified = notelett.rewrap("verify", "--deep", "--json")
    assert verified.code == 0, verified.err + verified.out

    read = notelett.node("read", forget=notelett.old)
    truth = merged(made, told[0])
    for store in ("dek_store", "user_dek_store"):
        assert read[store].keys() == truth[store].keys()
        assert not [name for name, was in truth[store].items() if read[store][name].get("dek") != was["dek"]]
        assert not [name for name, record in read[store].items() if record["mekVersion"] != notelett.new]
    assert {name: read["notes"][name]["hash"] for name in made["notes"]} == {
        name: note["hash"] for name, note in before["notes"].items()
    }
    for name, note in truth["notes"].items():
        assert read["notes"][name]["plains"] == note["plains"]

    marked: dict[str, str] = {}
    for store in ("dek_store", "user_dek_store"):
        marked |= {record["id"]: record.get("lastUsed", "") for record in cosmos.documents(store)}
    assert len(told[0]["marked"]) > 100
    assert not [name for name, mark in told[0]["marked"].items() if marked[name] != mark]


def killed(notelett: NoteLett, after_s: float) -> bool:
    """Whether a process of the run was ended by SIGKILL: so long after it began to sweep, or at its share."""
    while True:
        with notelett.bench.started(*arguments(notelett), "--max-rate", str(RATE)) as process:
            assert process.stdout is not None
            events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
            reader = threading.Thread(target=told_by, args=(process.stdout, events))
            reader.start()
            begun, kill_at, written = False, float("inf"), Counter[str]()
            while True:
                try:
                    event = events.get(timeout=max(0.0, min(TIMEOUT_S, kill_at - time.monotonic())))
                except queue.Empty:
                    break
                if event is None:
                    break
                if event["type"] == "sweep_started" and not begun:
                    begun, kill_at = True, time.monotonic() + after_s
                if event["type"] == "progress":
                    written[event["target"]] = event["resealed"]
                if sum(written.values()) > SHARE:
                    break
            if begun:
                process.kill()
            reader.join(TIMEOUT_S)
            process.wait(TIMEOUT_S)
        if process.returncode != LEASE_HELD:
            assert process.returncode in (-signal.SIGKILL, 0)
            return process.returncode != 0


def told_by(out: IO[str], events: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    """Hands on what a process prints, and None at its end; a line that a kill cut off says nothing."""
    for line in out:
        if line.endswith("}\n"):
            events.put(json.loads(line))
    events.put(None)


def finished(notelett: NoteLett) -> dict[str, object]:
    """The last event of the run, left to itself."""
    while True:
        ran = notelett.bench.rewrap(*arguments(notelett), timeout=400)
        if ran.code != LEASE_HELD:
            assert ran.code == 0, ran.err + ran.out
            return ran.event("run_ended")


def arguments(notelett: NoteLett) -> list[str]:
    """What goes on with the run, once the lease of the process before has ended."""
    versions = ["--from", notelett.old, "--to", notelett.new]
    return ["run", "notelett-deks.toml", *versions, "--allow-unseen-target", "--json"]
