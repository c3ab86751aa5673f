"""What holds of keys in a PKCS#11 token, as SoftHSM has them: rights, faults, and what never comes out."""

from __future__ import annotations

import base64
import logging
import os
import secrets
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest

from rewrap.crypto.ciphers import CIPHERS
from rewrap.crypto.elsewhere import Rewrapped
from rewrap.errors import KeyAccessError, UsageError
from rewrap.job import Job
from rewrap.keys.keyring import Keyring
from rewrap.keys.open import open_keyring
from rewrap.preflight import check
from tests.conftest import require
from tests.support.token import PIN, SoftToken
from tests.support.workbench import Result, Workbench, wait_while

T = TypeVar("T")

JOB = """
name = "test"
[stores.main]
kind = "postgres"
url = "${{DATABASE_URL:-postgresql://h/d}}"
[keys]
provider = "pkcs11"
{keys}
[keys.pkcs11]
module = "{module}"
token = "{token}"
pin = "{pin}"
label = "{label}"
[layouts.wrapped]
encoding = "base64"
cipher = "{cipher}"
[layouts.marked]
marker = "{{version}}:"
version = "v[0-9]+"
encoding = "base64"
cipher = "{cipher}"
[layouts.in-hex]
marker = "hex:{{version}}:"
version = "v[0-9]+"
encoding = "hex"
cipher = "{cipher}"
[pace]
batch_size = 4
[[targets]]
table = "deks"
fields = [{{ column = "wrapped_dek", {field} }}]
"""

IN_PLACE = 'layout = "wrapped", version = { column = "kek" }'
IN_THE_CLEAR = 'layout = "marked", to_layout = "in-hex"'

_NUMBERS = count(1)


@dataclass
class Keks:
    """Two keys with labels of their own, and jobs for them."""

    soft: SoftToken
    name: str = field(default_factory=lambda: f"kek{next(_NUMBERS)}")

    def __post_init__(self) -> None:
        for version in ("v1", "v2"):
            self.soft.create(self.label(version))

    def label(self, version: str) -> str:
        return f"{self.name}-{version}"

    def job_text(
        self, keys: str = "", field: str = IN_PLACE, cipher: str = "aes-key-wrap", **given: str
    ) -> str:
        told = {
            "module": self.soft.module,
            "token": self.soft.name,
            "pin": "env:HSM_PIN",
            "label": f"{self.name}-{{version}}",
        }
        return JOB.format(keys=keys, field=field, cipher=cipher, **{**told, **given})

    def job(self, **given: str) -> Job:
        return Job.parse(self.job_text(**given))

    def in_the_clear(self, **given: str) -> Job:
        """A job that changes the layout, for which plaintexts come into the process."""
        return self.job(field=IN_THE_CLEAR, **given)

    def wrap(self, version: str, data_key: bytes, *, pad: bool = False) -> bytes:
        return self.soft.wrap(self.label(version), data_key, pad=pad)

    def unwrap(self, version: str, wrapped: bytes, *, pad: bool = False) -> bytes:
        return self.soft.unwrap(self.label(version), wrapped, pad=pad)


@pytest.fixture
def keks(soft: SoftToken) -> Keks:
    return Keks(soft)


def working(work: Callable[[], Awaitable[T]]) -> T:
    return anyio.run(work)


def with_keyring(
    job: Job, work: Callable[[Keyring], Awaitable[T]], versions: Sequence[str] = ("v1", "v2")
) -> T:
    """What some work gives with the keys of a job."""

    async def opened() -> T:
        keyring = await open_keyring(job, versions, os.environ, wanted=[])
        try:
            return await work(keyring)
        finally:
            await keyring.close()

    return anyio.run(opened)


def refusal(job: Job, work: Callable[[Keyring], Awaitable[object]], **given: Any) -> KeyAccessError:
    """The error with which some work ends: exit 10, a hint, and no PIN in it."""
    with pytest.raises(KeyAccessError) as caught:
        with_keyring(job, work, **given)
    error = caught.value
    assert error.exit_code == 10
    assert error.hint
    assert PIN not in error.message + error.hint + repr(error)
    return error


async def nothing(keyring: Keyring) -> None:
    """Opening the keys is all."""


