"""Aether's rotation with jobs/aether*.toml, over rows that its service sealed and afterwards reads."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from typing import Any

import pytest

from rewrap import RunOptions, StopFlag, resume, run
from rewrap.errors import NotQuiesced
from rewrap.events import Event, RunEnded, SweepDone
from rewrap.job import Job
from rewrap.stores.postgres.writer import PostgresWriter
from tests.integration.test_safety import Holder
from tests.support.aether import FLAG, JOBS, Aether
from tests.support.workbench import Workbench, wait_while

SEALED = {
    "secrets": {"payload"},
    "secret_records": {"encrypted_data_key", "master_key_id"},
    "integration_tokens": {"token"},
}
"""What a rotation may write of each table."""


def run_here(aether: Aether, sink: Any = None, **options: Any) -> RunEnded:
    """`rewrap run` of the payloads' job in this process, where a seam can be disturbed."""
    job = Job.load(aether.bench.folder / JOBS["secrets"], aether.bench.environ)
    if options.pop("resumed", False):
        work = resume(job, options=RunOptions(resume=True, **options), environ=aether.bench.environ)
    else:
        options = {"allow_unseen_target": True, **options}
        work = run(
            job, from_versions="v1", to_version="v2", options=RunOptions(**options),
            sink=sink or (lambda _event: None), stop=StopFlag(), environ=aether.bench.environ,
        )  # fmt: skip
    return asyncio.run(work)


def shown_by_sha256sum(key: str) -> str:
    """As the runbook's ledger wants it."""
    script = 'printf %s "$(cat)" | sha256sum'
    done = subprocess.run(["bash", "-c", script], input=key, capture_output=True, text=True, check=True)
    return done.stdout.split()[0]


def test_a_rotation_is_acknowledged_and_says_so_everywhere(bench: Workbench) -> None:
    """Without the acknowledgement it exits with 2, and has begun nothing; so does the way back."""
    aether = Aether(bench)
    made = aether.service("make", "40")["secrets"]
    before = aether.stored("secrets")
    for verb in ("check", "plan"):
        said = aether.rewrap(verb, "secrets", "--from", "v1", "--to", "v2")
        assert f"({FLAG}): whoever reads it knows one key only" in said.out, said.out + said.err
    dry = aether.run("secrets", "--dry-run")
    assert dry.code == 0, dry.err
    assert FLAG in dry.out
    refused = aether.run("secrets")
    assert refused.code == 2
    assert "table secrets must be quiesced" in refused.err
    assert "unreadable" in refused.err
    assert FLAG in refused.err
    assert aether.stored("secrets") == before
    ran = aether.run("secrets", FLAG)
    assert ran.code == 0, ran.out + ran.err
    assert ran.event("run_started")["quiesced"] == ["secrets"]
    first = next(event for event in ran.events if event["type"] == "notice")
    assert first["level"] == "warning"
    assert first["message"].startswith("quiesced: the operator")
    assert "once every job of the application's tables is complete, with the key of v2" in first["hint"]
    assert "complete, start it with the key of v2; then rewrap check aether.toml asks" in ran.out
    assert "may have been swapped" not in ran.out
    assert ran.events.index(first) <= 2
    assert ran.event("run_ended")["probed"] == {"opened": 40, "first": 39}
    assert [one["outcome"] for one in aether.audited()] == ["refused", "complete"]
    listed = aether.rewrap("keys list", "secrets", "--json").event("key_listed")
    assert (listed["version"], listed["text_fingerprint"]) == ("v2", shown_by_sha256sum(aether.new))
    assert aether.service("read", new=True)["secrets"] == made
    assert set(aether.service("read")["secrets"].values()) == {None}
    # the way back is the reverse rotation
    back = ("--from", "v2", "--to", "v1", "--allow-unseen-target")
    assert aether.rewrap("run", "secrets", *back).code == 2
    returned = aether.rewrap("run", "secrets", *back, FLAG)
    assert returned.code == 0
    assert returned.err.count("with the key of v1") == 2, returned.err
    assert aether.service("read")["secrets"] == made
    paused = aether.rewrap("pause", "secrets")
    assert f"until rewrap resume aether.toml {FLAG}" in paused.out, paused.out + paused.err


