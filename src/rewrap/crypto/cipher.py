"""What a cipher is: batches of plaintext in, batches of sealed bytes out, and back.

A batch function takes and returns lists of equal length, in the same order. It works on whole batches so
that the interpreter's cost per value is one call into the C library and one slice on each side; it raises
at the first value that does not open, and says nothing about which one: `open_one` finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Protocol, runtime_checkable

from cryptography.exceptions import InvalidTag
from nacl.exceptions import CryptoError

Batch = list[bytes]
Aads = Sequence[bytes | None]
OpenBatch = Callable[[Sequence[bytes], Aads | None, int], Batch]
"""Opens sealed values, each from an offset on: what stands before it there is its marker."""

TryBatch = Callable[[Sequence[bytes], Aads | None, int], list[bytes | None]]
"""As OpenBatch, but with None for each value that does not open."""

SealBatch = Callable[[Batch, Aads | None], Batch]

OPEN_FAILURES = (InvalidTag, CryptoError, ValueError, OverflowError)
"""What the libraries raise for a bad tag, a wrong key, wrong AAD, or a length they refuse."""


class Cipher(Protocol):
    """A cipher with a random nonce beside what it seals.

    `key_bytes`, `nonce_bytes` and `tag_bytes` are lengths in bytes (`key_bytes` is 0 where keys have no one
    length). `key_lengths` are all that a key may have, none where it is no string of random bytes;
    `least_bytes` that of a sealed empty plaintext. `seal_limit` is how many messages one key may
    seal with random nonces before a repeat becomes likely enough to matter; None is no limit in practice.
    `binds_aad` says whether associated data can be authenticated at all, `authenticated` whether anything
    is. `order` is how nonce, tag and ciphertext follow each other in what is sealed. A plaintext begins
    with `carry_bytes` bytes that belong to the sealed form, and are kept when it is sealed again.
    """

    @property
    def name(self) -> str: ...

    @property
    def key_bytes(self) -> int: ...

    @property
    def key_lengths(self) -> tuple[int, ...]: ...

    @property
    def nonce_bytes(self) -> int: ...

    @property
    def tag_bytes(self) -> int: ...

    @property
    def least_bytes(self) -> int: ...

    @property
    def binds_aad(self) -> bool: ...

    @property
    def authenticated(self) -> bool: ...

    @property
    def seal_limit(self) -> int | None: ...

    @property
    def order(self) -> tuple[str, ...]: ...

    @property
    def carry_bytes(self) -> int: ...

    def fresh_carry(self) -> bytes:
        """What a plaintext begins with that was never sealed by this cipher."""
        ...

    def opener(self, key: bytes) -> OpenBatch: ...

    def sealer(self, key: bytes) -> SealBatch: ...


@runtime_checkable
class Trying(Protocol):
    """A cipher that goes on behind a value that does not open: batches of which none may, cost no more."""

    def trier(self, key: bytes) -> TryBatch: ...


class Carried:
    """What most ciphers have in common: they authenticate, and carry nothing beside the plaintext."""

    __slots__ = ()

    authenticated = True
    carry_bytes = 0
    key_bytes: int

    @property
    def key_lengths(self) -> tuple[int, ...]:
        return (self.key_bytes,) if self.key_bytes else ()

    def fresh_carry(self) -> bytes:
        return b""


def each(aads: Aads | None, batch: Sequence[bytes]) -> Iterable[bytes | None]:
    """The associated data of each value; ValueError when there are not as many as values."""
    if aads is None:
        return repeat(None)
    if len(aads) != len(batch):
        raise ValueError("associated data and values differ in number")
    return aads
