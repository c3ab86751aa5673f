"""Whole runs over Cosmos DB while it throttles, fails, forgets and is written to: nothing is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cosmos import CosmosDatabase, CosmosEmulator
from tests.support.cosmosbench import LIMITS, CosmosBench, expected
from tests.support.proxy import (
    REFUSED_TOKEN,
    Answer,
    CutShort,
    Drop,
    FaultProxy,
    Meanwhile,
    throttled,
)
from tests.support.values import box
from tests.support.workbench import TIMEOUT_S, Result, wait_while

COUNT = 300
"""Documents in a test's container: some pages, and a second or two."""

PAGES = "[pace]\nbatch_size = 50\n"

RUN = ("run", "--from", "v1", "--to", "v2", "--allow-unseen-target", "--json")

PACED = (*RUN, "--max-rate", "50")
"""With four seconds of work left when a third of it is done, however fast the machine is."""


@pytest.fixture
def notes(cosmos: CosmosDatabase, cosmos_proxy: FaultProxy, tmp_path: Path) -> CosmosBench:
    """A container of notes at v1, and a job over it through the proxy."""
    bench = CosmosBench(tmp_path, cosmos, cosmos_proxy)
    bench.job(more=PAGES + LIMITS)
    bench.fill(COUNT)
    return bench


@pytest.fixture
def beside(cosmos: CosmosDatabase) -> Iterator[CosmosDatabase]:
    """The application: a connection of its own, past the proxy."""
    database = cosmos.beside()
    yield database
    database.account.close()


def assert_complete(bench: CosmosBench, ran: Result, count: int = COUNT) -> None:
    """Exit 0, every value at v2 and as it was, nothing else in any document changed, and verify agrees."""
    assert ran.code == 0, ran.err + ran.out
    assert ran.event("run_ended")["state"] == "complete"
    assert bench.opened() == expected(count)
    assert {body.partition(":")[0] for body in bench.bodies_of().values()} == {"v2"}
    verified = bench.rewrap("verify", "--json")
    assert verified.code == 0, verified.err


def outcomes(ran: Result) -> dict[str, int]:
    """The values of each class; the document that was rehearsed on is one of those resealed."""
    found: dict[str, int] = dict(ran.event("run_ended")["outcomes"]["notes"]["body"])
    assert found.pop("current", 0) == 1
    return found | {"resealed": found["resealed"] + 1}


def proxied(bench: CosmosBench) -> FaultProxy:
    assert bench.proxy is not None
    return bench.proxy


@pytest.mark.parametrize("retry_after_ms", [40, None])
def test_a_storm_of_429_is_outlasted(notes: CosmosBench, retry_after_ms: int | None) -> None:
    """Each third request is throttled, with a time to wait or without one: slower, and complete."""
    rest = notes.rest()
    proxied(notes).add(throttled(retry_after_ms), "patch", times=24, chance=0.35)
    proxied(notes).add(throttled(retry_after_ms), "query", times=3, chance=0.35)
    ran = notes.run()
    assert_complete(notes, ran)
    assert outcomes(ran) == {"resealed": COUNT}
    assert notes.rest() == rest
    assert proxied(notes).faults()["patch"] > 10
    assert proxied(notes).faults()["query"] >= 1


def test_the_time_to_wait_after_429_is_kept_by_every_request(notes: CosmosBench) -> None:
    """One request is told to wait four seconds: none comes in meanwhile, whoever sends it."""
    proxied(notes).add(throttled(4_000), "patch", skip=40, times=1)
    ran = notes.run()
    assert_complete(notes, ran)
    seen = sorted(proxied(notes).seen, key=lambda each: each.at)
    (told,) = [each.at for each in seen if each.status == 429]
    # those that were on their way already do come in, on a busy machine late
    assert [each.kind for each in seen if told + 2.5 < each.at < told + 3.95] == []
    assert any(each.at >= told + 4 for each in seen)


def test_a_storm_without_end_is_told_and_can_be_left(notes: CosmosBench) -> None:
    """Nothing but 429 for writes: the run waits, says why, stops when told to; resumed, it completes."""
    proxied(notes).add(throttled(200), "patch", skip=80)
    with notes.started(*RUN) as running:
        assert running.stdout is not None
        too_late = threading.Timer(TIMEOUT_S, running.kill)
        too_late.start()
        told = any("throttling by the account" in line for line in running.stdout)
        too_late.cancel()
        assert told
        running.send_signal(signal.SIGTERM)
        _, err = running.communicate(timeout=TIMEOUT_S)
    assert running.returncode == 4, err
    assert notes.opened() == expected(COUNT)
    proxied(notes).clear()
    assert_complete(notes, notes.rewrap("resume", "--json"))


