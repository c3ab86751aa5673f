"""Adds to a maker's values what is broken of them: bits flipped, parts cut, keys and markers exchanged.

python broken.py < what a maker printed > the vectors

It takes values apart by its own table of shapes, and nothing of rewrap: a mistake there is no mistake here.
Always the same for the same values.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator
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

BINDS = re.compile(r"gcm|xchacha")
"""Ciphers with associated data."""

BINDING = re.compile(
    r"php-aes-gcm|aes-gcm|two-axis|47ng|ciphersweet|elixir|tink|message|lockbox|attr|sqlalchemy|wrapped"
)
"""Built-in layouts with associated data, or with room for them. A JWE's are its header."""

UNSIGNED = re.compile(r"aes-\d+-(cbc|ctr)")

VARIED = ("value", "bytes", "key", "layout", "columns")
"""What tells one vector of a set from another."""

OTHERS = {"47ng-cloak": "00000000", "tink": "858993459", "elixir-cloak": "AES.GCM.V9"}
"""A version that no key is at hand for, where it is no free text."""


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
    return _in_base64(document)


def _in_base64(document: Any) -> str:
    return base64.b64encode(json.dumps(document, separators=(",", ":")).encode()).decode()


def flipped(raw: bytes, at: int, bit: int = 1) -> bytes:
    changed = bytearray(raw)
    changed[at] ^= bit
    return bytes(changed)