def test_swapped_keys_are_told_by_a_run_that_rewrites_nothing(bench: Workbench) -> None:
    """Values name no version, so it completes; a second run is not warned of again."""
    aether = Aether(bench)
    aether.service("make", "20")
    swapped = {"SECRET_ENCRYPTION_KEY": aether.old, "SECRET_ENCRYPTION_KEY_PREVIOUS": aether.new}
    first = aether.run("secrets", FLAG, **swapped)
    assert first.code == 0, first.out + first.err
    warned = [one for one in first.events if "may have been swapped" in one.get("message", "")]
    assert [one["level"] for one in warned] == ["warning"]
    assert "20 values were under v2 already" in warned[0]["message"]
    assert "rewrap keys list aether.toml" in warned[0]["hint"]
    again = aether.run("secrets", FLAG, **swapped)
    assert again.code == 0, again.out + again.err
    assert "may have been swapped" not in again.out


@pytest.mark.parametrize("table", JOBS)
def test_a_killed_run_goes_on_and_the_service_reads_all(bench: Workbench, table: str) -> None:
    """Kill -9 in the middle: some rows under either key, none under neither; a resume does the rest.

    Nothing but what is sealed is written. The ledger's row has the fingerprint of the key's text.
    """
    aether = Aether(bench)
    made = aether.service("make", "120")
    before = aether.stored(table)
    arguments = (
        "run", JOBS[table], "--from", "v1", "--to", "v2", "--allow-unseen-target", FLAG,
        "--batch-size", "20", "--max-rate", "60",
    )  # fmt: skip
    with bench.started(*arguments) as process:
        wait_while(process, lambda: bench.swept() >= 20)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(60)
    halfway = [aether.service("read", new=new)[table] for new in (False, True)]
    for row, plain in made[table].items():
        assert sorted([halfway[0][row] == plain, halfway[1][row] == plain]) == [False, True]
    assert {None, *map(str, made[table].values())} == {v and str(v) for v in halfway[0].values()} | {
        v and str(v) for v in halfway[1].values()
    }
    assert aether.rewrap("resume", table).code == 2, "a resume wants to be acknowledged anew"
    done = aether.rewrap("resume", table, FLAG, "--json")
    assert done.code == 0, done.out + done.err
    assert aether.service("read", new=True)[table] == made[table]
    for row, after in aether.stored(table).items():
        changed = {name for name, value in after.items() if before[row][name] != value}
        assert changed == SEALED[table], "a payload or a neighbour was written"
    record = aether.audited()[-1]
    assert (record["quiesced"], record["outcome"]) == ([table], "complete")
    fernet = "fernet" in JOBS[table]
    keys = (aether.old_fernet, aether.new_fernet) if fernet else (aether.old, aether.new)
    fingerprints = [shown_by_sha256sum(key) for key in keys]
    assert list(record["text_fingerprints"].values()) == fingerprints
    row = (bench.folder / "secrets-ledger.md").read_text().splitlines()[-1]
    assert f"| {record['operator']} | {record['job']} | {fingerprints[1]} " in row