@pytest.mark.parametrize("status", [503, 449, 408, 410])
def test_passing_errors_are_tried_again(notes: CosmosBench, status: int) -> None:
    """The store is busy, moving or splitting at every sixth request: tried again, and complete."""
    rest = notes.rest()
    for kind in ("patch", "query", "read", "feed"):
        proxied(notes).add(Answer(status), kind, every=6)
    ran = notes.run()
    assert_complete(notes, ran)
    assert outcomes(ran) == {"resealed": COUNT}
    assert notes.rest() == rest
    assert proxied(notes).faults()["patch"] > 20


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("account", Answer(503)),
        ("account", CutShort()),
        ("database", CutShort()),
        ("container", Answer(503)),
        ("query", Answer(404, {"x-ms-substatus": "1002"})),
        ("ranges", CutShort()),
        ("create", Answer(503)),
        ("patch", Answer(503)),
        ("patch", Drop(applied=True)),
    ],
)
def test_a_run_begins_over_a_line_that_fails_first(
    notes: CosmosBench, kind: str, fault: Answer | CutShort | Drop
) -> None:
    """Before the first write, and in its rehearsal, what fails for longer than one request is waited for."""
    rule = proxied(notes).add(fault, kind, times=6)
    ran = notes.run()
    assert rule.befallen == 6
    assert_complete(notes, ran)


def test_an_account_that_is_not_there_is_told_at_once(notes: CosmosBench) -> None:
    """It may come back; until then the operator can see what is wrong."""
    notes.job(more=PAGES + "[limits]\nreconnect_s = 1\n")
    proxied(notes).add(Answer(503), "account")
    ran = notes.run()
    assert ran.code == 1
    told = [one["message"] for one in ran.events if one["type"] == "notice"]
    assert len([one for one in told if "answered 503" in one or "does not answer" in one]) == 1, told


def test_writes_whose_answers_are_lost_are_known_as_ours(notes: CosmosBench) -> None:
    """The connection drops after every seventh write was applied: sent again it is 412, and was our own."""
    rest = notes.rest()
    proxied(notes).add(Drop(applied=True), "patch", every=7)
    ran = notes.run()
    assert_complete(notes, ran)
    assert outcomes(ran) == {"resealed": COUNT}
    assert notes.rest() == rest
    assert proxied(notes).faults()["patch"] > 20


def test_requests_that_never_arrived_are_sent_again(notes: CosmosBench) -> None:
    """The connection drops before every seventh request is carried out."""
    proxied(notes).add(Drop(), "patch", every=7)
    proxied(notes).add(Drop(), "query", every=3)
    ran = notes.run()
    assert_complete(notes, ran)
    assert outcomes(ran) == {"resealed": COUNT}


def test_lost_answers_about_the_lock_do_not_end_a_run(notes: CosmosBench) -> None:
    """What the guard writes is applied, and a third of its answers is lost: still one run, complete."""
    rule = proxied(notes).add(Drop(applied=True), path="/colls/rewrap/docs", chance=0.3)
    ran = notes.run()
    assert_complete(notes, ran)
    assert outcomes(ran) == {"resealed": COUNT}
    assert rule.befallen >= 2


def test_a_page_that_breaks_off_is_read_again(notes: CosmosBench) -> None:
    """Every second page ends in the middle of its body: no document of it is passed over."""
    proxied(notes).add(CutShort(), "query", every=2)
    ran = notes.run()
    assert_complete(notes, ran)
    assert outcomes(ran) == {"resealed": COUNT}
    assert proxied(notes).faults()["query"] >= 3


def test_a_count_that_breaks_off_is_no_verdict(notes: CosmosBench) -> None:
    """Verify that never gets a whole answer is an error, not a zero."""
    proxied(notes).add(CutShort(), "query")
    verified = notes.rewrap("verify", "--to", "v2", "--json")
    assert verified.code not in (0, 3), verified.out
    assert "error:" in verified.err
    assert "complete" not in verified.out


def test_a_token_that_is_refused_costs_a_second_look(notes: CosmosBench) -> None:
    """The server refuses a continuation token: the range is read from its start, and nothing is skipped."""
    proxied(notes).add(REFUSED_TOKEN, "query", token=True, times=2)
    ran = notes.run()
    assert_complete(notes, ran)
    # what was settled before the range began anew was counted then
    found = ran.event("run_ended")["outcomes"]["notes"]["body"]
    assert sum(found.values()) == COUNT
    assert set(found) == {"resealed", "current"}
    assert proxied(notes).faults()["query"] == 2


