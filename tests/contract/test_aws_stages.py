"""New versions and labels in moto's Secrets Manager: lost answers, forms of keys, ways that differ."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import pytest

from rewrap.cli.stages import _loaded
from rewrap.errors import GateClosed, KeyAccessError, KeyRefused, UsageError
from rewrap.keys.awsstages import CANDIDATE, Move, Stages, at, planned
from rewrap.keys.keyring import Key
from rewrap.keys.open import open_keyring
from tests.contract.test_aws_secrets import DERIVED, FIELD, ROLE, Stored
from tests.support.aws import AwsServer, aws_error
from tests.support.proxy import Drop

T = TypeVar("T")


@pytest.fixture
def stored(aws: AwsServer) -> Stored:
    return Stored(aws)


def staged(
    stored: Stored, work: Callable[[Stages], Awaitable[T]], section: str = FIELD, kdf: str = DERIVED
) -> T:
    """What comes of some work on a secret's stages."""

    async def whole() -> T:
        stages = Stages(stored.job(section, kdf))
        try:
            return await work(stages)
        finally:
            await stages.close()

    return anyio.run(whole)


async def minted(stages: Stages) -> Key:
    return await stages.mint(CANDIDATE, await stages.versions())


def test_lost_answer_makes_no_second_version(stored: Stored) -> None:
    """AWS stored it and the connection broke: asked again, it finds the version that it has."""
    current = stored.put()
    stored.aws.proxy.add(Drop(applied=True), "PutSecretValue", times=1)

    async def work(stages: Stages) -> tuple[Key, dict[str, tuple[str, ...]]]:
        key = await minted(stages)
        return key, {one.version: one.labels for one in (await stages.versions()).values() if one.labels}

    key, labels = staged(stored, work)
    assert labels == {current: ("AWSCURRENT",), key.version: (CANDIDATE,)}
    assert [kind for kind, _ in stored.asked].count("PutSecretValue") == 2


@pytest.mark.parametrize("fault", [Drop(applied=True), Drop(), aws_error("ThrottlingException")])
def test_lost_answer_moves_a_label_once(stored: Stored, fault: object) -> None:
    """Asked again, AWS says that the label is not there any more: what counts is where it is."""
    current = stored.put()
    new = stored.put(stages=[CANDIDATE])
    stored.aws.proxy.add(fault, "UpdateSecretVersionStage", times=1)  # type: ignore[arg-type]  # one of them

    async def work(stages: Stages) -> dict[str, tuple[str, ...]]:
        now = await stages.move(planned("AWSCURRENT", current, new, await stages.versions(), {}))
        return {one.version: one.labels for one in now.values() if one.labels}

    assert staged(stored, work) == {new: ("AWSCURRENT",), current: ("AWSPREVIOUS",)}


def test_label_that_somebody_else_moved_is_no_success(stored: Stored) -> None:
    """Between the look and the call: AWS refuses, and it is said where the label is."""
    current, other, new = stored.put(), stored.put(stages=["theirs"]), stored.put(stages=[CANDIDATE])

    async def work(stages: Stages) -> None:
        plan = planned("AWSCURRENT", current, new, await stages.versions(), {})
        stored.move("AWSCURRENT", to=other, since=current)
        await stages.move(plan)

    with pytest.raises(KeyRefused, match=f"AWSCURRENT is at {other}, and was to be at {new}"):
        staged(stored, work)


