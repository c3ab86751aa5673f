"""Versions of a secret in Secrets Manager: what opens, what is refused, and what is said of it."""

from __future__ import annotations

import base64
import functools
import json
import logging
import secrets
import sys
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

from rewrap.crypto.failures import Unopenable
from rewrap.errors import KeyAccessError, UsageError
from rewrap.job import Job
from rewrap.keys.awssecret import list_keys
from rewrap.keys.keyring import Keyring, WatchedKeeper
from rewrap.keys.listed import Permission
from rewrap.keys.open import open_keyring, versions_of
from tests.support.aws import REGION, AwsServer, aws_error
from tests.support.proxy import Answer

T = TypeVar("T")

ROLE = "arn:aws:iam::123456789012:role/older-keys"

JOB = """
name = "test"
[stores.main]
kind = "postgres"
url = "postgresql://h/d"
[keys]
provider = "aws-secrets-manager"
patience_s = 5
[keys.aws-secrets-manager]
secret = "{name}"
endpoint = "{endpoint}"
region = "{region}"
{section}
[layouts.token]
marker = "k{{version}}:"
version = "[A-Za-z0-9-]+"
encoding = "base64url"
cipher = "aes-256-gcm"
{kdf}
[[targets]]
table = "cards"
fields = [{{ column = "number", layout = "token" }}]
"""

DERIVED = 'kdf = { kind = "hkdf", hash = "sha256", info = "field encryption" }'
FIELD = 'field = "key"'


def text_key() -> str:
    """A key as a person would store it: 64 characters."""
    return f"canary-{secrets.token_hex(32)}"[:64]


@functools.cache
def administrator(aws: AwsServer) -> Any:
    return aws.client("secretsmanager")


class Stored:
    """A secret, and those who administer it."""

    def __init__(self, aws: AwsServer) -> None:
        self.aws, self.name = aws, aws.new_name()
        self.admin = administrator(aws)
        self.admin.create_secret(Name=self.name)

    def put(self, value: str | bytes | None = None, *, stages: list[str] | None = None) -> str:
        """A new version, which is the current one unless it is given other labels; its id."""
        value = json.dumps({"key": text_key()}) if value is None else value
        kind = "SecretBinary" if isinstance(value, bytes) else "SecretString"
        stages = ["AWSCURRENT"] if stages is None else stages
        made = self.admin.put_secret_value(SecretId=self.name, VersionStages=stages, **{kind: value})
        return str(made["VersionId"])

    def move(self, label: str, *, to: str | None = None, since: str | None = None) -> None:
        """Has a label point to another version."""
        ends = {"MoveToVersionId": to, "RemoveFromVersionId": since}
        given = {name: value for name, value in ends.items() if value is not None}
        self.admin.update_secret_version_stage(SecretId=self.name, VersionStage=label, **given)

    def job(self, section: str = FIELD, kdf: str = DERIVED) -> Job:
        return Job.parse(
            JOB.format(name=self.name, endpoint=self.aws.endpoint, region=REGION, section=section, kdf=kdf)
        )

    @property
    def asked(self) -> list[tuple[str, int | None]]:
        """What rewrap asked, and how it was answered."""
        return [(one.kind, one.status) for one in self.aws.proxy.seen]


@pytest.fixture
def stored(aws: AwsServer) -> Stored:
    return Stored(aws)


def working(work: Callable[[], Awaitable[T]]) -> T:
    return anyio.run(work)


def opened(job: Job, *required: str, wanted: list[str] | None = None) -> Keyring:
    """A keyring that was opened, and closed again."""

    async def work() -> Keyring:
        keyring = await open_keyring(job, required, wanted=[] if wanted is None else wanted)
        await keyring.close()
        return keyring

    return working(work)


def refused(job: Job, *required: str) -> KeyAccessError:
    with pytest.raises(KeyAccessError) as info:
        opened(job, *required)
    assert info.value.exit_code == 10
    return info.value


