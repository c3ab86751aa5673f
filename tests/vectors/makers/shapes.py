"""How stored values are put together: a table of its own, which shares nothing with rewrap.

A mistake there is no mistake here.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from typing import Any

Vector = dict[str, Any]
Pieces = dict[str, bytes]

PART = "\x1e"

TAIL = "ciphertext tag16"

SHAPES = {
    # name: marker, encoding, pieces with their lengths in bytes, what stands between parts
    "libsodium-token": ("{version}:", "base64", "nonce24 tag16 ciphertext", ""),
    "php-aes-gcm": ("v1:", "base64", "nonce12 tag16 ciphertext", ""),
    "aes-gcm": ("", "base64", f"nonce12 {TAIL}", ""),
    "two-axis-token": ("a1.k{version}:", "base64url", f"nonce12 {TAIL}", ""),
    "47ng-cloak": ("v1.aesgcm256.{version}.", "base64url-padded", f"nonce12 | {TAIL}", "."),
    "ciphersweet": ("nacl:", "base64url-padded", f"nonce24 {TAIL}", ""),
    "elixir-cloak": ("", "bytes", "cloak nonce12 tag16 ciphertext", ""),
    "elixir-cloak-base64": ("", "base64", "cloak nonce12 tag16 ciphertext", ""),
    "tink": ("", "bytes", f"tink nonce12 {TAIL}", ""),
    "tink-base64": ("", "base64", f"tink nonce12 {TAIL}", ""),
    "jwe": ("{header}", "base64url", "nonce12 | ciphertext | tag16", "."),
    "fernet": ("", "base64url-padded", "head1 time8 nonce16 ciphertext tag32", ""),
    "sentry": ("enc:fernet:{version}:", "base64-base64url", "head1 time8 nonce16 ciphertext tag32", ""),
    "laravel": ("", "laravel", "nonce16 | ciphertext | tag32", ""),
    "laravel-gcm": ("", "laravel", "nonce12 | ciphertext | tag16", ""),
    "rails": ("", "rails", "nonce12 | ciphertext | tag16", ""),
    "rails-deterministic": ("", "rails", "nonce12 | ciphertext | tag16", ""),
    "message-encryptor": ("", "base64", "ciphertext | nonce12 | tag16", "--"),
    "lockbox": ("", "base64", f"nonce12 {TAIL}", ""),
    "lockbox-bytes": ("", "bytes", f"nonce12 {TAIL}", ""),
    "attr-encrypted": ("", "base64-lines", f"nonce12 | {TAIL}", PART),
    "sqlalchemy-utils-gcm": ("", "base64", "nonce12 tag16 ciphertext", ""),
    "wrapped-data-key": ("", "hex", "nonce12 | tag16 | ciphertext", PART),
}

CIPHERS = {
    "secretbox": "nonce24 tag16 ciphertext",
    "xchacha20-poly1305": f"nonce24 {TAIL}",
    "xchacha20-poly1305-nonce": f"nonce24 {TAIL}",
    "aes-256-gcm": f"nonce12 {TAIL}",
    "aes-192-gcm": f"nonce12 {TAIL}",
    "aes-128-gcm": f"nonce12 {TAIL}",
    "aes-256-gcm-derived-nonce": f"nonce12 {TAIL}",
    "fernet": "head1 time8 nonce16 ciphertext tag32",
    "aes-256-cbc": "nonce16 ciphertext",
    "aes-128-cbc": "nonce16 ciphertext",
    "aes-256-ctr": "nonce16 ciphertext",
    "rsa-oaep": "ciphertext",
    "rsa-oaep-256": "ciphertext",
    "aes-key-wrap": "ciphertext",
    "aes-key-wrap-pad": "ciphertext",
}


def encode(coding: str, raw: bytes) -> str:
    if coding == "hex":
        return raw.hex()
    if coding == "base64url":
        return base64.urlsafe_b64encode(raw).decode().rstrip("=")
    if coding == "base64url-padded":
        return base64.urlsafe_b64encode(raw).decode()
    text = base64.b64encode(raw).decode()
    if coding == "base64-lines":
        return "".join(text[at : at + 60] + "\n" for at in range(0, len(text), 60))
    if coding == "base64-base64url":
        return base64.b64encode(base64.urlsafe_b64encode(raw)).decode()
    return text


def decode(coding: str, text: str) -> bytes:
    if coding == "hex":
        return bytes.fromhex(text)
    if coding == "base64-base64url":
        return base64.urlsafe_b64decode(base64.b64decode(text))
    plain = text.replace("\n", "").replace("-", "+").replace("_", "/").rstrip("=")
    return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)


@dataclass(frozen=True)
class Shape:
    """How values of a set are put together."""

    marker: str
    coding: str
    groups: tuple[tuple[tuple[str, int | None], ...], ...]
    separator: str

    @classmethod
    def of(cls, made: Vector) -> Shape:
        """The shape of a set's values: of a built-in layout, with what its descriptor says otherwise."""
        layout, version = made["layout"], made.get("version", "v1")
        marker, coding, order, separator = SHAPES.get(layout.get("like", ""), ("", "base64", "", ""))
        marker = layout.get("marker", marker) if layout.get("like") != "jwe" else marker
        coding = layout.get("encoding", coding).replace("raw", "bytes")
        order = order or CIPHERS[layout["cipher"]]
        if layout.get("nonce_bytes"):
            order = order.replace("nonce12", f"nonce{layout['nonce_bytes']}")
        head = 2 + len(version) if "cloak" in order else 5
        order = re.sub("cloak|tink", f"head{head}", order)
        apart = made.get("apart", [])
        if apart and "like" not in layout:
            rest = [piece for piece in order.split() if re.sub(r"\d", "", piece) not in apart]
            named = {re.sub(r"\d", "", piece): piece for piece in order.split()}
            order = " | ".join([*(named[part] for part in apart if part in named), " ".join(rest)])
            separator = PART
        if "version" in apart:
            marker = made.get("form", "{version}") + PART
        if coding == "bytes" and apart:
            coding = "hex"
        header = made["vectors"][0].get("value", "").partition("..")[0] + ".." if marker == "{header}" else ""
        groups = tuple(
            tuple(
                (re.sub(r"\d", "", piece), int(re.sub(r"\D", "", piece) or 0) or None) for piece in g.split()
            )
            for g in order.split("|")
        )
        return cls(header or marker.replace("{version}", version), coding, groups, separator)

    def stored(self, value: str | bytes) -> Vector:
        return {"bytes": value.hex()} if isinstance(value, bytes) else {"value": value}

    def payload(self, value: str | bytes) -> Any:
        assert isinstance(value, bytes) or value.startswith(self.marker), value
        return value[len(self.marker) :]

    def take(self, value: str | bytes) -> Pieces:
        """The pieces of a value."""
        if self.coding in ("rails", "laravel"):
            assert isinstance(value, str)
            return _taken_document(self.coding, value)
        payload, pieces = self.payload(value), {}
        parts = payload.split(self.separator) if self.separator else [payload]
        for part, group in zip(parts, self.groups, strict=True):
            raw = part if self.coding == "bytes" else decode(self.coding, part)
            fixed = sum(size or 0 for _, size in group)
            for name, size in group:
                length = len(raw) - fixed if size is None else size
                fixed -= size or 0
                pieces[name], raw = raw[:length], raw[length:]
        return pieces

    def put(self, pieces: Pieces, like: str | bytes, coding: str = "") -> str | bytes:
        """A value of some pieces; `like` is one of the same set."""
        if self.coding in ("rails", "laravel"):
            assert isinstance(like, str)
            return _put_document(self.coding, pieces, like)
        parts = [b"".join(pieces[name] for name, _ in group) for group in self.groups]
        if self.coding == "bytes":
            return parts[0]
        coding = coding or self.coding
        return self.marker + self.separator.join(encode(coding, part) for part in parts)


