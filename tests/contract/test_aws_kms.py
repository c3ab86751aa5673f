"""Keys in AWS KMS: what holds of the provider, and rotations of data keys that boto3 wrapped."""

from __future__ import annotations

import json
import secrets
import sys
import threading
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import anyio
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from rewrap import verify
from rewrap.crypto.ciphers import CIPHERS
from rewrap.crypto.elsewhere import Rewrapped
from rewrap.errors import JobError, KeyAccessError, UsageError
from rewrap.job import Job
from rewrap.keys.awskms import list_keys
from rewrap.keys.keyring import Keyring, TriedKey
from rewrap.keys.open import open_keyring
from tests.support.aws import AwsServer, aws_error
from tests.support.documents import BODY
from tests.support.inprocess import load, run_here
from tests.support.proxy import Answer, Meanwhile
from tests.support.workbench import WAIT_S, Result, Workbench, wait_while

T = TypeVar("T")

JOB = """
name = "test"
[stores.main]
kind = "postgres"
url = "postgresql://h/d"
[keys]
provider = "aws-kms"
{how}
[keys.aws-kms]
endpoint = "{endpoint}"
keys = {{ {keys} }}
[layouts.wrapped]
encoding = "base64"
cipher = "aws-kms"
{aad}
[layouts.wrapped-url]
encoding = "base64url"
cipher = "aws-kms"
{aad}
[[targets]]
table = "org_deks"
fields = [{{ column = "wrapped_dek", layout = "wrapped", version = {{ column = "key_id" }}{change} }}]
"""

TENANT = 'aad = { tenant = "{org_id}" }'

OTHER_KEY = "arn:aws:kms:eu-central-1:123456789012:key/11111111-2222-3333-4444-555555555555"


class KmsKeys:
    """Two keys, and an application that wraps under them with boto3."""

    def __init__(self, aws: AwsServer) -> None:
        self.aws, self.client = aws, aws.client("kms")
        self.old, self.new = (self.client.create_key()["KeyMetadata"]["Arn"] for _ in range(2))
        self.named = {"v1": self.old, "v2": self.new}

    def job(self, *, how: str = "", aad: str = "", change: str = "") -> Job:
        keys = ", ".join(f'{name} = "{key}"' for name, key in self.named.items())
        return Job.parse(JOB.format(endpoint=self.aws.endpoint, keys=keys, how=how, aad=aad, change=change))

    def wrap(self, key: str, secret: bytes, **context: str) -> bytes:
        found = self.client.encrypt(KeyId=key, Plaintext=secret, EncryptionContext=context)
        return bytes(found["CiphertextBlob"])

    def unwrap(self, key: str, wrapped: bytes, **context: str) -> bytes:
        found = self.client.decrypt(KeyId=key, CiphertextBlob=wrapped, EncryptionContext=context)
        return bytes(found["Plaintext"])

    async def using(
        self, job: Job, work: Callable[[Keyring], Awaitable[T]], required: Sequence[str] = ("v1", "v2")
    ) -> T:
        keyring = await open_keyring(job, required, wanted=[])
        try:
            return await work(keyring)
        finally:
            await keyring.close()


@pytest.fixture
def keys(aws: AwsServer) -> KmsKeys:
    return KmsKeys(aws)


def bound(**context: str) -> bytes:
    """An encryption context as associated data."""
    return json.dumps(context, sort_keys=True, separators=(",", ":")).encode()


async def opened(
    keyring: Keyring, version: str, items: Sequence[tuple[bytes, bytes | None]]
) -> list[bytes | None]:
    """What values open to, as the engine asks; None for what does not open."""
    opener = CIPHERS["aws-kms"].opener(keyring.get(version).secret)

    def one(wrapped: bytes, aad: bytes | None) -> bytes | None:
        try:
            return opener([wrapped], None if aad is None else [aad], 0)[0]
        except ValueError:
            return None

    return await keyring.resolved(lambda: [one(*item) for item in items])


def refusal(work: Callable[[], Awaitable[object]], code: str, *said: str) -> KeyAccessError:
    """The error with which some work ends: exit 10, with a hint."""
    with pytest.raises(KeyAccessError) as caught:
        anyio.run(work)
    error = caught.value
    assert (error.exit_code, error.code) == (10, code), error.message
    told = f"{error.message}\n{error.hint}"
    assert error.hint
    assert [word for word in said if word not in told] == [], told
    return error


