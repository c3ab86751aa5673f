"""The record of a run: what is in it, that it is on disk, and how a webhook gets it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from rewrap.audit.auditor import Auditor
from rewrap.audit.record import Listener
from rewrap.audit.webhook import PAUSE_MAX_S, Answer, Webhook, signing_key
from rewrap.errors import JobError, KeyRefused
from rewrap.events import Event, Notice, Progress, RunEnded, RunStarted
from rewrap.interfaces import Sink
from rewrap.job import Job
from tests.support.receiver import Receiver, Say, receiving
from tests.support.values import KEYS, box
from tests.support.workbench import Workbench

FILE = '[audit]\nfile = "audit.jsonl"\n'
BOTH = '[audit]\nfile = "audit.jsonl"\nwebhook = "${HOOK}"\nsecret = "env:HOOK_SECRET"\n'
SECRET = "whsec_" + base64.b64encode(b"a secret of the receiver's own").decode()
TOKEN = "canary-token-in-the-url"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@pytest.fixture
def told(bench: Workbench, receiver: Receiver) -> Workbench:
    """A bench with ten values, whose job has a file and a webhook."""
    bench.notes([box(f"note {i}", "v1") for i in range(9)] + [None])
    bench.environ |= {"HOOK": f"{receiver.url}/take?token={TOKEN}", "HOOK_SECRET": SECRET}
    bench.job(more=BOTH)
    return bench


def records(bench: Workbench) -> list[dict[str, Any]]:
    """What the audit file holds, line by line."""
    return [json.loads(line) for line in (bench.folder / "audit.jsonl").read_text().splitlines()]


def waiting(bench: Workbench) -> list[Path]:
    return sorted((bench.folder / "test.rewrap-audit-waiting").iterdir())


# what a record says


def test_run_leaves_one_line_that_says_who_rotated_what(bench: Workbench) -> None:
    """Versions, fingerprints, operator, times, counts by table and class, and verify's word."""
    bench.notes([box(f"note {i}", "v1") for i in range(9)] + [None])
    bench.job(more=FILE)
    ran = bench.run()
    assert ran.code == 0, ran.err
    (record,) = records(bench)
    started, ended = ran.event("run_started"), ran.event("run_ended")
    assert record["run_id"] == started["run_id"] == ended["run_id"]
    assert (record["type"], record["schema"]) == ("rewrap.run", 1)
    assert (record["from_versions"], record["to_version"]) == (["v1"], "v2")
    assert record["fingerprints"] == started["fingerprints"]
    assert set(record["fingerprints"]) == {"v1", "v2"}
    assert (record["outcome"], record["exit_code"], record["complete"]) == ("complete", 0, True)
    assert record["counts"] == {"notes": {"resealed": 9, "null": 1}}
    assert record["verdict"] == {
        name: ran.event("verdict")[name] for name in record["verdict"] if name != "complete"
    }
    assert "@" in record["operator"]
    assert record["started_at"] < record["ended_at"]
    assert record["error"] is None


def test_file_is_its_owners_alone_and_only_grows(bench: Workbench) -> None:
    """Mode 0600; a second run adds a line, also after one that a crash had cut short."""
    bench.notes([box("a", "v1")])
    bench.job(more=FILE)
    assert bench.run().code == 0
    path = bench.folder / "audit.jsonl"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first = path.read_bytes()
    path.write_bytes(first + b'{"cut')
    assert bench.run().code == 0
    lines = path.read_bytes().splitlines(keepends=True)
    assert (lines[0], lines[1]) == (first, b'{"cut\n')
    assert len(lines) == 3
    assert json.loads(lines[2])["outcome"] == "complete"


def test_values_that_remain_are_told(bench: Workbench) -> None:
    """A run that ends with 3 leaves a record with its reasons and its code."""
    bench.notes([box("a", "v1"), "v9:" + box("b", "v1").partition(":")[2]])
    bench.job(more=FILE)
    ran = bench.run()
    assert ran.code == 3, ran.err
    (record,) = records(bench)
    assert (record["outcome"], record["exit_code"], record["complete"]) == ("incomplete", 3, False)
    assert record["reasons"] == ran.event("run_ended")["reasons"]
    assert record["counts"] == {"notes": {"resealed": 1, "other_version": 1}}


def test_run_that_was_refused_is_told(bench: Workbench) -> None:
    """A wrong key writes nothing to the rows, and a line to the audit; no run id, since none began."""
    bench.notes([box(f"note {i}", "v1") for i in range(30)])
    bench.job(more=FILE)
    ran = bench.run(KEY_V1="77" * 32)
    assert ran.code == 10, ran.out
    (record,) = records(bench)
    assert (record["outcome"], record["exit_code"]) == ("refused", 10)
    assert record["error"] == "KeyRefused"
    assert record["run_id"] is None
    assert record["complete"] is None
    assert (record["from_versions"], record["to_version"]) == (["v1"], "v2")
    assert record["reasons"] == [ran.event("error")["message"]]


