"""What holds of every provider of keys, against who keeps them: the real one, or the emulator there is."""

from __future__ import annotations

import secrets
from base64 import b64decode, b64encode, urlsafe_b64encode
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import anyio
import pytest

from rewrap.crypto.elsewhere import Rewrapped
from rewrap.crypto.layout import BoundLayout, Malformed, Unopenable
from rewrap.errors import KeyAccessError
from rewrap.keys.keyring import Keyring
from rewrap.keys.open import open_keyring
from tests.support.keepers import KEEPERS, SERVICES, Keeper

T = TypeVar("T")


@pytest.fixture
def keeper(request: pytest.FixtureRequest) -> Keeper:
    return KEEPERS[request.param](request)


every = pytest.mark.parametrize("keeper", KEEPERS, indirect=True)
services = pytest.mark.parametrize("keeper", SERVICES, indirect=True)


def with_keys(keeper: Keeper, work: Callable[[Keyring], Awaitable[T]]) -> T:
    """What some work with both versions gives."""

    async def working() -> T:
        keyring = await open_keyring(keeper.job, [keeper.old, keeper.new], wanted=[])
        try:
            return await work(keyring)
        finally:
            await keyring.close()

    return anyio.run(working)


def stored(keeper: Keeper, version: str, plain: bytes) -> str:
    """A value as the application stores it."""
    return f"{version}#{b64encode(keeper.wrap(version, plain)).decode()}"


def read(keeper: Keeper, value: str) -> bytes:
    """A value as the application reads it."""
    version, _, payload = value.partition("#")
    return keeper.unwrap(version, b64decode(payload))


def bound(keeper: Keeper, keyring: Keyring, version: str) -> BoundLayout:
    return keeper.job.layout("it").bind(version, keyring.get(version).secret)


def opened(keeper: Keeper, version: str, values: Sequence[str]) -> list[bytes | None]:
    """What stored values open to under a version; None for what does not open."""

    async def work(keyring: Keyring) -> list[bytes | None]:
        layout = bound(keeper, keyring, version)

        def one(value: str) -> bytes | None:
            try:
                return layout.open_one(value, None)
            except (Unopenable, Malformed):
                return None

        return await keyring.resolved(lambda: [one(value) for value in values])

    return with_keys(keeper, work)


def resealed(keeper: Keeper, values: Sequence[str]) -> list[str]:
    """Stored values taken from the old version to the new one, each opened again."""

    async def work(keyring: Keyring) -> list[str]:
        if keeper.job.rewraps_in_place:
            keyring.rewrap_in_place(keeper.new)
        old, new = (bound(keeper, keyring, version) for version in (keeper.old, keeper.new))

        def attempt() -> list[str]:
            plain = old.open_values(list(values), None)
            news = new.seal_values(plain, None)
            assert new.open_values(news, None) == plain
            return news

        return await keyring.resolved(attempt)

    return with_keys(keeper, work)


def refused(keeper: Keeper, value: str) -> KeyAccessError:
    """The error of whoever opens a value under the old version: exit 10, a hint, and nothing secret."""
    with pytest.raises(KeyAccessError) as caught:
        opened(keeper, keeper.old, [value])
    error = caught.value
    assert error.exit_code == 10
    assert error.hint
    said = f"{error.message} {error.hint} {error!r} {error.__cause__!r} {error.__context__!r}"
    assert leaked(keeper, said) == []
    return error


def leaked(keeper: Keeper, text: str) -> list[bytes]:
    """The canaries that a text holds, in whatever form."""
    forms: list[Callable[[bytes], str]] = [
        bytes.hex,
        lambda one: b64encode(one).decode(),
        lambda one: urlsafe_b64encode(one).decode().rstrip("="),
        lambda one: one.decode("utf-8", "replace"),
        repr,
    ]
    return [one for one in keeper.canaries if any(form(one) in text for form in forms)]


@every
def test_the_right_key_opens_what_the_application_sealed(keeper: Keeper) -> None:
    """Each of several, in order; or, of a keeper that gives nothing out, that they open."""
    plain = [secrets.token_bytes(32) for _ in range(5)]
    values = [stored(keeper, keeper.old, one) for one in plain]
    found = opened(keeper, keeper.old, values)
    assert None not in found
    if not isinstance(found[0], Rewrapped):
        assert found == plain


@every
def test_the_application_opens_what_was_resealed(keeper: Keeper) -> None:
    """Under the new version, to what it had sealed: equal values get ciphertexts of their own."""
    plain = [secrets.token_bytes(32) for _ in range(4)] + [b"k" * 32] * 2
    values = [stored(keeper, keeper.old, one) for one in plain]
    news = resealed(keeper, values)
    assert all(one.startswith(f"{keeper.new}#") for one in news)
    assert [read(keeper, one) for one in news] == plain
    if keeper.cipher not in DETERMINISTIC:
        assert len(set(news)) == len(news)


DETERMINISTIC = ("aes-key-wrap", "aes-key-wrap-pad")
"""Ciphers that wrap the same key the same way."""


@every
def test_the_wrong_version_and_what_was_tampered_with_do_not_open(keeper: Keeper) -> None:
    """They are values that do not open, and no reason to stop."""
    good = stored(keeper, keeper.old, secrets.token_bytes(32))
    sealed = b64decode(good.partition("#")[2])
    others = [
        keeper.wrap(keeper.new, secrets.token_bytes(32)),
        *(
            sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
            for at in (0, len(sealed) // 2, -1 % len(sealed))
        ),
        sealed[:-1],
        sealed + b"\0",
        b"",
    ]
    bad = [f"{keeper.old}#{b64encode(one).decode()}" for one in others]
    first, *rest = opened(keeper, keeper.old, [good, *bad])
    assert first is not None
    assert rest == [None] * len(bad)


@every
def test_a_version_that_is_gone_is_named(keeper: Keeper) -> None:
    """Exit 10, which version, and what to do; nothing that was stored in its place is repeated."""
    value = stored(keeper, keeper.old, secrets.token_bytes(32))
    keeper.lose()
    error = refused(keeper, value)
    assert error.code in ("key-missing", "key-disabled")


@every
def test_nothing_of_a_key_is_shown(keeper: Keeper) -> None:
    """A keyring and its keys tell versions and fingerprints; two versions have fingerprints of their own."""

    async def work(keyring: Keyring) -> tuple[str, set[str]]:
        keys = list(keyring)
        return f"{keyring!r} {keys!r}", {key.fingerprint for key in keys}

    shown, fingerprints = with_keys(keeper, work)
    assert leaked(keeper, shown) == []
    assert len(fingerprints) == 2


@services
def test_what_is_not_permitted_is_named_with_the_permission(keeper: Keeper) -> None:
    """Exit 10, and the hint says what to grant."""
    value = stored(keeper, keeper.old, secrets.token_bytes(32))
    assert keeper.deny is not None
    keeper.deny()
    error = refused(keeper, value)
    assert error.code == "key-not-permitted"
    assert keeper.permission in f"{error.message} {error.hint}"


@services
def test_throttling_is_waited_for(keeper: Keeper) -> None:
    """Told that it is too much, it asks again later: everything is done, and nothing is given up."""
    values = [stored(keeper, keeper.old, secrets.token_bytes(32)) for _ in range(4)]
    assert keeper.throttle is not None
    keeper.throttle()
    assert None not in opened(keeper, keeper.old, values)
    assert keeper.throttled() >= 1
