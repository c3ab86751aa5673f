"""The public functions of what comes before a run: they look, and leave nothing behind."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from rewrap.check import Check, Findings, check_keys, check_writes, report_probes, try_remote
from rewrap.deks import DekStore
from rewrap.discover import Discovery, discover
from rewrap.engine import quiescence
from rewrap.engine.compile import Rotation
from rewrap.errors import KeyAccessError, LedgerError, SchemaMismatch, StoreError, UnsafeTarget, UsageError
from rewrap.interfaces import Row, SwapBatch
from rewrap.job import Job, split_versions
from rewrap.keys.keyring import Keyring
from rewrap.keys.local import load_key
from rewrap.keys.open import open_keyring, versions_of
from rewrap.ledgers.buckets import of_one_job
from rewrap.ledgers.opened import opened_ledger
from rewrap.ledgers.place import LEDGER_VARIABLE, ledger_path
from rewrap.model import Table
from rewrap.probes.ask import ask
from rewrap.rotations import close_all, rotation_of
from rewrap.storage import PostgresStore as PostgresSection
from rewrap.stores.open import Stores, address_in, password_of
from rewrap.stores.postgres.canary import try_canary
from rewrap.stores.postgres.columns import (
    LOCKED_MS,
    LOOK_MS,
    StoredColumn,
    StoredTable,
    list_labels,
    list_tables,
    sample_column,
)
from rewrap.stores.postgres.connection import Address, Connection, close, connect
from rewrap.stores.postgres.fingerprints import settle
from rewrap.stores.postgres.inspect import (
    inspect_target,
    length_limits,
    longest_values,
    may_make_temporary,
    readable_tables,
)
from rewrap.stores.postgres.schema import identify, survey
from rewrap.stores.postgres.server import inspect_server
from rewrap.stores.postgres.store import PostgresStore
from rewrap.trial import TRIED, try_layouts, worth_trying

LENGTHS_ROWS_MAX = 500_000
"""Rows of a table that are looked at for the longest value."""


async def check(
    job: Job,
    *,
    from_versions: str | None = None,
    to_version: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Check:
    """Everything that can be said before a run; with the versions, also what only they decide.

    Reads, and writes one row of each table for trial, which is rolled back. Raises only when the database
    cannot be reached or the command asks for what cannot be.
    """
    if (from_versions is None) != (to_version is None):
        raise UsageError(
            "--from and --to go together", hint="name both, or neither for what needs no versions"
        )
    out = Findings()
    rotation, keyring = await _keys(out, job, from_versions, to_version, environ)
    shown = {key.version: key.fingerprint for key in keyring}
    if keyring.unlisted:
        # nobody lists the keys of an account: which of them are the job's, only the job can say
        named = job.keys.provider == "aws-kms"
        who = "the job does not name" if named else "this identity may not list"
        mend = "name them in keys.aws-kms.keys" if named else f"grant it {job.keys.listing}"
        out.add(
            "warning", "key-no-list", "keys",
            f"{who} the versions that there are: without a ledger, verify cannot tell what else values may "
            "be under",
            f"{mend}; or keep the ledger, and verify where it is",
        )  # fmt: skip
    if rotation is not None:
        _say_of_keys(out, rotation)
    deks = Stores(job, environ).deks()
    try:
        # where a vault refuses a key, stored values could say nothing more of it
        known = keyring if await try_remote(out, rotation) else None
        rotation = replace(rotation, deks=deks) if rotation is not None and known is not None else None
        stores = Stores(rotation.job if rotation is not None else job, environ)
        for name, mine in stores.jobs.items():
            look = _check_postgres if name in stores.postgres else _check_cosmos
            await look(out, mine, rotation, known, environ, deks)
        for said in quiescence.needed(job):
            out.add(
                "warning", "quiesced", quiescence.tables_said(job.quiesced), said,
                "stop the application before the run; once every job of its tables is complete, start it "
                "with the key of --to",
            )  # fmt: skip
        await _check_references(out, stores)
        await _check_budgets(out, job, environ)
        report_probes(out, await ask(job.probe, stores.asked, job.folder))
    finally:
        await close_all(keyring, *deks.values())
    return Check(job, out.ordered(), shown)


async def _check_budgets(out: Findings, job: Job, environ: Mapping[str, str]) -> None:
    """Whether there is a ledger in which the job's budgets are shared, and what they are there."""
    if not job.pace.shared:
        return
    if not environ.get(LEDGER_VARIABLE):
        out.refused(of_one_job(str(ledger_path(job.path, job.name))), "not-shared", "pace.shared")
        return
    try:
        async with opened_ledger(job, environ, create=False) as ledger:
            there = {one.name: one for one in await ledger.buckets.all()} if ledger is not None else {}
    except LedgerError as exc:
        out.refused(exc, "no-ledger", "pace.shared")
        return
    for name, section in job.pace.shared.items():
        found = there.get(name)
        if found is not None and found.rate != section.rate:
            out.add(
                "warning", "shared-budget", f"budget {name}",
                f"it is {found.rate:,.0f} {found.unit}/s now, and {section.rate:,.0f} for all as soon as "
                "this job runs",
                "write the same rate in every job that shares it",
            )  # fmt: skip