def hkdf(secret: bytes) -> bytes:
    return HKDF(hashes.SHA256(), 32, bytes.fromhex("a0a1"), b"for cards.number").derive(secret)


def pbkdf2(secret: bytes) -> bytes:
    return PBKDF2HMAC(hashes.SHA256(), 32, b"salted number", 1_000).derive(secret)


def sha256(secret: bytes) -> bytes:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(secret)
    return digest.finalize()


@pytest.mark.parametrize(
    ("kdf", "encoding", "derive"),
    [
        ("", "hex", None),
        ("", "base64", None),
        ("", "utf8", None),
        ('kdf = { kind = "sha256" }', "utf8", sha256),
        ('kdf = { kind = "hkdf", salt = "hex:a0a1", info = "for {table}.{column}" }', "utf8", hkdf),
        ('kdf = { kind = "pbkdf2", salt = "salted {column}", iterations = 1000 }', "utf8", pbkdf2),
        ('kdf = { kind = "hkdf", salt = "hex:a0a1", info = "for {table}.{column}" }', "hex", hkdf),
    ],
)
def test_a_secret_opens_what_an_application_sealed(
    stored: Stored, kdf: str, encoding: str, derive: Callable[[bytes], bytes] | None
) -> None:
    """From the text that is stored to the key of a value, by each derivation; another version does not."""
    bare = secrets.token_bytes(32)
    written = {"hex": bare.hex(), "base64": base64.b64encode(bare).decode(), "utf8": bare.hex()[:32]}[
        encoding
    ]
    secret = written.encode() if encoding == "utf8" else bare
    other = stored.put(written[::-1] if encoding != "base64" else base64.b64encode(bare[::-1]).decode())
    version = stored.put(written)
    job = stored.job(f'encoding = "{encoding}"', kdf)
    keyring = opened(job, version, other)
    nonce = secrets.token_bytes(12)
    sealed = nonce + AESGCM(derive(secret) if derive else secret).encrypt(nonce, b"4111", None)

    def open_with(one: str, sealed: bytes) -> bytes:
        text = f"k{version}:" + base64.urlsafe_b64encode(sealed).decode().rstrip("=")
        bound = job.layout("token").bind(version, keyring.get(one).secret, "public.cards", "number")
        return bound.open_one(text, None)

    assert open_with(version, sealed) == b"4111"
    for one, value in ((other, sealed), (version, sealed[:-1] + bytes([sealed[-1] ^ 1]))):
        with pytest.raises(Unopenable):
            open_with(one, value)


def test_labels_stand_for_versions_and_values_are_fetched_by_id(stored: Stored) -> None:
    """Labels of AWS and of one's own; an id is itself; the name of nothing is refused, with what there is."""
    old, new = stored.put(), stored.put()
    minted = stored.put(stages=["minted-2026"])
    job = stored.job()
    names = ["AWSPREVIOUS", "AWSCURRENT", "minted-2026", old]
    found = working(lambda: versions_of(job, names, {}))
    assert found == {"AWSPREVIOUS": old, "AWSCURRENT": new, "minted-2026": minted}
    with pytest.raises(KeyAccessError, match='no label "AWSPENDING"') as info:
        working(lambda: versions_of(job, ["AWSPENDING"], {}))
    assert info.value.hint == "its labels are AWSCURRENT, AWSPREVIOUS, minted-2026"
    # what a rotation was begun with takes no call to be told apart from a label
    calls = len(stored.asked)
    assert working(lambda: versions_of(job, [old, new], {})) == {}
    assert len(stored.asked) == calls
    keyring = opened(job, old, new)
    assert keyring.known == (old, new, minted)
    assert (old in keyring, new in keyring, minted in keyring) == (True, True, False)
    assert set(opened(job, new, wanted=None).known) == {old, new, minted}


NOT_JSON = text_key()
WITHOUT = json.dumps({"other": text_key()})


