"""Values under keys that are elsewhere: what is asked, how often, and what a wrong answer does."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import anyio
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from rewrap.crypto.ciphers import CIPHERS, OPEN_FAILURES
from rewrap.crypto.layout import Layout, Unopenable
from rewrap.engine.reseal import FieldReseal, Form
from rewrap.errors import KeyAccessError, ResealMismatch
from rewrap.keys.keyring import Key, Keyring
from rewrap.model import Outcome

CIPHER = CIPHERS["rsa-oaep-256"]
LAYOUT = Layout("wrap", "{version}:", "v[0-9]+", "base64", "rsa-oaep-256")


@cache
def pair(name: str) -> tuple[bytes, bytes]:
    """A key of RSA, private and public, in DER."""
    key = rsa.generate_private_key(65_537, 2_048)
    private = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return private, key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


class Elsewhere:
    """A key whose private half is kept here and not in the process under test; what a vault is."""

    waiting_for = ""

    def __init__(self, name: str, *, refuses: bool = False, garbles: bool = False) -> None:
        self._private = pair(name)[0]
        self._refuses, self._garbles = refuses, garbles
        self.rounds: list[int] = []

    @property
    def calls(self) -> int:
        return sum(self.rounds)

    async def unwrap(self, wrapped: Sequence[bytes]) -> Sequence[bytes | None]:
        if self._refuses:
            raise KeyAccessError("refused")
        self.rounds.append(len(wrapped))
        opened: list[bytes | None] = []
        for one in wrapped:
            try:
                (plain,) = CIPHER.opener(self._private)([one], None, 0)
                opened.append(plain + b"?" if self._garbles else plain)
            except OPEN_FAILURES:
                opened.append(None)
        return opened


def keyring(**remote: Elsewhere) -> Keyring:
    return Keyring(Key(name, pair(name)[1], remote=one) for name, one in remote.items())


def transform(keys: Keyring) -> FieldReseal:
    bound = {key.version: LAYOUT.bind(key.version, key.secret) for key in keys}
    return FieldReseal(
        "t", "c", LAYOUT, LAYOUT, (Form(bound["v1"]),), bound["v2"], tuple(map(Form, bound.values())),
        False, keys.get("v2").digester(),
    )  # fmt: skip


def wrapped(version: str, *plains: bytes) -> list[str]:
    return LAYOUT.bind(version, pair(version)[1]).seal_values(list(plains), None)


def test_a_page_is_asked_for_in_one_go_and_opened_again_in_another() -> None:
    """Every old value is one call under the old key, every new one a call under the new key."""
    old, new = Elsewhere("v1"), Elsewhere("v2")
    keys = keyring(v1=old, v2=new)
    olds = wrapped("v1", *(bytes([n]) * 32 for n in range(20)))
    judged = anyio.run(keys.resolved, lambda: transform(keys).judge(olds, (None, None), list(range(20))))
    assert (old.rounds, new.rounds) == ([20], [20])
    opened = [CIPHER.opener(pair("v2")[0])([new], None, 0)[0] for new in _payloads(judged.news)]
    assert opened == [bytes([n]) * 32 for n in range(20)]
    assert keys.spent() == {"vault_calls": 40.0}


def _payloads(values: Sequence[str]) -> list[bytes]:
    from base64 import b64decode

    return [b64decode(value.partition(":")[2]) for value in values]


def test_rows_that_are_judged_one_by_one_are_asked_for_together() -> None:
    """Rows that others have changed are judged each on its own; that takes no more rounds than a page."""
    old, new = Elsewhere("v1"), Elsewhere("v2")
    keys = keyring(v1=old, v2=new)
    olds = wrapped("v1", *(bytes([n]) * 32 for n in range(20)))
    one_by_one = anyio.run(
        keys.resolved,
        lambda: [transform(keys).judge([value], (None, None), [at]) for at, value in enumerate(olds)],
    )
    assert len(one_by_one) == 20
    assert (old.rounds, new.rounds) == ([20], [20])


def test_what_does_not_open_is_found_beside_what_does() -> None:
    """One bad value costs no further calls, and is put aside alone."""
    old, new = Elsewhere("v1"), Elsewhere("v2")
    keys = keyring(v1=old, v2=new)
    olds = [*wrapped("v1", b"a" * 32), "v1:" + wrapped("v2", b"b" * 32)[0][3:], *wrapped("v1", b"c" * 32)]
    judged = anyio.run(keys.resolved, lambda: transform(keys).judge(olds, (None, None), [1, 2, 3]))
    assert list(judged.every(3)) == [0, 2]
    assert judged.counts[Outcome.QUARANTINED] == 1
    assert (old.rounds, new.rounds) == ([3], [2])


def test_values_without_a_marker_are_asked_for_together() -> None:
    """Each is tried under every key, and yet it takes one round."""
    old, new = Elsewhere("v1"), Elsewhere("v2")
    keys = keyring(v1=old, v2=new)
    bare = [value[3:] for value in wrapped("v1", *(bytes([n]) * 32 for n in range(9)))]
    judged = anyio.run(keys.resolved, lambda: transform(keys).judge(bare, (None, None), list(range(9))))
    assert judged.counts[Outcome.UNMARKED] == 9
    assert (old.rounds, new.rounds) == ([9], [9])


def test_a_wrapping_that_does_not_open_to_the_same_is_never_written() -> None:
    """What comes back for a new value is compared with what was wrapped."""
    keys = keyring(v1=Elsewhere("v1"), v2=Elsewhere("v2", garbles=True))
    with pytest.raises(ResealMismatch):
        anyio.run(keys.resolved, lambda: transform(keys).judge(wrapped("v1", b"a" * 32), (None, None), [1]))


def sampling(reopen: float, **remote: Elsewhere) -> Keyring:
    """A keyring that opens a share of new values again."""
    return Keyring((Key(name, pair(name)[1], remote=one) for name, one in remote.items()), reopen=reopen)


def test_a_share_of_new_wrappings_is_opened_again() -> None:
    """Old values are asked for as ever; of the new ones about as many as was said, drawn one by one."""
    old, new = Elsewhere("v1"), Elsewhere("v2")
    keys = sampling(0.25, v1=old, v2=new)
    plains = [n.to_bytes(32, "big") for n in range(64)]
    olds = wrapped("v1", *plains)
    judged = anyio.run(keys.resolved, lambda: transform(keys).judge(olds, (None, None), list(range(64))))
    assert old.calls == 64
    # none, or all but a few, would be wrong; 16 is the mean, and one try in a million is out of this range
    assert 1 <= new.calls <= 36
    assert CIPHER.opener(pair("v2")[0])(_payloads(judged.news), None, 0) == plains


def test_a_stored_value_is_never_believed() -> None:
    """Only what was wrapped in this attempt has a known inside, however few are opened again."""
    keys = sampling(0.001, v1=Elsewhere("v1", garbles=True), v2=Elsewhere("v2"))
    olds = wrapped("v1", b"a" * 32)
    judged = anyio.run(keys.resolved, lambda: transform(keys).judge(olds, (None, None), [1]))
    (sealed,) = _payloads(judged.news)
    assert CIPHER.opener(pair("v2")[0])([sealed], None, 0) == [b"a" * 32 + b"?"]


def test_a_refused_key_is_no_fault_of_a_value() -> None:
    """The refusal ends the computation; nothing is judged."""
    keys = keyring(v1=Elsewhere("v1", refuses=True), v2=Elsewhere("v2"))
    with pytest.raises(KeyAccessError):
        anyio.run(keys.resolved, lambda: transform(keys).judge(wrapped("v1", b"a" * 32), (None, None), [1]))


def test_a_public_key_alone_opens_nothing() -> None:
    """Outside of an attempt there is nobody to ask."""
    (value,) = wrapped("v1", b"a" * 32)
    with pytest.raises(Unopenable):
        LAYOUT.bind("v1", pair("v1")[1]).open_one(value, None)


def test_equal_data_keys_are_wrapped_differently() -> None:
    """Made again for the next attempt a wrapping is the same; another value's is another."""
    keys = keyring(v1=Elsewhere("v1"), v2=Elsewhere("v2"))
    olds = wrapped("v1", b"same" * 8, b"same" * 8)
    judged = anyio.run(keys.resolved, lambda: transform(keys).judge(olds, (None, None), [1, 2]))
    one, other = judged.news
    assert one != other