@pytest.mark.parametrize("change", ["", ', to_layout = "wrapped-url"'])
@pytest.mark.parametrize("context", [{}, {"tenant": "a"}])
def test_the_right_key_opens_what_the_application_wrapped(
    keys: KmsKeys, change: str, context: dict[str, str]
) -> None:
    """Where plaintexts come here they are those; in place, KMS wraps them anew and nothing else comes."""
    made = [secrets.token_bytes(size) for size in (1, 16, 32, 4_096)]
    aad = bound(**context) if context else None
    items = [(keys.wrap(keys.old, one, **context), aad) for one in made]
    keys.aws.proxy.seen.clear()

    async def work(keyring: Keyring) -> list[bytes | None]:
        if not change:
            keyring.rewrap_in_place("v2")
        found = await opened(keyring, "v1", items)
        assert keyring.spent() == {"vault_calls": len(items) + 2.0}
        return found

    found = anyio.run(keys.using, keys.job(change=change), work)
    if change:
        assert found == made
        assert set(keys.aws.proxy.counts()) == {"DescribeKey", "Decrypt"}
        return
    assert set(keys.aws.proxy.counts()) == {"DescribeKey", "ReEncrypt"}
    for one, (wrapped, _), plain in zip(found, items, made, strict=True):
        assert isinstance(one, Rewrapped)
        assert one == wrapped
        assert keys.unwrap(keys.new, one.new, **context) == plain


@pytest.mark.parametrize("change", ["", ', to_layout = "wrapped-url"'])
def test_the_wrong_key_and_what_was_tampered_with_do_not_open(keys: KmsKeys, change: str) -> None:
    """They are values that do not open, and no reason to stop; what KMS cannot have made takes no call."""
    good, aad = keys.wrap(keys.old, b"k" * 32, tenant="a"), bound(tenant="a")
    bad = [
        (keys.wrap(keys.new, b"k" * 32, tenant="a"), aad),
        (good[:-1] + bytes([good[-1] ^ 1]), aad),
        (good[:40], aad),
        (b"\xff" * 100, aad),
        (good, bound(tenant="b")),
        (good, bound(tenant="a", more="b")),
        (good, None),
        (good * 100, aad),
    ]
    keys.aws.proxy.seen.clear()

    async def work(keyring: Keyring) -> list[bytes | None]:
        return await opened(keyring, "v1", [(good, aad), *bad, (b"", None)])

    first, *rest = anyio.run(keys.using, keys.job(change=change), work)
    assert first is not None
    assert rest == [None] * (len(bad) + 1)
    counts = keys.aws.proxy.counts()
    assert counts["ReEncrypt"] + counts["Decrypt"] == len(bad)


def test_what_is_sealed_here_opens_there(keys: KmsKeys) -> None:
    """Encrypt, for what has no wrapping yet, bound to its context."""
    made, aads = [b"a" * 32, b"a" * 32], [bound(tenant="a"), bound(tenant="b")]

    async def work(keyring: Keyring) -> list[bytes]:
        sealer = CIPHERS["aws-kms"].sealer(keyring.get("v2").secret)
        return await keyring.resolved(lambda: sealer(made, aads))

    first, second = anyio.run(keys.using, keys.job(), work)
    assert keys.unwrap(keys.new, first, tenant="a") == keys.unwrap(keys.new, second, tenant="b") == b"a" * 32


def test_a_plaintext_that_kms_does_not_take_is_not_sent(keys: KmsKeys) -> None:
    """No ciphertext of KMS holds such a one, so no rotation meets it."""

    async def work(keyring: Keyring) -> None:
        sealer = CIPHERS["aws-kms"].sealer(keyring.get("v2").secret)
        await keyring.resolved(lambda: sealer([b"a" * 4_097], None))

    refusal(lambda: keys.using(keys.job(), work), "key-unfit", "4,097 bytes")
    assert keys.aws.proxy.counts()["Encrypt"] == 0


@pytest.mark.parametrize("member", ["KeyId", "SourceKeyId", None])
def test_another_keys_answer_is_not_believed(keys: KmsKeys, member: str | None) -> None:
    """Whatever answers in KMS's place: both keys of a ReEncrypt have to be those that were asked for."""
    canary = b64encode(b"canary").decode()
    said = {"KeyId": keys.old, "SourceKeyId": keys.old, "CiphertextBlob": canary}
    body = "<html>canary</html>" if member is None else json.dumps({**said, member: OTHER_KEY})
    wrapped = keys.wrap(keys.old, b"k")
    keys.aws.proxy.add(Answer(200, {"Content-Type": "application/x-amz-json-1.1"}, body), "ReEncrypt")

    async def work(keyring: Keyring) -> None:
        await opened(keyring, "v1", [(wrapped, None)])

    error = refusal(
        lambda: keys.using(keys.job(), work),
        "key-refused",
        'key "v1" in aws kms',
        "another key" if member else "naming",
    )
    assert canary not in error.message + str(error.hint)


