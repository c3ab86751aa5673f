"""What holds of every keeper of RSA keys: local files, and a vault with its rights, limits and faults."""

from __future__ import annotations

import logging
import secrets
import time
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from itertools import pairwise
from typing import Any, Protocol, TypeVar

import anyio
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from rewrap.crypto.ciphers import CIPHERS
from rewrap.errors import KeyAccessError, RewrapError
from rewrap.job import Job
from rewrap.keys.azure import KeyVault
from rewrap.keys.keyring import Keyring
from rewrap.keys.open import open_keyring
from rewrap.keys.vault import open_vault
from tests.support.proxy import Answer, Delay, Drop, Fault, forbidden, slowed_down
from tests.support.vault import VaultEmulator, VaultServer

T = TypeVar("T")

TARGETS = """
[layouts.wrapped]
encoding = "base64"
cipher = "{cipher}"
[[targets]]
table = "deks"
fields = [{{ column = "wrapped_dek", layout = "wrapped", version = {{ column = "mek_version" }} }}]
"""

LOCAL = """
name = "test"
[stores.main]
kind = "postgres"
url = "postgresql://h/d"
[keys.versions.{old}]
material = "env:OLD"
encoding = "pem"
[keys.versions.{new}]
material = "env:NEW"
encoding = "pem"
"""

VAULT = """
name = "test"
[stores.main]
kind = "postgres"
url = "postgresql://h/d"
[keys]
provider = "azure-key-vault"
vault = "{vault}"
name = "{name}"
{keys}
"""


PLAIN_PEM = Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()


class Keeper(Protocol):
    """One key in two versions, and an application that wraps under them; `job` rotates what it wrapped."""

    old: str
    new: str

    def wrap(self, version: str, secret: bytes, algorithm: str = "RSA-OAEP-256") -> bytes: ...

    def opened(self, *, cipher: str = "rsa-oaep-256") -> AbstractAsyncContextManager[Keyring]: ...


class LocalKeys:
    """Two RSA keys in PEM, in environment variables."""

    old, new = "v1", "v2"

    def __init__(self) -> None:
        self._keys = {version: rsa.generate_private_key(65537, 2048) for version in (self.old, self.new)}

    def wrap(self, version: str, secret: bytes, algorithm: str = "RSA-OAEP-256") -> bytes:
        hash = hashes.SHA256() if algorithm.endswith("-256") else hashes.SHA1()
        how = padding.OAEP(padding.MGF1(hash), hash, None)
        return self._keys[version].public_key().encrypt(secret, how)

    @asynccontextmanager
    async def opened(self, *, cipher: str = "rsa-oaep-256") -> Any:
        job = Job.parse(LOCAL.format(old=self.old, new=self.new) + TARGETS.format(cipher=cipher))
        environ = {
            name: self._keys[version]
            .private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            .decode()
            for name, version in (("OLD", self.old), ("NEW", self.new))
        }
        keyring = await open_keyring(job, [self.old, self.new], environ)
        yield keyring
        await keyring.close()