async def _check_references(out: Findings, stores: Stores) -> None:
    """Whether there is what the job says refers to DEKs: verify reads it, and would end there."""
    looks = stores.dek_censuses()
    try:
        for name, section in stores.job.deks.items():
            for place in section.referenced_by:
                try:
                    async for _ in looks[stores.job.store_of(place)].references(place):
                        break
                except StoreError as exc:
                    out.refused(exc, "no-reference", f"deks {name}: {place.name}")
    finally:
        await close_all(*looks.values())


async def _check_postgres(
    out: Findings,
    job: Job,
    rotation: Rotation | None,
    keyring: Keyring | None,
    environ: Mapping[str, str],
    deks: Mapping[str, DekStore],
) -> None:
    address = address_in(job, environ)
    try:
        async with _connected(address, "rewrap check") as connection:
            tables, readable = await _look(out, job, address, connection)
            if rotation is not None or keyring is not None:
                keys = keyring or Keyring([])
                await _try(out, job, address, connection, tables, readable, rotation, keys, environ, deks)
    except UnsafeTarget as exc:
        # a pooler refuses the very connection
        out.refused(exc, "pooler", f"database {address.shown}")


async def _check_cosmos(
    out: Findings,
    job: Job,
    rotation: Rotation | None,
    keyring: Keyring | None,
    environ: Mapping[str, str],
    deks: Mapping[str, DekStore],
) -> None:
    from rewrap.stores.cosmos.inspect import inspect
    from rewrap.stores.cosmos.store import CosmosContainers

    store = CosmosContainers(job, environ)
    try:
        try:
            fit, found = await inspect(store.account, job)
        except UnsafeTarget as exc:
            out.refused(exc, "no-throughput", store.subject)
            return
        out.found += found
        for section in job.untouched:
            try:
                await store.account.container(section.table).properties()
            except SchemaMismatch as exc:
                reason = exc.message.removeprefix(f'container "{section.table}"').strip(" :")
                out.add("error", "untouched", f"container {section.table}", reason, exc.hint)
    finally:
        await store.close()
    names = {one.table.name for one in fit}
    job = job.model_copy(update={"targets": [one for one in job.targets if one.table in names]})
    if not fit or (rotation is None and keyring is None):
        return
    store = CosmosContainers(job, environ)
    try:
        tables = await store.tables()
        await check_keys(out, job, keyring or Keyring([]), store, tables, rotation, deks)
    finally:
        await store.close()
    for table in tables if rotation is not None else ():
        out.add(
            "info", "canary-not-tried", f"container {table.name}",
            "no document was written for trial: a write of Cosmos DB cannot be rolled back",
            "a run rehearses its first write, and reads it back, before it goes on",
        )  # fmt: skip


async def _keys(
    out: Findings, job: Job, from_versions: str | None, to_version: str | None, environ: Mapping[str, str]
) -> tuple[Rotation | None, Keyring]:
    """The rotation asked for, if its keys are at hand; each key that is not becomes a finding."""
    if from_versions is not None and to_version is not None:
        wanted = [] if from_versions == "any" else [*split_versions(from_versions), to_version]
        try:
            rotation = await _rotation(out, job, from_versions, to_version, environ)
        except KeyAccessError as exc:
            if not await _missing(out, job, wanted, environ):
                out.refused(exc, exc.code, "keys")
        else:
            if rotation is not None:
                return rotation, rotation.keyring
    try:
        keyring = await open_keyring(job, [], environ, wanted=[])
    except KeyAccessError as exc:
        if from_versions is None:
            out.refused(exc, exc.code, "keys")
        return None, Keyring([])
    for version in keyring.known if from_versions is None else ():
        if job.keys.provided:
            said = f"is {job.keys.where}; --from and --to have it tried"
            out.add("info", "key-listed", f"key {version}", said)
        elif version not in keyring:
            out.add(
                "info", "key-not-at-hand", f"key {version}",
                "is not set here, or is not a key; only the keys of a rotation must be",
            )  # fmt: skip
    if from_versions is None and job.keys.provider == "aws-secrets-manager" and not keyring.unlisted:
        await _current(out, job, environ)
    return None, keyring


