"""Several stores as one: what a run and a verification ask goes to the store that holds the table.

The engine and verify see one store, one guard and one census; each of them keeps to its own rules. A run is
complete only when every store's part of it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import anyio

from rewrap.crypto.layout import Value
from rewrap.errors import SchemaMismatch, UnsafeTarget
from rewrap.forms import Forms
from rewrap.interfaces import (
    Attended,
    Bystanders,
    Census,
    Claim,
    ClassCount,
    Fingerprinting,
    Guard,
    Logging,
    Prefix,
    ShardReader,
    ShardWriter,
    Store,
    SwapBatch,
)
from rewrap.model import Activity, ServerIdentity, ShardLease, ShardRange, StoredValue, Table
from rewrap.untouched import Witnessed

T = TypeVar("T")


@dataclass
class _Members(Generic[T]):
    """The members by their store's name, and which of them has which table."""

    by_name: Mapping[str, T]
    homes: dict[str, str] = field(default_factory=dict)

    def settle(self, name: str, tables: Sequence[Table]) -> None:
        for table in tables:
            other = self.homes.setdefault(table.relation, name)
            if other != name:
                raise SchemaMismatch(
                    f'stores "{other}" and "{name}" both have {table.relation}',
                    hint="rotate them with two jobs: reports and checkpoints could not tell them apart",
                )

    def at(self, relation: str) -> T:
        return self.by_name[self.homes[relation]]

    def shared_out(self, tables: Sequence[Table]) -> list[tuple[T, list[Table]]]:
        """The members, each with its own of some tables."""
        return [
            (member, [table for table in tables if self.homes[table.relation] == name])
            for name, member in self.by_name.items()
        ]


def joined_identity(identities: Sequence[ServerIdentity]) -> ServerIdentity:
    """Several databases as one: restoring any of them makes it another."""
    return ServerIdentity(
        "+".join(one.system_id for one in identities),
        "+".join(one.timeline for one in identities),
        "+".join(one.database for one in identities),
        max(one.version for one in identities),
    )


def fingerprinting(census: Census, what: Witnessed) -> Fingerprinting:
    """The census as one that can fingerprint a table. Raises UnsafeTarget where its store cannot."""
    if not isinstance(census, Fingerprinting):
        raise UnsafeTarget(
            f'"{what.table}" is in a store of which no fingerprints can be taken',
            hint=f'leave "{what.table}" out of what the job names as untouched',
        )
    return census


class FleetStore:
    """The stores of a job as one `Store`."""

    def __init__(self, stores: Mapping[str, Store]) -> None:
        self._members = _Members(stores)
        self.notices: list[str] = []

    async def identity(self) -> ServerIdentity:
        return joined_identity([await store.identity() for store in self._members.by_name.values()])

    async def tables(self) -> list[Table]:
        found: list[Table] = []
        self.notices = []
        for name, store in self._members.by_name.items():
            mine = await store.tables()
            self._members.settle(name, mine)
            found += mine
            self.notices += store.notices
        return found

    @property
    def members(self) -> Mapping[str, Store]:
        """The stores by name."""
        return self._members.by_name

    def home_of(self, relation: str) -> str:
        """The name of the store that has a table."""
        return self._members.homes[relation]

    async def split(self, table: Table, shards: int) -> list[ShardRange]:
        return await self._at(table).split(table, shards)

    async def rehearse(self, table: Table, lease: ShardLease, batch: SwapBatch) -> bool:
        return await self._at(table).rehearse(table, lease, batch)

    async def activity(self, table: Table) -> Activity:
        return await self._at(table).activity(table)

    async def logged(self, table: Table) -> int | None:
        home = self._at(table)
        return await home.logged(table) if isinstance(home, Logging) else None

    @property
    def waiting_for(self) -> str:
        waits = (store.waiting_for for store in self._members.by_name.values())
        return next((said for said in waits if said), "")

    def spent(self) -> dict[str, float]:
        total: Counter[str] = Counter()
        for store in self._members.by_name.values():
            total.update(store.spent())
        return dict(total)

    async def drain(self, timeout_s: float) -> list[str]:
        deadline = anyio.current_time() + timeout_s
        waited_for: list[str] = []
        for store in self._members.by_name.values():
            waited_for += await store.drain(max(0.0, deadline - anyio.current_time()))
        return waited_for

    async def flush(self) -> str:
        return " ".join([await store.flush() for store in self._members.by_name.values()]).strip()

    def reader(self, table: Table, *, full: bool = True) -> ShardReader:
        return self._at(table).reader(table, full=full)

    def writer(self, table: Table, *, full: bool = True) -> ShardWriter:
        return self._at(table).writer(table, full=full)

    async def refuse_fenced(self, table: Table, prefixes: dict[str, Prefix]) -> None:
        await self._at(table).refuse_fenced(table, prefixes)

    async def bystanders(self, tables: Sequence[Table]) -> Bystanders:
        """Who else is in the stores that can say so."""
        writing: list[str] = []
        sessions: list[str] = []
        for store, mine in self._members.shared_out(tables):
            if isinstance(store, Attended):
                found = await store.bystanders(mine)
                writing += found.writing
                sessions += found.sessions
        return Bystanders(tuple(dict.fromkeys(writing)), tuple(dict.fromkeys(sessions)))

    async def close(self) -> None:
        for store in self._members.by_name.values():
            await store.close()

    def _at(self, table: Table) -> Store:
        return self._members.at(table.relation)