async def opened(keyring: Keyring, version: str, values: Sequence[bytes]) -> list[bytes | None]:
    """What a key answers, without the engine."""
    remote: Any = keyring.get(version).remote
    return list(await remote.opened([(value, None) for value in values]))


def openssl(key: bytes, plain: bytes, name: str, initial: str) -> bytes:
    return subprocess.run(
        ["openssl", "enc", f"-id-aes256-{name}", "-K", key.hex(), "-iv", initial],
        input=plain,
        capture_output=True,
        check=True,
    ).stdout


@pytest.mark.parametrize(
    ("cipher", "name", "initial"),
    [("aes-key-wrap", "wrap", "A6" * 8), ("aes-key-wrap-pad", "wrap-pad", "A65959A6")],
)
def test_the_right_key_opens_what_openssl_wrapped(keks: Keks, cipher: str, name: str, initial: str) -> None:
    """Each of many, in order; and what the token wraps opens without it."""
    require("OpenSSL", "openssl")
    made = [secrets.token_bytes(size) for size in (16, 24, 32, 40, 128, 32)]
    kek = keks.soft.values[keks.label("v1")]
    wrapped = [openssl(kek, one, name, initial) for one in made]

    async def work(keyring: Keyring) -> tuple[list[bytes | None], list[bytes]]:
        remote: Any = keyring.get("v2").remote
        sealed = await remote.sealed([(one, None, 0) for one in made])
        return await opened(keyring, "v1", wrapped), sealed

    found, sealed = with_keyring(keks.in_the_clear(cipher=cipher), work)
    assert found == made
    assert sealed == [keks.wrap("v2", one, pad=name == "wrap-pad") for one in made]


def bad_values(keks: Keks, pad: bool) -> list[bytes]:
    good = keks.wrap("v1", secrets.token_bytes(32), pad=pad)
    return [
        keks.wrap("v2", secrets.token_bytes(32), pad=pad),
        keks.wrap("v1", secrets.token_bytes(32), pad=not pad),
        bytes([good[0] ^ 1, *good[1:]]),
        bytes([*good[:-1], good[-1] ^ 1]),
        good[:-1],
        good[:-8],
        good + bytes(8),
        b"",
        b"\0" * 8,
        b"\xff" * 16,
        secrets.token_bytes(40),
    ]


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_the_wrong_version_and_what_was_tampered_with_do_not_open(
    keks: Keks, pad: bool, in_place: bool
) -> None:
    """They are values that do not open, whatever the token calls them, and no reason to stop."""
    cipher = "aes-key-wrap-pad" if pad else "aes-key-wrap"
    job = keks.job(cipher=cipher) if in_place else keks.in_the_clear(cipher=cipher)
    good, bad = keks.wrap("v1", b"d" * 32, pad=pad), bad_values(keks, pad)

    async def work(keyring: Keyring) -> list[bytes | None]:
        if in_place:
            keyring.rewrap_in_place("v2")
        return await opened(keyring, "v1", [*bad, good])

    *rest, last = with_keyring(job, work)
    assert rest == [None] * len(bad)
    if in_place:
        assert isinstance(last, Rewrapped)
        assert keks.unwrap("v2", last.new, pad=pad) == b"d" * 32
    else:
        assert last == b"d" * 32


