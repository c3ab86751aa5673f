"""One database of Cosmos DB, one job file, one folder: a run as a user has it, perhaps through a proxy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.cosmos import CosmosDatabase
from tests.support.proxy import FaultProxy
from tests.support.values import box, unbox
from tests.support.workbench import Workbench

JOB = """
name = "test"
[stores.main]
kind = "cosmos"
endpoint = "${{COSMOS_ENDPOINT}}"
key = "env:COSMOS_KEY"
database = "${{COSMOS_DATABASE}}"
settle_s = 0.1
{store}
[keys.versions.v1]
material = "env:KEY_V1"
[keys.versions.v2]
material = "env:KEY_V2"
{targets}
{more}
"""

NOTES = """
[[targets]]
container = "notes"
fields = [{ column = "body", layout = "libsodium-token" }]
"""

LIMITS = "[limits]\ndrain_s = 0.3\nreconnect_s = 20\n"


class CosmosBench(Workbench):
    """A workbench whose job is over a database of Cosmos DB, reached through a proxy where one is given."""

    def __init__(self, folder: Path, database: CosmosDatabase, proxy: FaultProxy | None = None) -> None:
        super().__init__("", folder)
        self.database = database
        self.proxy = proxy
        self.environ |= database.environ
        if proxy is not None:
            self.environ["COSMOS_ENDPOINT"] = proxy.endpoint

    def job(self, targets: str = NOTES, more: str = LIMITS, store: str = "") -> Path:
        """Writes rewrap.toml; `store` is further TOML of the store's section."""
        path = self.folder / "rewrap.toml"
        path.write_text(JOB.format(targets=targets, more=more, store=store))
        return path

    def fill(self, count: int, version: str = "v1") -> None:
        """Makes container notes with so many documents, partitioned by their owners."""
        self.database.container("notes", "/owner")
        self.database.upsert("notes", *(note(number, version) for number in range(count)))

    def bodies_of(self, container: str = "notes") -> dict[str, str]:
        """The value of each document, by its id."""
        return {each["id"]: each["body"] for each in self.database.documents(container)}

    def opened(self) -> dict[str, str]:
        """The plaintext of each document, by its id."""
        return {name: unbox(body).decode() for name, body in self.bodies_of().items()}

    def rest(self) -> dict[str, dict[str, Any]]:
        """What else is in each document, without what the server keeps there."""
        return {
            each["id"]: {name: each[name] for name in each if name != "body" and not name.startswith("_")}
            for each in self.database.documents("notes")
        }


def note(number: int, version: str = "v1") -> dict[str, Any]:
    """A document with one sealed value and others beside it."""
    return {
        "id": f"n{number:05}",
        "owner": f"o{number % 7}",
        "body": box(f"note {number}", version),
        "title": f"title {number}",
        "deep": {"list": [number, None, {"x": 1.5}]},
    }


def expected(count: int) -> dict[str, str]:
    """What opens out of so many documents."""
    return {f"n{number:05}": f"note {number}" for number in range(count)}
