"""What the tests take for granted of their Key Vault, told with Microsoft's async client."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceNotFoundError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.keyvault.keys.aio import KeyClient
from azure.keyvault.keys.crypto import KeyWrapAlgorithm
from azure.keyvault.keys.crypto.aio import CryptographyClient

from tests.support.proxy import Drop, forbidden, slowed_down
from tests.support.vault import VaultEmulator, VaultServer

T = TypeVar("T")

OAEP_256 = KeyWrapAlgorithm.rsa_oaep_256
DEK = bytes(range(32))


def crypto(
    vault: VaultServer,
    name: str,
    version: str,
    work: Callable[[CryptographyClient], Awaitable[T]],
    retries: int = 0,
) -> T:
    """Runs work with the client of a version, which retries no more than told."""

    async def run() -> T:
        async with (
            vault.credential() as credential,
            KeyClient(vault.url, credential, retry_total=retries, **vault.client_options) as keys,
        ):
            key = await keys.get_key(name, version)
            options = {"retry_total": retries, **vault.client_options}
            async with CryptographyClient(key, credential, **options) as client:
                return await work(client)

    return asyncio.run(run())


def refusal(vault: VaultServer, name: str, version: str, wrapped: bytes) -> HttpResponseError:
    """The error of an unwrapping."""

    async def work(client: CryptographyClient) -> HttpResponseError:
        with pytest.raises(HttpResponseError) as raised:
            await client.unwrap_key(OAEP_256, wrapped)
        return raised.value

    return crypto(vault, name, version, work)


@pytest.mark.parametrize("algorithm", ["RSA-OAEP-256", "RSA-OAEP"])
def test_a_dek_is_wrapped_here_and_unwrapped_there(vault: VaultServer, algorithm: str) -> None:
    """Wrapping takes the public key and no request; unwrapping takes one."""
    name = vault.new_name()
    version = vault.create_version(name)

    async def work(client: CryptographyClient) -> bytes:
        wrapped = (await client.wrap_key(KeyWrapAlgorithm(algorithm), DEK)).encrypted_key
        assert wrapped != (await client.wrap_key(KeyWrapAlgorithm(algorithm), DEK)).encrypted_key
        return (await client.unwrap_key(KeyWrapAlgorithm(algorithm), wrapped)).key

    assert crypto(vault, name, version, work) == DEK
    assert vault.unwrap(name, version, vault.wrap(name, version, DEK, algorithm), algorithm) == DEK
    if isinstance(vault, VaultEmulator):
        assert vault.proxy.counts()["wrapkey"] == 0
        assert vault.proxy.counts()["unwrapkey"] == 2


def test_a_new_version_is_at_once_the_latest_and_the_old_one_still_opens(vault: VaultServer) -> None:
    """Each version has a key of its own; a list of more than a page has them all."""
    name = vault.new_name()
    made = [vault.create_version(name) for _ in range(5)]
    wrapped = [vault.wrap(name, version, DEK) for version in made]

    async def work() -> tuple[str, set[str]]:
        async with (
            vault.credential() as credential,
            KeyClient(vault.url, credential, **vault.client_options) as keys,
        ):
            latest = (await keys.get_key(name)).properties.version
            listed = {str(each.version) async for each in keys.list_properties_of_key_versions(name)}
            return str(latest), listed

    assert asyncio.run(work()) == (made[-1], set(made))
    assert [vault.unwrap(name, *pair) for pair in zip(made, wrapped, strict=True)] == [DEK] * 5
    assert refusal(vault, name, made[1], wrapped[0]).status_code == 400
    assert len({vault.public_key(name, version) for version in made}) == 5


def test_a_disabled_version_refuses_and_an_enabled_one_opens_again(vault: VaultServer) -> None:
    """403 with the code that tells it from a missing right; wrapping here does not notice."""
    name = vault.new_name()
    version = vault.create_version(name)
    wrapped = vault.wrap(name, version, DEK)
    vault.disable(name, version)
    refused = refusal(vault, name, version, wrapped)
    assert refused.status_code == 403
    assert "disabled" in refused.message
    vault.enable(name, version)
    assert vault.unwrap(name, version, wrapped) == DEK


def test_a_key_that_was_deleted_is_not_found(vault: VaultServer) -> None:
    """404 for a deleted key, for a version that never was, for a key that never was."""
    name = vault.new_name()
    version = vault.create_version(name)
    wrapped = vault.wrap(name, version, DEK)
    vault.delete(name)
    for missing in ((name, version), (name, "0" * 32), (vault.new_name(), "")):
        with pytest.raises(ResourceNotFoundError):
            crypto(vault, *missing, lambda client: client.unwrap_key(OAEP_256, wrapped))


def test_bytes_that_do_not_open_are_a_bad_parameter(vault: VaultServer) -> None:
    """A flipped bit, another length, another algorithm: 400, and the key is none the worse."""
    name = vault.new_name()
    version = vault.create_version(name)
    wrapped = vault.wrap(name, version, DEK)
    flipped = bytes([wrapped[0] ^ 1]) + wrapped[1:]
    for damaged in (flipped, wrapped[:-1], vault.wrap(name, version, DEK, "RSA-OAEP")):
        assert refusal(vault, name, version, damaged).status_code == 400
    assert vault.unwrap(name, version, wrapped) == DEK


def test_rights_are_looked_at(vault_emulator: VaultEmulator) -> None:
    """A principal without unwrapKey may read the key, wrap with it, and gets 403 for the rest."""
    vault = vault_emulator
    name = vault.new_name()
    version = vault.create_version(name)
    wrapped = vault.wrap(name, version, DEK)
    vault.permit("get", "list")
    refused = refusal(vault, name, version, wrapped)
    assert refused.status_code == 403
    assert "not authorized" in refused.message
    vault.permit("unwrapKey")
    with pytest.raises(HttpResponseError, match="get"):
        refusal(vault, name, version, wrapped)
    vault.permit()
    assert crypto(vault, name, version, lambda client: client.unwrap_key(OAEP_256, wrapped)).key == DEK


def test_tokens_are_looked_at(vault_emulator: VaultEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that was revoked is refused, and a wrong client secret gets none."""
    vault = vault_emulator
    name = vault.new_name()
    version = vault.create_version(name)
    wrapped = vault.wrap(name, version, DEK)

    async def revoked(client: CryptographyClient) -> None:
        await client.unwrap_key(OAEP_256, wrapped)
        vault.service.revoke_tokens()
        with pytest.raises(ClientAuthenticationError):
            await client.unwrap_key(OAEP_256, wrapped)

    crypto(vault, name, version, revoked)
    known = vault.service.principals["rewrap"]
    another = type(known)("rewrap", "another secret", known.permissions)
    credential = vault.credential()
    monkeypatch.setitem(vault.service.principals, "rewrap", another)

    async def ask() -> None:
        async with credential, KeyClient(vault.url, credential, **vault.client_options) as keys:
            with pytest.raises(ClientAuthenticationError, match="secret"):
                await keys.get_key(name)

    asyncio.run(ask())


