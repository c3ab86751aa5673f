"""Keys in a transit engine: what a real server answers, and what it comes to."""

from __future__ import annotations

import base64
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from rewrap.errors import KeyAccessError, KeyRefused
from rewrap.job import Job
from rewrap.keys import transitserver
from rewrap.keys.keyring import Keyring, RewrappingKey, TriedKey
from rewrap.keys.open import open_keyring
from rewrap.keys.transit import list_keys
from tests.support.proxy import Answer
from tests.support.transit import RATE_LIMITED, RULES, TransitEngine

JOB = """
name = "test"
[stores.main]
kind = "postgres"
url = "postgresql://h/d"
[keys]
provider = "vault-transit"
patience_s = 5
{keys}
[keys.vault-transit]
address = "{address}"
name = "{name}"
token = "{token}"
[layouts.value]
like = "vault-transit"
{layout}
[[targets]]
table = "notes"
fields = [{{ column = "body", layout = "value"{to} }}]
"""

AAD = 'aad = "{account_id}"'


def job(engine: TransitEngine, name: str, layout: str = "", to: str = "", **given: str) -> Job:
    text = JOB.format(
        address=given.get("address", engine.address), name=name, layout=layout, to=to,
        token=given.get("token", "env:VAULT_TOKEN"), keys=given.get("keys", ""),
    )  # fmt: skip
    return Job.parse(text)


@asynccontextmanager
async def opened(found: Job, token: str, *versions: str, target: str = "2") -> AsyncIterator[Keyring]:
    """The keyring of a run to a version."""
    keyring = await open_keyring(found, versions or ("1", "2"), {"VAULT_TOKEN": token}, wanted=[])
    try:
        if found.rewraps_in_place and target in keyring:
            keyring.rewrap_in_place(target)
        yield keyring
    finally:
        await keyring.close()


def remote(keyring: Keyring, version: str) -> RewrappingKey:
    key = keyring.get(version).remote
    assert isinstance(key, RewrappingKey)
    return key


def raw(value: str) -> bytes:
    return base64.b64decode(value.rpartition(":")[2])


def open_all(
    found: Job, token: str, version: str, items: Sequence[tuple[bytes, bytes | None]], *at_hand: str
) -> list[Any]:
    async def work() -> list[Any]:
        async with opened(found, token, *at_hand) as keyring:
            return list(await remote(keyring, version).opened(items))

    return anyio.run(work)


@pytest.mark.parametrize(("derived", "convergent"), [(False, False), (True, False), (True, True)])
def test_values_of_an_application_go_to_the_target_and_nothing_comes_here(
    transit: TransitEngine, monkeypatch: pytest.MonkeyPatch, derived: bool, convergent: bool
) -> None:
    """Each stays in its row, also in several calls; only `rewrap` is asked for, and its permission enough."""
    monkeypatch.setattr(transitserver, "BATCH", 3)
    name = transit.new_key(3, derived=derived, convergent_encryption=convergent)
    token = transit.token(RULES.format(name=name).split('path "transit/decrypt')[0])
    bound = [{"context": f"row-{at}".encode()} if derived else {} for at in range(8)]
    plain = [secrets.token_bytes(9) for _ in range(8)]
    values = [transit.encrypt(name, 1, one, **b) for one, b in zip(plain, bound, strict=True)]
    items = [(raw(one), b.get("context")) for one, b in zip(values, bound, strict=True)]
    found = open_all(job(transit, name, AAD if derived else ""), token, "1", items)
    news = [f"vault:v2:{base64.b64encode(one.new).decode()}" for one in found]
    assert [transit.decrypt(name, one, **b) for one, b in zip(news, bound, strict=True)] == plain
    assert {kind for kind, n in transit.proxy.counts().items() if n} == {"keys", "rewrap"}
    assert transit.proxy.counts()["rewrap"] == 3