def _taken_document(coding: str, value: str) -> Pieces:
    if coding == "rails":
        document = json.loads(value)
        texts = document["h"]["iv"], document["p"], document["h"]["at"]
        nonce, ciphertext, tag = (base64.b64decode(text) for text in texts)
    else:
        document = json.loads(base64.b64decode(value))
        nonce, ciphertext = (base64.b64decode(document[name]) for name in ("iv", "value"))
        tag = bytes.fromhex(document["mac"]) or base64.b64decode(document["tag"])
    return {"nonce": nonce, "ciphertext": ciphertext, "tag": tag}


def _put_document(coding: str, pieces: Pieces, like: str) -> str:
    nonce, ciphertext, tag = (
        base64.b64encode(pieces[name]).decode() for name in ("nonce", "ciphertext", "tag")
    )
    if coding == "rails":
        document = json.loads(like)
        document["h"] |= {"iv": nonce, "at": tag}
        return json.dumps({**document, "p": ciphertext}, separators=(",", ":"))
    document = json.loads(base64.b64decode(like)) | {"iv": nonce, "value": ciphertext}
    document |= {"mac": pieces["tag"].hex()} if document["mac"] else {"tag": tag}
    return in_base64(document)


def in_base64(document: Any) -> str:
    return base64.b64encode(json.dumps(document, separators=(",", ":")).encode()).decode()
