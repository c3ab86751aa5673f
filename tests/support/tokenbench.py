"""How many data keys a second a token rewraps through rewrap, beside what the token itself takes for it.

    python -m tests.support.tokenbench [DATA_KEYS]

Each round does the same data keys in both ways, one after the other; a ratio is of one round. The floor is
what the provider has the token do for one data key, called by python-pkcs11 in a plain loop: unwrap, wrap,
unwrap again, encrypt with both and compare, destroy both.
"""

from __future__ import annotations

import json
import os
import secrets
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio

from rewrap.job import Job
from rewrap.keys.open import open_keyring
from tests.support.token import SoftToken

ROUNDS = 5

JOB = """
name = "bench"
[stores.main]
kind = "postgres"
url = "postgresql://h/d"
[keys]
provider = "pkcs11"
[keys.pkcs11]
module = "{module}"
token = "{token}"
pin = "env:HSM_PIN"
label = "kek-{{version}}"
[layouts.wrapped]
encoding = "base64"
cipher = "aes-key-wrap"
[[targets]]
table = "deks"
fields = [{{ column = "dek", layout = "wrapped", version = {{ column = "kek" }} }}]
"""


async def provider_s(keyring: Any, wrapped: list[bytes]) -> float:
    started = time.perf_counter()
    found = await keyring.get("v1").remote.opened([(one, None) for one in wrapped])
    took = time.perf_counter() - started
    assert None not in found
    return took


def floor_s(token: Any, wrapped: list[bytes]) -> float:
    from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass

    old, new, mechanism = token.key("kek-v1"), token.key("kek-v2"), Mechanism.AES_KEY_WRAP
    how = {Attribute.PRIVATE: True, Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: True}

    def unwrapped(key: Any, value: bytes) -> Any:
        return key.unwrap_key(
            ObjectClass.SECRET_KEY,
            KeyType.AES,
            value,
            mechanism=mechanism,
            capabilities=MechanismFlag.ENCRYPT,
            template=how,
        )

    started = time.perf_counter()
    for value in wrapped:
        first = unwrapped(old, value)
        second = unwrapped(new, new.wrap_key(first, mechanism=mechanism))
        block = os.urandom(32)
        ecb = Mechanism.AES_ECB
        assert first.encrypt(block, mechanism=ecb) == second.encrypt(block, mechanism=ecb)
        first.destroy()
        second.destroy()
    return time.perf_counter() - started


async def measured(soft: SoftToken, count: int) -> dict[str, float]:
    job = Job.parse(JOB.format(module=soft.module, token=soft.name))
    keyring: Any = await open_keyring(job, ["v1", "v2"], os.environ, wanted=[])
    keyring.rewrap_in_place("v2")
    token = keyring.get("v1").remote._token
    wrapped = [soft.wrap("kek-v1", secrets.token_bytes(32)) for _ in range(count)]
    ours, floors = [], []
    for _ in range(ROUNDS):
        ours.append(await provider_s(keyring, wrapped))
        floors.append(await token.call("measure", lambda: floor_s(token, wrapped)))
    await keyring.close()
    return {
        "data_keys": count,
        "rewraps_per_s": round(count / statistics.median(ours)),
        "floor_per_s": round(count / statistics.median(floors)),
        "of_the_floor": round(statistics.median(f / o for f, o in zip(floors, ours, strict=True)), 3),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        soft = SoftToken(Path(folder))
        os.environ.update(soft.environ)
        for label in ("kek-v1", "kek-v2"):
            soft.create(label)
        print(json.dumps(anyio.run(measured, soft, int(sys.argv[1]) if len(sys.argv) > 1 else 1_000)))
        soft.close()


if __name__ == "__main__":
    main()