def test_throttling_is_waited_for(keys: KmsKeys) -> None:
    """Each value opens in the end, and each attempt is counted."""
    items = [(keys.wrap(keys.old, bytes([n])), None) for n in range(4)]
    keys.aws.proxy.add(aws_error("ThrottlingException"), "ReEncrypt", skip=1, times=1)

    async def work(keyring: Keyring) -> list[bytes | None]:
        found = await opened(keyring, "v1", list(items))
        assert keyring.spent()["vault_calls"] == len(items) + 1 + 2
        return found

    assert None not in anyio.run(keys.using, keys.job(how="in_flight = 1"), work)


def denied(operation: str, text: str) -> Answer:
    """What KMS says to an identity that may not; `text` is where it says of what."""
    body = json.dumps({"__type": "AccessDeniedException", "Message": text})
    return Answer(400, {"Content-Type": "application/x-amz-json-1.1"}, body)


@pytest.mark.parametrize("way", ["kms:ReEncryptFrom", "kms:ReEncryptTo", ""])
def test_a_permission_that_is_missing_is_named(keys: KmsKeys, way: str) -> None:
    """ReEncrypt has two, one for each key. Nothing of what KMS writes is repeated but their names."""
    text = f"User: arn:aws:iam::1:user/canary is not authorized to perform: {way} on this resource"
    keys.aws.proxy.add(denied("ReEncrypt", text), "ReEncrypt")
    wrapped = keys.wrap(keys.old, b"k")

    async def work(keyring: Keyring) -> None:
        keyring.rewrap_in_place("v2")
        await opened(keyring, "v1", [(wrapped, None)])

    named = {"kms:ReEncryptFrom": 'key "v1"', "kms:ReEncryptTo": 'key "v2"', "": 'or key "v2"'}[way]
    error = refusal(
        lambda: keys.using(keys.job(), work), "key-not-permitted", named,
        f"kms:ReEncryptFrom on {keys.old}", f"kms:ReEncryptTo on {keys.new}",
    )  # fmt: skip
    assert way in error.message
    assert "canary" not in error.message + str(error.hint)


@pytest.mark.parametrize("which", ["old", "new"])
def test_a_key_that_is_disabled_or_deleted_stops_and_says_what_mends_it(keys: KmsKeys, which: str) -> None:
    """Before anything is opened; and afterwards, of whichever of the two keys it is."""
    version, arn = {"old": ("v1", keys.old), "new": ("v2", keys.new)}[which]
    wrapped, job = keys.wrap(keys.old, b"k"), keys.job()

    async def nothing(keyring: Keyring) -> None:
        return None

    async def work(keyring: Keyring) -> None:
        keyring.rewrap_in_place("v2")
        change()
        await opened(keyring, "v1", [(wrapped, None)])

    command, key_id = f"--key-id {arn} --region eu-central-1", arn.rpartition("/")[2]

    def change() -> None:
        keys.client.disable_key(KeyId=key_id)

    said = (f'key "{version}" in aws kms is disabled', f"aws kms enable-key {command}")
    refusal(lambda: keys.using(job, work), "key-disabled", *said)
    refusal(lambda: keys.using(job, nothing), "key-disabled", *said)
    keys.client.enable_key(KeyId=key_id)

    def change() -> None:  # noqa: F811  # the next thing that happens on the way
        keys.client.schedule_key_deletion(KeyId=key_id, PendingWindowInDays=7)

    mends = (f'key "{version}"', f"aws kms cancel-key-deletion {command} && aws kms enable-key {command}")
    refusal(lambda: keys.using(job, work), "key-disabled", "in a state", *mends)
    refusal(lambda: keys.using(job, nothing), "key-disabled", "pending deletion", *mends)


def test_keys_that_cannot_be_used_are_refused_when_they_are_opened(keys: KmsKeys) -> None:
    """One that is not there, one of another kind, a name that nobody gave."""
    rsa = keys.client.create_key(KeyUsage="ENCRYPT_DECRYPT", KeySpec="RSA_2048")["KeyMetadata"]["Arn"]
    hmac = keys.client.create_key(KeyUsage="GENERATE_VERIFY_MAC", KeySpec="HMAC_256")["KeyMetadata"]["Arn"]
    keys.named |= {"gone": OTHER_KEY, "alias": "alias/nobody", "rsa": rsa, "hmac": hmac}
    job = keys.job()

    async def nothing(keyring: Keyring) -> None:
        return None

    for version, code, said in (
        ("gone", "key-missing", "aws kms list-keys"),
        ("alias", "key-missing", "list-aliases"),
        ("rsa", "key-unfit", "RSA_2048"),
        ("hmac", "key-unfit", "GENERATE_VERIFY_MAC"),
        ("v9", "key-missing", "versions named there are v1, v2"),
        ("alias/of-no-version", "key-missing", "is not named"),
    ):
        refusal(lambda v=version: keys.using(job, nothing, [v]), code, f'key "{version}"', said)  # type: ignore[misc]  # a default binds