@pytest.mark.parametrize("pad", [False, True])
def test_in_place_no_data_key_comes_into_this_process(
    keks: Keks, pad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None is read, given or left behind; what came of it opens without the token."""
    from rewrap.keys import datakeys

    def read(*given: Any) -> bytes:
        raise AssertionError("a data key was read")

    for name in ("value", "sealed"):
        monkeypatch.setattr(datakeys.DataKeys, name, read)
    made = [secrets.token_bytes(size) for size in (16, 24, 32, 40, 64)]
    wrapped = [keks.wrap("v1", one, pad=pad) for one in made]
    cipher = "aes-key-wrap-pad" if pad else "aes-key-wrap"

    async def work(keyring: Keyring) -> tuple[list[Any], list[Any], int]:
        found = await opened(keyring, "v1", wrapped)
        keyring.rewrap_in_place("v2")
        moved = await opened(keyring, "v1", wrapped)
        remote: Any = keyring.get("v1").remote
        token = remote._token
        from pkcs11 import Attribute

        left = await token.call(
            "look", lambda: len(list(token.session.get_objects({Attribute.TOKEN: False})))
        )
        return found, moved, left

    found, moved, left = with_keyring(keks.job(cipher=cipher), work)
    # only whether they open was asked at first
    assert found == wrapped
    assert [keks.unwrap("v2", one.new, pad=pad) for one in moved] == made
    assert moved == wrapped
    assert left == 0
    with pytest.raises(AssertionError, match="was read"):
        with_keyring(keks.in_the_clear(cipher=cipher), lambda keyring: opened(keyring, "v1", wrapped))


def pads_faithfully(keks: Keks) -> bool:
    """Whether this SoftHSM wraps 20 bytes as RFC 5649 has it, without rewrap's check of that."""
    from rewrap.keys.datakeys import DataKeys

    async def work(keyring: Keyring) -> bytes:
        remote: Any = keyring.get("v2").remote
        (made,) = await remote.sealed([(b"d" * 20, None, 0)])
        return bytes(made)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DataKeys, "_same", lambda *given: True)
        made = with_keyring(keks.in_the_clear(cipher="aes-key-wrap-pad"), work)
    return made == keks.wrap("v2", b"d" * 20, pad=True)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_token_that_wraps_something_else_is_found_out(keks: Keks, in_place: bool) -> None:
    """SoftHSM 2.6 fills up with zeros what is no whole block: never is such a wrapping given out."""
    data_key = secrets.token_bytes(20)
    wrapped = keks.wrap("v1", data_key, pad=True)
    cipher = "aes-key-wrap-pad"

    async def work(keyring: Keyring) -> bytes:
        remote: Any
        if in_place:
            keyring.rewrap_in_place("v2")
            (found,) = await opened(keyring, "v1", [wrapped])
            assert isinstance(found, Rewrapped)
            return found.new
        assert await opened(keyring, "v1", [wrapped]) == [data_key]
        remote = keyring.get("v2").remote
        (made,) = await remote.sealed([(data_key, None, 0)])
        return bytes(made)

    job = keks.job(cipher=cipher) if in_place else keks.in_the_clear(cipher=cipher)
    if pads_faithfully(keks):
        assert keks.unwrap("v2", with_keyring(job, work), pad=True) == data_key
        return
    error = refusal(job, work)
    assert error.code == "key-unfit"
    assert f'"{keks.label("v2")}" wrapped does not unwrap to what was given' in error.message


