"""The Arda rotation with jobs/arda.toml: real Postgres, moto's Secrets Manager, the application beside it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import anyio
import anyio.to_thread
import pytest

from rewrap import api
from rewrap.engine.options import RunOptions
from rewrap.events import RunEnded
from rewrap.job import Job
from rewrap.stores.postgres.writer import PostgresWriter
from tests.integration.test_safety import disturb
from tests.support.arda import PLAIN, Arda, payload
from tests.support.aws import AwsServer, aws_error
from tests.support.workbench import Workbench


@pytest.fixture
def arda(bench: Workbench, aws: AwsServer) -> Arda:
    return Arda(bench, aws, note="kept")


def test_label_moves_when_told_and_what_rows_need_is_kept(arda: Arda) -> None:
    """What the page does not show: refusals, the key that is never printed, commands that are repeated."""
    arda.application("make", "41")
    made = arda.rewrap("keys mint", "--json")
    assert made.code == 0, made.err
    told = made.event("keys_minted")
    new = told["version"]
    # a version beside the others, under a label of its own, and nothing of the key is printed
    assert arda.labels == {"AWSCURRENT": arda.old, "AWSPREVIOUS": arda.older, "rewrap-candidate": new}
    stored = json.loads(arda.key(new))
    assert stored["note"] == "kept"
    assert len(stored["key"]) == 64
    assert set(stored["key"]) <= set(PLAIN)
    assert stored["key"] not in made.out + made.err
    assert told["fingerprint"] == "sha256:" + hashlib.sha256(stored["key"].encode()).hexdigest()[:16]
    assert f"gate: open, next: rewrap keys canary arda.toml --to {new}" in arda.rewrap("keys gate").out
    wrong = arda.rewrap("keys move", "--from", arda.older, "--to", new, "--confirm")
    assert wrong.code == 10
    assert f'label "AWSCURRENT" is at {arda.old}, and not at {arda.older}' in wrong.err

    ends = ("--from", arda.old, "--to", new, "--confirm")
    moved = arda.rewrap("keys move", *ends)
    assert moved.code == 0, moved.err
    keep = f"rewrap-keep-{arda.older[:8]}"
    assert arda.labels == {"AWSCURRENT": new, "AWSPREVIOUS": arda.old, keep: arda.older}
    assert f"AWSCURRENT was at {new} already" in arda.rewrap("keys move", *ends).out

    # rows under a version that is neither: no other version may be made, and its label stays
    shut = arda.rewrap("keys mint")
    assert shut.code == 3
    assert f"4 values are under versions that are not in use: 4 under {arda.older}" in shut.err
    gate = arda.rewrap("keys gate", "--json")
    assert gate.code == 3
    assert gate.event("keys_gate")["stranded"] == {arda.older: 4}
    needed = arda.rewrap("keys move", "--label", keep, "--from", arda.older, "--confirm")
    assert needed.code == 3
    assert f"4 values are under {arda.older}, and {keep} is its last label" in needed.err

    # back, with both ends named, in the middle of it all
    back = arda.rewrap("keys move", "--from", new, "--to", arda.old, "--confirm")
    assert back.code == 0, back.err
    assert arda.labels == {"AWSCURRENT": arda.old, "AWSPREVIOUS": new, keep: arda.older}
    assert arda.application("audit") == {str(at): f"token of {at}" for at in range(1, 41)} | {"41": None}


def test_candidate_that_is_no_key_is_found_before_the_switch(arda: Arda) -> None:
    """Of another length, the same bytes again, another shape, or not to be read by one of the ways."""
    arda.application("make", "11")
    same = json.loads(arda.key(arda.old))["key"]
    for stored, said in (
        (json.dumps({"key": "short" * 4}), "is 20 bytes long, and the current one 64"),
        (json.dumps({"key": same}), f"holds the same bytes as {arda.old}"),
        (json.dumps({"Key": "x" * 64}), 'its field "key" is missing'),
    ):
        arda.client.put_secret_value(
            SecretId=arda.secret, SecretString=stored, VersionStages=["rewrap-canary"]
        )
        found = arda.rewrap("keys canary", "--to", "rewrap-canary")
        assert found.code == 10, found.out
        assert said in found.out + found.err
        assert same not in found.out + found.err
    assert arda.rewrap("keys canary", "--to", "rewrap-nothing").code == 10
    assert arda.rewrap("keys mint", "--stage", "AWSCURRENT").code == 2
    for denied, verb in (
        ("PutSecretValue", ("keys mint", "--stage", "rewrap-other")),
        ("UpdateSecretVersionStage", ("keys move", "--from", arda.old, "--to", arda.older, "--confirm")),
    ):
        for version in arda.labels.values():
            if version not in (arda.old, arda.older):
                arda.client.update_secret_version_stage(
                    SecretId=arda.secret, VersionStage="rewrap-canary", RemoveFromVersionId=version
                )
        arda.aws.proxy.add(aws_error("AccessDeniedException"), denied)
        refused = arda.rewrap(*verb)
        assert refused.code == 10, refused.out + refused.err
        assert f"this identity may not secretsmanager:{denied}" in refused.err
        arda.aws.proxy.clear()
    assert arda.labels["AWSCURRENT"] == arda.old

    # one without a label was no candidate
    gone = arda.client.put_secret_value(
        SecretId=arda.secret, SecretString=payload(), VersionStages=["rewrap-gone"]
    )["VersionId"]
    arda.client.update_secret_version_stage(
        SecretId=arda.secret, VersionStage="rewrap-gone", RemoveFromVersionId=gone
    )
    would = arda.rewrap("keys move", "--from", arda.old, "--to", gone)
    assert would.code == 2
    assert f"warning: {gone} had no label" in would.out

    # switched to one that is no key: back again without it
    bad = arda.client.put_secret_value(SecretId=arda.secret, SecretString='{"Key": "x"}')["VersionId"]
    gate = arda.rewrap("keys gate")
    assert gate.code == 3
    assert f"1 under {arda.older}" in gate.err
    assert f"cannot be read: {bad}" in gate.out
    checked = arda.rewrap("check")
    assert checked.code == 0, checked.out
    assert 'its field "key" is missing' in checked.out
    assert "no warnings" not in checked.out
    back = arda.rewrap("keys move", "--from", bad, "--to", arda.old, "--confirm")
    assert back.code == 0, back.err
    assert arda.labels["AWSCURRENT"] == arda.old


def test_other_algorithms_are_counted_and_left(arda: Arda) -> None:
    """a2.k… is under a version of its own: not plaintext, not touched, and nothing is complete with it."""
    arda.application("make", "11")
    value = f"a2.k{arda.old}:c2VhbGVkIG90aGVyd2lzZSBhbmQgbG9uZyBlbm91Z2g"
    arda.bench.sql("UPDATE tenant_email SET server_token = $1 WHERE tenant_id = 1", value)
    arda.bench.sql(
        "UPDATE tenant_email SET server_token = split_part(server_token, ':', 1) || ':' || "
        "translate(split_part(server_token, ':', 2), '-_', '+/') WHERE tenant_id > 5"
    )
    arda.client.put_secret_value(SecretId=arda.secret, SecretString=payload())
    new = arda.labels["AWSCURRENT"]
    ran = arda.rewrap(
        "run", "--from", f"{arda.old},{arda.older}", "--to", new, "--allow-unseen-target", "--json"
    )
    assert ran.code == 3, ran.err
    assert ran.event("verdict")["other_version"] == 1
    assert ran.event("verdict")["plaintext"] == 0
    assert ran.event("field_verdict")["versions"] == {new: 9, f"a2.k{arda.old}": 1}
    assert arda.bench.value("SELECT server_token FROM tenant_email WHERE tenant_id = 1") == value
    gate = arda.rewrap("keys gate", "--json")
    assert gate.code == 3
    assert gate.event("keys_gate")["held"] == {new: 9, arda.old: 1}
    assert gate.event("keys_gate")["stranded"] == {f"a2.k{arda.old}": 1}
    needed = arda.rewrap("keys move", "--label", "AWSPREVIOUS", "--from", arda.old, "--confirm")
    assert needed.code == 3
    assert f"1 value is under {arda.old}, and AWSPREVIOUS is its last label" in needed.err


def test_algorithm_changes_when_the_job_says_so(arda: Arda) -> None:
    """From a1 to a2 in one rotation: what is foreign to one layout is known to the other."""
    arda.application("make", "12")
    job = arda.bench.folder / "arda.toml"
    text = job.read_text()
    to_a2 = text.replace('layout = "arda-token" }', 'layout = "arda-token", to_layout = "arda-token-2" }')
    assert to_a2 != text
    [kdf] = [line for line in text.splitlines() if line.startswith("kdf")]
    job.write_text(
        f'{to_a2}\n[layouts.arda-token-2]\nlike = "two-axis-token"\nmarker = "a2.k{{version}}:"\n{kdf}\n'
    )
    arda.client.put_secret_value(SecretId=arda.secret, SecretString=payload())
    new, damaged = arda.labels["AWSCURRENT"], f"a1.k{arda.old}:{'A' * 60}"
    arda.bench.sql("UPDATE tenant_email SET server_token = $1 WHERE tenant_id = 2", damaged)
    arguments = ("run", "--from", f"{arda.old},{arda.older}", "--to", new, "--allow-unseen-target", "--json")
    ran = arda.rewrap(*arguments)
    assert ran.code == 3, ran.err
    assert ran.event("field_verdict")["versions"] == {new: 10, arda.old: 1}
    assert ran.event("verdict")["other_version"] == 0
    [put_aside] = arda.rewrap("quarantine list", "--json").events
    assert put_aside["version"] == arda.old
    arda.bench.sql("DELETE FROM tenant_email WHERE tenant_id = 2")
    assert arda.rewrap(*arguments).code == 0
    begins = "SELECT count(*) FROM tenant_email WHERE starts_with(server_token, $1)"
    assert arda.bench.value(begins, f"a2.k{new}:") == 10


def test_mounted_versions_rotate_without_aws(arda: Arda) -> None:
    """A pod with both versions mounted: the same rotation, and not one call to AWS."""
    arda.application("make", "12")
    arda.client.put_secret_value(SecretId=arda.secret, SecretString=payload())
    new, old = arda.labels["AWSCURRENT"], arda.labels["AWSPREVIOUS"]
    arda.bench.sql("DELETE FROM tenant_email WHERE tenant_id % 10 = 0")
    for name, version in (("current", new), ("previous", old)):
        mount = arda.bench.folder / "mounts" / f"email-encryption-key-{name}"
        mount.mkdir(parents=True)
        for file, text in (("key", json.loads(arda.key(version))["key"]), ("version-id", version)):
            (mount / file).write_text(text)
            (mount / file).chmod(0o440)
    asked = len(arda.aws.proxy.seen)
    mounted = {"ARDA_MOUNTS": str(arda.bench.folder / "mounts")}
    ran = arda.bench.rewrap(
        "run", "arda-mounted.toml", "--from", old, "--to", new, "--allow-unseen-target", **mounted
    )
    assert ran.code == 0, ran.err
    assert arda.count(new) == 10
    assert new in (arda.bench.folder / "rotations.md").read_text()
    minted = arda.bench.rewrap("keys", "mint", "arda-mounted.toml", **mounted)
    assert minted.code == 2
    assert 'its keys.provider is "files"' in minted.err
    assert len(arda.aws.proxy.seen) == asked


def test_row_that_the_application_took_first_has_converged(
    arda: Arda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between read and swap the coroutine re-encrypted it: the lost swap is no failure."""
    arda.application("make", "20")
    arda.client.put_secret_value(SecretId=arda.secret, SecretString=payload())
    new, mopped = arda.labels["AWSCURRENT"], []

    async def mop(writer: Any, *_args: Any, **_kwargs: Any) -> None:
        connection = writer._connection
        # not at the rehearsal, which is rolled back
        if not mopped and (connection is None or not connection.is_in_transaction()):
            mopped.append(await anyio.to_thread.run_sync(arda.application, "mop", "3"))

    disturb(monkeypatch, PostgresWriter, "swap", before=mop)
    job = Job.load(arda.bench.folder / "arda.toml", arda.bench.environ)

    async def work() -> RunEnded:
        return await api.run(
            job,
            from_versions=f"{arda.old},{arda.older}",
            to_version=new,
            options=RunOptions(allow_unseen_target=True),
            environ=arda.bench.environ,
        )

    ended = anyio.run(work)
    assert mopped[0]["mopped"] == 3
    assert ended.outcomes["tenant_email"]["server_token"] == {"resealed": 16, "converged": 3, "null": 1}
    assert ended.exit_code == 0
    assert arda.application("audit") == {str(at): f"token of {at}" for at in range(1, 20)} | {"20": None}


def test_application_that_mops_up_meanwhile_loses_nothing(arda: Arda) -> None:
    """Both re-encrypt the same rows: every token is what the application last wrote, and all is counted."""
    arda.application("make", "1500")
    made = arda.rewrap("keys mint", "--json")
    new = made.event("keys_minted")["version"]
    with arda.living() as told:
        assert arda.rewrap("keys move", "--from", arda.old, "--to", new, "--confirm").code == 0
        ran = arda.rewrap(
            "run", "--from", f"{arda.old},{arda.older}", "--to", new, "--allow-unseen-target", "--json",
            "--batch-size", "50", "--max-rate", "600",
        )  # fmt: skip
    assert ran.code == 0, ran.err
    assert told["unreadable"] == 0
    assert min(told["written"], told["read"], told["mopped"]) > 0, told
    assert arda.application("audit") == told["tokens"]
    [fields] = ran.event("run_ended")["outcomes"].values()
    outcomes = fields["server_token"]
    assert outcomes["resealed"] > 0
    assert "quarantined" not in outcomes
    assert sum(outcomes.values()) == 1500
    verified = arda.rewrap("verify", "--deep")
    assert verified.code == 0, verified.err
