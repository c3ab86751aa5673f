"""What the demo's application stores: its tables, its formats, and the truth about every row.

Stored values, with `‖` for concatenation and lengths in bytes:

    secretbox     v1: + base64( nonce24 ‖ mac16 ‖ ciphertext )      XSalsa20-Poly1305
    aes-256-gcm   v1: + base64( nonce12 ‖ ciphertext ‖ tag16 )      AAD: the account id in decimal
"""
# ruff: noqa: S608 - table and column names are quoted, values are parameters

import base64
import hashlib
import os
import random
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

Key = int | uuid.UUID

# Accounts that rows are spread over.
ACCOUNTS = 500


@dataclass(frozen=True, slots=True)
class TableModel:
    """One table of the application: a key, an encrypted text column, a plain text column.

    With `aad` there is a bigint column more, and values are AES-256-GCM bound to it; without, they
    are libsodium secretboxes.
    """

    name: str
    key: Literal["uuid", "bigint"] = "bigint"
    encrypted: str = "body"
    other: str = "note"
    aad: str | None = None


class Row(NamedTuple):
    """What the application knows it has stored. `account` is None where the table has no AAD."""

    plaintext: bytes
    note: str
    account: int | None


class Unopenable(Exception):
    """A stored value that no key of the application opens."""


class Table:
    """The truth about one table, and the statements on it. Parameter 1 is the key throughout."""

    def __init__(self, model: TableModel, seed: int) -> None:
        self.model = model
        self.live: list[Key] = []
        self.changed: dict[Key, Row | None] = {}
        self._seed = seed
        self._loaded = 0
        self._last_key = 0
        self.columns = ["id", model.encrypted, model.other, *([model.aad] if model.aad else [])]
        columns = [_quoted(name) for name in self.columns]
        self.name = name = _quoted(model.name)
        stored = ", ".join(columns[1:])
        types = [model.key, "text", "text", "bigint"]
        definitions = [f"{column} {kind} NOT NULL" for column, kind in zip(columns, types, strict=False)]
        values = ", ".join(f"${place}" for place, _ in enumerate(columns, 1))
        self.ddl = f"CREATE TABLE {name} ({', '.join(definitions)}, PRIMARY KEY (id))"
        self.scan = f"SELECT {', '.join(columns)} FROM {name}"
        self.census = f"SELECT split_part({columns[1]}, ':', 1), count(*) FROM {name} GROUP BY 1"
        self.select = f"SELECT {stored} FROM {name} WHERE id = $1"
        self.select_for_update = f"{self.select} FOR UPDATE"
        self.insert = f"INSERT INTO {name} ({', '.join(columns)}) VALUES ({values})"
        self.update = f"UPDATE {name} SET {columns[1]} = $2 WHERE id = $1"
        self.annotate = f"UPDATE {name} SET {columns[2]} = $2 WHERE id = $1"
        self.move = f"UPDATE {name} SET {columns[1]} = $2, {columns[-1]} = $3 WHERE id = $1"
        self.delete = f"DELETE FROM {name} WHERE id = $1"

    def load(self, count: int) -> Iterator[tuple[Key, Row]]:
        """The next `count` loaded rows, which count as stored once they are taken."""
        for position in range(self._loaded, self._loaded + count):
            key = self._loaded_key(position)
            self.live.append(key)
            yield key, self._loaded_row(key)
        self._loaded += count
        self._last_key = self._loaded

    def row(self, key: Key) -> Row | None:
        """What a row holds; None when it was deleted."""
        return self.changed[key] if key in self.changed else self._loaded_row(key)

    def keys(self) -> set[Key]:
        """Every key that must be in the table."""
        return set(self.live)

    def plain(self, row: Row) -> tuple[object, ...]:
        """The columns that are not encrypted, in their order."""
        return (row.note,) if row.account is None else (row.note, row.account)

    def new_key(self, source: random.Random) -> Key:
        if self.model.key == "uuid":
            return uuid.UUID(int=source.getrandbits(128), version=4)
        self._last_key += 1
        return self._last_key

    def _loaded_key(self, position: int) -> Key:
        if self.model.key == "bigint":
            return position + 1
        name = f"{self._seed}/{self.model.name}/{position}".encode()
        return uuid.UUID(bytes=hashlib.blake2b(name, digest_size=16).digest(), version=4)

    def _loaded_row(self, key: Key) -> Row:
        return derived_row(self.model, f"{self._seed}/{self.model.name}={key}".encode())


class Sealer:
    """The application's keys by version, and its two formats."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        self._boxes = {version: SecretBox(key) for version, key in keys.items()}
        self._gcms = {version: AESGCM(key) for version, key in keys.items()}

    def seal(self, version: str, row: Row) -> str:
        if row.account is None:
            sealed = bytes(self._boxes[version].encrypt(row.plaintext))
        else:
            nonce = os.urandom(12)
            aad = str(row.account).encode()
            sealed = nonce + self._gcms[version].encrypt(nonce, row.plaintext, aad)
        return f"{version}:{base64.b64encode(sealed).decode()}"

    def open(self, token: str, account: int | None) -> tuple[str, bytes]:
        """(version, plaintext); Unopenable whatever the reason."""
        version, _, encoded = token.partition(":")
        try:
            sealed = base64.b64decode(encoded, validate=True)
            if account is None:
                return version, self._boxes[version].decrypt(sealed)
            aad = str(account).encode()
            return version, self._gcms[version].decrypt(sealed[:12], sealed[12:], aad)
        except (KeyError, ValueError, CryptoError, InvalidTag) as exc:
            raise Unopenable from exc


def derived_row(model: TableModel, seed: bytes) -> Row:
    """A row made of a seed: 20 to 200 bytes of plaintext, a short note, an account."""
    stream = hashlib.shake_256(seed).digest(104)
    length = 20 + stream[0] * 181 // 256
    account = 1 + int.from_bytes(stream[1:3], "big") % ACCOUNTS
    return Row(
        plaintext=stream[4:].hex()[:length].encode(),
        note=f"note {stream[2:6].hex()}",
        account=account if model.aad else None,
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
