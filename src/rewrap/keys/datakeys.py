"""Data keys in a token: unwrapped, wrapped under another key and compared without leaving it.

What is unwrapped is a session object: private, sensitive, not kept by the token, and destroyed after use. It
comes into this process only by `value`, where a job needs the plaintext here.
"""

from __future__ import annotations

import contextlib
import hmac
import os
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass
from pkcs11.exceptions import PKCS11Error

from rewrap.crypto.keywrap import KEY_LENGTHS, AesKeyWrap
from rewrap.errors import KeyRefused
from rewrap.keys.cryptoki import Token, attribute

_NOT_OPEN = (
    pkcs11.exceptions.WrappedKeyInvalid,
    pkcs11.exceptions.WrappedKeyLenRange,
    pkcs11.exceptions.EncryptedDataInvalid,
    pkcs11.exceptions.EncryptedDataLenRange,
)
"""What C_UnwrapKey answers to something that this key has not wrapped."""

_UNCLEAR = (pkcs11.exceptions.GeneralError, pkcs11.exceptions.FunctionFailed)
"""What it may also answer then (SoftHSM does), and to what has nothing to do with the value."""

_KNOWN_KEK = bytes.fromhex("5840df6e29b02af1ab493b705bf16ea1ae8338f4dcc176a8")
_KNOWN_WRAPPED = bytes.fromhex("138bdeaa9b8fa7fc61f97742e72248ee5ae6ae5360d1ae6a5f54f373fa543b6a")
_KNOWN = bytes.fromhex("c37b7e6492584340bed12207808941155068f738")
"""RFC 5649 6, the first example."""


