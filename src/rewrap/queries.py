"""Verify's census as text: what an operator can paste into psql or Data Explorer, to count without us."""

from __future__ import annotations

from collections.abc import Mapping

from rewrap.dekcount import ANY_VALUE
from rewrap.job import Job
from rewrap.model import Table
from rewrap.stores.open import Stores, address_in
from rewrap.stores.postgres.census import PostgresCensus, count_query
from rewrap.stores.postgres.dekcensus import PostgresDekCensus
from rewrap.targets import TargetSection


async def queries_of(stores: Stores, to_version: str) -> list[tuple[str, str]]:
    """What each query counts, and its text, for every field of a job."""
    out = []
    for name, job in stores.jobs.items():
        ask = _postgres_queries if name in stores.postgres else _cosmos_queries
        out += await ask(job, to_version, stores.environ)
    return out


async def _cosmos_queries(job: Job, to_version: str, environ: Mapping[str, str]) -> list[tuple[str, str]]:
    from rewrap.stores.cosmos.census import CosmosCensus
    from rewrap.stores.cosmos.counting import not_at

    census = CosmosCensus(job, environ)
    try:
        tables = await census.tables()
    finally:
        await census.close()
    out = []
    for table, target in zip(tables, job.targets, strict=True):
        for field, entry in zip(table.fields, target.fields, strict=True):
            if target.dek is not None:
                says = (
                    "documents with a value; their DEKs' records have the version: only rewrap verify knows"
                )
                out.append((f"{table.name}.{entry.name}: {says}", not_at(field, ANY_VALUE)))
                continue
            forms = job.forms(entry, to_version)
            says = f"documents with a value that is not under {to_version}; must be 0, but for plaintext"
            if not forms.new.versioned:
                says = "documents with a value; it names no version, so only rewrap verify can tell which"
            elif forms.probed:
                says += " and for values that name no version: only rewrap verify can tell these"
            out.append((f"{table.name}.{entry.name}: {says}", not_at(field, forms)))
    return out + await _records_queries(job, to_version, environ)


async def _records_queries(job: Job, to_version: str, environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """Of the containers that hold records of DEKs: those under another version, be they in use or not."""
    from rewrap.stores.cosmos.client import Account
    from rewrap.stores.cosmos.counting import not_at
    from rewrap.stores.cosmos.deks import records_shape

    rotated = {target.table for target in job.targets}
    account = Account(job, environ)
    out = []
    try:
        for section in job.deks.values():
            entry = section.wrapped
            if entry is None or job.store_of(section) not in job.stores or section.table in rotated:
                continue
            (field,) = (await records_shape(account, job, section)).table.fields
            forms = job.forms(entry, to_version)
            says = (
                f"records of DEKs that are not under {to_version}; old ones stay, and none of these may be "
            )
            says += "named by a document: no query joins containers, so only rewrap verify knows"
            if not forms.new.versioned:
                says = "records of DEKs; they name no version, so only rewrap verify can tell which"
            out.append((f"{section.table}.{entry.name}: {says}", not_at(field, forms)))
    finally:
        await account.close()
    return out


async def _postgres_queries(job: Job, to_version: str, environ: Mapping[str, str]) -> list[tuple[str, str]]:
    census = PostgresCensus(job, address_in(job, environ))
    try:
        tables = await census.tables()
    finally:
        await census.close()
    out = []
    for table in tables:
        target = next(target for target in job.targets if target.table == table.target)
        if target.dek is not None:
            out += await _joined_queries(job, table, target, to_version, environ)
            continue
        for entry in target.fields:
            forms = job.forms(entry, to_version)
            says = f"values by class and version; all but null and {to_version} must be 0"
            if forms.changes:
                says += ', and all of class "old"'
            if not forms.new.versioned:
                says = "its values name no version, so SQL cannot count them by it; only rewrap verify can"
            elif forms.probed:
                says += '; what is "bare" names no version: only rewrap verify can tell it'
            out.append((f"{table.name}.{entry.name}: {says}", f"{count_query(table, entry.name, forms)};"))
    return out


async def _joined_queries(
    job: Job, table: Table, target: TargetSection, to_version: str, environ: Mapping[str, str]
) -> list[tuple[str, str]]:
    """The same of a table whose values are under DEKs: their records say the versions."""
    section = job.deks[target.dek or ""]
    here = job.store_of(section) in job.stores
    census = PostgresDekCensus(job, address_in(job, environ))
    out = []
    try:
        for entry in target.fields:
            query = await census.joined_query(section, table, entry.name) if here else None
            says = f"values by the version of their DEK's record; all must be {to_version}, and recorded"
            if query is None:
                says = "values; their DEKs' records have the version: only rewrap verify knows it"
                query = count_query(table, entry.name, ANY_VALUE)
            out.append((f"{table.name}.{entry.name}: {says}", f"{query};"))
    finally:
        await census.close()
    return out