@pytest.mark.parametrize(
    ("section", "kdf", "value", "says", "advice"),
    [
        (FIELD, DERIVED, text_key().encode(), "is binary", "store it as a SecretString"),
        (FIELD, DERIVED, NOT_JSON, 'is no JSON object, and its field "key"', "leave out"),
        (FIELD, DERIVED, json.dumps([text_key()]), "is no JSON object", "leave out"),
        (FIELD, DERIVED, WITHOUT, 'its field "key" is missing', "correct"),
        (FIELD, DERIVED, json.dumps({"key": {"k": text_key()}}), 'its field "key" is no text', "correct"),
        (FIELD, DERIVED, json.dumps({"key": "canary-short"}), "has 12 bytes", "short secret"),
        (FIELD, "", json.dumps({"key": text_key()}), "has 64 bytes, its layout takes 32", 'encoding = "hex"'),
        (
            f'{FIELD}\nencoding = "hex"', "", json.dumps({"key": "canary-" + "z" * 57}),
            "is not hex", "set keys.aws-secrets-manager.encoding",
        ),
        (f'{FIELD}\nencoding = "pem"', "", json.dumps({"key": text_key()}), "no private key in PEM", "BEGIN"),
    ],
    ids=["binary", "text", "array", "without", "object", "short", "length", "encoding", "pem"],
)  # fmt: skip
def test_what_is_no_key_is_refused_and_never_shown(
    stored: Stored,
    caplog: pytest.LogCaptureFixture,
    section: str,
    kdf: str,
    value: str | bytes,
    says: str,
    advice: str,
) -> None:
    """Each with its own reason and hint; nothing of the secret in any of them, nor in a log."""
    caplog.set_level(logging.DEBUG)
    version = stored.put(value)
    exc = refused(stored.job(section, kdf), version)
    assert says in exc.message
    assert version in exc.message
    assert advice in (exc.hint or "")
    chain = f"{exc!r} {exc.hint} {exc.__cause__!r} {exc.__suppress_context__} {caplog.text}"
    assert "canary-" not in chain


NO_ROLE = Answer(
    403,
    {"Content-Type": "text/xml"},
    '<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type>'
    "<Code>AccessDenied</Code><Message>refused on cue</Message></Error></ErrorResponse>",
)
"""What STS answers to who may not assume a role."""


def denied(stored: Stored, kind: str = "GetSecretValue", times: int | None = 1) -> None:
    refusal = NO_ROLE if kind == "sts" else aws_error("AccessDeniedException")
    stored.aws.proxy.add(refusal, kind, times=times)


def test_what_is_not_there_is_refused_with_what_to_do(stored: Stored) -> None:
    """A version that is gone, one without a value, a secret that is gone or marked; each in its words."""
    version = stored.put()
    job, gone = stored.job(), str(uuid.uuid4())
    exc = refused(job, version, gone)
    assert f'has no version "{gone}"' in exc.message
    assert f"{version} (AWSCURRENT)" in (exc.hint or "")
    stored.aws.proxy.add(aws_error("ResourceNotFoundException"), "GetSecretValue", times=1)
    exc = refused(job, version)
    assert exc.message.endswith(f'version "{version}" is not there')
    assert "may delete a version without a label" in (exc.hint or "")
    stored.aws.proxy.add(aws_error("ResourceNotFoundException"), "ListSecretVersionIds", times=1)
    assert refused(job, version).message.endswith("is not there")
    stored.aws.proxy.add(aws_error("DecryptionFailure"), "GetSecretValue", times=1)
    assert "kms:Decrypt" in (refused(job, version).hint or "")
    stored.admin.delete_secret(SecretId=stored.name)
    exc = refused(job, version)
    assert exc.message.endswith("is marked for deletion")
    assert f"restore-secret --secret-id {stored.name}" in (exc.hint or "")