def test_versions_are_names_ids_or_arns(keys: KmsKeys) -> None:
    """An id and an ARN are the key itself, and one key under two names is refused."""

    async def work(keyring: Keyring) -> set[str]:
        assert not keyring.unlisted
        assert keyring.known == ("v1", "v2", key_id, keys.old)
        with pytest.raises(UsageError, match="same bytes"):
            keyring.require_distinct([key_id], "v1")
        return {key.fingerprint for key in keyring}

    key_id = keys.old.rpartition("/")[2]
    assert len(anyio.run(keys.using, keys.job(), work, ["v1", key_id, keys.old])) == 1

    async def every(job: Job) -> list[str]:
        keyring = await open_keyring(job, [], wanted=None)
        await keyring.close()
        return [key.version for key in keyring]

    assert anyio.run(every, keys.job()) == ["v1", "v2"]
    keys.named = {}
    refusal(lambda: every(keys.job()), "key-not-permitted", "keys.aws-kms.keys")


def test_an_alias_is_resolved_once(keys: KmsKeys) -> None:
    """Where it points to afterwards, values are not wrapped."""
    name = f"alias/{keys.aws.new_name()}"
    keys.client.create_alias(AliasName=name, TargetKeyId=keys.new)
    third = keys.client.create_key()["KeyMetadata"]["Arn"]
    keys.named["v2"] = name
    wrapped = keys.wrap(keys.old, b"k")

    async def work(keyring: Keyring) -> tuple[str, bytes]:
        keyring.rewrap_in_place("v2")
        keys.client.update_alias(AliasName=name, TargetKeyId=third)
        (found,) = await opened(keyring, "v1", [(wrapped, None)])
        assert isinstance(found, Rewrapped)
        return keyring.get("v2").commitment, found.new

    before, new = anyio.run(keys.using, keys.job(), work)
    assert keys.unwrap(keys.new, new) == b"k"
    # another process meets another key, and a ledger knows that by its commitment
    assert anyio.run(keys.using, keys.job(), work)[0] != before


def test_without_the_right_to_describe_keys_an_arn_is_enough(keys: KmsKeys) -> None:
    """It says which key it is; an id or an alias does not."""
    keys.named["id"] = keys.new.rpartition("/")[2]
    keys.aws.proxy.add(denied("DescribeKey", "no"), "DescribeKey")
    wrapped = keys.wrap(keys.old, b"k")

    async def work(keyring: Keyring) -> list[bytes | None]:
        keyring.rewrap_in_place("v2")
        return await opened(keyring, "v1", [(wrapped, None)])

    assert anyio.run(keys.using, keys.job(), work) == [wrapped]
    refusal(lambda: keys.using(keys.job(), work, ["id"]), "key-not-permitted", "kms:DescribeKey", "ARN")


async def tried(keyring: Keyring) -> dict[str, list[tuple[str, str]]]:
    """Severities and codes of what `check` would say of each key."""
    keyring.rewrap_in_place("v2")
    return await doubted(keyring)


async def doubted(keyring: Keyring) -> dict[str, list[tuple[str, str]]]:
    found = {}
    for key in keyring:
        assert isinstance(key.remote, TriedKey)
        doubts = await key.remote.tried(target=key.version == "v2")
        found[key.version] = [(one.severity, one.code) for one in doubts]
    return found


def test_check_tries_the_way_that_values_go(keys: KmsKeys) -> None:
    """By ReEncrypt in place; by Decrypt where plaintexts come here."""
    fine = {"v1": [("info", "key-unwraps")], "v2": [("info", "key-unwraps")]}
    assert anyio.run(keys.using, keys.job(aad=TENANT), tried) == fine
    assert keys.aws.proxy.counts()["Decrypt"] == 0
    assert anyio.run(keys.using, keys.job(change=', to_layout = "wrapped-url"'), doubted) == fine
    assert keys.aws.proxy.counts()["Decrypt"] == 2


def test_check_says_what_this_identity_may_not(keys: KmsKeys) -> None:
    """Encrypt is not needed in place. A policy may ask for contexts that a trial does not have."""
    keys.aws.proxy.add(denied("Encrypt", "no"), "Encrypt")
    nothing_tried = {"v1": [("info", "key-no-wrap")], "v2": [("info", "key-no-wrap")]}
    assert anyio.run(keys.using, keys.job(), tried) == nothing_tried
    here = anyio.run(keys.using, keys.job(change=', to_layout = "wrapped-url"'), doubted)
    assert here == {"v1": [("info", "key-no-wrap")], "v2": [("error", "key-no-wrap")]}
    keys.aws.proxy.clear()
    keys.aws.proxy.add(denied("ReEncrypt", "no"), "ReEncrypt")
    assert anyio.run(keys.using, keys.job(), tried)["v1"] == [("error", "key-no-unwrap")]
    assert anyio.run(keys.using, keys.job(aad=TENANT), tried)["v1"] == [("warning", "key-no-unwrap")]
    keys.aws.proxy.clear()
    keys.aws.proxy.add(denied("DescribeKey", "no"), "DescribeKey")
    found = anyio.run(keys.using, keys.job(), tried)["v2"]
    assert found == [("warning", "key-not-described"), ("info", "key-unwraps")]