def test_a_killed_run_is_resumed_though_its_token_is_refused(notes: CosmosBench) -> None:
    """SIGKILL, then a resume whose kept token is refused: complete, and every value counted once."""
    with notes.started(*PACED) as running:
        wait_while(running, lambda: proxied(notes).counts()["patch"] > COUNT // 3)
        running.kill()
    assert running.returncode == -signal.SIGKILL
    done = sum(body.startswith("v2:") for body in notes.bodies_of().values())
    assert 0 < done < COUNT
    proxied(notes).add(REFUSED_TOKEN, "query", token=True, times=1)
    assert_complete(notes, notes.rewrap("resume", "--json"))


def test_a_store_that_lost_everything_is_told_not_passed(
    own_cosmos_emulator: CosmosEmulator, tmp_path: Path
) -> None:
    """The emulator is restarted empty in mid-run: an error that names what is missing, and no success."""
    server = own_cosmos_emulator
    with (
        CosmosDatabase(server.endpoint, server.key, "lost") as database,
        FaultProxy(server.endpoint) as proxy,
    ):
        bench = CosmosBench(tmp_path, database, proxy)
        bench.job(more=PAGES + LIMITS)
        bench.fill(COUNT)
        with bench.started(*PACED) as running:
            wait_while(running, lambda: proxy.counts()["patch"] > COUNT // 3)
            server.restart()
            out, err = running.communicate(timeout=TIMEOUT_S)
        assert running.returncode not in (0, 3), out
        assert '"state": "complete"' not in out
        assert "error:" in err
        assert "is not there" in err or "are gone" in err, err
        # the same place, made anew, is another one: what was settled there is not taken for done
        database.create()
        bench.fill(20)
        resumed = bench.rewrap("resume", "--json")
        verified = bench.rewrap("verify", "--to", "v2", "--json")
        assert resumed.code != 0 or bench.opened() == expected(20)
        assert (verified.code == 0) == all(body.startswith("v2:") for body in bench.bodies_of().values())


def test_a_writer_at_every_tenth_document_loses_nothing(notes: CosmosBench, beside: CosmosDatabase) -> None:
    """The application writes a document right before each tenth patch of it: both writes are there."""
    written: dict[str, int] = {}

    def write(path: str) -> None:
        name = path.rpartition("/")[2]
        document = beside.document("notes", name)
        written[name] = written.get(name, 0) + 1
        beside.upsert("notes", {**document, "title": f"live {written[name]}"})

    rest = notes.rest()
    proxied(notes).add(Meanwhile(write), "patch", every=10)
    ran = notes.run()
    assert_complete(notes, ran)
    assert outcomes(ran) == {"resealed": COUNT}
    assert len(written) > COUNT // 20
    told = {name: f"live {times}" for name, times in written.items()}
    assert {name: each["title"] for name, each in notes.rest().items()} == {
        name: told.get(name, each["title"]) for name, each in rest.items()
    }


def test_a_writer_who_seals_anew_is_not_overwritten(notes: CosmosBench, beside: CosmosDatabase) -> None:
    """Right before each tenth patch the application stores another value, at v2: it stays."""
    stored: dict[str, str] = {}

    def write(path: str) -> None:
        name = path.rpartition("/")[2]
        stored[name] = box(f"fresh {name}", "v2")
        beside.upsert("notes", {**beside.document("notes", name), "body": stored[name]})

    proxied(notes).add(Meanwhile(write), "patch", every=10)
    ran = notes.run()
    assert ran.code == 0, ran.err
    bodies = notes.bodies_of()
    assert len(stored) > COUNT // 20
    assert {name: bodies[name] for name in stored} == stored
    assert outcomes(ran) == {"resealed": COUNT - len(stored), "converged": len(stored)}
    untouched = {name: text for name, text in expected(COUNT).items() if name not in stored}
    assert {name: text for name, text in notes.opened().items() if name in untouched} == untouched


def test_a_deleted_document_is_gone_and_not_made_again(notes: CosmosBench, beside: CosmosDatabase) -> None:
    """Right before each tenth patch the document is deleted: it stays deleted, and the run completes."""
    deleted: set[str] = set()

    def delete(path: str) -> None:
        name = path.rpartition("/")[2]
        beside.delete("notes", beside.document("notes", name))
        deleted.add(name)

    proxied(notes).add(Meanwhile(delete), "patch", every=10)
    ran = notes.run()
    assert ran.code == 0, ran.err
    left = {name: text for name, text in expected(COUNT).items() if name not in deleted}
    assert notes.opened() == left
    assert outcomes(ran) == {"resealed": len(left), "gone": len(deleted)}


def test_request_units_are_added_up(notes: CosmosBench) -> None:
    """What the run says it used is what the server charged for it, throttled requests included."""
    proxied(notes).charges = {"patch": 10.29, "query": 6.5, "read": 1.0}
    proxied(notes).add(throttled(20), "patch", times=10, every=5)
    ran = notes.run()
    assert ran.code == 0, ran.err
    spent = ran.event("run_ended")["spent"]["request_units"]
    # beside the patches: pages and counts; what comes after the end of the run is not in it
    patches = COUNT * 10.29 + 10 * 0.38
    assert patches + 4 * 6.5 < spent <= proxied(notes).charged
