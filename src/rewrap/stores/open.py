"""From a job to the adapters of its stores.

What a kind of store needs is imported when a job names one of that kind.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rewrap.deks import DekCensus, DekStore
from rewrap.envelopes import DekSection
from rewrap.errors import UsageError
from rewrap.interfaces import Census, Guard, Store
from rewrap.job import Job
from rewrap.pace.gate import Gate
from rewrap.storage import PostgresStore as PostgresSection
from rewrap.stores.fleet import FleetCensus, FleetGuard, FleetStore
from rewrap.stores.postgres.census import PostgresCensus
from rewrap.stores.postgres.connection import Address, address_of
from rewrap.stores.postgres.dekcensus import PostgresDekCensus
from rewrap.stores.postgres.deks import PostgresDeks
from rewrap.stores.postgres.guard import PostgresGuard
from rewrap.stores.postgres.store import PostgresStore

if TYPE_CHECKING:
    from rewrap.stores.cosmos.guard import CosmosGuard


@dataclass(frozen=True)
class Stores:
    """The stores of a job that its targets are in, each by its name: what opens them."""

    job: Job
    environ: Mapping[str, str]
    _gates: dict[str, Gate] = field(default_factory=dict, repr=False, compare=False)

    @property
    def jobs(self) -> dict[str, Job]:
        """The job restricted to each store that it uses."""
        used = dict.fromkeys(self.job.store_of(target) for target in self.job.targets)
        return {name: self.job.of_store(name) for name in used}

    @property
    def postgres(self) -> dict[str, Job]:
        """The same, of the stores in Postgres alone."""
        return {
            name: job
            for name, job in self.jobs.items()
            if isinstance(next(iter(job.stores.values())), PostgresSection)
        }

    @property
    def asked(self) -> Address | None:
        """The database that SQL probes ask: the job's first one in Postgres."""
        for name, section in self.job.stores.items():
            if isinstance(section, PostgresSection):
                return address_in(self.job.of_store(name), self.environ)
        return None

    @property
    def gates(self) -> dict[str, Gate]:
        """The gates of the job's accounts, by store: every request of this object's adapters passes one."""
        return {
            name: self._gate(self.job.of_store(name))
            for name, section in self.job.stores.items()
            if not isinstance(section, PostgresSection)
        }

    def store(self) -> Store:
        opened = {name: self._store(job) for name, job in self.jobs.items()}
        return next(iter(opened.values())) if len(opened) == 1 else FleetStore(opened)

    async def guard(self, store: Store) -> Guard:
        """The guard of a run over a store that this object has opened."""
        if not isinstance(store, FleetStore):
            return await self._guard(next(iter(self.jobs.values())), store)
        members = store.members
        guards = {name: await self._guard(job, members[name]) for name, job in self.jobs.items()}
        return FleetGuard(guards, store)

    async def check_guards(self, store: Store) -> None:
        """Raises UnsafeTarget where what a run would keep its lock in is not rewrap's; makes nothing."""
        members = store.members if isinstance(store, FleetStore) else dict.fromkeys(self.jobs, store)
        for name, job in self.jobs.items():
            guard = await self._guard_of(job, members[name])
            try:
                await guard.exists()
            finally:
                await guard.close()

    def census(self) -> Census:
        opened = {name: self._census(job) for name, job in self.jobs.items()}
        return next(iter(opened.values())) if len(opened) == 1 else FleetCensus(opened)

    def deks(self) -> dict[str, DekStore]:
        """Who keeps the records of the DEKs that targets are under, by the name of their section."""
        used = dict.fromkeys(target.dek for target in self.job.targets if target.dek is not None)
        opened: dict[str, DekStore] = {}
        for name in used:
            section = self.job.deks[name]
            opened[name] = self._deks(self.job.of_store(self.job.store_of(section)), section)
        return opened

    def _deks(self, job: Job, section: DekSection) -> DekStore:
        if _in_postgres(job):
            return PostgresDeks(job, section, address_in(job, self.environ))
        from rewrap.stores.cosmos.deks import CosmosDeks

        return CosmosDeks(job, section, self.environ, self._gate(job))

    def _dek_census(self, job: Job) -> DekCensus:
        if _in_postgres(job):
            return PostgresDekCensus(job, address_in(job, self.environ))
        from rewrap.stores.cosmos.dekcensus import CosmosDekCensus

        return CosmosDekCensus(job, self.environ, self._gate(job))

    def dek_censuses(self) -> dict[str, DekCensus]:
        """Verify's look at each store that holds records of DEKs, or refers to them."""
        placed = [place for one in self.job.deks.values() for place in (one, *one.referenced_by)]
        opened: dict[str, DekCensus] = {}
        for name in dict.fromkeys(self.job.store_of(place) for place in placed):
            opened[name] = self._dek_census(self.job.of_store(name))
        return opened

    def _store(self, job: Job) -> Store:
        if _in_postgres(job):
            return PostgresStore(job, password_of(job, self.environ))
        from rewrap.stores.cosmos.store import CosmosContainers

        return CosmosContainers(job, self.environ, self._gate(job))

    async def _guard(self, job: Job, store: Store) -> Guard:
        guard = await self._guard_of(job, store)
        if not isinstance(guard, PostgresGuard):
            from rewrap.stores.cosmos.store import CosmosContainers

            assert isinstance(store, CosmosContainers)
            # its writers ask the guard before each request
            store.guard = guard
        return guard

    async def _guard_of(self, job: Job, store: Store) -> PostgresGuard | CosmosGuard:
        if isinstance(store, PostgresStore):
            return PostgresGuard(store.address, job.postgres.guard_schema, await store.identity())
        from rewrap.stores.cosmos.guard import CosmosGuard
        from rewrap.stores.cosmos.store import CosmosContainers

        assert isinstance(store, CosmosContainers)
        return CosmosGuard(job, store)

    def _census(self, job: Job) -> Census:
        if _in_postgres(job):
            return PostgresCensus(job, address_in(job, self.environ))
        from rewrap.stores.cosmos.census import CosmosCensus

        return CosmosCensus(job, self.environ, self._gate(job))

    def _gate(self, job: Job) -> Gate:
        """The gate of a store's account: one, whoever of this process works there."""
        from rewrap.stores.cosmos.throughput import account_gate

        (name,) = job.stores
        return self._gates.setdefault(name, account_gate(job.cosmos))


def _in_postgres(job: Job) -> bool:
    return isinstance(next(iter(job.stores.values())), PostgresSection)


def address_in(job: Job, environ: Mapping[str, str]) -> Address:
    """Where the Postgres database of a job is that has one store."""
    return address_of(job.postgres.url, password_of(job, environ))


def password_of(job: Job, environ: Mapping[str, str]) -> str | None:
    """The password that a Postgres store names apart from its URL."""
    reference = job.postgres.password
    return None if reference is None else referred(reference, job, environ, "password")


def referred(reference: str, job: Job, environ: Mapping[str, str], what: str) -> str:
    """The text that `env:NAME` or `file:PATH` refers to. Raises UsageError where it is not there."""
    scheme, _, place = reference.partition(":")
    if scheme == "env":
        if place not in environ:
            raise UsageError(
                f"the store's {what} is missing: environment variable {place} is not set",
                hint=f"set {place}, or correct stores.*.{what}",
            )
        return environ[place]
    try:
        return (job.folder / os.path.expanduser(place)).read_text().strip()
    except OSError as exc:
        raise UsageError(
            f"the store's {what} is missing: file {place}: {exc.strerror}",
            hint="check the path and its permissions",
        ) from None