async def _current(out: Findings, job: Job, environ: Mapping[str, str]) -> None:
    """Says what is wrong with the version that applications take for the current one."""
    current = "AWSCURRENT"
    try:
        current = (await versions_of(job, [current], environ))[current]
        await (await open_keyring(job, [current], environ, wanted=[])).close()
    except KeyAccessError as exc:
        out.refused(exc, exc.code, f"key {current}", "warning")


async def _rotation(
    out: Findings, job: Job, from_versions: str, to_version: str, environ: Mapping[str, str]
) -> Rotation | None:
    """The rotation asked for, once labels are versions; None where its keys are one and the same."""
    every = from_versions == "any"
    named = [] if every else split_versions(from_versions)
    labels = await versions_of(job, [*named, to_version], environ)
    versions, target = [labels.get(name, name) for name in named], labels.get(to_version, to_version)
    if not every:
        # what the command line gets wrong is no finding
        known = job.with_versions((*versions, target)) if job.keys.provided else job
        known.resolve_from(",".join(versions), target)
    try:
        rotation = await rotation_of(job, "any" if every else ",".join(versions), target, environ)
    except UsageError as exc:
        out.refused(exc, "same-key", f"key {target}")
        return None
    return replace(rotation, labels=labels)


def _say_of_keys(out: Findings, rotation: Rotation) -> None:
    """What labels were taken for, and what there is to say of the keys as they were found."""
    for label, version in rotation.labels.items():
        out.add("info", "label", f"key {version}", f'is what the label "{label}" stands for now')
    for version in (*rotation.from_versions, rotation.to_version):
        for doubt in rotation.keyring.doubts.get(version, ()):
            out.add(doubt.severity, doubt.code, f"key {version}", doubt.reason, doubt.hint)