def test_a_key_of_several_regions_is_noted(keys: KmsKeys) -> None:
    """Its replicas open the same values: disabling one is not disabling all."""
    keys.named["v2"] = keys.client.create_key(MultiRegion=True)["KeyMetadata"]["Arn"]
    assert ("info", "key-multi-region") in anyio.run(keys.using, keys.job(), tried)["v2"]


def test_the_keys_are_listed_with_what_can_be_known(keys: KmsKeys) -> None:
    """State, aliases, rotation of the material, and permissions as dry runs show them."""
    name = f"alias/{keys.aws.new_name()}"
    keys.client.create_alias(AliasName=name, TargetKeyId=keys.new)
    keys.client.enable_key_rotation(KeyId=keys.new)
    keys.client.disable_key(KeyId=keys.old.rpartition("/")[2])
    keys.named["gone"] = OTHER_KEY
    old, new, gone = anyio.run(list_keys, keys.job(), {})
    assert (old.usable, old.state.split(",")[0], len(old.permissions)) == (False, "disabled", 1)
    assert (new.usable, new.labels) == (True, (name,))
    assert new.state.startswith("enabled, material rotated")
    assert new.created is not None
    assert new.fingerprint
    assert {one.verb: one.allowed for one in new.permissions} == {
        "describe": True, "re-encrypt": True, "encrypt": True, "decrypt": True,
    }  # fmt: skip
    assert (gone.usable, gone.fingerprint) == (False, None)
    assert "is not there" in gone.state


def test_permissions_are_those_that_dry_runs_show(keys: KmsKeys) -> None:
    """KMS answers a dry run with an error in either case; what takes a value is unknown without one."""
    proxy = keys.aws.proxy
    proxy.add(aws_error("DryRunOperationException", 412), "ReEncrypt")
    proxy.add(denied("Decrypt", "no"), "Decrypt")
    for operation in ("ListAliases", "GetKeyRotationStatus"):
        proxy.add(denied(operation, "no"), operation)

    def allowed() -> dict[str, bool | None]:
        found = anyio.run(list_keys, keys.job(), {})[0]
        assert (found.state, found.labels) == ("enabled", ())
        return {one.permission: one.allowed for one in found.permissions if one.verb != "describe"}

    assert allowed() == {"kms:ReEncrypt*": True, "kms:Encrypt": True, "kms:Decrypt": False}
    proxy.add(denied("Encrypt", "no"), "Encrypt")
    assert allowed() == {"kms:ReEncrypt*": None, "kms:Encrypt": False, "kms:Decrypt": None}


def test_a_job_says_how_it_is_wrong(keys: KmsKeys) -> None:
    """Associated data have to be an object; what is in `keys` has to name a key."""
    with pytest.raises(JobError, match="binds to an object of texts"):
        keys.job(aad='aad = "{org_id}"')
    keys.named["v2"] = "orders"
    with pytest.raises(JobError, match=r"keys\.aws-kms\.keys\.v2: names no key"):
        keys.job()


def test_another_key_beside_them_does_not_change_what_a_job_is(keys: KmsKeys) -> None:
    """A run that is under way goes on after the next key was added to the file."""
    before = keys.job().digest
    keys.named["v3"] = OTHER_KEY
    assert keys.job().digest == before


