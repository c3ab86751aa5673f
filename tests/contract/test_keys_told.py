"""What every provider tells of its keys: in a list without using them, and in the middle of a run."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import anyio
import pytest
from rich.console import Console

from rewrap.cli import keylist
from rewrap.errors import KeyAccessError
from rewrap.keylist import KeyList, list_keys
from rewrap.keys.keyring import Keyring, WatchedKeeper
from rewrap.keys.listed import Listed
from rewrap.keys.open import open_keyring
from tests.support.keepers import KEEPERS, SERVICES, Keeper

WATCHED = ["files", "aws-secrets-manager", "vault-transit"]
"""Whose keys may be withdrawn while a process has them, and who can be asked for that."""


@pytest.fixture
def keeper(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keeper:
    # beside the job there is no ledger
    monkeypatch.chdir(tmp_path)
    return KEEPERS[request.param](request)


def told(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> dict[str, Listed]:
    """What is listed, by version, when nothing secret was found in any form of it."""
    found: KeyList = anyio.run(list_keys, keeper.job)
    console = Console(width=100, highlight=False)
    monkeypatch.setattr(keylist, "stdout_console", lambda: console)
    with console.capture() as captured:
        keylist._show(found)
    events = json.dumps([event.as_json() for event in (*found.events(), found.end())])
    said = f"{captured.get()}{events}{found!r}"
    assert said.count("key_listed") == len(found.keys)
    for key in keeper.canaries:
        forms = (key.hex(), key.hex().upper(), base64.b64encode(key).decode().rstrip("="), repr(key)[2:-1])
        assert not [form for form in forms if form in said]
    return {one.version: one for one in found.keys}


def fingerprints(keeper: Keeper) -> dict[str, str]:
    async def work() -> Keyring:
        keyring = await open_keyring(keeper.job, [keeper.old, keeper.new], wanted=[])
        await keyring.close()
        return keyring

    return {key.version: key.fingerprint for key in anyio.run(work)}


@pytest.mark.parametrize("keeper", KEEPERS, indirect=True)
def test_every_version_is_listed_as_a_run_would_have_it(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the fingerprint of its key; one that is withdrawn is told to be so, or not listed any more."""
    listed = told(keeper, monkeypatch)
    assert {one.version: one.fingerprint for one in listed.values() if one.usable} == fingerprints(keeper)
    assert all(one.fingerprint_of for one in listed.values())
    keeper.lose()
    listed = told(keeper, monkeypatch)
    # a secret goes with all of its versions
    assert listed[keeper.new].usable or "marked for deletion" in listed[keeper.new].state
    assert keeper.old not in listed or not listed[keeper.old].usable
    assert keeper.old not in listed or listed[keeper.old].state


@pytest.mark.parametrize("keeper", SERVICES, indirect=True)
def test_what_is_not_permitted_is_told_in_the_list(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list needs no right to open values: without it, the versions are told all the same."""
    assert keeper.deny is not None
    keeper.deny()
    listed = told(keeper, monkeypatch)
    assert {keeper.old, keeper.new} <= set(listed)
    allowed = [each.allowed for one in listed.values() for each in one.permissions]
    # False, or None where only opening a value would tell
    assert not all(allowed)


@pytest.mark.parametrize("keeper", WATCHED, indirect=True)
def test_a_key_in_use_that_is_withdrawn_is_noticed(keeper: Keeper) -> None:
    """While it is there, nothing is said; then what is gone is named."""

    async def work() -> None:
        keyring = await open_keyring(keeper.job, [keeper.old, keeper.new], wanted=[])
        try:
            assert isinstance(keyring.watched, WatchedKeeper)
            await keyring.watched.still_there()
            keeper.lose()
            with pytest.raises(KeyAccessError) as caught:
                await keyring.watched.still_there()
        finally:
            await keyring.close()
        assert keeper.old in caught.value.message or "marked for deletion" in caught.value.message
        assert caught.value.hint

    anyio.run(work)


@pytest.mark.parametrize("keeper", [name for name in KEEPERS if name not in WATCHED], indirect=True)
def test_keys_that_are_elsewhere_are_watched_by_nobody(keeper: Keeper) -> None:
    """Their keeper refuses the next call; and local keys were read once."""

    async def work() -> None:
        keyring = await open_keyring(keeper.job, [keeper.old, keeper.new], wanted=[])
        try:
            assert keyring.watched is None
        finally:
            await keyring.close()

    anyio.run(work)