async def _missing(out: Findings, job: Job, wanted: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Says of each version that is not at hand why; whether there is one."""
    missing = False
    for version in wanted:
        try:
            named = (await versions_of(job, [version], environ)).get(version, version)
            await (await open_keyring(job, [named], environ, wanted=[])).close()
        except KeyAccessError as exc:
            out.refused(exc, exc.code, f"key {version}")
            missing = True
    return missing


async def _look(
    out: Findings, job: Job, address: Address, connection: Connection
) -> tuple[list[Table], list[Table]]:
    """The server, and each table on its own; the tables that a run would take, and those it could read."""
    subject = f"database {address.shown}"
    identity = None
    try:
        identity = await identify(connection, subject)
    except UnsafeTarget as exc:
        out.refused(exc, "unfit-server", subject)
    out.found += await inspect_server(connection, job, identity, subject)
    tables: list[Table] = []
    readable: list[Table] = []
    for target in job.targets:
        mine, found = await inspect_target(connection, job, target)
        out.found += found
        readable += mine or await readable_tables(connection, job, target)
        for table in mine:
            twin = next((other.target for other in tables if other.oid == table.oid), None)
            if twin is not None:
                out.add(
                    "error", "same-table", f"table {table.name}", f'is a table of target "{twin}" too',
                    "list all its columns in one target",
                )  # fmt: skip
                continue
            if table.estimated_rows == 0:
                out.add("info", "empty", f"table {table.name}", "is empty")
            tables.append(table)
    for what in job.witnessed:
        try:
            await settle(connection, what)
        except (SchemaMismatch, UnsafeTarget) as exc:
            reason = exc.message.removeprefix(f'table "{what.table}"').strip(" :")
            out.add("error", "untouched", f"table {what.table}", reason, exc.hint)
    return (tables, readable) if identity is not None else ([], [])


async def _try(
    out: Findings,
    job: Job,
    address: Address,
    connection: Connection,
    tables: Sequence[Table],
    readable: Sequence[Table],
    rotation: Rotation | None,
    keyring: Keyring,
    environ: Mapping[str, str],
    deks: Mapping[str, DekStore],
) -> None:
    """Keys on stored values, and new values in the tables."""
    store = PostgresStore(job, password_of(job, environ))

    async def canary(table: Table, batch: SwapBatch) -> bool:
        return await try_canary(address, job, table, batch, store.lock_timeout_ms)

    async def lengths(table: Table, columns: Sequence[str]) -> dict[str, tuple[int, int]]:
        limits = await length_limits(connection, table, columns)
        longest = await longest_values(connection, table, list(limits), LENGTHS_ROWS_MAX)
        return {name: (limits[name], longest[name]) for name in limits}

    try:
        await store.identity()
        proof = await check_keys(out, job, keyring, store, readable, rotation, deks)
        if rotation is not None:
            may_write = canary if await may_make_temporary(connection) else None
            await check_writes(out, rotation, store, tables, proof, may_write, lengths)
    finally:
        await store.close()


async def find_columns(
    address: Address, job: Job | None, *, sample: int, environ: Mapping[str, str] = os.environ
) -> Discovery:
    """Every column of a database whose values look like ciphertext. With a job, its keys are tried on them.

    Reads only, each column for at most LOOK_MS.
    """
    keyring, refused = _all_keys(job, environ) if job is not None else (Keyring([]), [])
    schemas = {
        section.guard_schema
        for section in (job.stores.values() if job is not None else ())
        if isinstance(section, PostgresSection)
    } or {"rewrap"}
    patience = {"statement_timeout": f"{LOOK_MS}ms", "lock_timeout": f"{LOCKED_MS}ms"}
    async with _connected(address, "rewrap discover", **patience) as connection:
        found = await discover(_Database(connection, address, min(schemas)), job, sample)
        found.keys_refused = refused

        async def fetch(probe: Job) -> tuple[Table, list[Row]]:
            tables = [one.table for one in await survey(connection, probe, writing=False)]
            table = max(tables, key=lambda one: one.estimated_rows)
            main = probe.postgres.model_copy(update={"url": address.url})
            store = PostgresStore(probe.model_copy(update={"stores": {"main": main}}), address.password)
            reader = store.reader(table, full=False)
            try:
                (entry,) = table.fields
                return table, await reader.sample(TRIED, {entry.name: b"" if entry.binary else ""})
            finally:
                await reader.close()
                await store.close()

        for place in found.places:
            await try_layouts(place, job, keyring, fetch)
        for place in found.quiet if job is not None else ():
            if job is not None and worth_trying(place, job):
                await try_layouts(place, job, keyring, fetch)
                if place.opens or place.in_job:
                    found.places.append(place)
    return found


def _all_keys(job: Job, environ: Mapping[str, str]) -> tuple[Keyring, list[KeyAccessError]]:
    """The job's keys, of whatever length: it is not known yet what they are for. And why others are not."""
    keys, refused = [], []
    for version, section in () if job.keys.provided else job.keys.versions.items():
        try:
            keys.append(
                load_key(version, section.material, section.encoding, frozenset(), environ, job.folder)
            )
        except KeyAccessError as exc:
            refused.append(exc)
    return Keyring(keys), refused


class _Database:
    """What discover asks of a database, on one connection."""

    def __init__(self, connection: Connection, address: Address, guard_schema: str) -> None:
        self._connection = connection
        self._subject = f"database {address.shown}"
        self._guard_schema = guard_schema

    async def tables(self) -> list[StoredTable]:
        return await list_tables(self._connection, self._subject, self._guard_schema)

    async def sample(self, table: StoredTable, column: StoredColumn, count: int) -> list[Any]:
        return await sample_column(self._connection, table, column, count)

    async def labels(self, table: StoredTable, column: str, count: int) -> dict[str, int]:
        return await list_labels(self._connection, table, column, count)


@asynccontextmanager
async def _connected(address: Address, name: str, **settings: str) -> AsyncIterator[Connection]:
    # a look that waits for somebody's lock says so instead of hanging
    connection = await connect(address, application_name=name, **{"lock_timeout": "5s", **settings})
    try:
        yield connection
    finally:
        await close(connection)