def test_a_lost_swap_proves_that_the_service_is_at_work(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops at once and names the table; the service's write stays; a fresh acknowledgement goes on."""
    aether = Aether(bench)
    made = aether.service("make", "30")
    swap = PostgresWriter.swap

    async def late(self: PostgresWriter, *arguments: Any, **named: Any) -> int:
        if not named["skip_locked"]:
            monkeypatch.setattr(PostgresWriter, "swap", swap)
            made["secrets"] |= aether.service("write", "17")["secrets"]
        return await swap(self, *arguments, **named)

    monkeypatch.setattr(PostgresWriter, "swap", late)
    with pytest.raises(NotQuiesced, match="table secrets is not quiesced") as stopped:
        run_here(aether, quiesced=True)
    assert stopped.value.exit_code == 1
    assert "17" not in stopped.value.message
    assert f"rewrap resume {bench.folder / JOBS['secrets']} {FLAG}," in (stopped.value.hint or "")
    assert [(one["outcome"], one["error"]) for one in aether.audited()] == [("failed", "NotQuiesced")]
    status = aether.rewrap("status", "secrets", "--json")
    assert '"failed"' in status.out
    old = aether.service("read")["secrets"]
    assert old["17"] == {"user": "new 17"}, "the service's own write was overwritten"
    assert aether.rewrap("resume", "secrets").code == 2
    assert aether.rewrap("resume", "secrets", FLAG).code == 0
    assert aether.service("read", new=True)["secrets"] == made["secrets"]


def test_a_value_that_is_written_behind_the_sweep_stops_the_run(bench: Workbench) -> None:
    """An insert is never a lost swap; that it is under the old key shows who made it."""
    aether = Aether(bench)
    made = aether.service("make", "30")

    def sink(event: Event) -> None:
        if isinstance(event, SweepDone) and event.sweep == 1:
            made["secrets"] |= aether.service("write", "5000")["secrets"]

    with pytest.raises(NotQuiesced, match="1 values were written or moved after it had been swept"):
        run_here(aether, sink, quiesced=True)
    assert run_here(aether, resumed=True, quiesced=True).state == "complete"
    assert aether.service("read", new=True)["secrets"] == made["secrets"]


def test_signs_of_a_service_at_work_before_the_first_write(bench: Workbench) -> None:
    """An open transaction that wrote refuses the run; a session that is only there is named."""
    aether = Aether(bench)
    aether.service("make", "10")
    with Holder(bench, "UPDATE secrets SET label = 'mine' WHERE id = 3", name="secrets-service"):
        refused = aether.run("secrets", FLAG)
        assert refused.code == 1, refused.out + refused.err
        assert "written just now by pid" in refused.err
        assert "(secrets-service)" in refused.err
    assert all(value is not None for value in aether.service("read")["secrets"].values())
    with Holder(bench, "SELECT 1", name="secrets-service"):
        ran = aether.run("secrets", FLAG)
    assert ran.code == 0, ran.err
    assert "secrets-service as" in ran.out


def test_a_key_of_16_bytes_goes_to_one_of_32(bench: Workbench) -> None:
    """The two variables choose the ciphers; without them the old key's length is refused, and said."""
    aether = Aether(bench, old_bytes=16)
    made = aether.service("make", "20")
    aether.service("odd")
    refused = aether.run("secrets", FLAG)
    assert refused.code == 10
    assert "has 16 bytes, its layout takes 32" in refused.err
    assert "the layout's cipher is one for a key of its length" in refused.err
    assert "rand -hex" not in refused.err
    ran = aether.run("secrets", FLAG, AETHER_BITS="128")
    assert ran.code == 3, ran.out + ran.err
    assert ran.event("run_ended")["outcomes"]["secrets"]["payload"] == {
        "resealed": 20, "quarantined": 1, "plaintext": 1, "null": 1,
    }  # fmt: skip
    read = aether.service("read", new=True)["secrets"]
    assert {name: read[name] for name in made["secrets"]} == made["secrets"]
    bench.sql("DELETE FROM secrets WHERE id = -1")
    again = aether.run("secrets", FLAG, AETHER_BITS="128")
    assert again.code == 0, again.out + again.err
    old = again.event("run_started")["fingerprints"]["v1"]
    way_back = ("--from", "v2", "--to", "v1", "--to-fingerprint", old)
    back = aether.rewrap("run", "secrets", *way_back, FLAG, AETHER_BITS="256", AETHER_TO_BITS="128")
    assert back.code == 0, back.out + back.err
    read = aether.service("read")["secrets"]
    assert {name: read[name] for name in made["secrets"]} == made["secrets"]
