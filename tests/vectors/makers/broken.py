"""Adds to a maker's values what is broken of them: bits flipped, parts cut, keys and markers exchanged.

python broken.py < what a maker printed > the vectors

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

from shapes import PART, Pieces, Shape, Vector, decode, encode, in_base64

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
        # what a lenient decoder reads is no plaintext
        otherwise: Vector = {} if coding == "base64" and not self.shape.separator else lost
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
                "malformed", "a letter of the other alphabet", value[:at] + "-" + value[at + 1 :], **otherwise
            )
            cut_off = value.rstrip("\n")[:-1]
            yield self.with_value("malformed", "the last character cut off", cut_off, **otherwise)
        if coding == "hex":
            yield self.with_value("malformed", "the last character cut off", value[:-1], **lost)
            if not self.shape.separator:
                upper = value[:at] + payload.upper()
                yield self.with_value("ok", "in upper case", upper, plain=self.plain.hex(), liberal=True)
        if coding == "base64":
            yield self.with_value("malformed", "a newline at the end", value + "\n", **otherwise)
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
            (lambda found: json.dumps(found, separators=(",", ":"))) if rails else in_base64
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
        if self.name == "two-axis-token":
            named = self.shape.marker.replace("a1.", "a2.").removesuffix(":")
            value = f"{named}:{payload}"
            yield self.with_value("malformed", "another algorithm's", value, named=named, run="other_version")
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
