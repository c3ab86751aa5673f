"""Tokens in Postgres whose keys are versions of a secret in Secrets Manager, from label to label."""

from __future__ import annotations

import base64
import json
import secrets
from dataclasses import dataclass, field
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tests.support.aws import AwsServer, aws_error
from tests.support.workbench import TIMEOUT_S, Result, Workbench, wait_while

JOB = """
name = "test"
[stores.main]
kind = "postgres"
url = "${{DATABASE_URL}}"
[keys]
provider = "aws-secrets-manager"
patience_s = 5
{keys}
[keys.aws-secrets-manager]
secret = "{name}"
field = "key"
endpoint = "{endpoint}"
[layouts.token]
like = "two-axis-token"
version = "[0-9a-f-]+"
kdf = {{ kind = "hkdf", hash = "sha256", info = "card numbers" }}
[pace]
batch_size = 8
[[targets]]
table = "cards"
fields = [{{ column = "number", layout = "token" }}]
"""

ROWS = 24


@dataclass
class Cards:
    """A table that an application has sealed, and the secret that it has its keys from."""

    bench: Workbench
    aws: AwsServer
    name: str
    texts: dict[str, str] = field(default_factory=dict)

    def put(self) -> str:
        """A new version, which is the current one from here on; its id."""
        text = f"canary-{secrets.token_hex(32)}"[:64]
        stored = json.dumps({"key": text, "algorithm": 1})
        made = self.aws.client("secretsmanager").put_secret_value(SecretId=self.name, SecretString=stored)
        self.texts[made["VersionId"]] = text
        return str(made["VersionId"])

    def aead(self, version: str) -> AESGCM:
        secret = self.texts[version].encode()
        return AESGCM(HKDF(hashes.SHA256(), 32, None, b"card numbers").derive(secret))

    def fill(self, version: str) -> None:
        self.bench.sql("CREATE TABLE cards (id bigint PRIMARY KEY, number text NOT NULL)")
        rows = []
        for at in range(ROWS):
            nonce = secrets.token_bytes(12)
            sealed = nonce + self.aead(version).encrypt(nonce, f"4111-{at}".encode(), None)
            token = base64.urlsafe_b64encode(sealed).decode().rstrip("=")
            rows.append((at, f"a1.k{version}:{token}"))
        self.bench.insert("cards", ["id", "number"], rows)

    @property
    def under(self) -> dict[str, int]:
        """Values by the version that they name; each opens under it to what it was."""
        found: dict[str, int] = {}
        for at, value in self.bench.sql("SELECT id, number FROM cards"):
            version, _, token = value.removeprefix("a1.k").partition(":")
            sealed = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
            assert self.aead(version).decrypt(sealed[:12], sealed[12:], None) == f"4111-{at}".encode()
            found[version] = found.get(version, 0) + 1
        return found

    def job(self, keys: str = "") -> None:
        text = JOB.format(name=self.name, endpoint=self.aws.endpoint, keys=keys)
        (self.bench.folder / "rewrap.toml").write_text(text)

    def rewrap(self, *arguments: str) -> Result:
        """A command; nothing that it says has a key in it."""
        done = self.bench.rewrap(*arguments, **self.aws.environ)
        assert "canary-" not in done.out + done.err
        return done


@pytest.fixture
def cards(bench: Workbench, aws: AwsServer) -> Cards:
    found = Cards(bench, aws, aws.new_name())
    aws.client("secretsmanager").create_secret(Name=found.name)
    found.job()
    return found


def notices(done: Result) -> list[Any]:
    return [event["message"] for event in done.events if event["type"] == "notice"]


