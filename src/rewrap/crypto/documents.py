"""JSON documents as stored values: Rails' Active Record Encryption, and Laravel's encrypter.

Rails      {"p":base64(ciphertext),"h":{"iv":base64,"at":base64(tag), …}}
Laravel    base64( {"iv":base64,"value":base64(ciphertext),"mac":hex,"tag":base64} )
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from pybase64 import b64decode, b64encode_as_string

from rewrap.crypto.cipher import Batch, Cipher
from rewrap.crypto.parts import Codec

RAILS_CARRY_BYTES = 96
"""Room for a Rails document's other headers, in bytes: `c`, `e` and `i` take 60 at most."""


def rails(cipher: Cipher, key: bytes, removed: str) -> Codec:
    """Rails' documents. What is sealed begins with their other headers, as JSON filled up with zeros.

    They are kept as they are, but for `i`, the reference to the key: the first four hex digits of its SHA-1.
    `removed` is what was taken off each value as its marker.
    """
    reference = b64encode_as_string(hashlib.sha1(key).hexdigest()[:4].encode())  # noqa: S324  # as Rails does
    at = len(removed)

    def decode(payloads: Sequence[Any]) -> Batch:
        return [_rails_sealed(removed + payload) for payload in payloads]

    def encode(sealed: Batch) -> list[Any]:
        return [_rails_document(raw, cipher, reference)[at:] for raw in sealed]

    return Codec(decode, encode)


def _rails_sealed(text: str) -> bytes:
    document = _parsed(text)
    headers = _object(document.get("h"))
    iv, tag = _bytes(headers.pop("iv", None)), _bytes(headers.pop("at", None))
    if "k" in headers:
        raise ValueError("the value has a data key of its own")
    if "i" in headers:
        # which key it names is the key's business: what is opened must not depend on that
        headers["i"] = ""
    other = json.dumps(headers, separators=(",", ":")).encode() if headers else b""
    if len(other) > RAILS_CARRY_BYTES or set(document) != {"p", "h"} or len(iv) != 12 or len(tag) != 16:
        raise ValueError("not a document of Active Record Encryption")
    return other.ljust(RAILS_CARRY_BYTES, b"\x00") + iv + _bytes(document["p"]) + tag


def _rails_document(raw: bytes, cipher: Cipher, reference: str) -> str:
    carry, sealed = raw[:RAILS_CARRY_BYTES].rstrip(b"\x00"), raw[RAILS_CARRY_BYTES:]
    headers = json.loads(carry) if carry else {}
    if "i" in headers:
        headers["i"] = reference
    size = cipher.nonce_bytes
    first = {"iv": b64encode_as_string(sealed[:size]), "at": b64encode_as_string(sealed[-16:])}
    payload = b64encode_as_string(sealed[size:-16])
    return json.dumps({"p": payload, "h": {**first, **headers}}, separators=(",", ":"))


def laravel(cipher: Cipher, removed: str) -> Codec:
    """Laravel's documents: in CBC with a MAC in hex, in GCM with a tag in base64.

    `removed` is what was taken off each value as its marker.
    """
    signed, at = not cipher.name.endswith("-gcm"), len(removed)

    def decode(payloads: Sequence[Any]) -> Batch:
        return [_laravel_sealed(removed + payload, signed) for payload in payloads]

    def encode(sealed: Batch) -> list[Any]:
        out = []
        for raw in sealed:
            iv, tag = raw[: cipher.nonce_bytes], raw[-cipher.tag_bytes :]
            document = {
                "iv": b64encode_as_string(iv),
                "value": b64encode_as_string(raw[len(iv) : -len(tag)]),
                "mac": tag.hex() if signed else "",
                "tag": "" if signed else b64encode_as_string(tag),
            }
            out.append(b64encode_as_string(json.dumps(document, separators=(",", ":")).encode())[at:])
        return out

    return Codec(decode, encode)


def _laravel_sealed(text: str, signed: bool) -> bytes:
    document = _parsed(b64decode(text, None, True))
    mac = document.get("mac")
    if not isinstance(mac, str):
        raise ValueError("the value has no MAC")
    tag = bytes.fromhex(mac) if signed else _bytes(document.get("tag"))
    iv = _bytes(document.get("iv"))
    if (len(iv), len(tag)) != ((16, 32) if signed else (12, 16)):
        raise ValueError("not a document of Laravel's encrypter")
    return iv + _bytes(document.get("value")) + tag


def _parsed(text: str | bytes) -> dict[str, Any]:
    try:
        return _object(json.loads(text))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found


def _bytes(text: Any) -> bytes:
    if not isinstance(text, str):
        raise ValueError("not a text")
    return b64decode(text, None, True)