def test_stop_and_resume_leave_a_line_each(bench: Workbench) -> None:
    """A sample that stops is "interrupted"; the resumed process has the same run id."""
    bench.notes([box(f"note {i}", "v1") for i in range(60)])
    bench.job(more=FILE)
    assert bench.run("--sample", "20").code == 4
    assert bench.rewrap("resume", "--json").code == 0
    first, second = records(bench)
    assert (first["outcome"], first["exit_code"], first["resumed"]) == ("interrupted", 4, False)
    assert (second["outcome"], second["exit_code"], second["resumed"]) == ("complete", 0, True)
    assert first["run_id"] == second["run_id"]
    assert first["event_id"] != second["event_id"]


def test_dry_run_leaves_no_record(told: Workbench, receiver: Receiver) -> None:
    """It writes nothing anywhere, and tells nobody."""
    assert told.run("--dry-run").code == 0
    assert receiver.got == []
    assert not [path.name for path in told.folder.iterdir() if "audit" in path.name]


def test_file_that_cannot_be_written_refuses_the_run(bench: Workbench) -> None:
    """Found out before anything else: no row, no ledger, exit code 2."""
    bench.notes([box("a", "v1")])
    before = bench.bodies()
    bench.job(more='[audit]\nfile = "nowhere/audit.jsonl"\n')
    ran = bench.run()
    assert ran.code == 2
    assert "audit file" in ran.err
    assert bench.bodies() == before
    assert not bench.ledger.exists()


def test_failure_midway_is_told_with_what_was_reported_last() -> None:
    """Counts are those of the last progress; an exception that is not ours says only its name."""
    heard: list[Event] = []
    listener = Listener("shop", "d" * 64, ["v1"], "v2", compromised=True, sink=heard.append)
    listener(
        RunStarted(
            run_id="0123abcd", job="shop", from_versions=["v1"], to_version="v2", targets=["notes"],
            fingerprints={"v1": "aa", "v2": "bb"}, resumed=False, dry_run=False,
        )
    )  # fmt: skip
    for done in (100, 250):
        listener(
            Progress(
                target="notes", sweep=1, rows_done=done, rows_estimated=1_000, resealed=done, quarantined=2,
                stale_left=None, rows_per_s=1.0, eta_s=None, waiting_for="reads",
            )
        )  # fmt: skip
    record = listener.failed(RuntimeError("canary of a row"))
    assert len(heard) == 3
    assert (record["outcome"], record["exit_code"], record["error"]) == ("failed", 1, "RuntimeError")
    assert record["counts"] == {"notes": {"resealed": 250, "quarantined": 2}}
    assert record["reason"] == "compromise"
    assert "canary" not in json.dumps(record)
    assert listener.failed(KeyRefused("key is refused"))["exit_code"] == 10


def test_record_that_cannot_be_kept_is_shown(tmp_path: Path) -> None:
    """A disk that fails after the run takes nothing from its end: the record goes to stderr whole."""
    place = tmp_path / "gone"
    place.mkdir()
    job = _job(tmp_path, f'[audit]\nfile = "{place}/audit.jsonl"\n')
    heard: list[Event] = []

    async def work(sink: Sink) -> RunEnded:
        shutil.rmtree(place)
        return _ended()

    listener = Listener(job.name, job.digest, ["v1"], "v2", compromised=False, sink=heard.append)
    ended = anyio.run(lambda: Auditor(job, {}).audited(listener, work, lambda: False))
    assert ended.exit_code == 0
    (notice,) = heard
    assert isinstance(notice, Notice)
    assert "cannot be written" in notice.message
    assert json.loads((notice.hint or "").removeprefix("record: "))["outcome"] == "complete"


# how a webhook gets it


def test_webhook_gets_the_line_of_the_file_signed(told: Workbench, receiver: Receiver) -> None:
    """The body is the line; the signature is over id, time and body, as Standard Webhooks have it."""
    assert told.run().code == 0
    (got,) = receiver.got
    assert got.body == (told.folder / "audit.jsonl").read_bytes().rstrip(b"\n")
    assert (got.method, got.path) == ("POST", f"/take?token={TOKEN}")
    assert got.headers["content-type"] == "application/json"
    assert got.headers["webhook-id"] == got.record["event_id"]
    moment = got.headers["webhook-timestamp"]
    assert abs(int(moment) - time.time()) < 300
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    signed = f"{got.record['event_id']}.{moment}.".encode() + got.body
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert got.headers["webhook-signature"] == f"v1,{expected}"
    assert waiting(told) == []


