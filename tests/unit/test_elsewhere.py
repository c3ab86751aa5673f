"""Keys that are never here: what is asked for, in place or not, and what a keeper's mistake comes to."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from rewrap.crypto.ciphers import CIPHERS
from rewrap.crypto.elsewhere import Opening, Rewrapped, Sealing, descriptor
from rewrap.keys.keyring import Key, Keyring

CIPHER = CIPHERS["aws-kms"]


class Kept:
    """A key of a keeper that writes down what it wrapped."""

    waiting_for = ""

    def __init__(self, name: str, book: dict[bytes, tuple[str, bytes, bytes | None]]) -> None:
        self.name, self.book, self.calls, self.in_place = name, book, 0, False
        self.target: Kept | None = None

    def aim(self, target: Any) -> None:
        self.in_place, self.target = True, target

    def _wrap(self, plain: bytes, aad: bytes | None) -> bytes:
        new = secrets.token_bytes(16)
        self.book[new] = self.name, plain, aad
        return new

    async def opened(self, items: Sequence[Opening]) -> list[bytes | None]:
        self.calls += len(items)
        found: list[bytes | None] = []
        for wrapped, aad in items:
            name, plain, bound = self.book.get(wrapped, ("", b"", None))
            if (name, bound) != (self.name, aad):
                found.append(None)
            elif self.in_place:
                new = wrapped if self.target is None else self.target._wrap(plain, aad)
                found.append(Rewrapped(wrapped, new))
            else:
                found.append(plain)
        return found

    async def sealed(self, items: Sequence[Sealing]) -> list[bytes]:
        self.calls += len(items)
        return [self._wrap(plain, aad) for plain, aad, _ in items]


def kept(**given: Any) -> tuple[Keyring, Kept, Kept]:
    """A keyring of two such keys."""
    book: dict[bytes, tuple[str, bytes, bytes | None]] = {}
    old, new = Kept("old", book), Kept("new", book)
    keys = [Key(one.name, descriptor("test", one.name), remote=one) for one in (old, new)]
    return Keyring(keys, **given), old, new


def resealed(keyring: Keyring, values: list[bytes], aads: list[bytes | None]) -> list[bytes]:
    """The values under the old key wrapped under the new one, opened again and compared."""
    opener, opener_new = (CIPHER.opener(keyring.get(name).secret) for name in ("old", "new"))
    sealer = CIPHER.sealer(keyring.get("new").secret)

    def attempt() -> list[bytes]:
        plain = opener(values, aads, 0)
        news = sealer(plain, aads)
        assert opener_new(news, aads, 0) == plain
        return news

    async def work() -> list[bytes]:
        return await keyring.resolved(attempt)

    return anyio.run(work)


@pytest.mark.parametrize("in_place", [False, True])
def test_values_go_from_one_key_to_the_other(in_place: bool) -> None:
    """Each keeps its plaintext and what it is bound to; in place, nothing is asked to be wrapped."""
    keyring, old, new = kept()
    if in_place:
        keyring.rewrap_in_place("new")
    plain = [secrets.token_bytes(32) for _ in range(5)]
    aads: list[bytes | None] = [None, b"a", b"b", b"c", b"d"]
    values = [old._wrap(text, aad) for text, aad in zip(plain, aads, strict=True)]
    news = resealed(keyring, values, aads)
    assert [old.book[one] for one in news] == [
        ("new", text, aad) for text, aad in zip(plain, aads, strict=True)
    ]
    assert (old.calls, new.calls) == (5, 5 if in_place else 10)


def test_equal_plaintexts_get_wrappings_of_their_own() -> None:
    """Two rows with one data key do not show that they have."""
    keyring, old, _ = kept()
    values = [old._wrap(b"the same", None) for _ in range(4)]
    assert len(set(resealed(keyring, values, [None] * 4))) == 4


@pytest.mark.parametrize("in_place", [False, True])
def test_what_is_not_reopened_is_not_asked_for(in_place: bool) -> None:
    """With a share of almost nothing, the new wrappings take no call."""
    keyring, old, new = kept(reopen=1e-9)
    if in_place:
        keyring.rewrap_in_place("new")
    values = [old._wrap(secrets.token_bytes(32), None) for _ in range(5)]
    resealed(keyring, values, [None] * 5)
    assert new.calls == (0 if in_place else 5)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_wrapping_that_does_not_open_again_is_found(in_place: bool) -> None:
    """A keeper that wraps under another key than it was asked for: nothing is taken for done."""
    keyring, old, new = kept()
    if in_place:
        keyring.rewrap_in_place("new")

    def wrap_elsewhere(plain: bytes, aad: bytes | None) -> bytes:
        wrapped = secrets.token_bytes(16)
        new.book[wrapped] = "another", plain, aad
        return wrapped

    new._wrap = wrap_elsewhere  # type: ignore[method-assign]  # the keeper's mistake
    with pytest.raises(ValueError, match="does not open"):
        resealed(keyring, [old._wrap(b"k", None)], [None])


def test_a_wrapping_of_something_else_is_found() -> None:
    """A keeper that gives out what is wrapped is compared with, not believed."""
    keyring, old, new = kept()
    value = old._wrap(b"right", None)
    wrap = new._wrap
    new._wrap = lambda plain, aad: wrap(b"wrong", aad)  # type: ignore[method-assign]  # the keeper's mistake
    with pytest.raises(AssertionError):
        resealed(keyring, [value], [None])


def test_in_place_without_a_target_says_only_that_it_opens() -> None:
    """What verify asks for: neither a plaintext nor another wrapping comes back."""
    keyring, old, _ = kept()
    keyring.rewrap_in_place(None)
    value = old._wrap(b"secret", None)
    opener = CIPHER.opener(keyring.get("old").secret)

    async def work() -> list[bytes]:
        return await keyring.resolved(lambda: opener([value], None, 0))

    assert anyio.run(work) == [value]
