"""`rewrap keys list`: what every keeper tells of its versions, and what stored values are under."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from rich.console import Console

from rewrap.cli import keylist
from rewrap.job import Job
from rewrap.keylist import KeyList
from rewrap.keys import files
from rewrap.keys.listed import Listed, Permission
from rewrap.keys.open import listed_keys
from tests.support.aws import AwsServer
from tests.support.values import KEYS, box
from tests.support.vault import VaultEmulator
from tests.support.workbench import NOTES, Result, Workbench

HEX = {version: key.hex() for version, key in KEYS.items()}

SECRETS = [
    form
    for key in KEYS.values()
    for form in (key.hex(), key.hex().upper(), base64.b64encode(key).decode().rstrip("="), repr(key)[2:-1])
]

FILES = """
name = "test"
[stores.main]
kind = "postgres"
url = "${{DATABASE_URL}}"
[keys]
provider = "files"
[keys.files]
{files}
{targets}
"""

VAULT = """
name = "test"
[stores.main]
kind = "postgres"
url = "${{DATABASE_URL}}"
[keys]
provider = "azure-key-vault"
vault = "${{AZURE_KEYVAULT_URL}}"
name = "{name}"
[layouts.wrapped]
encoding = "base64"
cipher = "rsa-oaep-256"
[[targets]]
table = "notes"
fields = [{{ column = "body", layout = "wrapped", version = {{ column = "other" }} }}]
"""


def shown(bench: Workbench, *arguments: str, **environ: str) -> tuple[dict[str, dict[str, Any]], Result]:
    """What is listed, by version, after nothing secret was found in it, as text or as JSON."""
    plain = bench.rewrap("keys", "list", *arguments, **environ)
    result = bench.rewrap("keys", "list", *arguments, "--json", "--debug", **environ)
    assert plain.code == result.code
    for text in (plain.out, plain.err, result.out, result.err):
        assert not [secret for secret in SECRETS if secret in text]
    listed = {event["version"]: event for event in result.events if event["type"] == "key_listed"}
    for version, one in listed.items():
        assert version in plain.out
        assert one["fingerprint"] is None or one["fingerprint"] in plain.out
    return listed, result


def test_local_keys_are_listed_with_those_that_are_missing(bench: Workbench) -> None:
    """A key that is not set, or is none, is told in the list; before, during and after a run; counted too."""
    bench.notes([*(box(f"note {n}") for n in range(9)), box("another", "v2"), box("x", "v9", KEYS["v3"])])
    bench.environ["KEY_V3"] = "canary"
    listed, result = shown(bench)
    assert result.code == 0
    assert list(listed) == ["v1", "v2", "v3"]
    assert [one["usable"] for one in listed.values()] == [True, True, False]
    assert listed["v3"]["state"] == "in environment variable KEY_V3 is not hex"
    assert listed["v3"]["fingerprint"] is None
    assert listed["v1"]["fingerprint_of"] == "sha256 of the key's bytes"
    assert listed["v1"]["permissions"] == [{"verb": "open", "permission": "read", "allowed": True}]
    assert {one["holds"] for one in listed.values()} == {one["values"] for one in listed.values()} == {None}
    end = result.event("keys_listed")
    assert (end["provider"], end["versions"], end["usable"], end["run_id"]) == ("local", 3, 2, None)

    assert bench.run("--sample", "5").code == 4
    listed, _ = shown(bench)
    assert {version: one["holds"] for version, one in listed.items()} == {
        "v1": "some", "v2": "some", "v3": None,
    }  # fmt: skip
    listed, _ = shown(bench, "--count")
    assert {version: one["values"] for version, one in listed.items()} == {
        "v1": 4, "v2": 6, "v3": 0, "v9": 1,
    }  # fmt: skip
    assert (listed["v9"]["state"], listed["v9"]["usable"]) == ("not listed by its keeper", False)

    bench.sql("DELETE FROM notes WHERE body LIKE 'v9:%'")
    assert bench.rewrap("resume").code == 0
    listed, result = shown(bench, KEY_V1="")
    assert {version: one["holds"] for version, one in listed.items()} == {
        "v1": "none", "v2": "all", "v3": None,
    }  # fmt: skip
    assert not listed["v1"]["usable"]
    assert result.event("keys_listed")["run_state"] == "complete"


def test_files_are_listed_and_a_mount_that_is_gone_is_told(bench: Workbench) -> None:
    """What is no key is told in the list; a folder that cannot be read is exit 10."""
    (bench.folder / "keys").mkdir()
    for version, text in HEX.items():
        (bench.folder / "keys" / version).write_text(text)
    (bench.folder / "keys" / "README").write_text("canary")
    text = FILES.format(files='path = "keys/{version}"', targets=NOTES)
    (bench.folder / "rewrap.toml").write_text(text)
    listed, result = shown(bench)
    assert result.code == 0
    assert {version: one["usable"] for version, one in listed.items()} == {
        "README": False, "v1": True, "v2": True, "v3": True,
    }  # fmt: skip
    assert "canary" not in result.out
    (bench.folder / "keys").rename(bench.folder / "gone")
    gone = bench.rewrap("keys", "list", "--json")
    assert gone.code == 10
    assert "folder keys" in gone.event("error")["message"]


def test_a_vault_is_listed_as_far_as_it_lets(bench: Workbench, vault_emulator: VaultEmulator) -> None:
    """State, age, and what is permitted; a version that is disabled; one that lists nothing is exit 10."""
    vault, name = vault_emulator, vault_emulator.new_name()
    old, new = vault.create_version(name), vault.create_version(name)
    vault.disable(name, old)
    (bench.folder / "rewrap.toml").write_text(VAULT.format(name=name))
    listed, result = shown(bench, **vault.environ)
    assert result.code == 0, result.err
    assert set(listed) == {old, new}
    assert (listed[old]["state"], listed[old]["usable"]) == ("disabled", False)
    assert (listed[new]["state"], listed[new]["usable"]) == ("enabled", True)
    assert listed[new]["fingerprint_of"] == "sha256 of the public key in DER"
    born = datetime.fromisoformat(listed[new]["created"])
    assert abs(datetime.now(UTC) - born) < timedelta(hours=1)
    allowed = {
        version: {each["permission"]: each["allowed"] for each in one["permissions"]}
        for version, one in listed.items()
    }
    assert allowed[new] == {
        "keys/list": True, "keys/get": True, "keys/unwrapKey": None, "keys/wrapKey": None,
    }  # fmt: skip
    assert allowed[old]["keys/unwrapKey"] is False
    vault.permit("list")
    listed, result = shown(bench, **vault.environ)
    assert result.code == 0, result.err
    assert not listed[new]["usable"]
    assert "may not read it" in listed[new]["state"]
    vault.permit("get")
    refused = bench.rewrap("keys", "list", "--json", **vault.environ)
    assert refused.code == 10
    assert "may not list" in refused.event("error")["message"]


AWS = """
name = "test"
[stores.main]
kind = "postgres"
url = "${{DATABASE_URL}}"
[keys]
provider = "aws-secrets-manager"
[keys.aws-secrets-manager]
secret = "{name}"
endpoint = "{endpoint}"
encoding = "hex"
[layouts.token]
marker = "k{{version}}:"
version = "[A-Za-z0-9-]+"
encoding = "base64"
cipher = "aes-256-gcm"
[[targets]]
table = "notes"
fields = [{{ column = "body", layout = "token" }}]
"""


def test_a_secret_in_aws_is_listed_with_its_labels(bench: Workbench, aws: AwsServer) -> None:
    """Its versions by id, which is current, and their keys' fingerprints; of the keys nothing else."""
    name, admin = aws.new_name(), aws.client("secretsmanager")
    old = admin.create_secret(Name=name, SecretString=HEX["v1"])["VersionId"]
    new = admin.put_secret_value(SecretId=name, SecretString=HEX["v2"])["VersionId"]
    (bench.folder / "rewrap.toml").write_text(AWS.format(name=name, endpoint=aws.endpoint))
    listed, result = shown(bench, **aws.environ)
    assert result.code == 0, result.err
    assert {version: (one["current"], one["labels"], one["usable"]) for version, one in listed.items()} == {
        new: (True, ["AWSCURRENT"], True),
        old: (False, ["AWSPREVIOUS"], True),
    }
    assert aws.environ["AWS_SECRET_ACCESS_KEY"] not in result.out + result.err