def test_webhook_without_a_secret_is_not_signed(told: Workbench, receiver: Receiver) -> None:
    told.job(more='[audit]\nwebhook = "${HOOK}"\n')
    assert told.run().code == 0
    assert "webhook-signature" not in receiver.got[0].headers
    assert not (told.folder / "audit.jsonl").exists()


def test_webhook_that_is_down_changes_no_exit_code(told: Workbench, receiver: Receiver) -> None:
    """The rotation is complete with 0; the record waits, that is said, and the next ones bring it along."""
    receiver.answers = [Say(503)]
    told.job(more=BOTH + "attempts = 1\n")
    ran = told.run()
    assert ran.code == 0, ran.err
    assert ran.events[-1]["type"] == "run_ended"
    warned = [event["message"] for event in ran.events if event["type"] == "notice"]
    assert [message for message in warned if "answers 503: 1 record waits" in message]
    assert stat.S_IMODE(waiting(told)[0].stat().st_mode) == 0o600
    assert stat.S_IMODE(waiting(told)[0].parent.stat().st_mode) == 0o700

    refused = told.rewrap("audit", "send", "--json")
    assert refused.code == 1
    assert refused.events[0] == {
        "type": "audit_sent", "schema": 1, "sent": 0, "waiting": 1, "said": "answers 503",
    }  # fmt: skip
    assert told.run().code == 0
    assert len(waiting(told)) == 2

    receiver.got.clear()
    receiver.answers = [Say(204)]
    sent = told.rewrap("audit", "send")
    assert (sent.code, sent.out) == (0, "sent 2, 0 waiting\n")
    assert [got.record["event_id"] for got in receiver.got] == [r["event_id"] for r in records(told)]
    assert waiting(told) == []
    assert told.rewrap("audit", "send").out == "sent 0, 0 waiting\n"


def test_record_that_is_refused_for_good_does_not_hold_up_others(told: Workbench, receiver: Receiver) -> None:
    """A 400 keeps that record and goes on to the next; nothing is thrown away."""
    receiver.answers = [Say(400), Say(400), Say(200)]
    assert told.run().code == 0
    assert told.run().code == 0
    first, second = records(told)
    assert [got.record["event_id"] for got in receiver.got] == [
        first["event_id"], first["event_id"], second["event_id"],
    ]  # fmt: skip
    assert [first["event_id"] in path.name for path in waiting(told)] == [True]


def test_no_output_holds_the_urls_token_or_the_secret(told: Workbench, receiver: Receiver) -> None:
    """Neither when all is well nor when it fails, with --debug too."""
    receiver.answers = [Say(302, {"location": f"{receiver.url}/elsewhere"})]
    results = [told.run("--debug"), told.rewrap("audit", "send", "--debug"), told.rewrap("check", "--json")]
    said = "".join(ran.out + ran.err for ran in results) + (told.folder / "audit.jsonl").read_text()
    assert "redirect" in said
    for secret in (TOKEN, SECRET, SECRET.removeprefix("whsec_"), "a secret of the receiver"):
        assert secret not in said


@pytest.mark.parametrize("environ", [{}, {"HOOK_SECRET": ""}, {"HOOK_SECRET": "whsec_"}])
def test_secret_that_is_missing_refuses_the_run(told: Workbench, environ: dict[str, str]) -> None:
    """A record that should be signed never goes out unsigned."""
    del told.environ["HOOK_SECRET"]
    ran = told.run(**environ)
    assert ran.code == 2
    assert "secret is missing" in ran.err
    assert not told.ledger.exists()


# one webhook


def post(url: str, *, timeout_s: float = 5.0, attempts: int = 4) -> tuple[Answer, list[float]]:
    """The answer to one record, and the pauses that were made for it."""
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    webhook = Webhook(url, timeout_s, attempts, None, pause)
    return anyio.run(lambda: webhook.post("0" * 32, b"{}")), pauses


def test_500_then_200_is_taken_after_a_pause(receiver: Receiver) -> None:
    """Pauses grow, and the fourth attempt is the last."""
    receiver.answers = [Say(500), Say(502), Say(200)]
    answer, pauses = post(receiver.url)
    assert answer.taken
    assert len(receiver.got) == 3
    assert 0.5 <= pauses[0] <= 0.75
    assert 1.0 <= pauses[1] <= 1.5
    receiver.answers = [Say(500)]
    answer, pauses = post(receiver.url)
    assert (answer.said, answer.lasting, len(pauses)) == ("answers 500", False, 3)


def test_retry_after_is_honoured_up_to_a_bound(receiver: Receiver) -> None:
    receiver.answers = [Say(429, {"retry-after": "7"}), Say(503, {"retry-after": "86400"}), Say(200)]
    answer, pauses = post(receiver.url)
    assert answer.taken
    assert pauses == [7.0, PAUSE_MAX_S]


