"""Notes of Cosmos DB under DEKs: made, and read again, by Node's own crypto."""

from __future__ import annotations

from pathlib import Path

from tests.support.cosmos import STORE_AND_KEYS, CosmosDatabase
from tests.support.documents import make, node, plain
from tests.support.values import KEYS
from tests.support.workbench import Workbench

JOB = (
    STORE_AND_KEYS
    + """
[layouts.mek]
encoding = "base64"
cipher = "aes-256-gcm"
[layouts.field]
encoding = "base64"
cipher = "aes-256-gcm"
[deks.notes]
container = "dek_store"
copied = ["tenant"]
[deks.notes.wrapped]
column = "wrappedDek"
layout = "mek"
version = { column = "mekVersion" }
nonce = { column = "iv" }
tag = { column = "tag" }
[[targets]]
container = "notes"
dek = "notes"
PLAINTEXT
[[targets.fields]]
column = "body"
path = "ct"
layout = "field"
dek_id = { path = "dekId" }
nonce = { path = "iv" }
tag = { path = "tag" }
"""
)


class Containers:
    """A database with notes and their DEKs, and a folder with the job."""

    def __init__(self, cosmos: CosmosDatabase, folder: Path, partition: str = "/id") -> None:
        self.cosmos = cosmos
        cosmos.container("dek_store", partition)
        cosmos.container("notes", "/tenant")
        self.bench = Workbench("", folder)
        self.bench.environ |= cosmos.environ
        self.job()

    def job(self, plaintext: str = "") -> None:
        (self.bench.folder / "rewrap.toml").write_text(JOB.replace("PLAINTEXT", plaintext))

    def fill(self, first: int, count: int, version: str = "v1") -> None:
        documents = [
            {"id": i, "tenant": f"t{i % 3}", "fields": {"body": plain("body", i)}}
            for i in range(first, first + count)
        ]
        made = make(version, documents)
        self.cosmos.upsert("dek_store", *made["deks"])
        notes = [
            {"id": f"n{one['id']}", "tenant": one["tenant"], "kind": "note", **one["fields"]}
            for one in made["documents"]
        ]
        self.cosmos.upsert("notes", *notes)

    def read(self, *versions: str) -> dict[str, str | None]:
        """What Node reads of each note."""
        notes = {one["id"]: one["body"] for one in self.cosmos.documents("notes")}
        keys = {version: KEYS[version].hex() for version in versions}
        deks = [one for one in self.cosmos.documents("dek_store") if one.get("mekVersion") in keys]
        sealed = {name: body for name, body in notes.items() if isinstance(body, dict)}
        plains = node("open", {"keys": keys, "deks": deks, "values": list(sealed.values())})
        return dict(zip(sealed, plains, strict=True))


def expected(count: int) -> dict[str, str | None]:
    return {f"n{i}": plain("body", i) for i in range(1, count + 1)}