def test_a_refusal_names_the_permission(stored: Stored) -> None:
    """To read and to list; without the list, versions named by their ids are read all the same."""
    old, new = stored.put(), stored.put()
    job = stored.job()
    denied(stored)
    exc = refused(job, new)
    assert f'version "{new}": this identity may not read it' in exc.message
    assert "secretsmanager:GetSecretValue" in (exc.hint or "")
    assert exc.code == "key-not-permitted"
    denied(stored, "ListSecretVersionIds", times=None)
    keyring = opened(job, old, new)
    assert (keyring.unlisted, keyring.known) == (True, (old, new))
    for work in (
        lambda: versions_of(job, ["AWSCURRENT"], {}),
        lambda: list_keys(job, {}),
        lambda: open_keyring(job, [new]),
    ):
        with pytest.raises(KeyAccessError) as info:
            working(work)
        assert "secretsmanager:ListSecretVersionIds" in (info.value.hint or "")


def test_the_fallback_role_fetches_what_the_identity_may_not(stored: Stored) -> None:
    """A version that is denied, or has lost its labels: as that role, and only then."""
    old, previous, new = (stored.put() for _ in range(3))
    job = stored.job(f'{FIELD}\nfallback_role = "{ROLE}"')
    opened(job, previous, new)
    assert "sts" not in dict(stored.asked)
    stored.aws.proxy.seen.clear()
    denied(stored)
    assert new in opened(job, new)
    get, sts, listed = "GetSecretValue", "sts", ("ListSecretVersionIds", 200)
    assert stored.asked == [listed, (get, 400), (sts, 200), (get, 200)]
    stored.aws.proxy.reset()
    # it has no label any more, and the identity is not asked first
    keyring = opened(job, old, new)
    assert stored.asked == [listed, (sts, 200), (get, 200), (get, 200)]
    assert [doubt.code for doubt in keyring.doubts[old]] == ["key-unlabelled"]
    assert list(keyring.doubts[new]) == []
    denied(stored, "sts")
    exc = refused(job, old)
    assert f"may not sts:AssumeRole {ROLE}" in exc.message
    assert "trust policy" in (exc.hint or "")
    denied(stored, times=2)
    exc = refused(job, new)
    assert f"role {ROLE} may not read it" in exc.message


def test_an_object_that_is_taken_whole_is_doubted(stored: Stored) -> None:
    """It may be meant, and it looks like a field that was forgotten."""
    version = stored.put()
    (doubt,) = opened(stored.job(""), version).doubts[version]
    assert (doubt.severity, doubt.code) == ("warning", "key-is-json")
    assert "canary-" not in doubt.reason


def test_every_version_is_listed_with_what_may_be_done(stored: Stored) -> None:
    """Ids, labels, which is current, fingerprints where they are readable, and permissions as tried."""
    odd = stored.put("canary-not-json-at-all")
    old, new = stored.put(), stored.put()
    job = stored.job()
    listed = {one.version: one for one in working(lambda: list_keys(job, {}))}
    assert {one: (found.labels, found.current) for one, found in listed.items()} == {
        odd: ((), False), old: (("AWSPREVIOUS",), False), new: (("AWSCURRENT",), True),
    }  # fmt: skip
    assert listed[new].fingerprint == opened(job, new).get(new).fingerprint
    assert (listed[new].usable, listed[new].state) == (True, "at hand")
    assert listed[new].created is not None
    assert (listed[odd].usable, listed[odd].fingerprint) == (False, None)
    assert listed[odd].state.startswith("is no JSON object")
    assert "canary-" not in repr(listed)
    read, may_list = "secretsmanager:GetSecretValue", "secretsmanager:ListSecretVersionIds"
    assert listed[odd].permissions == (Permission("list", may_list, True), Permission("read", read, True))
    denied(stored, times=None)
    for sts in (True, False):
        if not sts:
            denied(stored, "sts", times=None)
        job = stored.job(f'{FIELD}\nfallback_role = "{ROLE}"')
        for found in working(lambda job=job: list_keys(job, {})):
            assert (found.usable, found.fingerprint) == (False, None)
            assert found.permissions[1:] == (
                Permission("read", read, False), Permission("assume", "sts:AssumeRole", sts),
            )  # fmt: skip