def test_a_provider_that_lists_nothing_is_asked_for_its_keys(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a list of its own, what could be opened is listed."""
    (tmp_path / "keys.json").write_text(f'{{"v1": "{HEX["v1"]}", "v2": "canary"}}')
    text = FILES.format(files='path = "keys.json"', targets=NOTES)
    environ = {"DATABASE_URL": "postgresql://h/d"}
    job = Job.parse(text, path=tmp_path / "rewrap.toml", environ=environ)
    full = anyio.run(listed_keys, job, environ)
    monkeypatch.delattr(files, "list_keys")
    bare = anyio.run(listed_keys, job, environ)
    assert [(one.version, one.usable, one.fingerprint) for one in bare] == [
        (one.version, one.usable, one.fingerprint) for one in full
    ]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_width_cuts_a_version_or_a_fingerprint(
    width: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal that is too narrow for a line each, what is said of a version stands below it."""
    allowed = (Permission("read", "keys/get", True), Permission("unwrap", "keys/unwrapKey", None))
    made = datetime.now(UTC) - timedelta(days=400)
    keys = tuple(
        Listed(
            f"{number}b57b634-959e-406a-94b0-4ebb320e9259",
            current=number == 2,
            labels=("AWSCURRENT",) if number == 2 else (),
            usable=number > 0,
            state="expired 2026-11-01: unwraps, does not wrap" if number == 1 else "enabled",
            created=made,
            fingerprint=f"sha256:{number}123456789abcdef",
            fingerprint_of="sha256 of the public key in DER",
            permissions=allowed,
        )
        for number in range(3)
    )
    environ = {"DATABASE_URL": "postgresql://h/d"}
    text = FILES.format(files='path = "x/{version}"', targets=NOTES)
    job = Job.parse(text, path=tmp_path / "rewrap.toml", environ=environ)
    console = Console(width=width, force_terminal=True, no_color=True, soft_wrap=True, highlight=False)
    monkeypatch.setattr(keylist, "stdout_console", lambda: console)
    with console.capture() as captured:
        keylist._show(KeyList(job, keys, None, {keys[2].version: "all"}, None))
    lines = re.sub(r"\x1b\[[0-9;]*m", "", captured.get()).splitlines()
    assert max(map(len, lines)) <= width
    for one in keys:
        assert sum(one.version in line for line in lines) == 1
        assert sum(str(one.fingerprint) in line for line in lines) == 1
    assert "…" not in captured.get()
    assert all(word in " ".join(lines) for word in str(keys[1].state).split())
    assert "400 d" in captured.get()
    assert "not known without a try: unwrap (keys/unwrapKey)" in " ".join(lines)
