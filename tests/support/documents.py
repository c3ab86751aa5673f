"""Notes under DEKs in a database: made, and read again, by Node's own crypto."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.support.values import KEYS
from tests.support.workbench import Workbench

_NODE = Path(__file__).with_name("documents.mjs")

DEKS = """
[layouts.mek]
encoding = "base64"
cipher = "aes-256-gcm"
[layouts.field]
encoding = "base64"
cipher = "aes-256-gcm"
[deks.notes]
table = "deks"
wrapped = { column = "wrapped_dek", layout = "mek", version = { column = "mek_version" }, \
nonce = { column = "iv" }, tag = { column = "tag" } }
copied = ["tenant"]
"""

BODY = """{ column = "doc", path = "body.ct", layout = "field", dek_id = { path = "body.dekId" }, \
nonce = { path = "body.iv" }, tag = { path = "body.tag" } }"""

TITLE = BODY.replace("body.", "title.")

TARGET = """
[[targets]]
table = "notes"
dek = "notes"
fields = [{fields}]
{more}
"""


@dataclass
class Notes:
    """A bench whose table notes(id, doc) is under DEKs of table deks."""

    bench: Workbench
    fields: tuple[str, ...] = ("body",)

    def job(self, more: str = "", deks: str = "", limits: str = "") -> None:
        """A job that re-encrypts the notes; `more` belongs to the target, `deks` to the section."""
        fields = ", ".join(BODY.replace("body.", f"{name}.") for name in self.fields)
        self.bench.job(TARGET.format(fields=fields, more=more), DEKS + deks + limits)

    def create(self) -> None:
        self.bench.sql(
            "CREATE TABLE deks (id text PRIMARY KEY, tenant text NOT NULL, wrapped_dek text NOT NULL, "
            "iv text NOT NULL, tag text NOT NULL, mek_version text, made timestamptz DEFAULT now())"
        )
        self.bench.sql("CREATE TABLE notes (id bigint PRIMARY KEY, doc jsonb)")

    def fill(self, first: int, count: int, version: str = "v1", *, shared: bool = False) -> None:
        """Inserts notes with ids from `first` on: each field says which note it is of."""
        documents = [
            {"id": i, "tenant": f"t{i % 3}", "fields": {name: plain(name, i) for name in self.fields}}
            for i in range(first, first + count)
        ]
        self.insert(make(version, documents, shared=shared))

    def insert(self, made: dict[str, Any]) -> None:
        columns = ["id", "tenant", "wrapped_dek", "iv", "tag", "mek_version"]
        names = ["id", "tenant", "wrappedDek", "iv", "tag", "mekVersion"]
        self.bench.insert("deks", columns, [tuple(record[name] for name in names) for record in made["deks"]])
        rows = [
            (one["id"], json.dumps({"kind": "note", **one["fields"], "tenant": one["tenant"]}))
            for one in made["documents"]
        ]
        self.bench.sql(
            "INSERT INTO notes SELECT * FROM unnest($1::bigint[], $2::jsonb[])",
            [row[0] for row in rows], [row[1] for row in rows],
        )  # fmt: skip

    def documents(self) -> dict[int, Any]:
        found = self.bench.sql("SELECT id, doc::text AS doc FROM notes ORDER BY id")
        return {row["id"]: json.loads(row["doc"]) for row in found}

    def deks(self) -> list[dict[str, Any]]:
        found = self.bench.sql(
            'SELECT id, tenant, wrapped_dek AS "wrappedDek", iv, tag, mek_version AS "mekVersion" FROM deks'
        )
        return [dict(row) for row in found]

    def opened(self, *versions: str) -> dict[str, dict[int, str | None]]:
        """What Node reads of every note with the keys of some versions, by field; all versions by default."""
        documents = self.documents()
        keys = {version: KEYS[version].hex() for version in versions or KEYS}
        deks = [record for record in self.deks() if record["mekVersion"] in keys]
        found = {}
        for name in self.fields:
            values = {i: doc[name] for i, doc in documents.items() if isinstance(doc.get(name), dict)}
            plains = node("open", {"keys": keys, "deks": deks, "values": list(values.values())})
            found[name] = dict(zip(values, plains, strict=True))
        return found

    def all_read(self, count: int, *versions: str, first: int = 1) -> bool:
        """Whether Node reads each of `count` notes as it was written."""
        opened = self.opened(*versions)
        ids = range(first, first + count)
        return opened == {name: {i: plain(name, i) for i in ids} for name in self.fields}


def plain(name: str, number: int) -> str:
    return f"{name} of note {number} ✓"


def make(version: str, documents: list[dict[str, Any]], *, shared: bool = False) -> dict[str, Any]:
    told = {"key": KEYS[version].hex(), "version": version, "documents": documents, "shared": shared}
    made: dict[str, Any] = node("make", told)
    return made


def node(verb: str, told: dict[str, Any]) -> Any:
    done = subprocess.run(
        ["node", str(_NODE), verb], input=json.dumps(told), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


class Application:
    """A live application: writes notes with the DEKs that it has in its cache, however old.

    What it writes is a value and the id of its DEK together, in one statement. `truth` is what notes say.
    """

    def __init__(self, notes: Notes, ids: list[int], seed: int = 1) -> None:
        self._notes = notes
        self._random = random.Random(seed)
        self._ids = ids
        self._cache: dict[int, tuple[str, bytes]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._work()))
        self.truth = {i: plain("body", i) for i in ids}
        self.written = 0
        self.failed: list[str] = []

    def __enter__(self) -> Application:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _work(self) -> None:
        connection = await asyncpg.connect(self._notes.bench.dsn)
        try:
            # before the run: every DEK is in the cache
            for i in self._ids:
                await self._dek(connection, i)
            while not self._stop.is_set():
                await self._write(connection, self._random.choice(self._ids))
        except Exception as exc:
            self.failed.append(repr(exc))
        finally:
            await connection.close()

    async def _write(self, connection: Any, i: int) -> None:
        if self._random.random() < 0.7:
            # it has seen the note since
            del self._cache[i]
        dek_id, dek = await self._dek(connection, i)
        self.written += 1
        text = f"written {self.written} times, note {i}"
        nonce = os.urandom(12)
        sealed = AESGCM(dek).encrypt(nonce, text.encode(), None)
        body = {
            "ct": base64.b64encode(sealed[:-16]).decode(),
            "iv": base64.b64encode(nonce).decode(),
            "tag": base64.b64encode(sealed[-16:]).decode(),
            "dekId": dek_id,
        }
        await connection.execute(
            "UPDATE notes SET doc = jsonb_set(doc, '{body}', $2::jsonb) WHERE id = $1", i, json.dumps(body)
        )
        self.truth[i] = text

    async def _dek(self, connection: Any, i: int) -> tuple[str, bytes]:
        if i not in self._cache:
            dek_id = await connection.fetchval("SELECT doc -> 'body' ->> 'dekId' FROM notes WHERE id = $1", i)
            record = await connection.fetchrow(
                "SELECT wrapped_dek, iv, tag, mek_version FROM deks WHERE id = $1", dek_id
            )
            wrapped, iv, tag = (base64.b64decode(record[name]) for name in ("wrapped_dek", "iv", "tag"))
            dek = AESGCM(KEYS[record["mek_version"]]).decrypt(iv, wrapped + tag, None)
            self._cache[i] = dek_id, dek
        return self._cache[i]
