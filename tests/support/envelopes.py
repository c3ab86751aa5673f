"""Envelopes as an application in Node makes and opens them: its own crypto, no code of rewrap's."""

from __future__ import annotations

import base64
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import require
from tests.support.cosmos import node_program

SCRIPT = Path(__file__).with_suffix(".mjs")


def require_node() -> None:
    """Skips, or fails in CI, where there is no Node."""
    if node_program() is None:
        require("Node", "node")


def asked(calls: list[dict[str, Any]]) -> list[Any]:
    """What Node answers to a list of calls; None for each that it refuses."""
    node = node_program()
    assert node is not None
    done = subprocess.run(
        [node, str(SCRIPT)],
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    answers: list[Any] = json.loads(done.stdout)
    return answers


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def unb64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


@dataclass(frozen=True)
class Sealed:
    """A nonce, a ciphertext and a tag, as bytes."""

    iv: bytes
    ct: bytes
    tag: bytes

    @property
    def texts(self) -> dict[str, str]:
        return {"iv": b64(self.iv), "ct": b64(self.ct), "tag": b64(self.tag)}

    @property
    def joined(self) -> bytes:
        return self.iv + self.ct + self.tag


def seal_all(entries: list[tuple[bytes, bytes, str]]) -> list[Sealed]:
    """Seals (key, plaintext, associated data), each under a fresh nonce."""
    found = asked([{"verb": "seal", "key": b64(k), "plain": b64(p), "aad": aad} for k, p, aad in entries])
    return [Sealed(unb64(one["iv"]), unb64(one["ct"]), unb64(one["tag"])) for one in found]


def open_all(entries: list[tuple[bytes, Sealed, str]]) -> list[bytes | None]:
    """Opens (key, sealed, associated data); None for each that does not open."""
    found = asked([{"verb": "open", "key": b64(k), **one.texts, "aad": aad} for k, one, aad in entries])
    return [None if text is None else unb64(text) for text in found]
