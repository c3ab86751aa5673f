"""A SoftHSM token in a folder of its own, and another program that keeps its keys.

That program is this module, started: it uses python-pkcs11 by itself, in its own process, with its own login.
So the tests' process has none of its own, and what is done to a key comes from outside, as in reality.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.keywrap import (
    aes_key_unwrap,
    aes_key_unwrap_with_padding,
    aes_key_wrap,
    aes_key_wrap_with_padding,
)

LIBRARIES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/opt/homebrew/lib/softhsm/libsofthsm2.so",
)

PIN = "canary-pin-7719"

_CONF = "directories.tokendir = {folder}\nobjectstore.backend = file\nlog.level = ERROR\n"


def library() -> str | None:
    """Where SoftHSM's library is; None where it is not."""
    return next((path for path in LIBRARIES if Path(path).exists()), None)


class SoftToken:
    """A token, its keys by label with their values as they were made, and what wraps without the token.

    SoftHSM looks for its settings in the environment when a process first uses it: `environ` has them.
    """

    def __init__(self, folder: Path, name: str = "rewrap test") -> None:
        self.module, self.name = library() or "", name
        (folder / "tokens").mkdir()
        conf = folder / "softhsm2.conf"
        conf.write_text(_CONF.format(folder=folder / "tokens"))
        self.environ = {"SOFTHSM2_CONF": str(conf), "HSM_PIN": PIN}
        self.values: dict[str, bytes] = {}
        self._environ = {**os.environ, **self.environ}
        self.initialise(name)
        self._program = subprocess.Popen(
            [sys.executable, "-m", "tests.support.token", self.module, name],
            cwd=Path(__file__).parents[2],
            env=self._environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def initialise(self, name: str) -> None:
        """Another token beside it, with the same PIN."""
        subprocess.run(
            ["softhsm2-util", "--init-token", "--free", "--label", name, "--pin", PIN, "--so-pin", "so-pin"],
            env=self._environ,
            capture_output=True,
            check=True,
        )

    def close(self) -> None:
        self._program.communicate(timeout=60)

    def _told(self, *order: Any) -> Any:
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.write(json.dumps(order) + "\n")
        self._program.stdin.flush()
        done, answer = json.loads(self._program.stdout.readline())
        assert done, answer
        return answer

    def create(self, label: str, value: bytes | None = None, **attributes: Any) -> bytes:
        """Imports a key, non-extractable and sensitive; attributes are PKCS#11's, by their names."""
        made = secrets.token_bytes(32) if value is None else value
        self._told("create", label, made.hex(), attributes)
        self.values[label] = made
        return made

    def destroy(self, label: str) -> None:
        self._told("destroy", label)

    def set(self, label: str, **attributes: bool) -> None:
        self._told("set", label, attributes)

    def wrap(self, label: str, data_key: bytes, *, pad: bool = False) -> bytes:
        """What an application wraps; the token has no part in it."""
        return (aes_key_wrap_with_padding if pad else aes_key_wrap)(self.values[label], data_key)

    def unwrap(self, label: str, wrapped: bytes, *, pad: bool = False) -> bytes:
        return (aes_key_unwrap_with_padding if pad else aes_key_unwrap)(self.values[label], wrapped)


def _keep(module: str, name: str) -> None:
    """Does one order a line on the keys of a token."""
    import pkcs11
    from pkcs11 import Attribute, KeyType, ObjectClass

    session = pkcs11.lib(module).get_token(token_label=name).open(rw=True, user_pin=os.environ["HSM_PIN"])
    for line in sys.stdin:
        what, label, *told = json.loads(line)
        try:
            if what == "create":
                value, given = told
                attributes: dict[Any, Any] = {
                    Attribute.CLASS: ObjectClass.SECRET_KEY,
                    Attribute.KEY_TYPE: KeyType.AES,
                    Attribute.LABEL: label,
                    Attribute.VALUE: bytes.fromhex(value),
                    Attribute.TOKEN: True,
                    Attribute.PRIVATE: True,
                    Attribute.SENSITIVE: True,
                    Attribute.EXTRACTABLE: False,
                    Attribute.WRAP: True,
                    Attribute.UNWRAP: True,
                    Attribute.ENCRYPT: False,
                }
                for key, one in given.items():
                    attributes[Attribute[key]] = bytes.fromhex(one) if isinstance(one, str) else one
                session.create_object(attributes)
            for found in list(session.get_objects({Attribute.LABEL: label})) if what != "create" else ():
                if what == "destroy":
                    found.destroy()
                else:
                    for key, one in told[0].items():
                        found[Attribute[key]] = one
            print(json.dumps([True, None]), flush=True)
        except pkcs11.PKCS11Error as exc:
            print(json.dumps([False, repr(exc)]), flush=True)


if __name__ == "__main__":
    _keep(*sys.argv[1:])