def test_values_bound_to_associated_data_are_decrypted_and_encrypted(transit: TransitEngine) -> None:
    """`rewrap` does not take associated data; the other two do, and keep the binding. An empty text too."""
    name = transit.new_key()
    value = transit.encrypt(name, 1, b"", associated_data=b"row")

    async def work() -> bytes:
        async with opened(job(transit, name, AAD), transit.root) as keyring:
            right, wrong = await remote(keyring, "1").opened([(raw(value), b"row"), (raw(value), b"other")])
            assert (right, wrong) == (b"", None)
            (new,) = await remote(keyring, "2").sealed([(b"text", b"row", 0)])
            return new

    new = f"vault:v2:{base64.b64encode(anyio.run(work)).decode()}"
    assert transit.decrypt(name, new, associated_data=b"row") == b"text"
    assert "rewrap" not in transit.proxy.counts()


@pytest.mark.parametrize("derived", [False, True])
@pytest.mark.parametrize("kind", ["aes256-gcm96", "chacha20-poly1305"])
def test_what_does_not_open_is_none_beside_what_does(
    transit: TransitEngine, kind: str, derived: bool
) -> None:
    """Tampered, of another version, of another key, of another row, too short: each alone, no stop."""
    name, other = (transit.new_key(derived=derived, type=kind) for _ in range(2))
    bound = {"context": b"row"} if derived else {}
    layout = AAD if derived else ""
    aad = bound.get("context")
    good = raw(transit.encrypt(name, 1, b"text", **bound))
    bad = [
        good[:-1] + bytes([good[-1] ^ 1]),
        raw(transit.encrypt(name, 2, b"text", **bound)),
        raw(transit.encrypt(other, 1, b"text", **bound)),
        b"short",
    ]
    rows: list[tuple[bytes, bytes | None]] = [(good, aad), *((one, aad) for one in bad)]
    if derived:
        rows += [(good, b"another row"), (good, b""), (good, None)]
    for found in (job(transit, name, layout), job(transit, name, layout, ', to_layout = "vault-transit"')):
        if derived and not found.rewraps_in_place:
            continue
        first, *rest = open_all(found, transit.root, "1", rows)
        assert first is not None
        assert rest == [None] * len(rest)


def test_throttling_and_faults_are_waited_for(transit: TransitEngine) -> None:
    """429, and a standby that names the active server: all is done in the end, and the calls are counted."""
    name = transit.new_key()
    for fault in (RATE_LIMITED, Answer(307, {"Location": "http://127.0.0.1:1/"})):
        transit.proxy.add(fault, "rewrap", times=1)
    value = raw(transit.encrypt(name, 1, b"t"))
    (found,) = open_all(job(transit, name), transit.root, "1", [(value, None)])
    assert found is not None
    assert transit.proxy.counts()["rewrap"] == 3


def refused(found: Job, token: str, value: str, *at_hand: str) -> KeyAccessError:
    with pytest.raises(KeyAccessError) as raised:
        open_all(found, token, "1", [(raw(value), None)], *at_hand)
    assert raised.value.exit_code == 10
    assert not token.strip() or token not in f"{raised.value!r} {raised.value.hint}"
    return raised.value


def test_what_is_not_permitted_names_the_path_of_the_policy(transit: TransitEngine) -> None:
    """Reading the key, rewrapping, and a token that is none any more are told apart."""
    name = transit.new_key()
    value = transit.encrypt(name, 1, b"text")
    reads = f'path "transit/keys/{name}" {{ capabilities = ["read"] }}'
    for rules, path, verb in (("", "keys", "read"), (reads, "rewrap", "update")):
        token = transit.token(rules or 'path "none" { capabilities = ["read"] }')
        error = refused(job(transit, name), token, value)
        assert error.code == "key-not-permitted"
        assert f'path "transit/{path}/{name}" {{ capabilities = ["{verb}"] }}' in (error.hint or "")
    transit.revoke(token)
    assert refused(job(transit, name), token, value).code == "key-no-identity"
    assert refused(job(transit, name), "s.canary-none", value).code == "key-no-identity"
    assert refused(job(transit, name), " ", value).code == "key-no-identity"