class FleetGuard:
    """The guards of a job's stores as one `Guard`. A claim holds everywhere or nowhere."""

    def __init__(self, guards: Mapping[str, Guard], store: FleetStore) -> None:
        self._guards = guards
        self._store = store

    @property
    def notices(self) -> list[str]:
        return [notice for guard in self._guards.values() for notice in guard.notices]

    async def claim(self, claim: Claim) -> dict[str, list[ShardLease]]:
        leases: dict[str, list[ShardLease]] = {}
        taken: list[tuple[Guard, bool]] = []
        try:
            for name, guard in self._guards.items():
                ranges = {r: cut for r, cut in claim.ranges.items() if self._store.home_of(r) == name}
                mine = await guard.claim(replace(claim, ranges=ranges))
                leases |= mine
                taken.append((guard, not any(_begun(lease) for each in mine.values() for lease in each)))
        except BaseException:
            with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                for guard, untouched in taken:
                    # a run that never began is not one that others have to finish first
                    await guard.release(finished=untouched)
            raise
        return leases

    async def begin_sweep(self, relation: str, sweep: int) -> list[ShardLease]:
        return await self._at(relation).begin_sweep(relation, sweep)

    async def lease(self, relation: str, shard: int) -> ShardLease:
        return await self._at(relation).lease(relation, shard)

    async def beat(self) -> None:
        for guard in self._guards.values():
            await guard.beat()

    async def release(self, *, finished: bool, void: bool = False) -> None:
        for guard in self._guards.values():
            await guard.release(finished=finished, void=void)

    async def close(self) -> None:
        for guard in self._guards.values():
            await guard.close()

    def _at(self, relation: str) -> Guard:
        return self._guards[self._store.home_of(relation)]


def _begun(lease: ShardLease) -> bool:
    return lease.done or lease.sweep > 1 or lease.cursor is not None or lease.rows > 0


class FleetCensus:
    """The censuses of a job's stores as one `Census`: a snapshot each, one after the other."""

    def __init__(self, censuses: Mapping[str, Census]) -> None:
        self._members = _Members(censuses)
        self._entered = AsyncExitStack()

    @property
    def _all(self) -> list[Census]:
        return list(self._members.by_name.values())

    @property
    def identity(self) -> ServerIdentity | None:
        found = [census.identity for census in self._all]
        known = [one for one in found if one is not None]
        return joined_identity(known) if len(known) == len(found) else None

    @property
    def manner(self) -> str:
        return ", and ".join(f'in "{name}" {census.manner}' for name, census in self._members.by_name.items())

    async def tables(self) -> list[Table]:
        found: list[Table] = []
        for name, census in self._members.by_name.items():
            mine = await census.tables()
            self._members.settle(name, mine)
            found += mine
        return found

    async def tables_now(self, tables: Sequence[Table]) -> list[Table]:
        found: list[Table] = []
        for (name, census), (_, mine) in zip(
            self._members.by_name.items(), self._members.shared_out(tables), strict=True
        ):
            now = await census.tables_now(mine)
            self._members.settle(name, now)
            found += now
        return found

    async def former(self, target: str, oid: int) -> Table | None:
        for name, census in self._members.by_name.items():
            table = await census.former(target, oid)
            if table is not None:
                self._members.settle(name, [table])
                return table
        return None

    async def drain(self, timeout_s: float) -> list[str]:
        return [one for census in self._all for one in await census.drain(timeout_s)]

    async def __aenter__(self) -> FleetCensus:
        for census in self._all:
            await self._entered.enter_async_context(census)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._entered.aclose()

    async def count(
        self, table: Table, columns: Mapping[str, Forms]
    ) -> tuple[int, dict[str, list[ClassCount]]]:
        return await self._at(table).count(table, columns)

    def bare(self, table: Table, column: str, forms: Forms) -> AsyncIterator[list[Any]]:
        return self._at(table).bare(table, column, forms)

    def unnamed(self, table: Table, column: str, forms: Forms) -> AsyncIterator[list[Any]]:
        return self._at(table).unnamed(table, column, forms)

    def marked(self, table: Table, column: str, forms: Forms) -> AsyncIterator[list[Any]]:
        return self._at(table).marked(table, column, forms)

    async def value(self, table: Table, column: str, forms: Forms, row_id: str) -> StoredValue | None:
        return await self._at(table).value(table, column, forms, row_id)

    async def check_kept(self) -> None:
        for census in self._all:
            await census.check_kept()

    async def position(self) -> str:
        return " ".join([await census.position() for census in self._all]).strip()

    async def add_fence(self, table: Table, column: str, prefix: Value) -> bool:
        return await self._at(table).add_fence(table, column, prefix)

    async def settled(self, what: Witnessed) -> Witnessed:
        return await fingerprinting(self._members.by_name[what.store], what).settled(what)

    def entries(self, what: Witnessed) -> AsyncIterator[bytes]:
        return fingerprinting(self._members.by_name[what.store], what).entries(what)

    async def close(self) -> None:
        for census in self._all:
            await census.close()

    def _at(self, table: Table) -> Census:
        return self._members.at(table.relation)