@pytest.mark.parametrize(
    ("section", "kdf", "value"),
    [
        ('encoding = "hex"', "", "ab" * 32),
        (f'{FIELD}\nencoding = "base64"', "", json.dumps({"key": "q" * 43 + "=", "more": [1]})),
        ('encoding = "utf8"', DERIVED, "canary-" + "x" * 57),
    ],
    ids=["hex", "base64", "utf8"],
)
def test_new_key_has_the_form_of_the_current_one(
    stored: Stored, section: str, kdf: str, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In its encoding and of its length, with what else is stored beside it; in no log."""
    caplog.set_level(logging.DEBUG)
    current = stored.put(value)

    async def work(stages: Stages) -> tuple[Key, Key]:
        return await stages.key(current, await stages.versions()), await minted(stages)

    old, new = staged(stored, work, section, kdf)
    made = stored.admin.get_secret_value(SecretId=stored.name, VersionId=new.version)["SecretString"]
    assert len(new.secret) == len(old.secret)
    assert new.secret != old.secret
    assert len(made) == len(value)
    if "more" in value:
        assert json.loads(made)["more"] == [1]
    assert [word for word in (new.secret.hex(), made, "canary-") if word in caplog.text] == []


def test_form_that_rewrap_does_not_make_is_refused(stored: Stored) -> None:
    """A key in PEM is made by somebody else."""
    with pytest.raises(UsageError, match="a key in pem is none that rewrap makes"):
        staged(stored, minted, 'encoding = "pem"', "")
    assert "PutSecretValue" not in dict(stored.asked)


def test_second_candidate_is_refused(stored: Stored) -> None:
    """Whoever made the first: a label of AWS's rotation counts, too."""
    stored.put()
    pending = stored.put(stages=["AWSPENDING"])
    with pytest.raises(GateClosed, match=rf"has a candidate already: {pending} \(AWSPENDING\)"):
        staged(stored, minted)


def test_candidate_is_fetched_in_every_way(stored: Stored) -> None:
    """As the identity, and as the fallback role; one that may not is told with its permission."""
    current = stored.put()
    section = f'{FIELD}\nfallback_role = "{ROLE}"'
    assert staged(stored, lambda stages: stages.by_every_path(current), section) == ["this identity", ROLE]
    assert ("sts", 200) in stored.asked
    stored.aws.proxy.add(aws_error("AccessDeniedException"), "GetSecretValue", times=1)
    with pytest.raises(KeyAccessError, match="may not secretsmanager:GetSecretValue") as info:
        staged(stored, lambda stages: stages.by_every_path(current), section)
    assert info.value.exit_code == 10


def test_nothing_is_left_without_a_label_by_a_crash(stored: Stored) -> None:
    """What rows need has its label before anything moves."""
    older = stored.put()
    current = stored.put()
    new = stored.put(stages=[CANDIDATE])

    async def work(stages: Stages) -> Move:
        versions = await stages.versions()
        plan = planned("AWSCURRENT", current, new, versions, {older: 1})
        stored.aws.proxy.add(aws_error("AccessDeniedException"), "UpdateSecretVersionStage", skip=1)
        with pytest.raises(KeyAccessError, match="may not secretsmanager:UpdateSecretVersionStage"):
            await stages.move(plan)
        stored.aws.proxy.clear()
        now = await stages.versions()
        assert at("AWSCURRENT", now) == current
        assert now[older].labels == ("AWSPREVIOUS", f"rewrap-keep-{older[:8]}")
        return planned("AWSCURRENT", current, new, now, {older: 1})

    assert staged(stored, work).kept == {}


def test_role_that_never_answers_is_waited_for_once(stored: Stored) -> None:
    """However many versions it would be needed for: patience is over once, and those are not at hand."""
    current = stored.put()
    for number in range(3):
        stored.move(f"rewrap-{number}", since=stored.put(stages=[f"rewrap-{number}"]))
    stored.aws.proxy.add(Drop(), "sts")
    job = stored.job(f'{FIELD}\nfallback_role = "{ROLE}"')
    job = job.model_copy(update={"keys": job.keys.model_copy(update={"patience_s": 1.0})})

    async def work() -> list[str]:
        keyring = await open_keyring(job, [current])
        await keyring.close()
        return [key.version for key in keyring]

    assert anyio.run(work) == [current]
    # once, and not once for each of the three
    assert [kind for kind, _ in stored.asked].count("sts") == 1


def test_move_that_is_half_done_says_so(stored: Stored) -> None:
    """What follows AWSCURRENT's move is denied: where it is now is told, and the same again ends it."""
    current, new = stored.put(), stored.put(stages=[CANDIDATE])

    async def work(stages: Stages) -> tuple[KeyAccessError, dict[str, tuple[str, ...]]]:
        plan = planned("AWSCURRENT", current, new, await stages.versions(), {})
        stored.aws.proxy.add(aws_error("AccessDeniedException"), "UpdateSecretVersionStage", skip=1)
        with pytest.raises(KeyAccessError, match="may not secretsmanager:UpdateSecretVersionStage") as info:
            await stages.move(plan)
        stored.aws.proxy.clear()
        now = await stages.move(planned("AWSCURRENT", current, new, await stages.versions(), {}))
        return info.value, {one.version: one.labels for one in now.values() if one.labels}

    error, labels = staged(stored, work)
    assert f"done by then: AWSCURRENT has moved to {new}" in error.message
    assert "give the same command again" in str(error.hint)
    assert labels == {new: ("AWSCURRENT",), current: ("AWSPREVIOUS",)}


def test_without_the_package_the_extra_is_named(
    stored: Stored, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One line, with the command that installs it, and before anything is asked."""
    path = tmp_path_factory.mktemp("job") / "rewrap.toml"
    path.write_text(
        'name = "one"\n[stores.main]\nkind = "postgres"\nurl = "postgresql://h/d"\n'
        '[keys.versions.v1]\nmaterial = "env:K"\n'
        '[[targets]]\ntable = "t"\nfields = [{ column = "c", layout = "libsodium-token" }]\n'
    )
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(UsageError, match="needs a package that is not installed: boto3") as info:
        _loaded(path)
    assert info.value.hint == "pip install 'rewrap[aws]'"