@dataclass(frozen=True)
class Breaker:
    """One set of vectors, and the value of it that is broken in every way."""

    made: Vector
    shape: Shape
    value: str | bytes
    plain: bytes
    pieces: Pieces
    other: Pieces

    @property
    def layout(self) -> Vector:
        found: Vector = self.made["layout"]
        return found

    @property
    def name(self) -> str:
        return str(self.layout.get("like", self.layout.get("cipher")))

    @property
    def cipher(self) -> str:
        return str(self.layout.get("cipher", self.name))

    @property
    def bare(self) -> bool:
        """Whether nothing in a value tells that it is one."""
        documents = self.shape.coding in ("rails", "laravel")
        return not (self.shape.marker or documents or self.pieces.get("head", b"")[:1] == b"\x01")

    def with_pieces(self, expect: str, why: str, **changed: bytes) -> Vector:
        value = self.shape.put({**self.pieces, **changed}, self.value)
        return {"expect": expect, "why": why, **self.shape.stored(value)}

    def with_value(self, expect: str, why: str, value: str | bytes, **more: Any) -> Vector:
        return {"expect": expect, "why": why, **self.shape.stored(value), **more}

    def every(self) -> Iterator[Vector]:
        yield from self.unsigned() if UNSIGNED.match(self.cipher) else self.tampered()
        yield from self.unknown()
        yield from self.unbound()
        yield from self.lengths()
        if isinstance(self.value, str):
            yield from self.texts(self.value)
        if self.shape.coding in ("rails", "laravel"):
            yield from self.documents()
        yield from self.markers()

    def tampered(self) -> Iterator[Vector]:
        for name in ("tag", "ciphertext", "nonce", "time"):
            raw = self.pieces.get(name)
            if raw:
                yield self.with_pieces(
                    "bad-tag", f"first bit of the {name} flipped", **{name: flipped(raw, 0, 128)}
                )
                yield self.with_pieces(
                    "bad-tag", f"last bit of the {name} flipped", **{name: flipped(raw, -1)}
                )
        if "nonce" in self.pieces and self.pieces["nonce"] != self.other["nonce"]:
            yield self.with_pieces("bad-tag", "another value's nonce", nonce=self.other["nonce"])
        if self.name in ("fernet", "sentry"):
            yield self.with_pieces("malformed", "a first byte that is not 0x80", head=b"\x81") | {
                "run": "unopenable"
            }

    def unsigned(self) -> Iterator[Vector]:
        """Without a tag most changes go unnoticed, and what opens is another text."""
        places = (
            at
            for at in range(2, 14)
            if all(chr(byte).isalnum() and byte < 128 for byte in (self.plain[at], self.plain[at] ^ 1))
        )
        at = next(places)
        name = "nonce" if "cbc" in self.cipher else "ciphertext"
        yield self.with_pieces(
            "ok",
            f"a bit of byte {at} of the {name} flipped: nothing notices",
            **{name: flipped(self.pieces[name], at)},
        ) | {"plain": flipped(self.plain, at).hex()}
        if "cbc" in self.cipher:
            body = self.pieces["nonce"] + self.pieces["ciphertext"]
            body = flipped(body, -17)
            yield self.with_pieces(
                "bad-tag", "a bit flipped that breaks the padding", nonce=body[:16], ciphertext=body[16:]
            )
        else:
            raw = flipped(self.pieces["ciphertext"], at, 128)
            yield self.with_pieces("bad-tag", "a bit flipped so that it is no text", ciphertext=raw)

    def unknown(self) -> Iterator[Vector]:
        if "spare" not in self.made:
            key = _another_key(bytes.fromhex(self.made["key"])).hex()
            yield self.with_value("unknown-key", "the key at hand is another", self.value, key=key)
        named = OTHERS.get(self.name.removesuffix("-base64"), "v9")
        version = self.made.get("version", "v1")
        if "head" in self.pieces and self.name.startswith(("tink", "elixir")):
            head = (
                b"\x01" + int(named).to_bytes(4, "big")
                if "tink" in self.name
                else b"\x01" + bytes([len(named)]) + named.encode()
            )
            yield self.with_pieces("unknown-key", "under a version without a key", head=head) | {
                "named": named
            }
            if "tink" in self.name:
                near = {"named": str(int(version) ^ 1)}
                # in base64 its marker is the same
                near |= {"run": "malformed"} if self.name == "tink-base64" else {}
                head = flipped(self.pieces["head"], -1)
                yield (
                    self.with_pieces("unknown-key", "under a version that differs in a bit", head=head) | near
                )
        elif self.name == "jwe":
            header = json.loads(decode("base64url", self.shape.marker.removesuffix("..")))
            for changed, kid in (({**header, "kid": "v9"}, "v9"), ({"kid": version, **header}, version)):
                text = encode("base64url", json.dumps(changed, separators=(",", ":")).encode())
                why = "under a version without a key" if kid == "v9" else "a header in another order"
                yield self.with_value(
                    "unknown-key" if kid == "v9" else "malformed",
                    why,
                    f"{text}..{self.shape.payload(self.value)}",
                    named=kid,
                    run="other_version",
                )
        elif self.shape.marker != (other := self.marker_of(named)):
            yield self.with_value(
                "unknown-key",
                "under a version without a key",
                other + self.shape.payload(self.value),
                named=named,
            )

    def marker_of(self, version: str) -> str:
        return Shape.of({**self.made, "version": version}).marker

    def unbound(self) -> Iterator[Vector]:
        binds = BINDS.search(self.cipher) if "like" not in self.layout else BINDING.match(self.name)
        if self.made.get("columns"):
            for name in self.made["columns"]:
                for text, why in (("another", "the row's {} is another"), (None, "the row's {} is NULL")):
                    columns = {**self.made["columns"], name: text}
                    yield self.with_value("bad-aad", why.format(name), self.value, columns=columns)
        elif binds:
            layout = {**self.layout, "aad": "something else"}
            yield self.with_value("bad-aad", "a layout that declares other data", self.value, layout=layout)
        elif self.name == "jwe":
            # what was sealed under another header, behind this one
            for vector in self.made["vectors"]:
                if "named" in vector:
                    payload = vector["value"].partition("..")[2]
                    yield self.with_value("bad-aad", "another header's payload", self.shape.marker + payload)

    def lengths(self) -> Iterator[Vector]:
        last, size = self.shape.groups[-1][-1]
        alone = size is not None and len(self.shape.groups[-1]) == 1
        alone = alone or self.shape.coding in ("rails", "laravel")
        last = "tag" if self.shape.coding in ("rails", "laravel") else last
        # a part of its own has its length; in a longer one, other bytes stand where the tag was
        expect, more = ("malformed", self.lost()) if alone else ("bad-tag", {})
        raw = self.pieces[last]
        if self.cipher != "aes-256-ctr":
            # a byte more might be a space to JSON
            yield self.with_pieces(expect, "a byte more at the end", **{last: raw + b"\x00"}) | more
        if self.name in ("fernet", "sentry") and len(self.pieces["ciphertext"]) == 16:
            # it was the shortest there is
            expect, more = "malformed", self.lost()
        yield self.with_pieces(expect, "the last byte cut off", **{last: raw[:-1]}) | more
        if self.cipher.startswith(("rsa", "aes-key-wrap")):
            yield (
                self.with_pieces("malformed", "cut short", ciphertext=self.pieces["ciphertext"][:7])
                | self.lost()
            )
            return
        # one byte less than an empty plaintext's: what stands alone keeps its length
        short: dict[str, bytes] = {"ciphertext": b""}
        if "tag" in self.pieces:
            short["tag"] = self.pieces["tag"][:-1]
        else:
            short["nonce"] = self.pieces["nonce"][:-1]
        yield self.with_pieces("malformed", "shorter than nonce and tag", **short) | self.lost()

    def lost(self) -> Vector:
        """Without a marker, what is malformed might as well be plaintext."""
        return {"run": "plaintext"} if self.bare else {}

    def texts(self, value: str) -> Iterator[Vector]:
        lost, coding = self.lost(), self.shape.coding
        head = self.pieces.get("head", b"")
        if coding in ("rails", "laravel"):
            yield self.with_value("malformed", "the end cut off", value[:-3])
            yield self.with_value("malformed", "a character more", value + "*")
            return
        # a head in base64 ends within a character: what it decides alone is its marker
        at = len(self.shape.marker) + (len(head) * 8 // 6 if self.name.startswith(("tink", "elixir")) else 0)
        payload = value[at:]
        middle = at + len(payload) // 2

        def cut(count: int) -> str:
            return value[:-count].rstrip("=")

        for sign in "*", "é", " ":
            changed = value[:middle] + sign + value[middle + 1 :]
            # a separator may stand there
            if value[middle] not in self.shape.separator:
                yield self.with_value("malformed", f"{sign!r} within the payload", changed, **lost)
        yield self.with_value("malformed", "a character more", value + "*", **lost)
        yield self.with_value("malformed", "no payload", value[:at], **lost)
        if coding in ("base64", "base64-lines"):
            yield self.with_value(
                "malformed", "a letter of the other alphabet", value[:at] + "-" + value[at + 1 :], **lost
            )
            yield self.with_value("malformed", "the last character cut off", value.rstrip("\n")[:-1], **lost)
        if coding == "hex":
            yield self.with_value("malformed", "the last character cut off", value[:-1], **lost)
            if not self.shape.separator:
                upper = value[:at] + payload.upper()
                yield self.with_value("ok", "in upper case", upper, plain=self.plain.hex(), liberal=True)
        if coding == "base64":
            yield self.with_value("malformed", "a newline at the end", value + "\n", **lost)
        if coding.startswith("base64url"):
            counts = (
                n for n in range(1, 5) if len(cut(n).rpartition(self.shape.separator or ":")[2]) % 4 == 1
            )
            count = next(counts, None)
            if count is not None and self.name != "jwe":
                yield self.with_value("malformed", "a length that base64 never has", cut(count), **lost)
            yield from self.read_too(value)
        if self.shape.separator and self.shape.separator != PART:
            parts = payload.split(self.shape.separator)
            less = self.shape.separator.join(parts[:-1])
            yield self.with_value("malformed", "a part less", value[:at] + less, **lost)
            yield self.with_value(
                "malformed", "a part more", value + self.shape.separator + parts[-1], **lost
            )
        if self.name == "jwe":
            yield self.with_value(
                "malformed", "with a wrapped key", value.replace("..", ".AAAA.", 1), run="plaintext"
            )

    def read_too(self, value: str) -> Iterator[Vector]:
        """Forms that the layout reads and does not write."""
        plain: Vector = {"plain": self.plain.hex(), "liberal": True}
        standard = self.shape.put(self.pieces, value, "base64")
        yield self.with_value("ok", "in the standard alphabet, with padding", standard, **plain)
        bare = self.shape.put(self.pieces, value, "base64url")
        yield self.with_value("ok", "in the URL-safe alphabet, without padding", bare, **plain)

    def documents(self) -> Iterator[Vector]:
        rails = self.shape.coding == "rails"
        assert isinstance(self.value, str)
        document = json.loads(self.value if rails else base64.b64decode(self.value))
        write: Callable[[Any], str] = (
            (lambda found: json.dumps(found, separators=(",", ":"))) if rails else _in_base64
        )
        inner = document["h"] if rails else document
        for name in inner:
            if name in ("tag", "mac") and not inner[name]:
                continue
            for other, why in (
                (None, "without its {}"),
                (7, "a number as its {}"),
                ("*", "no base64 as its {}"),
            ):
                if name in ("i", "e", "c"):
                    continue
                changed = {k: v for k, v in inner.items() if k != name} | (
                    {} if other is None else {name: other}
                )
                whole = {**document, "h": changed} if rails else changed
                yield self.with_value("malformed", why.format(name), write(whole))
        if rails:
            keyed = {**document, "h": {**inner, "k": "AAAA"}}
            yield self.with_value("malformed", "with a data key of its own", write(keyed))
            yield self.with_value("malformed", "a member more", write({**document, "x": 1}))
            nested = '{"p":"' + self.value.split('"')[3] + '","h":' + "[" * 3000 + "]" * 3000 + "}"
            yield self.with_value("malformed", "nested too deeply", nested)

    def markers(self) -> Iterator[Vector]:
        """What has lost its marker is taken for one that never had it, if it opens."""
        if not self.shape.marker or self.shape.marker.endswith(PART) or self.name == "jwe":
            if self.shape.coding == "bytes" and "head" in self.pieces:
                bare = self.shape.put({**self.pieces, "head": b""}, self.value)
                yield self.with_value("malformed", "without its marker", bare, run="unmarked")
            return
        assert isinstance(self.value, str)
        payload = self.shape.payload(self.value)
        yield self.with_value("malformed", "without its marker", payload, run="unmarked")
        yield self.with_value("malformed", "a space before the marker", " " + self.value, run="plaintext")
        marker = self.shape.marker.swapcase()
        yield self.with_value("malformed", "a marker in other letters", marker + payload, run="plaintext")


def _another_key(key: bytes) -> bytes:
    long = b"".join(hashlib.sha256(b"another key" + bytes([n]) + key).digest() for n in range(8))
    return long[: len(key)]


def breaker(made: Vector) -> Breaker:
    good = [vector for vector in made["vectors"] if vector["expect"] == "ok"]
    shape = Shape.of(made)

    def value_of(vector: Vector) -> str | bytes:
        return bytes.fromhex(vector["bytes"]) if "bytes" in vector else str(vector["value"])

    fitting = [vector for vector in good if 0 < len(vector["plain"]) <= 128]
    chosen = max(fitting or good, key=lambda vector: len(vector["plain"]))
    other = next(vector for vector in good if vector is not chosen)
    pieces = shape.take(value_of(chosen))
    assert shape.put(pieces, value_of(chosen)) == value_of(chosen), chosen
    plain = bytes.fromhex(chosen["plain"])
    return Breaker(made, shape, value_of(chosen), plain, pieces, shape.take(value_of(other)))


def broken(maker: Vector) -> Vector:
    """A maker's sets, each with its broken vectors after the program's own."""
    for made in maker["sets"]:
        time = made["vectors"][0].get("time")
        made["broken"] = []
        seen = {json.dumps([v.get(name) for name in VARIED]) for v in made["vectors"]}
        for vector in breaker(made).every():
            told = json.dumps([vector.get(name) for name in VARIED])
            if told in seen:
                continue
            seen.add(told)
            if vector["expect"] == "ok" and time is not None:
                vector["time"] = time
            made["broken"].append(vector)
    return maker


def written(maker: Vector) -> str:
    """As JSON, a line for each vector."""
    text = json.dumps(maker, indent=1, ensure_ascii=False)
    lists = re.compile(r'^(   "(?:vectors|broken)": )(\[\n.*?\n   \])', re.DOTALL | re.MULTILINE)

    def lines(found: re.Match[str]) -> str:
        each = (json.dumps(vector, ensure_ascii=False) for vector in json.loads(found.group(2)))
        return found.group(1) + "[\n    " + ",\n    ".join(each) + "\n   ]"

    return lists.sub(lines, text)


if __name__ == "__main__":
    print(written(broken(json.load(sys.stdin))))