@pytest.mark.parametrize("pad", [False, True])
def test_a_wrapping_of_another_key_is_found_out(
    keks: Keks, pad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that takes the wrong object wraps something that opens: only comparing the two tells."""
    from rewrap.keys import cryptoki

    wrapped = keks.wrap("v1", b"d" * 32, pad=pad)
    another = keks.wrap("v2", b"e" * 32, pad=pad)
    require_key = cryptoki.Token.require

    class Mistaken:
        def wrap_key(self, *given: Any, **more: Any) -> bytes:
            return another

    def mistaken(self: Any, label: str, permission: Any) -> Any:
        return Mistaken() if permission.name == "WRAP" else require_key(self, label, permission)

    monkeypatch.setattr(cryptoki.Token, "require", mistaken)

    async def work(keyring: Keyring) -> None:
        keyring.rewrap_in_place("v2")
        await opened(keyring, "v1", [wrapped])

    error = refusal(keks.job(cipher="aes-key-wrap-pad" if pad else "aes-key-wrap"), work)
    assert "does not unwrap to what was given" in error.message


def test_a_key_that_may_not_unwrap_or_wrap_is_named(keks: Keks) -> None:
    """Whether it was so at first or was made so on the way; and allowed again, it goes on."""
    wrapped = keks.wrap("v1", b"d" * 32)

    async def forbidden(keyring: Keyring) -> None:
        assert await opened(keyring, "v1", [wrapped]) == [wrapped]
        keks.soft.set(keks.label("v1"), UNWRAP=False)
        await opened(keyring, "v1", [wrapped])

    async def simply(keyring: Keyring) -> list[bytes | None]:
        keyring.rewrap_in_place("v2")
        return await opened(keyring, "v1", [wrapped])

    for work in (forbidden, simply):
        error = refusal(keks.job(), work)
        assert (error.code, "may not unwrap" in error.message) == ("key-not-permitted", True)
        assert "CKA_UNWRAP" in str(error.hint)
        assert keks.label("v1") in error.message
    keks.soft.set(keks.label("v1"), UNWRAP=True)
    keks.soft.set(keks.label("v2"), WRAP=False)
    error = refusal(keks.job(), simply)
    assert "may not wrap" in error.message
    keks.soft.set(keks.label("v2"), WRAP=True)
    # an old key that nobody is to wrap under any more is enough
    keks.soft.set(keks.label("v1"), WRAP=False)
    assert with_keyring(keks.job(), simply) == [wrapped]


def test_a_key_that_is_not_there_or_there_twice_is_named(keks: Keks) -> None:
    """Values could be under either of two keys with one label: none of them is taken."""
    error = refusal(keks.job(), nothing, versions=["v1", "v9"])
    assert (error.code, keks.label("v9") in error.message) == ("key-missing", True)
    assert "v1, v2" in str(error.hint)
    keks.soft.create(keks.label("v2"), ID="0a0b")
    error = refusal(keks.job(), nothing)
    assert error.code == "key-ambiguous"
    assert f'2 keys "{keks.label("v2")}", with the ids 0a0b, none' in error.message
    keks.soft.create(keks.label("v3"), KEY_TYPE=0x10, WRAP=True)
    error = refusal(keks.job(), nothing, versions=["v1", "v3"])
    assert (error.code, "is no AES key" in error.message) == ("key-unfit", True)


@pytest.mark.parametrize("cipher", ["aes-key-wrap", "aes-key-wrap-pad"])
def test_a_token_without_the_mechanism_is_refused(
    keks: Keks, cipher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or whose CKM_AES_KEY_WRAP_PAD does not open the RFC's example, as where it is PKCS #7."""
    from rewrap.keys import cryptoki, datakeys

    pad = cipher.endswith("pad")
    wrapped = keks.wrap("v1", b"d" * 32, pad=pad)

    async def work(keyring: Keyring) -> None:
        await opened(keyring, "v1", [wrapped])

    with monkeypatch.context() as patch:
        if pad:
            patch.setattr(datakeys, "_KNOWN_WRAPPED", bytes(32))
        else:
            patch.setattr(cryptoki.Token, "mechanisms", frozenset())
        error = refusal(keks.job(cipher=cipher), work)
    assert (error.code, f"does not do {cipher}" in error.message) == ("key-unfit", True)
    with_keyring(keks.job(cipher=cipher), work)


def test_a_key_replaced_under_its_label_is_noticed(keks: Keks) -> None:
    """By its check value, on the way and between two openings; the same key put back is the same key."""
    wrapped = keks.wrap("v1", b"d" * 32)
    label, value = keks.label("v1"), keks.soft.values[keks.label("v1")]

    def put(other: bytes | None = None) -> None:
        keks.soft.destroy(label)
        keks.soft.create(label, other)

    async def same(keyring: Keyring) -> str:
        await opened(keyring, "v1", [wrapped])
        put(value)
        assert await opened(keyring, "v1", [wrapped]) == [wrapped]
        return keyring.get("v1").commitment

    async def replaced(keyring: Keyring) -> None:
        await opened(keyring, "v1", [wrapped])
        put()
        await opened(keyring, "v1", [wrapped])

    async def told(keyring: Keyring) -> tuple[str, str]:
        key = keyring.get("v1")
        assert value.hex() not in repr(keyring) + repr(key) + repr(key.remote)
        return key.commitment, key.fingerprint

    first = with_keyring(keks.job(), told)
    assert with_keyring(keks.job(), same) == first[0]
    assert with_keyring(keks.job(), told) == first
    error = refusal(keks.job(), replaced)
    assert "is another key than before" in error.message
    another = with_keyring(keks.job(), told)
    assert {*another}.isdisjoint(first)
    # and one key under two labels is no rotation
    put(keks.soft.values[keks.label("v2")])
    assert "same check value" in refusal(keks.job(), nothing).message


def test_a_key_deleted_on_the_way_is_missed(keks: Keks) -> None:
    """And not taken for values that do not open."""
    wrapped = keks.wrap("v1", b"d" * 32)

    async def work(keyring: Keyring) -> None:
        await opened(keyring, "v1", [wrapped])
        keks.soft.destroy(keks.label("v1"))
        await opened(keyring, "v1", [wrapped])

    error = refusal(keks.job(), work)
    assert (error.code, keks.label("v1") in error.message) == ("key-missing", True)


def test_a_session_that_died_is_opened_once_more(keks: Keks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed under it, or logged out by somebody else in the process; a second death in a row is told."""
    import pkcs11

    from rewrap.keys import cryptoki

    wrapped = keks.wrap("v1", b"d" * 32)
    logins = []
    opening = cryptoki.Token._open
    monkeypatch.setattr(cryptoki.Token, "_open", lambda self: (logins.append(1), opening(self))[1])

    async def work(keyring: Keyring) -> None:
        remote: Any = keyring.get("v1").remote
        other = await open_keyring(keks.job(), ["v1"], os.environ, wanted=[])
        logins.clear()
        remote._token.session.close()
        assert await opened(keyring, "v1", [wrapped]) == [wrapped]
        assert await opened(other, "v1", [wrapped]) == [wrapped]
        await keyring.close()
        assert await opened(other, "v1", [wrapped]) == [wrapped]
        assert len(logins) == 3
        await other.close()

        def dead(*given: Any) -> None:
            raise pkcs11.exceptions.DeviceRemoved

        logins.clear()
        monkeypatch.setattr(type(remote._data_keys), "unwrapped", dead)
        await opened(keyring, "v1", [wrapped])

    error = refusal(keks.job(), work)
    # it was closed above: once for that, once for the death
    assert (error.code, len(logins)) == ("key-away", 2)
    assert "DeviceRemoved" in error.message
    assert "rewrap resume" in str(error.hint)


def test_an_error_that_is_not_the_values_stops(keks: Keks, monkeypatch: pytest.MonkeyPatch) -> None:
    """SoftHSM says CKR_GENERAL_ERROR to a wrong value; where nothing else opens, it is not the value's."""
    import pkcs11

    from rewrap.keys.datakeys import DataKeys

    wrapped = keks.wrap("v1", b"d" * 32)

    async def work(keyring: Keyring) -> None:
        def broken(*given: Any, **more: Any) -> None:
            raise pkcs11.exceptions.GeneralError

        monkeypatch.setattr(DataKeys, "_unwrapped", broken)
        await opened(keyring, "v1", [wrapped])

    error = refusal(keks.job(), work)
    assert (error.code, "GeneralError" in error.message) == ("key-refused", True)


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The PINs that tokens are given from now on."""
    from rewrap.keys import cryptoki

    given: list[str] = []
    find = cryptoki.Token._token

    class Watched:
        def __init__(self, token: Any) -> None:
            self._token = token

        def __getattr__(self, name: str) -> Any:
            return getattr(self._token, name)

        def open(self, user_pin: str | None = None) -> Any:
            given.append(user_pin or "")
            return self._token.open(user_pin=user_pin)

    monkeypatch.setattr(cryptoki.Token, "_token", lambda self: Watched(find(self)))
    return given


def test_a_wrong_pin_is_tried_once(
    keks: Keks, tries: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In no message, and never again: wrong ones lock it. An empty one is not tried at all."""
    caplog.set_level(logging.DEBUG)
    for wrong in ("canary-wrong-pin", "1", ""):
        monkeypatch.setenv("HSM_PIN", wrong)
        tries.clear()
        for _ in range(3):
            error = refusal(keks.job(), nothing)
            assert error.code == "key-no-identity"
            assert "env:HSM_PIN" in error.message
            assert not wrong or "canary" not in error.message + str(error.hint) + caplog.text
        assert tries == ([wrong] if wrong else [])
    monkeypatch.delenv("HSM_PIN")
    assert "is not set" in refusal(keks.job(), nothing).message
    assert "No such file" in refusal(keks.job(pin="file:/nowhere/pin"), nothing).message


def test_a_pin_in_a_file_ends_with_its_line(keks: Keks, tmp_path: Path) -> None:
    """As an editor leaves it."""
    (tmp_path / "pin").write_text(f"{PIN}\n")
    with_keyring(keks.job(pin=f"file:{tmp_path / 'pin'}"), nothing)


@pytest.mark.parametrize(
    ("flag", "said"), [("USER_PIN_LOCKED", "is locked"), ("USER_PIN_FINAL_TRY", "none is tried")]
)
def test_a_pin_that_is_locked_or_about_to_be_is_not_tried(
    keks: Keks, flag: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SoftHSM never says so; other tokens do."""
    import pkcs11

    from rewrap.keys import cryptoki

    class Flagged:
        flags = pkcs11.TokenFlag[flag]

    check = cryptoki.Token._check_pin_state
    monkeypatch.setattr(cryptoki.Token, "_check_pin_state", lambda self, token: check(self, Flagged()))
    error = refusal(keks.job(), nothing)
    assert (error.code, said in error.message) == ("key-no-identity", True)


def test_a_token_that_is_not_found_says_where_was_looked(keks: Keks, tmp_path: Path) -> None:
    """The library, the token, and the tokens there are instead; two of one name are not guessed among."""
    error = refusal(keks.job(module=str(tmp_path / "none.so")), nothing)
    assert (error.code, "is not there" in error.message) == ("key-away", True)
    (tmp_path / "text.so").write_text("no library")
    assert "cannot be loaded" in refusal(keks.job(module=str(tmp_path / "text.so")), nothing).message
    error = refusal(keks.job(token="elsewhere"), nothing)
    assert 'has no token "elsewhere"' in error.message
    assert f'"{keks.soft.name}"' in str(error.hint)
    error = refusal(keks.job(token="twin"), nothing)
    assert (error.code, "2 tokens" in error.message) == ("key-ambiguous", True)


def test_a_copy_of_the_process_does_not_use_its_session(keks: Keks, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a fork a library has to be initialised anew; with the parent's session all is undefined."""
    wrapped = keks.wrap("v1", b"d" * 32)

    async def work(keyring: Keyring) -> None:
        with monkeypatch.context() as patch:
            here = os.getpid()
            patch.setattr("rewrap.keys.cryptoki.os.getpid", lambda: here + 1)
            await opened(keyring, "v1", [wrapped])

    assert "another process" in refusal(keks.job(), work).message


def test_callers_at_once_take_turns(keks: Keks) -> None:
    """The library is asked by one thread at a time; each gets its own answers."""
    made = [secrets.token_bytes(32) for _ in range(60)]
    wrapped = [keks.wrap("v1", one) for one in made]

    async def work(keyring: Keyring) -> dict[int, list[bytes | None]]:
        found: dict[int, list[bytes | None]] = {}

        async def some(at: int) -> None:
            found[at] = await opened(keyring, "v1", wrapped[at : at + 10])

        async with anyio.create_task_group() as group:
            for at in range(0, 60, 10):
                group.start_soon(some, at)
        assert keyring.spent()["vault_calls"] == 60
        return found

    found = with_keyring(keks.in_the_clear(), work)
    assert [one for at in sorted(found) for one in found[at]] == made


def test_a_missing_package_is_one_line(keks: Keks, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    for name in ("rewrap.keys.token", "rewrap.keys.cryptoki", "rewrap.keys.datakeys"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "pkcs11", None)
    with pytest.raises(UsageError) as caught:
        with_keyring(keks.job(), nothing)
    assert (caught.value.exit_code, caught.value.hint) == (2, "pip install 'rewrap[pkcs11]'")


def test_the_token_lists_its_keys(keks: Keks) -> None:
    """By label, with what may be done with each; a date only where the key has one."""
    from rewrap.keys.token import list_keys

    keks.soft.set(keks.label("v1"), UNWRAP=False)
    keks.soft.create(keks.label("v3"), ID="c0ffee", EXTRACTABLE=True, SENSITIVE=False)
    keks.soft.create(keks.label("v3x"))
    keks.soft.create(keks.label("v3x"))
    keks.soft.create(f"other-{keks.label('v4')}")
    first, second, third, twice = working(lambda: list_keys(keks.job(), os.environ))
    assert (first.version, first.usable, "CKA_UNWRAP" in first.state) == ("v1", False, True)
    assert (second.usable, second.created, second.labels) == (True, None, (keks.label("v2"),))
    assert third.labels == (keks.label("v3"), "CKA_ID c0ffee")
    allowed = [
        {one.permission: one.allowed for one in listed.permissions} for listed in (first, second, third)
    ]
    assert [one["CKA_UNWRAP"] for one in allowed] == [False, True, True]
    assert [one["CKA_EXTRACTABLE"] for one in allowed] == [False, False, True]
    assert [one["CKA_SENSITIVE false"] for one in allowed] == [False, False, True]
    assert (twice.usable, "2 keys" in twice.state) == (False, True)

    async def told(keyring: Keyring) -> str:
        return keyring.get("v2").fingerprint

    assert with_keyring(keks.job(), told, ["v2"]) == second.fingerprint


RECORDS = 24


@dataclass
class Deks:
    """A table of data keys, wrapped by OpenSSL's library and opened by it, and never by rewrap."""

    bench: Workbench
    keks: Keks
    keys: dict[int, bytes]

    def job(self, **given: str) -> None:
        (self.bench.folder / "rewrap.toml").write_text(self.keks.job_text(**given))

    def rewrap(self, *arguments: str) -> Result:
        return self.bench.rewrap(*arguments, **self.keks.soft.environ)

    def run(self, *arguments: str) -> Result:
        return self.rewrap("run", "--from", "v1", "--to", "v2", "--allow-unseen-target", "--json", *arguments)

    @property
    def under(self) -> dict[str, int]:
        return dict(self.bench.sql("SELECT kek, count(*) FROM deks GROUP BY 1"))

    def opens(self, decode: Callable[[str], bytes] = base64.b64decode) -> None:
        """Every record opens to the data key that it was made of, under the version that it names."""
        rows = self.bench.sql("SELECT id, wrapped_dek, kek FROM deks")
        assert {number: self.keks.unwrap(kek, decode(text)) for number, text, kek in rows} == self.keys


@pytest.fixture
def deks(bench: Workbench, keks: Keks) -> Deks:
    made = {number: secrets.token_bytes(32) for number in range(RECORDS)}
    bench.sql("CREATE TABLE deks (id bigint PRIMARY KEY, wrapped_dek text NOT NULL, kek text NOT NULL)")
    rows = [(number, base64.b64encode(keks.wrap("v1", key)).decode(), "v1") for number, key in made.items()]
    bench.insert("deks", ["id", "wrapped_dek", "kek"], rows)
    found = Deks(bench, keks, made)
    found.job()
    return found


def test_data_keys_are_wrapped_under_the_new_key(deks: Deks) -> None:
    """From check to verify, as a user does it; nothing secret is on the screen or in a file."""
    checked = deks.rewrap("check", "--from", "v1", "--to", "v2", "--json")
    assert checked.code == 0, checked.err
    told = {(one["subject"], one["code"]) for one in checked.events if one["type"] == "finding"}
    assert {("key v1", "key-unwraps"), ("key v2", "key-unwraps"), ("key v1", "key-proven")} <= told
    before = deks.bench.sql("SELECT * FROM deks ORDER BY id")
    dry = deks.run("--dry-run")
    assert dry.code == 0, dry.err
    assert deks.bench.sql("SELECT * FROM deks ORDER BY id") == before
    done = deks.run("--debug")
    assert done.code == 0, done.err
    assert deks.under == {"v2": RECORDS}
    deks.opens()
    deep = deks.rewrap("verify", "--deep", "--json")
    assert deep.code == 0, deep.err
    everything = "".join(one.out + one.err for one in (checked, dry, done, deep)).encode()
    everything += b"".join(path.read_bytes() for path in deks.bench.folder.iterdir() if path.is_file())
    hidden = [PIN.encode(), *deks.keys.values(), *deks.keks.soft.values.values()]
    assert [one for key in hidden for one in (key, key.hex().encode()) if one in everything] == []


def test_check_says_what_the_token_would_refuse(deks: Deks) -> None:
    """Of the old key the right to unwrap, of the new one both; a key that can be taken out is told."""
    versions = ("--from", "v1", "--to", "v2", "--json")

    def found() -> set[tuple[str, str, str]]:
        ran = deks.rewrap("check", *versions)
        return {
            (one["subject"], one["severity"], one["code"]) for one in ran.events if one["type"] == "finding"
        }

    deks.keks.soft.set(deks.keks.label("v1"), WRAP=False)
    deks.keks.soft.set(deks.keks.label("v2"), WRAP=False)
    told = found()
    assert ("key v1", "info", "key-not-tried") in told
    assert ("key v2", "error", "key-no-wrap") in told
    deks.keks.soft.set(deks.keks.label("v1"), UNWRAP=False)
    deks.keks.soft.destroy(deks.keks.label("v2"))
    deks.keks.soft.create(deks.keks.label("v2"), EXTRACTABLE=True)
    told = found()
    assert ("key v1", "error", "key-no-unwrap") in told
    assert ("key v2", "warning", "key-extractable") in told


def test_check_tries_a_wrong_pin_once_too(
    deks: Deks, tries: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it looks at the keys again and again, to say of each whether it is there."""
    monkeypatch.setenv("HSM_PIN", "canary-of-check")
    environ = {**deks.bench.environ, "HSM_PIN": "canary-of-check"}
    job = Job.load(deks.bench.folder / "rewrap.toml", environ)
    found = working(lambda: check(job, from_versions="v1", to_version="v2", environ=environ))
    assert found.exit_code == 1
    assert "key-no-identity" in {one.code for one in found.findings}
    assert "canary" not in repr(found.findings)
    assert tries == ["canary-of-check"]


def test_a_key_deleted_in_the_middle_of_a_run_stops_it(deks: Deks) -> None:
    """Exit 10, nothing put aside; with the same key back resume ends what was begun, with another not."""
    label, value = deks.keks.label("v1"), deks.keks.soft.values[deks.keks.label("v1")]
    arguments = ("run", "--from", "v1", "--to", "v2", "--allow-unseen-target", "--max-rate", "4")
    with deks.bench.started(*arguments, **deks.keks.soft.environ) as process:
        wait_while(process, lambda: deks.under.get("v2", 0) >= 4)
        deks.keks.soft.destroy(label)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 10, err
    assert label in err
    under = deks.under
    assert under["v1"] > 0
    assert sum(under.values()) == RECORDS
    assert deks.rewrap("quarantine", "list", "--json").events == []
    deks.keks.soft.create(label)
    refused = deks.rewrap("resume")
    assert refused.code == 10, refused.err
    assert deks.under == under
    assert deks.rewrap("quarantine", "list", "--json").events == []
    deks.keks.soft.destroy(label)
    deks.keks.soft.create(label, value)
    deks.opens()
    done = deks.rewrap("resume")
    assert done.code == 0, done.err
    assert deks.under == {"v2": RECORDS}
    deks.opens()


def test_a_token_that_gives_no_data_key_out_is_told_by_check(
    keks: Keks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where a job has plaintexts come here; as a finding, like any other refusal."""
    import pkcs11

    from rewrap.keys.datakeys import DataKeys

    def refused(*given: Any) -> bytes:
        raise pkcs11.exceptions.TemplateInconsistent

    monkeypatch.setattr(DataKeys, "value", refused)

    async def tried(keyring: Keyring) -> list[tuple[str, str]]:
        remote: Any = keyring.get("v2").remote
        return [(one.severity, one.code) for one in await remote.tried(target=True)]

    assert with_keyring(keks.job(), tried) == [("info", "key-unwraps")]
    assert with_keyring(keks.in_the_clear(), tried) == [("error", "key-not-permitted")]


def test_a_change_of_layout_goes_through_the_clear(deks: Deks) -> None:
    """The data keys come here, and are wrapped by the token again."""
    deks.job(field=IN_THE_CLEAR)
    deks.bench.sql("UPDATE deks SET wrapped_dek = 'v1:' || wrapped_dek")
    done = deks.run()
    assert done.code == 0, done.err
    deks.bench.sql("UPDATE deks SET kek = 'v2' WHERE starts_with(wrapped_dek, 'hex:v2:')")
    deks.opens(lambda text: bytes.fromhex(text.removeprefix("hex:v2:")))


def test_the_cipher_is_the_same_with_and_without_a_token() -> None:
    """A layout says nothing of where its key is."""
    for name in ("aes-key-wrap", "aes-key-wrap-pad"):
        assert {16, 24, 32} == set(CIPHERS[name].key_lengths)