def test_a_rotation_goes_to_the_version_that_a_label_stood_for(cards: Cards) -> None:
    """From AWSPREVIOUS to AWSCURRENT; both labels move in the middle of it, and nothing else does."""
    old = cards.put()
    cards.fill(old)
    new = cards.put()
    labels = ("--from", "AWSPREVIOUS", "--to", "AWSCURRENT")
    checked = cards.rewrap("check", *labels, "--json")
    assert checked.code == 0, checked.out
    assert {(one["subject"], one["reason"]) for one in checked.events if one.get("code") == "label"} == {
        (f"key {old}", 'is what the label "AWSPREVIOUS" stands for now'),
        (f"key {new}", 'is what the label "AWSCURRENT" stands for now'),
    }

    begun = cards.rewrap("run", *labels, "--allow-unseen-target", "--sample", "8", "--json")
    assert begun.code == 4, begun.err
    assert notices(begun)[:2] == [
        f'label "AWSPREVIOUS" is taken for version {old}',
        f'label "AWSCURRENT" is taken for version {new}',
    ]
    assert cards.under == {old: ROWS - 8, new: 8}

    third = cards.put()
    shown = cards.rewrap("status", "--json")
    assert old in shown.out
    assert "AWSPREVIOUS" not in shown.out
    other = cards.rewrap("run", *labels, "--allow-unseen-target")
    assert other.code == 2, other.err
    assert old in other.err
    resumed = cards.rewrap("resume", "--json")
    assert resumed.code == 0, resumed.err
    assert f"key {old} has no label: AWS may delete it" in " ".join(notices(resumed))
    assert cards.under == {new: ROWS}

    assert cards.rewrap("verify", "--deep").code == 0
    previous = cards.rewrap("verify", "--to", "AWSPREVIOUS", "--json")
    assert previous.code == 0, previous.err
    assert notices(previous)[0] == f'label "AWSPREVIOUS" is taken for version {new}'
    assert new in cards.rewrap("verify", "--to", "AWSPREVIOUS", "--print-queries").out
    current = cards.rewrap("verify", "--to", "AWSCURRENT", "--json")
    assert (current.code, current.event("verdict")["stale"]) == (3, ROWS)

    both = cards.rewrap("run", "--from", third, "--to", "AWSCURRENT")
    assert both.code == 2
    assert f"--from and --to both stand for version {third}: AWSCURRENT" in both.err
    assert cards.rewrap("check", "--from", ",", "--to", "AWSCURRENT").code == 2
    unknown = cards.rewrap("check", "--from", "AWSPENDING", "--to", "AWSCURRENT")
    assert unknown.code == 1
    assert 'no label "AWSPENDING"' in unknown.out
    listed = cards.rewrap("keys", "list", "--json")
    assert listed.code == 0, listed.err
    told = {one["version"]: one["labels"] for one in listed.events if "labels" in one}
    assert told == {old: [], new: ["AWSPREVIOUS"], third: ["AWSCURRENT"]}
    assert b"canary-" not in cards.bench.ledger.read_bytes()


def test_a_secret_marked_in_mid_run_stops_it_and_puts_nothing_aside(cards: Cards) -> None:
    """A look at the keys that is throttled stops nothing; a mark for deletion does, and a resume finishes."""
    old = cards.put()
    cards.fill(old)
    new, admin = cards.put(), cards.aws.client("secretsmanager")
    cards.job(keys="recheck_s = 0.1")
    run = ("run", "--from", "any", "--to", "AWSCURRENT", "--allow-unseen-target", "--max-rate", "4", "--json")
    with cards.bench.started(*run, **cards.aws.environ) as process:
        wait_while(process, lambda: cards.bench.swept() > 0)
        cards.aws.proxy.add(aws_error("ThrottlingException"), "ListSecretVersionIds", times=1)
        wait_while(process, lambda: cards.aws.proxy.faults())
        admin.delete_secret(SecretId=cards.name)
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 10, err
    assert f'secret "{cards.name}" in aws secrets manager is marked for deletion' in err
    assert f"restore-secret --secret-id {cards.name};" in err
    assert "rewrap resume" in err
    assert "canary-" not in out + err
    assert set(cards.under) == {old, new}
    assert cards.rewrap("quarantine", "list", "--json").events == []

    assert cards.rewrap("resume").code == 10
    admin.restore_secret(SecretId=cards.name)
    resumed = cards.rewrap("resume", "--json")
    assert resumed.code == 0, resumed.err
    assert cards.under == {new: ROWS}