@pytest.mark.parametrize("status", [400, 401, 404, 410, 422])
def test_answer_that_lasts_is_not_tried_again(receiver: Receiver, status: int) -> None:
    receiver.answers = [Say(status)]
    answer, pauses = post(receiver.url)
    assert (answer.said, answer.lasting, pauses) == (f"answers {status}", True, [])
    assert len(receiver.got) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_is_not_followed(receiver: Receiver, status: int) -> None:
    """A record goes where the job says and nowhere else."""
    with receiving() as elsewhere:
        receiver.answers = [Say(status, {"location": f"{elsewhere.url}/take"})]
        answer, _ = post(receiver.url)
        assert elsewhere.got == []
    assert (answer.taken, answer.lasting) == (False, True)
    assert len(receiver.got) == 1


def test_slow_server_is_given_up(receiver: Receiver) -> None:
    receiver.answers = [Say(silent=True)]
    answer, pauses = post(receiver.url, timeout_s=0.2, attempts=2)
    assert answer.said == "no answer in 0.2 s"
    assert len(pauses) == 1


def test_endless_answer_is_not_read(receiver: Receiver) -> None:
    """The status is enough: who read on would come to the time limit."""
    receiver.answers = [Say(endless=True)]
    began = time.monotonic()
    answer, _ = post(receiver.url, timeout_s=30)
    assert answer.taken
    assert time.monotonic() - began < 30


def test_server_that_is_not_there_is_said_without_the_url() -> None:
    with receiving() as gone:
        url = f"{gone.url}/{TOKEN}"
    answer, _ = post(url, attempts=2)
    assert answer.said.startswith("cannot be reached")
    assert TOKEN not in answer.said
    assert TOKEN not in repr(Webhook(url, 1.0, 1))


def test_proxy_of_the_environment_is_not_asked_for_loopback(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy is for the world outside: what is on this machine is reached directly."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    answer, _ = post(receiver.url, attempts=1)
    assert answer.taken


def test_secret_is_taken_as_text_or_behind_whsec() -> None:
    assert signing_key(b"plain text\n") == b"plain text"
    assert signing_key(b"whsec_" + base64.b64encode(b"bytes")) == b"bytes"
    assert signing_key(b"whsec_not base64!") == b"whsec_not base64!"


# what a job may say


def _job(folder: Path, more: str) -> Job:
    text = (
        'name = "shop"\n[stores.main]\nkind = "postgres"\nurl = "postgresql://localhost/x"\n'
        '[keys.versions.v1]\nmaterial = "env:K1"\n[keys.versions.v2]\nmaterial = "env:K2"\n'
        '[[targets]]\ntable = "notes"\nfields = [{ column = "body", layout = "libsodium-token" }]\n'
    )
    environ = {"K1": KEYS["v1"].hex(), "K2": KEYS["v2"].hex(), "EMPTY": ""}
    return Job.parse(text + more, path=folder / "rewrap.toml", environ=environ)


def _ended() -> RunEnded:
    return RunEnded(
        run_id="0123abcd", state="complete", exit_code=0, outcomes={}, rows=0, values=0, resealed_late=0,
        sweeps=1, seconds=0.1, rows_per_s=0.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    "url",
    [
        "https://siem.example.org/x?t=1",
        "http://127.0.0.1:9/x",
        "http://localhost/x",
        "http://[::1]:80/x",
        "${EMPTY}",
    ],
)
def test_webhook_is_https_or_this_machine(tmp_path: Path, url: str) -> None:
    section = _job(tmp_path, f'[audit]\nwebhook = "{url}"\n').audit
    assert section is not None
    assert url in (section.webhook, "${EMPTY}")


@pytest.mark.parametrize(
    "url",
    [
        "http://siem.example.org/canary", "http://127.0.0.1.example.org/canary", "http://localhost.example.org/canary",
        "http://10.0.0.1/canary", "https://user:canary@siem.example.org/", "ftp://localhost/canary", "canary",
        "https:///canary", "https://host:x/canary", "http://[::ffff:8.8.8.8]/canary",
    ],
)  # fmt: skip
def test_webhook_elsewhere_in_the_clear_is_refused(tmp_path: Path, url: str) -> None:
    """The error names the field, and never repeats the URL."""
    with pytest.raises(JobError) as caught:
        _job(tmp_path, f'[audit]\nwebhook = "{url}"\n')
    assert "audit.webhook" in caught.value.message
    assert "canary" not in caught.value.message


def test_audit_without_a_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="names neither a file nor a webhook"):
        _job(tmp_path, "[audit]\nattempts = 2\n")


def test_audit_is_no_part_of_a_jobs_identity(tmp_path: Path) -> None:
    """It may be added, changed or dropped in the middle of a rotation."""
    assert _job(tmp_path, "").digest == _job(tmp_path, FILE).digest