class DataKeys:
    """What a job's cipher is in a token. Its functions are called through `Token.call` alone."""

    def __init__(self, token: Token, cipher: AesKeyWrap) -> None:
        self._token, self._cipher = token, cipher
        self._controls: dict[str, bytes] = {}

    @cached_property
    def _mechanism(self) -> Mechanism:
        """The mechanism that is the job's cipher; raises KeyRefused where the token has none."""
        wanted = (
            (Mechanism.AES_KEY_WRAP_KWP, Mechanism.AES_KEY_WRAP_PAD)
            if self._cipher.pads
            else (Mechanism.AES_KEY_WRAP,)
        )
        for one in wanted:
            # CKM_AES_KEY_WRAP_PAD is RFC 5649 in some tokens and PKCS #7 in others
            if one in self._token.mechanisms and (
                one is not Mechanism.AES_KEY_WRAP_PAD or self._pads_as_declared()
            ):
                return one
        named = " or ".join(f"CKM_{one.name}" for one in wanted)
        raise KeyRefused(
            f"{self._token.shown} does not do {self._cipher.name}: it has no {named} as the RFC has it",
            hint="see the token's list of mechanisms: pkcs11-tool --list-mechanisms",
            code="key-unfit",
        )

    def _pads_as_declared(self) -> bool:
        """Whether CKM_AES_KEY_WRAP_PAD opens the RFC's example; also where the token takes no keys to try."""
        try:
            kek = self._token.session.create_object(
                {
                    Attribute.CLASS: ObjectClass.SECRET_KEY,
                    Attribute.KEY_TYPE: KeyType.AES,
                    Attribute.VALUE: _KNOWN_KEK,
                    Attribute.TOKEN: False,
                    Attribute.UNWRAP: True,
                }
            )
        except PKCS11Error:
            return True
        with _destroyed(kek):
            try:
                opened = self._unwrapped(kek, _KNOWN_WRAPPED, Mechanism.AES_KEY_WRAP_PAD, readable=True)
            except (*_NOT_OPEN, *_UNCLEAR):
                return False
            with _destroyed(opened):
                return bool(opened[Attribute.VALUE] == _KNOWN)

    def rewrapped(self, old: str, new: str, wrapped: bytes) -> bytes | None:
        """What is wrapped under one key wrapped under another, and proven; None where it does not open."""
        opened = self.unwrapped(old, wrapped)
        if opened is None:
            return None
        with _destroyed(opened):
            return self.wrapped(new, opened)

    def opens(self, label: str, wrapped: bytes) -> bool:
        opened = self.unwrapped(label, wrapped)
        if opened is None:
            return False
        with _destroyed(opened):
            return True

    def value(self, label: str, wrapped: bytes) -> bytes | None:
        """What is wrapped, in the clear and in this process; None where it does not open."""
        opened = self.unwrapped(label, wrapped, readable=True)
        if opened is None:
            return None
        with _destroyed(opened):
            return bytes(opened[Attribute.VALUE])

    def sealed(self, label: str, plain: bytes) -> bytes:
        """A data key of this process wrapped, and proven."""
        kind = self._kind(len(plain))
        given = self._token.session.create_object(
            {
                Attribute.CLASS: ObjectClass.SECRET_KEY,
                Attribute.KEY_TYPE: kind,
                Attribute.VALUE: plain,
                Attribute.TOKEN: False,
                Attribute.PRIVATE: True,
                Attribute.SENSITIVE: True,
                Attribute.EXTRACTABLE: True,
                **({Attribute.ENCRYPT: True} if kind is KeyType.AES else {}),
            }
        )
        with _destroyed(given):
            return self.wrapped(label, given)

    def try_key(self, label: str, *, in_place: bool) -> None:
        """Does with a random key of 32 bytes what is to be done with others. Raises where that fails."""
        if in_place:
            with _destroyed(self.generated()) as made:
                self.wrapped(label, made)
            return
        plain = os.urandom(32)
        opened = self.value(label, self.sealed(label, plain))
        if opened is None or not hmac.compare_digest(opened, plain):
            raise self._unfaithful(label)

    def generated(self) -> Any:
        """A random AES key of 32 bytes that the token makes; to be destroyed."""
        return self._token.session.generate_key(
            KeyType.AES,
            256,
            capabilities=MechanismFlag.ENCRYPT,
            template={Attribute.PRIVATE: True, Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: True},
        )

    def wrapped(self, label: str, data_key: Any) -> bytes:
        """An object wrapped under a key; what came of it was unwrapped again, and is the same in the token.

        Raises KeyRefused where it is not: SoftHSM 2.6 fills up with zeros what is no whole block.
        """
        made: bytes = self._token.require(label, Attribute.WRAP).wrap_key(data_key, mechanism=self._mechanism)
        again = self.unwrapped(label, made)
        if again is not None:
            with _destroyed(again):
                if self._same(data_key, again):
                    return made
        raise self._unfaithful(label)

    def _unfaithful(self, label: str) -> KeyRefused:
        return KeyRefused(
            f'{self._token.shown}: what "{label}" wrapped does not unwrap to what was given to it',
            hint="nothing was written; the token does not wrap keys of this length faithfully",
            code="key-unfit",
        )

    def unwrapped(self, label: str, wrapped: bytes, *, readable: bool = False) -> Any | None:
        """A session object of what is wrapped, to be destroyed; None where it does not open under the key."""
        key = self._token.require(label, Attribute.UNWRAP)
        if not self._cipher.could_hold(len(wrapped)):
            return None
        try:
            opened = self._unwrapped(key, wrapped, self._mechanism, readable=readable)
        except _NOT_OPEN:
            return None
        except _UNCLEAR:
            # the value's fault only if another one opens
            self._open_another(label, key)
            return None
        except PKCS11Error:
            # of a key that is gone nothing is told, and that is another matter
            if attribute(key, Attribute.UNWRAP) is False:
                raise self._token.not_permitted(label, Attribute.UNWRAP) from None
            raise
        self._controls[label] = wrapped
        return opened

    def _open_another(self, label: str, key: Any) -> None:
        """Opens what is known to open under a key; raises what the token says if that fails as well.

        Where nothing is known yet, and the key may not wrap, nothing is said.
        """
        if label not in self._controls and hasattr(key, "wrap_key"):
            with _destroyed(self.generated()) as made:
                self._controls[label] = key.wrap_key(made, mechanism=self._mechanism)
        if label in self._controls:
            with _destroyed(self._unwrapped(key, self._controls[label], self._mechanism)):
                pass

    def _unwrapped(self, key: Any, wrapped: bytes, mechanism: Mechanism, *, readable: bool = False) -> Any:
        kind = KeyType.GENERIC_SECRET if self._cipher.pads else self._kind(len(wrapped) - 8)
        return key.unwrap_key(
            ObjectClass.SECRET_KEY,
            kind,
            wrapped,
            mechanism=mechanism,
            store=False,
            capabilities=MechanismFlag.ENCRYPT if kind is KeyType.AES else 0,
            template={
                Attribute.PRIVATE: True,
                Attribute.SENSITIVE: not readable,
                # it is to be wrapped again, which is the one way out that it has
                Attribute.EXTRACTABLE: True,
            },
        )

    def _kind(self, length: int) -> KeyType:
        """An AES key where the length says that it is one: tokens are stricter with what has no type."""
        return KeyType.AES if length in KEY_LENGTHS and not self._cipher.pads else KeyType.GENERIC_SECRET

    def _same(self, one: Any, other: Any) -> bool:
        """Whether two objects are the same key: what they make of random bytes, in the token."""
        challenge = os.urandom(32)
        if hasattr(one, "encrypt") and hasattr(other, "encrypt"):
            ecb = Mechanism.AES_ECB
            return bool(one.encrypt(challenge, mechanism=ecb) == other.encrypt(challenge, mechanism=ecb))
        first, second = (
            self._token.session.digest((challenge, each), mechanism=Mechanism.SHA256) for each in (one, other)
        )
        return bool(first == second)


@contextlib.contextmanager
def _destroyed(found: Any) -> Iterator[Any]:
    """Destroys a session object at the end. One that is gone already is gone."""
    try:
        yield found
    finally:
        with contextlib.suppress(PKCS11Error):
            found.destroy()
