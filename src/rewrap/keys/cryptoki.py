"""One token of a PKCS#11 library: keys by label, wrapped and unwrapped inside of it.

python-pkcs11 initialises a library without locks of its own (C_Initialize with no arguments), which allows no
two calls at once. So all of a process' calls go one after the other, each in a thread, and there is one
session. It is a read-only one: neither keys of the token nor its settings can be changed by mistake.

"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass
from pkcs11.exceptions import PKCS11Error

from rewrap.errors import KeyAccessError, KeyRefused
from rewrap.keys.service import KeyService
from rewrap.keysections import Pkcs11
from rewrap.pace.gate import Cap, Gate

T = TypeVar("T")

LIMIT = Cap(10_000.0, "no limit of a token is known")
"""Values a second, unless the job says otherwise."""

# a library is one for the whole process, whoever uses it
_CALLS = threading.Lock()

# PINs that were refused, as hashes that mean nothing in another process: a command may open its keys anew for
# another look, and some tokens lock at the third wrong PIN
_REFUSED: set[int] = set()

_GONE = (
    pkcs11.exceptions.SessionHandleInvalid,
    pkcs11.exceptions.SessionClosed,
    pkcs11.exceptions.DeviceRemoved,
    pkcs11.exceptions.UserNotLoggedIn,
    pkcs11.exceptions.OperationNotInitialized,
    pkcs11.exceptions.ObjectHandleInvalid,
    pkcs11.exceptions.KeyHandleInvalid,
    pkcs11.exceptions.UnwrappingKeyHandleInvalid,
    pkcs11.exceptions.WrappingKeyHandleInvalid,
)
"""The session, or an object seen in it, is no more: worth one look with another session."""

_AWAY = (
    pkcs11.exceptions.DeviceRemoved,
    pkcs11.exceptions.DeviceError,
    pkcs11.exceptions.DeviceMemory,
    pkcs11.exceptions.HostMemory,
    pkcs11.exceptions.SessionCount,
    pkcs11.exceptions.SessionClosed,
    pkcs11.exceptions.SessionHandleInvalid,
    pkcs11.exceptions.TokenNotPresent,
    pkcs11.exceptions.TokenNotRecognised,
)

_NOT_MOVABLE = (
    pkcs11.exceptions.KeyUnextractable,
    pkcs11.exceptions.KeyNotWrappable,
    pkcs11.exceptions.TemplateInconsistent,
    pkcs11.exceptions.AttributeSensitive,
)


class Token:
    """A token with a user logged in. What is done in it is done through `call`, and through nothing else."""

    def __init__(
        self,
        section: Pkcs11,
        pin: str,
        *,
        calls_per_s: float | None,
        patience_s: float,
    ) -> None:
        self._section, self._pin = section, pin
        self.shown = f'token "{section.token}"'
        self.service = KeyService(
            "the token", self.shown, calls_per_s=calls_per_s, limit=LIMIT, in_flight=1, patience_s=patience_s
        )
        self._threads = anyio.CapacityLimiter(1)
        self._process = os.getpid()
        self._session: Any = None
        self._fresh = False
        self._mechanisms: frozenset[Any] = frozenset()
        self._objects: dict[str, Any] = {}
        self._expected: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"Token({self._section.token!r})"

    @property
    def gate(self) -> Gate:
        return self.service.gate

    @property
    def session(self) -> Any:
        """The session; only what `call` makes may use it."""
        return self._session

    @property
    def mechanisms(self) -> frozenset[Any]:
        """What the token can do."""
        return self._mechanisms

    async def call(self, operation: str, work: Callable[[], T], *, cost: float = 1.0) -> T:
        """What some work in the token gives, made in a thread. Raises KeyAccessError when it is refused.

        Where the session has died, or a key's handle has, the work is done once more in another one.
        """

        async def attempt() -> T:
            return await anyio.to_thread.run_sync(self._done, work, limiter=self._threads)

        return await self.service.call(operation, attempt, cost=cost)

    async def close(self) -> None:
        await anyio.to_thread.run_sync(self._close, limiter=self._threads)

    def _done(self, work: Callable[[], T]) -> T:
        with _CALLS:
            if os.getpid() != self._process:
                # a session that a fork has copied is the parent's: a child has to begin with C_Initialize
                raise KeyAccessError(
                    f"{self.shown} was opened by another process",
                    hint="open the keys in the process that uses them",
                    code="key-refused",
                )
            try:
                if self._session is None:
                    self._open()
                try:
                    result = work()
                except _GONE:
                    self._drop()
                    self._open()
                    result = work()
                self._fresh = False
                return result
            except PKCS11Error as exc:
                raise self._explained(exc) from None

    def _close(self) -> None:
        with _CALLS:
            if os.getpid() == self._process:
                self._drop()

    def _drop(self) -> None:
        session, self._session = self._session, None
        self._objects.clear()
        if session is not None:
            with contextlib.suppress(PKCS11Error):
                session.close()

    def _open(self) -> None:
        token = self._token()
        login = hash((self._section.module, self._section.token, self._pin))
        if login in _REFUSED:
            raise self._not_taken("")
        try:
            self._session = token.open(user_pin=self._pin)
        except pkcs11.exceptions.UserAlreadyLoggedIn:
            # a login is the process', not a session's
            self._session = token.open()
        except PKCS11Error as exc:
            if type(exc).__name__.startswith("Pin"):
                _REFUSED.add(login)
            raise
        self._fresh = True
        self._mechanisms = frozenset(token.slot.get_mechanisms())

    def _token(self) -> Any:
        module, label = self._section.module, self._section.token
        try:
            library = pkcs11.lib(module)
            slots = library.get_slots(token_present=True)
        except PKCS11Error as exc:
            there = "cannot be loaded" if Path(module).is_file() else "is not there"
            raise KeyAccessError(
                f"the PKCS#11 library {module} {there}{_named(exc)}",
                hint="keys.pkcs11.module is the path of the token's library; what it takes its settings from "
                "has to be in the environment",
                code="key-away",
            ) from None
        tokens = []
        for slot in slots:
            with contextlib.suppress(PKCS11Error):
                tokens.append(slot.get_token())
        mine = [token for token in tokens if token.label == label]
        if len(mine) == 1:
            self._check_pin_state(mine[0])
            return mine[0]
        others = ", ".join(sorted({f'"{token.label}"' for token in tokens if token.label})) or "none"
        if mine:
            raise KeyRefused(
                f'{len(mine)} tokens of {module} are labelled "{label}"',
                hint="give one of them another label, or leave only one of them in reach of the library",
                code="key-ambiguous",
            )
        raise KeyAccessError(
            f'{module} has no token "{label}"',
            hint=f"tokens in reach of it are {others}; check keys.pkcs11.token, and the library's settings",
            code="key-away",
        )

    def _check_pin_state(self, token: Any) -> None:
        if token.flags & pkcs11.TokenFlag.USER_PIN_LOCKED:
            raise self._locked()
        if token.flags & pkcs11.TokenFlag.USER_PIN_FINAL_TRY:
            raise KeyAccessError(
                f"{self.shown}: one more wrong PIN would lock it, so none is tried",
                hint="log in by hand with the right PIN, which clears this",
                code="key-no-identity",
            )

    def _not_taken(self, why: str) -> KeyAccessError:
        return KeyAccessError(
            f"{self.shown} does not take the PIN in {self._section.pin}{why}",
            hint="it was tried once and is not tried again, since wrong ones lock it; see that it is the "
            "user's PIN, and of this token",
            code="key-no-identity",
        )

    def _locked(self) -> KeyAccessError:
        return KeyAccessError(
            f"{self.shown}: the user's PIN is locked",
            hint="the security officer sets it anew: pkcs11-tool --init-pin",
            code="key-no-identity",
        )

    # keys of the token

    def labelled(self, label: str | None = None) -> list[Any]:
        """The token's secret keys, of a label or all."""
        wanted: dict[Attribute, Any] = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.TOKEN: True}
        if label is not None:
            wanted[Attribute.LABEL] = label
        return list(self._session.get_objects(wanted))

    def key(self, label: str) -> Any:
        """The one AES key of a label, the same as before. Raises KeyRefused where there is no such key."""
        if label in self._objects:
            return self._objects[label]
        found = self.labelled(label)
        if not found and not self._fresh:
            # whoever is logged out sees no private keys, and no error either
            raise pkcs11.exceptions.UserNotLoggedIn
        if len(found) != 1:
            raise self._not_one(label, found)
        (one,) = found
        if attribute(one, Attribute.KEY_TYPE) != KeyType.AES:
            raise KeyRefused(
                f'{self.shown}: "{label}" is no AES key',
                hint="data keys are wrapped with AES keys in a token",
                code="key-unfit",
            )
        said = self.identity(one)
        if self._expected.setdefault(label, said) != said:
            raise KeyRefused(
                f'{self.shown}: "{label}" is another key than before, by its check value',
                hint="put back the key that was there; a new key gets a label of its own",
                code="key-refused",
            )
        self._objects[label] = one
        return one

    def _not_one(self, label: str, found: list[Any]) -> KeyRefused:
        if not found:
            return KeyRefused(
                f'{self.shown} has no key "{label}"',
                hint="rewrap keys list shows the keys that there are; a private key shows only to the user "
                "whose PIN was given",
                code="key-missing",
            )
        ids = ", ".join(sorted((attribute(one, Attribute.ID) or b"").hex() or "none" for one in found))
        return KeyRefused(
            f'{self.shown} has {len(found)} keys "{label}", with the ids {ids}',
            hint="values could be under any of them: give all but one another label",
            code="key-ambiguous",
        )

    def identity(self, key: Any) -> str:
        """What tells a key from another under the same label, and nothing of what it is.

        Its check value: the first three bytes of a block of zeros encrypted with it (CKA_CHECK_VALUE).
        Its CKA_ID where the token gives no such.
        """
        value = attribute(key, Attribute.CHECK_VALUE)
        if not value and attribute(key, Attribute.ENCRYPT):
            with contextlib.suppress(PKCS11Error):
                value = key.encrypt(bytes(16), mechanism=Mechanism.AES_ECB)[:3]
        if value:
            return f"kcv {value.hex()}"
        return f"id {(attribute(key, Attribute.ID) or b'').hex()}"

    def require(self, label: str, permission: Attribute) -> Any:
        """The key of a label that may be used so; raises KeyAccessError where it may not."""
        key = self.key(label)
        if hasattr(key, "unwrap_key" if permission is Attribute.UNWRAP else "wrap_key"):
            return key
        # another look next time: it may be allowed by then
        del self._objects[label]
        raise self.not_permitted(label, permission)

    def not_permitted(self, label: str, permission: Attribute) -> KeyAccessError:
        return KeyAccessError(
            f'{self.shown}: key "{label}" may not {permission.name.lower()}',
            hint=f"it takes CKA_{permission.name} true on the key, which its owner in the token sets",
            code="key-not-permitted",
        )

    def _explained(self, exc: PKCS11Error) -> KeyAccessError:
        """Why the token refuses, by the name of its code alone."""
        if isinstance(exc, pkcs11.exceptions.PinLocked):
            return self._locked()
        if type(exc).__name__.startswith("Pin"):
            return self._not_taken(_named(exc))
        if isinstance(exc, _AWAY):
            return KeyAccessError(
                f"{self.shown} is away{_named(exc)}",
                hint="nothing was put aside; go on with rewrap resume when it is there again",
                code="key-away",
            )
        if isinstance(exc, _NOT_MOVABLE):
            return KeyAccessError(
                f"{self.shown} does not let a data key be unwrapped and wrapped again{_named(exc)}",
                hint="see the token's policy, and the key's CKA_UNWRAP_TEMPLATE and CKA_WRAP_WITH_TRUSTED",
                code="key-not-permitted",
            )
        return KeyAccessError(
            f"{self.shown} refuses{_named(exc)}",
            hint="see the library's log; nothing was put aside, and rewrap resume goes on",
            code="key-refused",
        )


def attribute(key: Any, name: Attribute) -> Any:
    """An attribute of an object; None where the token does not tell it, or has none."""
    try:
        return key[name]
    except (PKCS11Error, ValueError, NotImplementedError):
        # an empty date is no date to python-pkcs11
        return None


def _named(exc: PKCS11Error) -> str:
    """The code behind an error: its name, or its number where python-pkcs11 knows no name."""
    if type(exc) is not PKCS11Error:
        return f" ({type(exc).__name__})"
    number = re.search(r"0x[0-9a-fA-F]+", str(exc))
    return f" (CKR {number[0]})" if number else ""