def test_keys_in_use_are_looked_at_again(stored: Stored) -> None:
    """A label that is lost, a secret that is marked, another value: told; throttling is waited for."""
    old, new = stored.put(), stored.put()
    job, proxy = stored.job(), stored.aws.proxy

    async def work() -> list[KeyAccessError]:
        keyring = await open_keyring(job, [old, new], wanted=[])
        keeper = keyring._keeper
        assert isinstance(keeper, WatchedKeeper)
        found: list[KeyAccessError] = []

        async def look() -> None:
            try:
                await keeper.still_there()
            except KeyAccessError as exc:
                found.append(exc)

        try:
            for kind, fault in (
                ("ListSecretVersionIds", aws_error("ThrottlingException")),
                ("ListSecretVersionIds", aws_error("AccessDeniedException")),
            ):
                proxy.add(fault, kind, times=1)
                await look()
                proxy.clear()
            assert found == []
            another = {"VersionId": old, "SecretString": json.dumps({"key": text_key()})}
            headers = {"Content-Type": "application/x-amz-json-1.1"}
            proxy.add(Answer(200, headers, json.dumps(another)), "GetSecretValue", times=1)
            await look()
            proxy.add(aws_error("AccessDeniedException"), "GetSecretValue", times=1)
            await look()
            stored.move("AWSPREVIOUS", since=old)
            await look()
            stored.admin.delete_secret(SecretId=stored.name)
            await look()
        finally:
            await keyring.close()
        return found

    said = [exc.message.removeprefix(f'secret "{stored.name}" in aws secrets manager "{REGION}" ')
            for exc in working(work)]  # fmt: skip
    assert said == [
        f'version "{old}" holds another key than when it was fetched',
        f'version "{old}": this identity may not read it',
        f'version "{old}" has lost its last label: AWS may delete it, and values are under it',
        "is marked for deletion",
    ]


def test_away_for_longer_than_patience_is_told(stored: Stored) -> None:
    """Throttling that does not end is exit 10, and no key's fault."""
    version = stored.put()
    stored.aws.proxy.add(aws_error("ThrottlingException"), "GetSecretValue")
    text = JOB.replace("patience_s = 5", "patience_s = 1")
    job = Job.parse(
        text.format(name=stored.name, endpoint=stored.aws.endpoint, region=REGION, section=FIELD, kdf=DERIVED)
    )
    exc = refused(job, version)
    assert "is throttled, and 1 s of patience are over" in exc.message
    assert exc.code == "key-away"


def test_nothing_secret_is_logged_or_shown(stored: Stored, caplog: pytest.LogCaptureFixture) -> None:
    """With every logger at its loudest: no key, no session token, no credential."""
    caplog.set_level(logging.DEBUG)
    old, new = (stored.put(json.dumps({"key": f"canary-{at}-{'x' * 40}"})) for at in range(2))
    keyring = opened(stored.job(f'{FIELD}\nrole = "{ROLE}"'), old, new)
    assert ("sts", 200) in stored.asked
    shown = f"{keyring!r} {keyring.get(new)!r} {keyring._keeper!r} {caplog.text}"
    assert [word for word in ("canary-", "x" * 40, "SessionToken") if word in shown] == []


def test_without_the_package_the_extra_is_named(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, with the command that installs it."""
    job = stored.job()
    for name in ("rewrap.keys.awssecret", "rewrap.keys.aws"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(UsageError, match="needs a package that is not installed: boto3") as info:
        opened(job, str(uuid.uuid4()))
    assert info.value.hint == "pip install 'rewrap[aws]'"
