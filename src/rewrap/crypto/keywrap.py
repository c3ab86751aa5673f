"""AES Key Wrap: data keys under a key-encryption key, with neither a nonce nor associated data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.keywrap import (
    InvalidUnwrap,
    aes_key_unwrap,
    aes_key_unwrap_with_padding,
    aes_key_wrap,
    aes_key_wrap_with_padding,
)

from rewrap.crypto.cipher import Aads, Batch, Carried, OpenBatch, SealBatch
from rewrap.crypto.elsewhere import is_descriptor, opened_elsewhere, sealed_elsewhere
from rewrap.crypto.failures import Unsealable

KEY_LENGTHS = (16, 24, 32)
"""Bytes that an AES key has."""


@dataclass(frozen=True, slots=True)
class AesKeyWrap(Carried):
    """AES Key Wrap: the plaintext, encrypted with 8 bytes that are checked when it is opened.

    Without `pads` it is RFC 3394 with its default initial value: a plaintext of 16 bytes or more, in whole
    blocks of 8, is 8 bytes longer. With it, it is RFC 5649: from 1 byte on, filled up with zeros to whole
    blocks; its length is in the bytes that are checked. The same key and plaintext always give the same
    (RFC 3394 2: no randomness), so equal data keys look equal.

    A key is 16, 24 or 32 bytes, or the descriptor of one that is elsewhere.
    """

    name: str
    pads: bool
    key_bytes: int = 0
    nonce_bytes: int = 0
    tag_bytes: int = 0
    binds_aad: bool = False
    seal_limit: int | None = None
    order: tuple[str, ...] = ("ciphertext",)

    @property
    def key_lengths(self) -> tuple[int, ...]:
        return KEY_LENGTHS

    @property
    def least_bytes(self) -> int:
        return 16 if self.pads else 24

    def wraps(self, plain_bytes: int) -> bool:
        """Whether a plaintext of that many bytes can be wrapped."""
        return plain_bytes > 0 if self.pads else plain_bytes >= 16 and plain_bytes % 8 == 0

    def could_hold(self, wrapped_bytes: int) -> bool:
        """Whether that many bytes can be something wrapped."""
        return wrapped_bytes >= self.least_bytes and wrapped_bytes % 8 == 0

    def opener(self, key: bytes) -> OpenBatch:
        if is_descriptor(key):

            def open_there(sealed: Sequence[bytes], aads: Aads | None, at: int) -> Batch:
                return opened_elsewhere(key, [raw[at:] for raw in sealed], aads)

            return open_there
        self._check(key)
        unwrap = aes_key_unwrap_with_padding if self.pads else aes_key_unwrap

        def open_here(sealed: Sequence[bytes], aads: Aads | None, at: int) -> Batch:
            try:
                return [unwrap(key, raw[at:]) for raw in sealed]
            except InvalidUnwrap:
                raise ValueError("a value does not open") from None

        return open_here

    def sealer(self, key: bytes) -> SealBatch:
        if is_descriptor(key):

            def seal_there(plain: Batch, aads: Aads | None) -> Batch:
                self._check_lengths(plain)
                return sealed_elsewhere(key, plain, aads)

            return seal_there
        self._check(key)
        wrap = aes_key_wrap_with_padding if self.pads else aes_key_wrap

        def seal_here(plain: Batch, aads: Aads | None) -> Batch:
            self._check_lengths(plain)
            return [wrap(key, text) for text in plain]

        return seal_here

    def _check(self, key: bytes) -> None:
        if len(key) not in KEY_LENGTHS:
            raise ValueError(f"{self.name} keys are 16, 24 or 32 bytes")

    def _check_lengths(self, plain: Batch) -> None:
        if not all(self.wraps(len(text)) for text in plain):
            least = "1 byte or more" if self.pads else "16 bytes or more, in whole blocks of 8"
            raise Unsealable(f"{self.name} wraps {least}")
