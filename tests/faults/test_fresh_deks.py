"""Fresh DEKs under a live application and kills: nothing lost, and no record twice."""

from __future__ import annotations

import random
import time

import pytest

from tests.conftest import require
from tests.support.documents import Application, Notes
from tests.support.workbench import Workbench

NOTES = 1_500


@pytest.fixture
def notes(bench: Workbench) -> Notes:
    require("Node", "node")
    made = Notes(bench)
    made.create()
    made.job(limits="[pace]\nbatch_size = 40\nshards = 2\n")
    made.fill(1, NOTES)
    return made


def test_killed_under_a_live_application_nothing_is_lost_and_no_record_made_twice(notes: Notes) -> None:
    """Six kills at random moments; the application writes with old DEKs meanwhile, and reads everything."""
    chance = random.Random(20)
    arguments = ("run", "--from", "v1", "--to", "v2", "--allow-unseen-target", "--json")
    with Application(notes, list(range(1, NOTES + 1))) as application:
        for _ in range(6):
            with notes.bench.started(*arguments) as run:
                time.sleep(chance.uniform(0.9, 3.0))
                run.kill()
        killed_at = len(notes.deks())
        still = notes.bench.rewrap(*arguments)
        assert still.code in (0, 3), still.err
    assert application.failed == []
    assert application.written > 100
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
