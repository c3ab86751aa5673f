"""DEK records over two containers, a live writer, and kills at random moments: nothing is lost.

20,000 of them under a MEK in the environment, and some hundreds under one in a vault.
"""

from __future__ import annotations

import json
import queue
import random
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.support.cosmos import CosmosDatabase
from tests.support.notelett import NoteLett, merged
from tests.support.vault import VaultEmulator
from tests.support.workbench import TIMEOUT_S

SEED = 20_261_121

LEASE_HELD = 11
"""The exit code while the lease of a process that was killed still holds."""


@dataclass(frozen=True)
class Kills:
    """A rotation that is killed. `records` are in each of the two containers.

    A process that is to be killed does `rate` rows a second at most, so that on no machine it has done all.
    """

    records: int
    notes: int
    kills: int
    rate: int
    longest_s: float
    """Seconds after a process began to sweep within which it is killed."""
    share: int
    """Values written by one process at which it is killed in any case: some are left for the others."""


LOCAL = Kills(records=10_000, notes=1_500, kills=10, rate=500, longest_s=5.0, share=800)

VAULT = Kills(records=200, notes=60, kills=4, rate=25, longest_s=1.5, share=40)

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
    marked = survive(NoteLett(cosmos, tmp_path, more_deks=("user_dek_store",)), LOCAL)
    assert marked > 100


def test_deks_under_a_key_in_a_vault_survive_kills(
    cosmos: CosmosDatabase, vault_emulator: VaultEmulator, tmp_path: Path
) -> None:
    """The same with RSA: the vault unwraps each DEK, and a call that a kill cut off leaves nothing behind."""
    notelett = NoteLett(cosmos, tmp_path, vault_emulator, more_deks=("user_dek_store",))
    notelett.mint()
    survive(notelett, VAULT)
    # one call for each record at least, whatever was killed
    assert vault_emulator.proxy.counts()["unwrapkey"] >= 2 * VAULT.records


def survive(notelett: NoteLett, kills: Kills) -> int:
    """Rotates through the kills and checks everything; how many records the application marked meanwhile."""
    cosmos = notelett.cosmos
    job = notelett.folder / "notelett-deks.toml"
    text = job.read_text().replace('kind = "cosmos"', 'kind = "cosmos"\nsettle_s = 1.0')
    # the emulator reads a small page as slowly as a large one
    job.write_text(text.replace("batch_size = 100", "batch_size = 500") + MORE)
    made = notelett.node(
        "make",
        json.dumps({"dek_store": kills.records, "user_dek_store": kills.records, "notes": kills.notes}),
    )
    before = notelett.node("read")
    chance = random.Random(SEED)
    with notelett.writing(SEED, new=200, pause_ms=20) as told:
        for kill in range(kills.kills):
            after_s = chance.uniform(0.0, kills.longest_s)
            assert killed(notelett, kills, after_s), f"it ended before kill {kill + 1}"
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
    assert not [name for name, mark in told[0]["marked"].items() if marked[name] != mark]
    return len(told[0]["marked"])


def killed(notelett: NoteLett, kills: Kills, after_s: float) -> bool:
    """Whether a process of the run was ended by SIGKILL: so long after it began to sweep, or at its share."""
    while True:
        with notelett.bench.started(*arguments(notelett), "--max-rate", str(kills.rate)) as process:
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
                if sum(written.values()) > kills.share:
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