def test_versions_that_may_not_be_used(transit: TransitEngine) -> None:
    """Disabled, trimmed, not there yet, of a key that is gone or of another kind: exit 10, before a value."""
    name = transit.new_key(3)
    value = transit.encrypt(name, 1, b"text")
    assert refused(job(transit, name), transit.root, value, "1", "9").code == "key-missing"
    transit.configure(name, min_decryption_version=2, min_encryption_version=2)
    error = refused(job(transit, name), transit.root, value)
    assert error.code == "key-disabled"
    assert f"vault write transit/keys/{name}/config min_decryption_version=1" in (error.hint or "")
    transit.ask(f"transit/keys/{name}/trim", {"min_available_version": 2})
    assert "trimmed" in refused(job(transit, name), transit.root, value).message
    assert refused(job(transit, "no-such-key"), transit.root, value).code == "key-missing"
    rsa = transit.new_key(1, type="rsa-2048")
    assert refused(job(transit, rsa), transit.root, value, "1").code == "key-unfit"
    derived = transit.new_key(derived=True)
    assert "context" in refused(job(transit, derived), transit.root, value).message


def test_a_version_that_is_disabled_while_it_is_used_is_no_values_fault(transit: TransitEngine) -> None:
    """So is a target that takes no new values, and a key that is deleted: each stops what is under way."""
    name = transit.new_key(3)
    values = [(raw(transit.encrypt(name, 1, b"text")), None)] * 2

    async def work() -> list[str]:
        codes = []
        async with opened(job(transit, name), transit.root, "1", "2") as keyring:
            for change in (
                {"min_encryption_version": 3},
                {"min_decryption_version": 2},
                {"deletion_allowed": True},
            ):
                transit.configure(name, **change)
                if "deletion_allowed" in change:
                    transit.ask(f"transit/keys/{name}", method="DELETE")
                with pytest.raises(KeyRefused) as raised:
                    await remote(keyring, "1").opened(values)
                codes.append(raised.value.code)
        return codes

    assert anyio.run(work) == ["key-unfit", "key-disabled", "key-missing"]


def result(reference: str, ciphertext: str) -> dict[str, str]:
    return {"reference": reference, "ciphertext": ciphertext}


@pytest.mark.parametrize(
    "results",
    [
        [result("1", "vault:v2:AAAA"), result("0", "vault:v2:AAAA")],
        [result("0", "vault:v2:AAAA")],
        [{"ciphertext": "vault:v2:AAAA"}] * 2,
        [result("0", "vault:v2:AAAA"), result("1", "vault:v3:AAAA")],
        [result("0", "vault:v2:AAAA"), result("1", "vault:v2:canary!")],
        [result("0", "vault:v2:AAAA"), {"reference": "1"}],
        [result("0", "vault:v2:AAAA"), {"reference": "1", "error": "canary: something else"}],
        None,
    ],
    ids=["order", "fewer", "no-reference", "version", "base64", "nothing", "error", "none"],
)
def test_an_answer_that_does_not_belong_stops(transit: TransitEngine, results: object) -> None:
    """Nothing is taken from it, no value is blamed for it, and none of it is repeated."""
    name = transit.new_key(3)
    values = [(raw(transit.encrypt(name, 1, b"text")), None) for _ in range(2)]
    transit.proxy.add(Answer(200, {}, json.dumps({"data": {"batch_results": results}})), "rewrap")
    with pytest.raises(KeyRefused) as raised:
        open_all(job(transit, name), transit.root, "1", values)
    assert "canary" not in f"{raised.value} {raised.value.hint}"