class VaultKeys:
    """Two versions of one key in a vault."""

    def __init__(self, vault: VaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.vault, self.name = vault, vault.new_name()
        self.old, self.new = vault.create_version(self.name), vault.create_version(self.name)
        if vault.ca is not None:
            monkeypatch.setenv("SSL_CERT_FILE", str(vault.ca))

    def wrap(self, version: str, secret: bytes, algorithm: str = "RSA-OAEP-256") -> bytes:
        return self.vault.wrap(self.name, version, secret, algorithm)

    def job(self, keys: str = "", cipher: str = "rsa-oaep-256") -> Job:
        text = VAULT.format(vault=self.vault.url, name=self.name, keys=keys)
        return Job.parse(text + TARGETS.format(cipher=cipher))

    async def keyring(self, job: Job, *versions: str) -> Keyring:
        return await open_vault(job, versions, [], self.vault.credential())

    @asynccontextmanager
    async def opened(self, *, cipher: str = "rsa-oaep-256", keys: str = "") -> Any:
        keyring = await self.keyring(self.job(keys, cipher), self.old, self.new)
        try:
            yield keyring
        finally:
            await keyring.close()


@pytest.fixture(params=["local", "vault"])
def keeper(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Keeper:
    if request.param == "local":
        return LocalKeys()
    return VaultKeys(request.getfixturevalue("vault"), monkeypatch)


@pytest.fixture
def kept(vault_emulator: VaultEmulator, monkeypatch: pytest.MonkeyPatch) -> VaultKeys:
    """Keys in the vault that refuses on cue."""
    return VaultKeys(vault_emulator, monkeypatch)


def working(work: Callable[[], Awaitable[T]]) -> T:
    """The result of some asynchronous work."""
    return anyio.run(work)


async def opened_of(
    keyring: Keyring, version: str, wrapped: list[bytes], cipher: str = "rsa-oaep-256"
) -> list[bytes | None]:
    """What some wrapped keys open to under a version, as the engine has it; None for what does not open."""
    opener = CIPHERS[cipher].opener(keyring.get(version).secret)

    def one(value: bytes) -> bytes | None:
        try:
            return opener([value], None, 0)[0]
        except ValueError:
            return None

    return await keyring.resolved(lambda: [one(value) for value in wrapped])


def refusal(work: Callable[[], Awaitable[object]]) -> KeyAccessError:
    """The error with which some work ends: exit 10, with a hint."""
    with pytest.raises(KeyAccessError) as caught:
        anyio.run(work)
    assert caught.value.exit_code == 10
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("cipher", "algorithm"), [("rsa-oaep-256", "RSA-OAEP-256"), ("rsa-oaep", "RSA-OAEP")]
)
def test_the_right_key_opens_what_the_application_wrapped(
    keeper: Keeper, cipher: str, algorithm: str
) -> None:
    """Each of many, in order, under either algorithm."""
    made = [secrets.token_bytes(32) for _ in range(20)]
    wrapped = [keeper.wrap(keeper.old, one, cipher.upper()) for one in made]

    async def work() -> list[bytes | None]:
        async with keeper.opened(cipher=cipher) as keyring:
            return await opened_of(keyring, keeper.old, wrapped, cipher)

    assert working(work) == made


def test_what_is_sealed_here_opens_there(keeper: Keeper) -> None:
    """Wrapping takes the public key alone; the keeper opens it."""
    made = [secrets.token_bytes(size) for size in (1, 16, 32, 64)]

    async def work() -> list[bytes | None]:
        async with keeper.opened() as keyring:
            wrapped = CIPHERS["rsa-oaep-256"].sealer(keyring.get(keeper.new).secret)(made, None)
            return await opened_of(keyring, keeper.new, wrapped)

    assert working(work) == made


def test_the_wrong_version_and_what_was_tampered_with_do_not_open(keeper: Keeper) -> None:
    """They are values that do not open, and no reason to stop: a wrong key shows by their number."""
    good = keeper.wrap(keeper.old, secrets.token_bytes(32))
    bad = [
        keeper.wrap(keeper.new, secrets.token_bytes(32)),
        bytes([good[0], good[1] ^ 1, *good[2:]]),
        good[:-1],
        good + b"\0",
        b"",
        b"\0" * len(good),
        b"\xff" * len(good),
        keeper.wrap(keeper.old, secrets.token_bytes(32), "RSA-OAEP"),
    ]

    async def work() -> list[bytes | None]:
        async with keeper.opened() as keyring:
            return await opened_of(keyring, keeper.old, [good, *bad])

    first, *rest = working(work)
    assert first is not None
    assert rest == [None] * len(bad)


def test_versions_have_keys_of_their_own(keeper: Keeper) -> None:
    """A fingerprint and a commitment tell two versions apart, and say nothing of the key."""

    async def work() -> Keyring:
        async with keeper.opened() as keyring:
            keyring.require_distinct([keeper.old], keeper.new)
            return keyring

    keyring = working(work)
    old, new = keyring.get(keeper.old), keyring.get(keeper.new)
    assert old.fingerprint != new.fingerprint
    assert old.commitment != new.commitment
    assert old.secret.hex() not in repr(keyring)
    assert set(keyring.known) == {keeper.old, keeper.new}


def test_a_value_takes_one_call(kept: VaultKeys) -> None:
    """What was opened is not asked for twice; what cannot be a wrapped key is not asked for at all."""
    made = [secrets.token_bytes(32) for _ in range(30)]
    wrapped = [kept.wrap(kept.old, one) for one in made]
    emulator = kept.vault
    assert isinstance(emulator, VaultEmulator)

    async def work() -> list[bytes | None]:
        async with kept.opened() as keyring:
            found = await opened_of(keyring, kept.old, [*wrapped, b"too short", wrapped[0]])
            assert keyring.spent()["vault_calls"] >= len(made)
            return found

    before = emulator.proxy.counts()["unwrapkey"]
    assert working(work) == [*made, None, made[0]]
    assert emulator.proxy.counts()["unwrapkey"] - before == len(made)


def test_no_more_calls_are_under_way_than_allowed(kept: VaultKeys) -> None:
    """Twelve calls of a fifth of a second, three at a time, take four fifths."""
    emulator = kept.vault
    assert isinstance(emulator, VaultEmulator)
    wrapped = [kept.wrap(kept.old, secrets.token_bytes(32)) for _ in range(12)]
    emulator.proxy.add(Delay(0.2), "unwrapkey")

    async def work() -> float:
        async with kept.opened(keys="in_flight = 3") as keyring:
            started = time.monotonic()
            assert None not in await opened_of(keyring, kept.old, wrapped)
            return time.monotonic() - started

    assert working(work) >= 0.8


def test_calls_are_paced_to_the_budget(kept: VaultKeys) -> None:
    """So many a second, from the first to the last, whatever the vault would take."""
    wrapped = [kept.wrap(kept.old, secrets.token_bytes(32)) for _ in range(20)]

    async def work() -> float:
        async with kept.opened(keys="max_calls_per_s = 10") as keyring:
            started = time.monotonic()
            assert None not in await opened_of(keyring, kept.old, wrapped)
            return time.monotonic() - started

    # twenty at ten a second take two seconds, less the burst of a quarter of one
    assert working(work) >= 1.6


def test_a_throttled_vault_is_waited_for_as_long_as_it_asks(kept: VaultKeys) -> None:
    """Retry-After holds for every caller: nothing is sent before it has passed; then all is done."""
    emulator = kept.vault
    assert isinstance(emulator, VaultEmulator)
    wrapped = [kept.wrap(kept.old, secrets.token_bytes(32)) for _ in range(12)]
    emulator.proxy.add(slowed_down(2), "unwrapkey", skip=4, times=1)

    async def work() -> list[bytes | None]:
        async with kept.opened(keys="in_flight = 1") as keyring:
            return await opened_of(keyring, kept.old, wrapped)

    assert None not in working(work)
    calls = [one.at for one in emulator.proxy.seen if one.kind == "unwrapkey"]
    longest = max(later - earlier for earlier, later in pairwise(calls))
    assert len(calls) == len(wrapped) + 1
    assert longest >= 2.0


def test_a_vault_throttled_without_end_is_given_up(kept: VaultKeys) -> None:
    """After the patience of the job, and not before: exit 10, for a later resume."""
    emulator = kept.vault
    assert isinstance(emulator, VaultEmulator)
    wrapped = [kept.wrap(kept.old, secrets.token_bytes(32)) for _ in range(8)]
    emulator.proxy.add(slowed_down(), "unwrapkey")

    async def work() -> None:
        async with kept.opened(keys="patience_s = 3") as keyring:
            await opened_of(keyring, kept.old, wrapped)

    started = time.monotonic()
    error = refusal(work)
    assert error.code == "key-away"
    assert "throttled" in error.message
    assert time.monotonic() - started >= 0.9


def test_a_vault_that_asks_for_too_long_a_wait_is_not_waited_for(kept: VaultKeys) -> None:
    """An hour of Retry-After is over the patience at once."""
    emulator = kept.vault
    assert isinstance(emulator, VaultEmulator)
    wrapped = [kept.wrap(kept.old, secrets.token_bytes(32))]
    emulator.proxy.add(slowed_down(3_600), "unwrapkey")

    async def work() -> None:
        async with kept.opened() as keyring:
            await opened_of(keyring, kept.old, wrapped)

    started = time.monotonic()
    assert refusal(work).code == "key-away"
    assert time.monotonic() - started < 200


@pytest.mark.parametrize(
    ("fault", "given", "said"),
    [
        (slowed_down(20), {}, "throttling by the vault, for"),
        (slowed_down(), {}, "throttling by the vault, for"),
        (Answer(503), {}, "a vault that answers 503, for"),
        (Drop(), {}, "a vault that does not answer, for"),
        (None, {}, "the pace of 400 calls/s (the limit for RSA-2048 software keys)"),
        (None, {"calls_per_s": 4.0}, "the pace of 4 calls/s (as the job says)"),
        (None, {"in_flight": 1}, "1 under way in the vault"),
    ],
)
def test_the_vault_says_what_its_calls_wait_for(
    kept: VaultKeys, fault: Fault | None, given: dict[str, Any], said: str
) -> None:
    """While one waits; nothing, when none does."""
    emulator = kept.vault
    assert isinstance(emulator, VaultEmulator)
    wrapped = kept.wrap(kept.old, secrets.token_bytes(32))

    async def work() -> None:
        vault = KeyVault(emulator.url, kept.name, credential=emulator.credential(), **given)
        try:
            await vault.describe(kept.old)
            assert vault.gate.reason == ""
            if fault is not None:
                emulator.proxy.add(fault, "unwrapkey")
            async with anyio.create_task_group() as group, vault.gate.passed(0):
                if "in_flight" not in given:
                    # as after many calls at once
                    vault.gate.accepted(0.0, 0.0 if fault is not None else 4_000.0)
                group.start_soon(vault.unwrap, kept.old, "rsa-oaep-256", [wrapped])
                with anyio.fail_after(60):
                    while said not in vault.gate.reason:
                        await anyio.sleep(0.01)
                group.cancel_scope.cancel()
            assert vault.gate.reason == ""
        finally:
            await vault.close()

    working(work)


def test_another_keys_answer_is_not_believed(kept: VaultKeys) -> None:
    """What answers in the vault's place names another key: nothing that it says is taken for a data key."""
    emulator = kept.vault
    assert isinstance(emulator, VaultEmulator)
    wrapped = [kept.wrap(kept.old, secrets.token_bytes(32)) for _ in range(4)]
    other = Answer(200, {}, '{"kid":"https://other/keys/x/0","value":"%s"}' % ("A" * 43))
    emulator.proxy.add(other, "unwrapkey", skip=1)

    async def work() -> None:
        async with kept.opened() as keyring:
            await opened_of(keyring, kept.old, wrapped)

    error = refusal(work)
    assert error.code == "key-refused"
    assert "another key" in error.message


@pytest.mark.parametrize("fault", [Answer(503), Answer(500), Drop(), Drop(applied=True)], ids=str)
def test_a_passing_fault_is_tried_again(kept: VaultKeys, fault: Answer | Drop) -> None:
    """An error of the server, and a connection that drops before or after the call was made."""
    emulator = kept.vault
    assert isinstance(emulator, VaultEmulator)
    made = [secrets.token_bytes(32) for _ in range(6)]
    wrapped = [kept.wrap(kept.old, one) for one in made]
    emulator.proxy.add(fault, "unwrapkey", skip=2, times=2)

    async def work() -> list[bytes | None]:
        async with kept.opened() as keyring:
            return await opened_of(keyring, kept.old, wrapped)

    assert working(work) == made


@pytest.mark.parametrize(
    ("allowed", "said"),
    [(("list", "unwrapKey"), "keys/get"), (("get", "list"), "keys/unwrapKey")],
    ids=["get", "unwrapKey"],
)
def test_a_missing_permission_is_named(kept: VaultKeys, allowed: tuple[str, ...], said: str) -> None:
    """Exit 10: no value is at fault, and the hint says what to grant."""
    emulator = kept.vault
    assert isinstance(emulator, VaultEmulator)
    wrapped = [kept.wrap(kept.old, secrets.token_bytes(32)) for _ in range(4)]
    emulator.permit(*allowed)

    async def work() -> None:
        async with kept.opened() as keyring:
            await opened_of(keyring, kept.old, wrapped)

    error = refusal(work)
    assert error.code == "key-not-permitted"
    assert said in str(error.hint)
    assert kept.old in error.message


def test_a_disabled_version_is_refused(kept: VaultKeys) -> None:
    """When a keyring is opened, and when it was disabled only after that."""
    wrapped = [kept.wrap(kept.old, secrets.token_bytes(32)) for _ in range(4)]

    async def late() -> None:
        async with kept.opened() as keyring:
            await anyio.to_thread.run_sync(kept.vault.disable, kept.name, kept.old)
            await opened_of(keyring, kept.old, wrapped)

    async def early() -> None:
        async with kept.opened():
            pass

    for work in (late, early):
        error = refusal(work)
        assert error.code == "key-disabled"
        assert kept.old in error.message


def test_what_is_not_there_is_named_with_what_is(kept: VaultKeys) -> None:
    """A version of another key, a text that is no version, a key that there is not."""

    async def opens(job: Job, version: str) -> None:
        await (await kept.keyring(job, version)).close()

    error = refusal(partial(opens, kept.job(), "0" * 32))
    assert error.code == "key-missing"
    assert kept.old in str(error.hint)
    assert refusal(partial(opens, kept.job(), "../../secrets/x")).code == "key-missing"
    other = Job.parse(
        VAULT.format(vault=kept.vault.url, name="no-such-key", keys="")
        + TARGETS.format(cipher="rsa-oaep-256")
    )
    assert refusal(partial(opens, other, kept.old)).code == "key-missing"


def test_a_vault_that_is_not_there_is_given_up_soon(kept: VaultKeys) -> None:
    """A name that is wrong is no outage: seconds, and not the patience of a run."""
    job = Job.parse(
        VAULT.format(vault="https://127.0.0.1:9", name=kept.name, keys="patience_s = 2")
        + TARGETS.format(cipher="rsa-oaep-256")
    )

    async def work() -> None:
        await (await kept.keyring(job, kept.old)).close()

    assert refusal(work).code == "key-away"


def test_a_certificate_that_is_not_trusted_is_no_outage(
    kept: VaultKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told at once, and nothing is sent."""
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.setattr("rewrap.keys.service.FIRST_S", 120.0)
    started = time.monotonic()

    async def work() -> None:
        async with kept.opened():
            pass

    assert "certificate" in refusal(work).message
    assert time.monotonic() - started < 120


def test_nothing_secret_is_logged_or_said(kept: VaultKeys, caplog: pytest.LogCaptureFixture) -> None:
    """Neither wrapped nor unwrapped keys nor tokens, with every logger at its loudest."""
    emulator = kept.vault
    assert isinstance(emulator, VaultEmulator)
    made = [secrets.token_bytes(32) for _ in range(4)]
    wrapped = [kept.wrap(kept.old, one) for one in made]
    caplog.set_level(logging.DEBUG)
    said: list[str] = []

    async def work() -> None:
        async with kept.opened() as keyring:
            assert await opened_of(keyring, kept.old, wrapped) == made
            said.append(repr(keyring) + repr(keyring.get(kept.old).remote))
            for fault in (forbidden(), slowed_down(3_600)):
                emulator.proxy.add(fault, "unwrapkey", times=1)
                try:
                    await opened_of(keyring, kept.old, [kept.wrap(kept.old, made[0])])
                except RewrapError as exc:
                    said.append(f"{exc!r} {exc.hint} {exc.__cause__!r} {exc.__context__!r}")
                emulator.proxy.clear()

    working(work)
    everything = caplog.text + "".join(said)
    assert len(said) == 3
    hidden = [*made, *wrapped]
    forms = [form for one in hidden for form in (_base64(one), one.hex(), repr(one))]
    tokens = [token for token in emulator.service.tokens if token]
    assert [form for form in (*forms, *tokens) if form in everything] == []


def _base64(value: bytes) -> str:
    return urlsafe_b64encode(value).rstrip(b"=").decode()


def test_a_token_that_ends_on_the_way_is_replaced(kept: VaultKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run outlives its token, and nothing is lost."""
    emulator = kept.vault
    assert isinstance(emulator, VaultEmulator)
    made = [secrets.token_bytes(32) for _ in range(12)]
    wrapped = [kept.wrap(kept.old, one) for one in made]
    monkeypatch.setattr(emulator.service, "token_s", 2.0)

    async def work() -> list[bytes | None]:
        # three seconds of calls
        async with kept.opened(keys="max_calls_per_s = 4") as keyring:
            return await opened_of(keyring, kept.old, wrapped)

    before = emulator.proxy.counts()["token"]
    assert working(work) == made
    assert emulator.proxy.counts()["token"] - before >= 2
