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


def test_the_whole_rotation_with_the_service_stopped(bench: Workbench) -> None:
    """Refused without the acknowledgement; with it every value goes to the new key, and says so everywhere.

    The service reads everything with the new key, and by the reverse job with the old one again.
    """
    aether = Aether(bench)
    made, before = aether.service("make", "40"), {}
    for table in JOBS:
        before[table] = aether.stored(table)
        if table == "secrets":
            for verb in ("check", "plan"):
                said = aether.rewrap(verb, table, "--from", "v1", "--to", "v2")
                assert f"({FLAG}): whoever reads it knows one key only" in said.out, said.out + said.err
            dry = aether.run(table, "--dry-run")
            assert dry.code == 0, dry.err
            assert FLAG in dry.out
            assert aether.rewrap("quarantine retry", table).code == 2
        refused = aether.run(table)
        assert refused.code == 2
        assert f"table {table} must be quiesced" in refused.err
        assert "unreadable" in refused.err
        assert FLAG in refused.err
        assert aether.stored(table) == before[table]
        ran = aether.run(table, FLAG)
        assert ran.code == 0, ran.out + ran.err
        started = ran.event("run_started")
        assert started["quiesced"] == [table]
        first = next(event for event in ran.events if event["type"] == "notice")
        assert first["level"] == "warning"
        assert first["message"].startswith("quiesced: the operator")
        assert ran.events.index(first) <= 2
        for row, after in aether.stored(table).items():
            changed = {name for name, value in after.items() if before[table][row][name] != value}
            assert changed == SEALED[table], "a payload or a neighbour was written"
        assert aether.rewrap("verify", table, "--deep").code == 0
        record = aether.audited()[-1]
        assert record["quiesced"] == [table]
        assert record["outcome"] == "complete"
        fingerprints = record["text_fingerprints"]
        assert fingerprints == started["text_fingerprints"]
        keys = (
            (aether.old, aether.new)
            if "fernet" not in JOBS[table]
            else (aether.old_fernet, aether.new_fernet)
        )
        assert list(fingerprints.values()) == [shown_by_sha256sum(key) for key in keys]
        row = (bench.folder / "secrets-ledger.md").read_text().splitlines()[-1]
        assert f"| {fingerprints['v2']} " in row
        assert str(record["operator"]) in row
    assert [one["outcome"] for one in aether.audited()] == ["refused", "complete"] * 3
    assert aether.service("read", new=True) == made
    unread = aether.service("read", new=False)
    assert {value for values in unread.values() for value in values.values()} == {None}
    # the way back: the reverse rotation, which wants to be acknowledged as well
    back = ("--from", "v2", "--to", "v1", "--allow-unseen-target")
    assert aether.rewrap("run", "secrets", *back).code == 2
    assert aether.rewrap("run", "secrets", *back, FLAG).code == 0
    assert aether.service("read")["secrets"] == made["secrets"]


@pytest.mark.parametrize("table", JOBS)
def test_a_killed_run_goes_on_and_the_service_reads_all(bench: Workbench, table: str) -> None:
    """Kill -9 in the middle: some rows under either key, none under neither; a resume does the rest."""
    aether = Aether(bench)
    made = aether.service("make", "200")
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
    assert FLAG in (stopped.value.hint or "")
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

    with pytest.raises(NotQuiesced, match="1 values under v1 were written after it had been swept"):
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
