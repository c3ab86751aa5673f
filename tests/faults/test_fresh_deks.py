"""Fresh DEKs under a live application and kills: nothing lost, and no record twice."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from tests.conftest import require
from tests.support.containers import Containers, expected
from tests.support.cosmos import CosmosDatabase
from tests.support.documents import Application, Notes
from tests.support.proxy import Answer, Drop, FaultProxy, Meanwhile, throttled
from tests.support.workbench import UNYIELDING, Workbench, wait_for, wait_while

NOTES = 1_500


@pytest.fixture
def notes(bench: Workbench) -> Notes:
    require("Node", "node")
    made = Notes(bench)
    made.create()
    made.job(limits="[pace]\nbatch_size = 40\nshards = 2\n" + UNYIELDING)
    made.fill(1, NOTES)
    return made


def test_killed_under_a_live_application_nothing_is_lost_and_no_record_made_twice(notes: Notes) -> None:
    """Six kills at random moments; the application writes with old DEKs meanwhile, and reads everything."""
    chance = random.Random(20)
    arguments = ("run", "--from", "v1", "--to", "v2", "--allow-unseen-target", "--json")
    with Application(notes, list(range(1, NOTES + 1))) as application:
        for _ in range(6):
            # 25 s of work, so that none of them ends by itself
            with notes.bench.started(*arguments, "--max-rate", "60") as run:
                # while they come into being
                there = len(notes.deks())
                wait_while(run, lambda there=there: len(notes.deks()) > there)
                time.sleep(chance.uniform(0.0, 0.3))
                run.kill()
            assert run.returncode == -signal.SIGKILL
        killed_at = len(notes.deks())
        wait_for(lambda: application.written > 100 or application.failed)
        still = notes.bench.rewrap(*arguments)
        assert still.code in (0, 3), still.err
    assert application.failed == []
    # kills left records behind whose documents were not written yet
    assert NOTES < killed_at < 2 * NOTES
    ended = notes.bench.rewrap(*arguments)
    assert ended.code == 0, ended.err
    assert notes.opened("v2") == {"body": application.truth}
    # one new record for each document, whatever was killed and however often it was sealed again
    assert len(notes.deks()) == 2 * NOTES
    used = {doc["body"]["dekId"] for doc in notes.documents().values()}
    assert len(used) == NOTES
    assert notes.bench.rewrap("verify", "--deep").code == 0


def test_no_record_is_made_twice_over_a_bad_line(
    cosmos: CosmosDatabase, cosmos_proxy: FaultProxy, tmp_path: Path
) -> None:
    """Answers to creations are lost though they were carried out, requests throttled, runs killed."""
    require("Node", "node")
    count = 240
    notes = Containers(cosmos, tmp_path)
    notes.fill(1, count)
    old = {one["id"] for one in cosmos.documents("dek_store")}
    notes.bench.environ["COSMOS_ENDPOINT"] = cosmos_proxy.endpoint
    cosmos_proxy.add(Drop(applied=True), "create", path="dek_store", chance=0.15)
    cosmos_proxy.add(throttled(30), "create", path="dek_store", chance=0.1)
    cosmos_proxy.add(Answer(503), "read", path="dek_store", chance=0.05)
    cosmos_proxy.add(Drop(applied=True), "patch", path="notes", chance=0.05)
    arguments = ("run", "--from", "v1", "--to", "v2", "--allow-unseen-target", "--json")
    for killed in range(3):
        with notes.bench.started(*arguments, "--max-rate", "10") as run:
            enough = count + 12 * (killed + 1)
            wait_while(run, lambda enough=enough: len(cosmos.documents("dek_store")) > enough)
            run.kill()
        assert run.returncode == -signal.SIGKILL
    ran = notes.bench.rewrap(*arguments)
    assert ran.code == 0, ran.err + ran.out
    assert cosmos_proxy.faults()["create"] > 20
    assert notes.read("v2") == expected(count)
    records = {one["id"] for one in cosmos.documents("dek_store")}
    assert records > old
    assert len(records) == 2 * count
    assert len({one["body"]["dekId"] for one in cosmos.documents("notes")}) == count


def test_what_an_old_dek_writes_behind_the_sweep_is_found_by_the_next(
    cosmos: CosmosDatabase, cosmos_proxy: FaultProxy, tmp_path: Path
) -> None:
    """A note that was sealed anew gets its old value and DEK id back while the run is at work."""
    require("Node", "node")
    notes = Containers(cosmos, tmp_path)
    notes.fill(1, 40)
    before = {one["id"]: one for one in cosmos.documents("notes")}
    beside = cosmos.beside()
    written: list[str] = []

    def write(_path: str) -> None:
        now = {one["id"]: one for one in beside.documents("notes")}
        name = next(name for name in now if now[name]["body"] != before[name]["body"])
        beside.upsert("notes", {"id": name, "tenant": now[name]["tenant"], "body": before[name]["body"]})
        written.append(name)

    notes.bench.environ["COSMOS_ENDPOINT"] = cosmos_proxy.endpoint
    cosmos_proxy.add(Meanwhile(write), "patch", path="/notes/", skip=20, times=1)
    ran = notes.bench.run()
    beside.account.close()
    assert len(written) == 1
    assert ran.code == 0, ran.err + ran.out
    assert ran.event("run_ended")["sweeps"] == 2
    assert ran.event("run_ended")["resealed_late"] == 1
    assert notes.read("v2") == expected(40)
    assert len(cosmos.documents("dek_store")) == 80