def test_without_the_package_one_line_says_what_to_install(
    keys: KmsKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else needs it."""
    job = keys.job()
    monkeypatch.setitem(sys.modules, "boto3", None)
    for name in ("aws", "kms", "awskms"):
        monkeypatch.delitem(sys.modules, f"rewrap.keys.{name}", raising=False)
    with pytest.raises(UsageError) as caught:
        anyio.run(open_keyring, job, ["v1"])
    assert caught.value.exit_code == 2
    assert caught.value.hint == "pip install 'rewrap[aws]'"


RUN_JOB = """
name = "test"
[stores.main]
kind = "postgres"
url = "${{DATABASE_URL}}"
[keys]
provider = "aws-kms"
in_flight = 8
[keys.aws-kms]
endpoint = "{endpoint}"
{keys}
[layouts.wrapped]
{marked}
encoding = "{encoding}"
cipher = "aws-kms"
{aad}
[layouts.wrapped-url]
marker = "kms.{{version}}:"
version = "v[0-9]"
encoding = "base64url"
cipher = "aws-kms"
[pace]
batch_size = 4
[[targets]]
table = "org_deks"
fields = [{{ column = "wrapped_dek", layout = "wrapped", version = {{ column = "key_id" }}{change} }}]
"""

ORGS = 32


class OrgDeks:
    """A table of data keys that boto3 has wrapped, each row naming its key as KMS answered."""

    def __init__(self, bench: Workbench, keys: KmsKeys) -> None:
        self.bench, self.keys = bench, keys
        bench.environ |= keys.aws.environ
        self.made = {f"org-{n:03}": secrets.token_bytes(32) for n in range(ORGS)}
        bench.sql("CREATE TABLE org_deks (org_id text PRIMARY KEY, wrapped_dek text, key_id text)")
        rows = [
            (org, b64encode(keys.wrap(keys.old, dek)).decode(), keys.old) for org, dek in self.made.items()
        ]
        bench.insert("org_deks", ["org_id", "wrapped_dek", "key_id"], rows)
        self.job()

    def job(self, **given: str) -> None:
        more = {"keys": "", "encoding": "base64", "aad": "", "change": "", "marked": "", **given}
        text = RUN_JOB.format(endpoint=self.keys.aws.endpoint, **more)
        (self.bench.folder / "rewrap.toml").write_text(text)

    def run(self, *arguments: str, names: tuple[str, str] | None = None) -> Result:
        old, new = names or (self.keys.old, self.keys.new)
        return self.bench.rewrap(
            "run", "--from", old, "--to", new, "--allow-unseen-target", "--json", *arguments
        )

    def fewer(self) -> None:
        """Leaves ten of them, where their number does not matter."""
        self.bench.sql("DELETE FROM org_deks WHERE org_id >= 'org-010'")

    @property
    def under(self) -> dict[str, int]:
        return dict(self.bench.sql("SELECT key_id, count(*) FROM org_deks GROUP BY 1"))

    def quarantined(self) -> list[str]:
        events = self.bench.rewrap("quarantine", "list", "--json", "--keys").events
        return [str(event["row_id"]) for event in events]

    def opens(self) -> None:
        """Every record opens, for boto3, to the data key that it was made of, under the key that it names."""
        for org, wrapped, key_id in self.bench.sql("SELECT * FROM org_deks"):
            assert self.keys.unwrap(key_id, b64decode(wrapped)) == self.made[org]


def verified(bench: Workbench) -> bool:
    """Whether `rewrap verify --deep` is complete."""

    async def work() -> bool:
        return (await verify(load(bench), deep=True, environ=bench.environ)).verdict.complete

    return anyio.run(work)


@pytest.fixture
def org_deks(bench: Workbench, keys: KmsKeys) -> OrgDeks:
    return OrgDeks(bench, keys)


def test_a_rotation_is_throttled_disabled_killed_resumed_and_verified(org_deks: OrgDeks) -> None:
    """Nothing is put aside on the way, no data key comes here, and in the end each opens as it should."""
    keys, bench, proxy = org_deks.keys, org_deks.bench, org_deks.keys.aws.proxy
    hidden = [row[0] for row in bench.sql("SELECT wrapped_dek FROM org_deks")]
    key_id = keys.old.rpartition("/")[2]
    proxy.seen.clear()
    proxy.add(aws_error("ThrottlingException"), "ReEncrypt", skip=35, times=1)
    proxy.add(Meanwhile(lambda _: keys.client.disable_key(KeyId=key_id)), "ReEncrypt", skip=56, times=1)
    stopped = org_deks.run()
    assert stopped.code == 10, stopped.err
    assert f"aws kms enable-key --key-id {keys.old}" in stopped.err
    assert org_deks.quarantined() == []
    assert 0 < org_deks.under[keys.old] < ORGS
    proxy.clear()
    # what cannot be opened is not touched either by another try
    assert bench.rewrap("resume").code == 10
    assert org_deks.quarantined() == []

    keys.client.enable_key(KeyId=key_id)
    org_deks.opens()
    before, killed = org_deks.under[keys.old], threading.Event()

    def hold(_: str) -> None:
        # what comes after the first batch is not answered before the process is gone
        if org_deks.under[keys.old] < before:
            killed.wait(WAIT_S)

    proxy.add(Meanwhile(hold), "ReEncrypt")
    with bench.started("resume") as process:
        wait_while(process, lambda: org_deks.under[keys.old] < before)
        process.kill()
    killed.set()
    proxy.clear()
    org_deks.opens()
    assert keys.old in org_deks.under

    done = bench.rewrap("resume", "--json", "--debug")
    assert done.code == 0, done.err
    assert org_deks.under == {keys.new: ORGS}
    org_deks.opens()
    deep = bench.rewrap("verify", "--deep", "--json")
    assert (deep.code, deep.event("verdict")["complete"]) == (0, True), deep.err
    assert org_deks.quarantined() == []
    # the identity needs neither kms:Decrypt nor kms:Encrypt
    assert set(proxy.counts()) == {"DescribeKey", "ReEncrypt"}

    said = "".join(one.out + one.err for one in (stopped, done, deep)).encode()
    kept = said + b"".join(path.read_bytes() for path in bench.folder.iterdir() if path.is_file())
    hidden += [row[0] for row in bench.sql("SELECT wrapped_dek FROM org_deks")]
    hidden += [form for dek in org_deks.made.values() for form in (dek.hex(), b64encode(dek).decode())]
    hidden.append(keys.aws.environ["AWS_SECRET_ACCESS_KEY"])
    assert [one for one in hidden if one.encode() in kept] == []


def test_a_row_that_was_moved_to_another_tenant_is_put_aside_and_no_other(org_deks: OrgDeks) -> None:
    """The encryption context comes from the row: one whose tenant changed does not open."""
    keys, bench = org_deks.keys, org_deks.bench
    bench.sql("DROP TABLE org_deks")
    bench.sql("CREATE TABLE org_deks (id int PRIMARY KEY, org_id text, wrapped_dek bytea, key_id text)")
    made = [secrets.token_bytes(32) for _ in range(12)]
    rows = [(n, f"org-{n}", keys.wrap(keys.old, dek, tenant=f"org-{n}"), "v1") for n, dek in enumerate(made)]
    bench.insert("org_deks", ["id", "org_id", "wrapped_dek", "key_id"], rows)
    bench.sql("UPDATE org_deks SET org_id = 'org-moved' WHERE id = 5")
    named = f'keys = {{ v1 = "{keys.old}", v2 = "{keys.new}" }}'
    org_deks.job(keys=named, encoding="raw", aad=TENANT)
    done = org_deks.run(names=("v1", "v2"))
    assert done.code == 3, done.err
    assert org_deks.quarantined() == ["5"]
    found = bench.sql("SELECT * FROM org_deks ORDER BY id")
    assert [row["key_id"] for row in found] == ["v1" if n == 5 else "v2" for n in range(12)]
    assert found[5]["wrapped_dek"] == rows[5][2]
    for row, dek in zip(found, made, strict=True):
        if row["id"] != 5:
            assert keys.unwrap(keys.new, row["wrapped_dek"], tenant=row["org_id"]) == dek
    # moved back, it opens again
    bench.sql("UPDATE org_deks SET org_id = 'org-5' WHERE id = 5")
    assert org_deks.run(names=("v1", "v2")).code == 0
    assert verified(bench)


def test_a_change_of_layout_takes_the_data_keys_here(org_deks: OrgDeks) -> None:
    """By Decrypt and Encrypt, each under the key that it says."""
    keys, bench = org_deks.keys, org_deks.bench
    org_deks.fewer()
    bench.sql("UPDATE org_deks SET wrapped_dek = 'v1:' || wrapped_dek")
    named = f'keys = {{ v1 = "{keys.old}", v2 = "{keys.new}" }}'
    org_deks.job(
        keys=named, marked='marker = "{version}:"\nversion = "v[0-9]"', change=', to_layout = "wrapped-url"'
    )
    path = bench.folder / "rewrap.toml"
    path.write_text(path.read_text().replace(', version = { column = "key_id" }', ""))
    keys.aws.proxy.seen.clear()
    assert run_here(bench).exit_code == 0
    assert set(keys.aws.proxy.counts()) == {"DescribeKey", "Decrypt", "Encrypt"}
    for org, wrapped, _ in bench.sql("SELECT * FROM org_deks"):
        raw = b64decode(wrapped.removeprefix("kms.v2:"), altchars=b"-_")
        assert keys.unwrap(keys.new, raw) == org_deks.made[org]


def test_values_that_name_no_key_are_found_by_opening_them(org_deks: OrgDeks) -> None:
    """Without a column for it: which key a ciphertext is under, KMS says."""
    keys, bench = org_deks.keys, org_deks.bench
    org_deks.fewer()
    org_deks.job(keys=f'keys = {{ v1 = "{keys.old}", v2 = "{keys.new}" }}')
    path = bench.folder / "rewrap.toml"
    path.write_text(path.read_text().replace(', version = { column = "key_id" }', ""))
    assert run_here(bench).exit_code == 0
    for org, wrapped, _ in bench.sql("SELECT * FROM org_deks"):
        assert keys.unwrap(keys.new, b64decode(wrapped)) == org_deks.made[org]


def test_check_and_plan_say_what_can_be_known(org_deks: OrgDeks) -> None:
    """The keys tried in KMS and on stored values; two calls a value, at the quota that is least."""
    keys, bench = org_deks.keys, org_deks.bench
    versions = ("--from", keys.old, "--to", keys.new, "--json")
    checked = bench.rewrap("check", *versions)
    assert checked.code == 0, checked.out
    told = {(one["subject"], one["code"]) for one in checked.events if one["type"] == "finding"}
    assert {(f"key {key}", "key-unwraps") for key in (keys.old, keys.new)} <= told
    assert (f"key {keys.old}", "key-proven") in told
    (unnamed,) = [one for one in checked.events if one.get("code") == "key-no-list"]
    assert "keys.aws-kms.keys" in unnamed["hint"]
    forecast = bench.rewrap("plan", *versions).event("plan")["forecast"]
    assert forecast["remote_calls"]["low"] == 2 * ORGS
    assert "10,000 calls/s: the least quota of any region" in forecast["derived_from"]["remote_calls"]
    keys.client.disable_key(KeyId=keys.old.rpartition("/")[2])
    checked = bench.rewrap("check", *versions)
    (error,) = [one for one in checked.events if one.get("severity") == "error"]
    assert (error["code"], error["subject"]) == ("key-disabled", f"key {keys.old}")


FRESH_JOB = (
    """
name = "test"
[stores.main]
kind = "postgres"
url = "${{DATABASE_URL}}"
[keys]
provider = "aws-kms"
[keys.aws-kms]
endpoint = "{endpoint}"
keys = {{ v1 = "{old}", v2 = "{new}" }}
[layouts.mek]
encoding = "base64"
cipher = "aws-kms"
aad = {{ tenant = "{{tenant}}" }}
[layouts.field]
encoding = "base64"
cipher = "aes-256-gcm"
[deks.notes]
table = "deks"
wrapped = {{ column = "wrapped_dek", layout = "mek", version = {{ column = "mek_version" }} }}
copied = ["tenant"]
[[targets]]
table = "notes"
dek = "notes"
"""
    + f"fields = [{BODY.replace('{', '{{').replace('}', '}}')}]\n"
)


def test_documents_get_fresh_data_keys_that_kms_wraps(bench: Workbench, keys: KmsKeys) -> None:
    """Data keys of GenerateDataKey are unwrapped by Decrypt, and the fresh ones are wrapped by Encrypt."""
    bench.environ |= keys.aws.environ
    job = FRESH_JOB.format(endpoint=keys.aws.endpoint, old=keys.old, new=keys.new)
    (bench.folder / "rewrap.toml").write_text(job)
    bench.sql("CREATE TABLE deks (id text PRIMARY KEY, tenant text, wrapped_dek text, mek_version text)")
    bench.sql("CREATE TABLE notes (id bigint PRIMARY KEY, doc jsonb)")
    for n in range(8):
        made = keys.client.generate_data_key(
            KeyId=keys.old, KeySpec="AES_256", EncryptionContext={"tenant": f"t{n % 3}"}
        )
        wrapped, nonce = b64encode(made["CiphertextBlob"]).decode(), secrets.token_bytes(12)
        sealed = AESGCM(made["Plaintext"]).encrypt(nonce, f"note {n}".encode(), None)
        parts = {"iv": nonce, "tag": sealed[-16:], "ct": sealed[:-16]}
        body = {"dekId": f"d{n}", **{name: b64encode(raw).decode() for name, raw in parts.items()}}
        bench.sql("INSERT INTO deks VALUES ($1, $2, $3, 'v1')", f"d{n}", f"t{n % 3}", wrapped)
        bench.sql("INSERT INTO notes VALUES ($1, $2::jsonb)", n, json.dumps({"body": body}))
    keys.aws.proxy.seen.clear()
    assert run_here(bench).exit_code == 0
    assert set(keys.aws.proxy.counts()) == {"DescribeKey", "Decrypt", "Encrypt"}
    found = bench.sql(
        "SELECT n.id, n.doc::text, d.* FROM notes n JOIN deks d ON d.id = n.doc #>> '{body,dekId}' "
        "WHERE d.mek_version = 'v2'"
    )
    assert len(found) == 8
    for number, doc, _, tenant, wrapped, _ in found:
        body = {name: b64decode(text) for name, text in json.loads(doc)["body"].items() if name != "dekId"}
        dek = keys.unwrap(keys.new, b64decode(wrapped), tenant=tenant)
        assert AESGCM(dek).decrypt(body["iv"], body["ct"] + body["tag"], None) == f"note {number}".encode()
    assert verified(bench)