def test_a_vault_throttles_beyond_its_limit(vault_emulator: VaultEmulator) -> None:
    """So many unwrappings in ten seconds, then 429 with a time to wait, or without one."""
    vault = vault_emulator
    name = vault.new_name()
    version = vault.create_version(name)
    wrapped = vault.wrap(name, version, DEK)
    vault.service.limit(2)

    async def work(client: CryptographyClient) -> list[object]:
        opened: list[object] = []
        for _ in range(4):
            try:
                opened.append((await client.unwrap_key(OAEP_256, wrapped)).key)
            except HttpResponseError as refused:
                headers = getattr(refused.response, "headers", {})
                opened.append((refused.status_code, headers.get("Retry-After")))
                vault.service.retry_after_s = None
        return opened

    assert crypto(vault, name, version, work) == [DEK, DEK, (429, "1"), (429, None)]


def test_the_proxy_makes_its_faults_here_too(vault_emulator: VaultEmulator) -> None:
    """Throttled for a while, then refused, then cut off; requests are counted by kind."""
    vault = vault_emulator
    name = vault.new_name()
    version = vault.create_version(name)
    wrapped = vault.wrap(name, version, DEK)
    vault.proxy.add(slowed_down(0), "unwrapkey", times=2)
    assert crypto(vault, name, version, lambda c: c.unwrap_key(OAEP_256, wrapped), retries=3).key == DEK
    assert vault.proxy.counts()["unwrapkey"] == 3
    vault.proxy.add(forbidden("KeyDisabled"), "unwrapkey")
    assert refusal(vault, name, version, wrapped).status_code == 403
    vault.proxy.clear()
    vault.proxy.add(Drop(), "unwrapkey")
    with pytest.raises((ServiceRequestError, ServiceResponseError)):
        crypto(vault, name, version, lambda client: client.unwrap_key(OAEP_256, wrapped))


def test_a_process_finds_the_vault_by_its_environment(vault: VaultServer) -> None:
    """DefaultAzureCredential and the variables are all that a run needs."""
    name = vault.new_name()
    version = vault.create_version(name)
    program = """
import asyncio, os, sys
from azure.identity.aio import DefaultAzureCredential
from azure.keyvault.keys.aio import KeyClient

async def main():
    async with DefaultAzureCredential() as who, KeyClient(os.environ["AZURE_KEYVAULT_URL"], who) as keys:
        print((await keys.get_key(sys.argv[1])).properties.version)

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program, name],
        env={**os.environ, **vault.environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.stdout.strip(), done.returncode) == (version, 0), done.stderr