def test_a_token_in_a_file_is_read_again_and_never_shown(
    transit: TransitEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An agent's new token is used for the next call; the one before may have been revoked."""
    caplog.set_level(logging.DEBUG)
    name = transit.new_key()
    first, second = (transit.token(RULES.format(name=name)) for _ in range(2))
    file = tmp_path / "token"
    file.write_text(first + "\n")
    value = raw(transit.encrypt(name, 1, b"canary-plaintext"))

    async def work() -> Keyring:
        async with opened(job(transit, name, token=f"file:{file}"), "") as keyring:
            assert (await remote(keyring, "1").opened([(value, None)]))[0]
            transit.revoke(first)
            file.write_text(second)
            assert (await remote(keyring, "1").opened([(value, None)]))[0]
            return keyring

    keyring = anyio.run(work)
    said = caplog.text + repr(keyring) + "".join(repr(key) for key in keyring)
    assert not [one for one in (first, second, "canary-plaintext") if one in said]


def test_a_key_that_is_made_anew_under_its_name_is_another_one(
    transit: TransitEngine,
) -> None:
    """What a ledger keeps of a version says which key it was, and a run that watches stops."""
    name = transit.new_key()

    async def work() -> None:
        found = job(transit, name)
        async with opened(found, transit.root) as keyring, opened(found, transit.root) as again:
            first = {key.version: key.commitment for key in keyring}
            assert {key.version: key.commitment for key in again} == first
            assert first["1"] != first["2"]
            assert keyring.watched is not None
            await keyring.watched.still_there()
            transit.configure(name, deletion_allowed=True)
            made = transit.ask(f"transit/keys/{name}")["data"]["keys"]["1"]
            transit.ask(f"transit/keys/{name}", method="DELETE")
            # the engine tells whole seconds
            while time.time() < made + 1:
                await anyio.sleep(0.05)
            transit.ask(f"transit/keys/{name}", {})
            transit.ask(f"transit/keys/{name}/rotate", {})
            with pytest.raises(KeyRefused, match="another one than when the run began"):
                await keyring.watched.still_there()
            transit.configure(name, min_decryption_version=2)
            with pytest.raises(KeyRefused, match="disabled"):
                await keyring.watched.still_there()
            transit.configure(name, min_decryption_version=1)
            async with opened(found, transit.root) as anew:
                assert not {key.commitment for key in anew} & set(first.values())

    anyio.run(work)


def test_versions_are_tried_and_listed(transit: TransitEngine) -> None:
    """What is current, what is disabled, when it was made, and what this token may."""
    name = transit.new_key(3)
    transit.configure(name, min_decryption_version=2, min_encryption_version=3)
    token = transit.token(RULES.format(name=name).split('path "transit/encrypt')[0])

    async def work() -> tuple[list[Any], dict[str, list[str]]]:
        found = job(transit, name)
        said = {}
        async with opened(found, token, "2", "3", target="3") as keyring:
            for version, target in (("2", False), ("2", True), ("3", True)):
                key = keyring.get(version).remote
                assert isinstance(key, TriedKey)
                doubts = await key.tried(target=target)
                said[f"{version}{target}"] = [f"{one.severity} {one.code}" for one in doubts]
        return await list_keys(found, {"VAULT_TOKEN": token}), said

    listed, said = anyio.run(work)
    assert said == {
        "2False": ["info key-unwraps"],
        "2True": ["error key-unfit"],
        "3True": ["info key-unwraps"],
    }
    assert [(one.version, one.current, one.usable, bool(one.state)) for one in listed] == [
        ("3", True, True, False), ("2", False, True, True), ("1", False, False, True),
    ]  # fmt: skip
    assert listed[0].created is not None
    assert {one.verb: one.allowed for one in listed[0].permissions} == {
        "rewrap": True, "decrypt": True, "encrypt": False,
    }  # fmt: skip


def test_a_job_that_decrypts_is_tried_by_decrypting(transit: TransitEngine) -> None:
    """Where a layout changes the plaintext comes here: encrypt has to be permitted too, and check says so."""
    name = transit.new_key()
    found = job(transit, name, AAD)
    rules = RULES.format(name=name)
    tokens = {"info key-unwraps": rules, "error key-not-permitted": rules.split('path "transit/encrypt')[0]}

    async def work(token: str) -> list[str]:
        async with opened(found, token) as keyring:
            key = keyring.get("2").remote
            assert isinstance(key, TriedKey)
            return [f"{one.severity} {one.code}" for one in await key.tried(target=True)]

    for wanted, policy in tokens.items():
        assert anyio.run(work, transit.token(policy)) == [wanted]
