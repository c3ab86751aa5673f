"""The guard's documents: read, added, and replaced only as they were read.

They live in a container of their own, partitioned by the name of what they speak of: all that is known of one
rotated container stands in one logical partition, and is stamped by one server's clock.
"""

from __future__ import annotations

from typing import Any

from rewrap.errors import SchemaMismatch, StoreError, StoreUnavailable, UnsafeTarget
from rewrap.stores.cosmos.client import Account
from rewrap.stores.cosmos.faults import Changed, Missing

Record = dict[str, Any]
"""A document, with the server's `_etag` and `_ts`."""

KEY_PATH = "/relation"

LEASE = "lease"
"""The document of a container's lease."""

_CLOCK = "clock"
"""The document that is written to be stamped with the server's time."""

_ATTEMPTS = 8
"""Times that a document is tried for which others write too."""


class Records:
    """The documents of one guard container. Every call asks the server."""

    def __init__(self, account: Account, name: str) -> None:
        self._account = account
        self._name = name
        self._container = account.container(name)

    @property
    def subject(self) -> str:
        return f'guard container "{self._name}"'

    async def exists(self) -> bool:
        """Whether the container is there; raises UnsafeTarget when it cannot be the guard's."""
        try:
            found = await self._container.properties()
        except SchemaMismatch:
            return False
        paths = found.get("partitionKey", {}).get("paths", [])
        if paths != [KEY_PATH]:
            raise UnsafeTarget(
                f"{self.subject} is partitioned by {', '.join(paths)}, and so is not rewrap's",
                hint=f"name another one in stores.*.guard_container; rewrap's is partitioned by {KEY_PATH}",
            )
        if found.get("defaultTtl") is not None:
            raise UnsafeTarget(
                f"{self.subject} lets its documents expire: the lock would go with them",
                hint="turn its time to live off (defaultTtl)",
            )
        return True

    async def ensure(self) -> None:
        """Makes the container, unless it is there. Raises StoreError where this identity may not."""
        if await self.exists():
            return
        try:
            await self._account.ensure_container(self._name, KEY_PATH)
        except Changed:
            # another first run was quicker
            return
        except (StoreUnavailable, SchemaMismatch):
            raise
        except StoreError as exc:
            raise StoreError(
                f"the {self.subject}, where rewrap keeps its lock and its checkpoints, could not be made: "
                f"{exc.message}",
                hint=f"no data-plane role may make one; have an owner run: {self.command}",
            ) from None

    @property
    def command(self) -> str:
        """What makes the container, for somebody who may."""
        account = self._account.host.partition(".")[0]
        return (
            f"az cosmosdb sql container create --account-name {account} --resource-group <group> "
            f"--database-name {self._account.database} --name {self._name} --partition-key-path {KEY_PATH}"
        )

    async def read(self, relation: str, name: str) -> Record | None:
        """A document as it is now; None when there is none."""
        return await self._container.read(name, relation)

    async def add(self, record: Record) -> Record | None:
        """The document as it was added; None when there is one of this name, be it this very one."""
        try:
            return await self._container.create(_bare(record))
        except Changed:
            return None
        except Missing:
            raise self.gone(record["relation"]) from None

    async def write(self, record: Record, over: Record) -> Record | None:
        """The document as it was written over another one; None when that is not what is stored any more."""
        try:
            return await self._container.replace(_bare(record), over["_etag"])
        except Changed:
            return None
        except Missing:
            raise self.gone(record["relation"]) from None

    async def remove(self, relation: str, name: str) -> None:
        await self._container.delete(name, relation)

    async def now(self, relation: str) -> int:
        """The time, in whole seconds, of the server that stamps this relation's documents."""
        for _ in range(_ATTEMPTS):
            found = await self.read(relation, _CLOCK)
            clock = {"id": _CLOCK, "relation": relation}
            wrote = await (self.write(clock, found) if found else self.add(clock))
            if wrote is not None:
                return int(wrote["_ts"])
        raise StoreUnavailable(f"{self.subject}: others ask for the time of {relation} all the time")

    def gone(self, relation: str) -> StoreError:
        return StoreError(
            f"{self.subject}: the lock and the checkpoints of {relation} are gone: the container was deleted "
            "or made anew, or the database restored",
            hint="nothing is concluded from this run; see that the data are what they should be, then run "
            "again, which reads everything from the start",
        )


def _bare(record: Record) -> Record:
    """A document without what the server adds to it."""
    return {name: value for name, value in record.items() if not name.startswith("_")}
