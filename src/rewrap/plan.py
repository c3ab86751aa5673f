"""Plan: what a rotation would meet, before anything is read in earnest or written at all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

from rewrap.derived import Derivation, derivations
from rewrap.engine import quiescence
from rewrap.engine.compile import Rotation
from rewrap.engine.proof import SAMPLE_VALUES
from rewrap.engine.rehearsal import REHEARSED_ROWS
from rewrap.forecast import (
    Calls,
    Forecast,
    Range,
    Server,
    TableShape,
    forecast,
    whole,
    with_calls,
)
from rewrap.interfaces import Store
from rewrap.job import Job
from rewrap.keys.keyring import TriedKey
from rewrap.learned import Learned, Outlook, Quota, Sized, learn
from rewrap.measure import measure, work_in
from rewrap.metered import forecast_documents
from rewrap.model import Table
from rewrap.verdict import FieldCount
from rewrap.verify import Verification


@dataclass(frozen=True, slots=True)
class Plan:
    """The tables of a job, their census by class and version, and what to know beforehand."""

    tables: tuple[Table, ...]
    fields: tuple[FieldCount, ...]
    notices: tuple[str, ...]
    in_scope: int
    outlooks: dict[str, Outlook] = field(default_factory=dict)
    homes: dict[str, str] = field(default_factory=dict)
    """The store of each table."""

    calls_from: str = ""
    """Where the figures of remote calls come from; empty where there are none."""

    @property
    def forecasts(self) -> dict[str, Forecast]:
        """The forecast of each table."""
        return {name: outlook.forecast for name, outlook in self.outlooks.items()}

    @property
    def forecast(self) -> Forecast:
        """The forecast of a whole run."""
        total = whole(list(self.forecasts.values()))
        # stores are worked on side by side: at best the slowest of them is waited for
        alone = [
            whole([one for name, one in self.forecasts.items() if self.homes.get(name) == home])
            for home in {*self.homes.values()}
        ]
        low = max((one.seconds.low for one in alone), default=total.seconds.low)
        return replace(total, seconds=Range(low, total.seconds.high))

    @property
    def derived(self) -> dict[str, Derivation]:
        """Where each figure of the whole comes from."""
        return derivations(list(self.outlooks.values()), self.calls_from)


Shape = Callable[[Table], Awaitable[tuple[Server, TableShape] | None]]
"""The settings of a table's server, and its shape; None for a container, which has neither."""


WAL_HEAD_S = 5.0
"""Seconds in which a server's log may grow faster than is wanted, until a run has noticed and goes slower."""

Bounds = Callable[[Table], Sequence[Quota]]
"""What the store of a table keeps to."""


def _unbounded(_table: Table) -> Sequence[Quota]:
    return ()


async def plan(
    rotation: Rotation,
    store: Store,
    census: Verification,
    shape_of: Shape,
    learned: Learned | None = None,
    bounds_of: Bounds = _unbounded,
) -> Plan:
    """Puts the store's survey, a census and a forecast side by side. Reads only.

    `learned` is what earlier runs of the job have measured; `bounds_of` tells what a table's store keeps to.
    """
    tables = await store.tables()
    notices = [*store.notices, *quiescence.needed(rotation.job)]
    for table in tables:
        await store.refuse_fenced(table, rotation.target_markers(table))
        if table.estimated_rows == 0:
            notices.append(f'table "{table.name}" is empty')
        notices += _fresh_records(rotation, table, census.fields)
    job = rotation.job
    outlooks, homes = {}, {}
    kept = remote_key(rotation)
    for table in tables:
        known = await shape_of(table)
        sampled = await measure(rotation, store, table)
        work = work_in(rotation, table, census.fields)
        batch_size = job.pace.batch_size
        home = job.store_of(rotation.target(table))
        shards = job.shards_at_once(home)
        images = 0.0
        if known is None:
            one = forecast_documents(
                table.estimated_rows, sampled, work, batch_size=batch_size, shards=shards
            )  # fmt: skip
        else:
            server, shape = known
            one = forecast(shape, server, sampled, work, batch_size=batch_size, shards=shards)
            bare = replace(server, full_page_writes=False)
            without = forecast(shape, bare, sampled, work, batch_size=batch_size, shards=shards)
            images = one.wal_bytes.high - without.wal_bytes.high
        if kept is not None:
            calls = calls_of(rotation, kept)
            one = with_calls(one, work, calls, batch_size=batch_size, shards=shards)
        sized = Sized(
            table.relation, table.estimated_rows, work, sampled, min(work.values, batch_size * shards),
            images, kept is not None,
        )  # fmt: skip
        outlooks[table.name] = learn(
            one, learned or Learned(), sized, [*quotas_of(job, home), *bounds_of(table)]
        )
        homes[table.name] = home
    return Plan(
        tuple(tables),
        census.fields,
        tuple(notices),
        _in_scope(census.fields, rotation.from_versions),
        outlooks,
        homes,
        calls_said(rotation, kept) if kept is not None else "",
    )


def quotas_of(job: Job, home: str) -> list[Quota]:
    """What the job bounds the work in a store by."""
    pace, found = job.pace, []
    if pace.max_rate is not None:
        found.append(Quota("rows", pace.max_rate, f"max_rate of {pace.max_rate:,.10g} rows/s"))
    for name, shared in pace.shared.items():
        if (shared.store or home) == home:
            said = f"shared budget {name} of {shared.rate:,.10g} rows/s, if no other job draws on it"
            found.append(Quota("rows", shared.rate, said))
    logged = pace.health.wal_bytes_per_s
    most = (logged.pause or logged.slow) if logged else None
    if most is not None:
        said = f"wal_bytes_per_s of {most / 2**20:,.3g} MiB/s"
        found.append(Quota("wal_bytes", most, said, head_s=WAL_HEAD_S))
    return found


def remote_key(rotation: Rotation) -> TriedKey | None:
    """One of the rotation's keys that is kept elsewhere: they share their keeper, and so their budget."""
    remote = rotation.keyring.get(rotation.to_version).remote
    return remote if isinstance(remote, TriedKey) else None


def calls_of(rotation: Rotation, kept: TriedKey) -> Calls:
    """What opening values costs where the keys are kept, of one table."""
    versions = len(rotation.from_versions) + 1
    return Calls(
        per_s=kept.calls_per_s,
        reopen=rotation.keyring.reopen,
        keys=versions,
        proof=SAMPLE_VALUES * versions + 2 * REHEARSED_ROWS,
    )


def calls_said(rotation: Rotation, kept: TriedKey) -> str:
    """Where these figures come from, in words."""
    share = rotation.keyring.reopen
    again = "each new one" if share == 1 else f"{share:.0%} of the new ones"
    return f"each value, and {again} opened again; high: proof, repeats; at {kept.budget}"


def _fresh_records(rotation: Rotation, table: Table, fields: Sequence[FieldCount]) -> list[str]:
    """How many records of DEKs a run will make for a table: one for each document and DEK in scope."""
    dek = rotation.target(table).dek
    if dek is None:
        return []
    left = {
        one.column: one.left(rotation.from_versions, unmarked=False) - one.adrift
        for one in fields
        if one.relation == table.relation
    }
    # what shares a DEK's id shares the fresh one; other fields may, and then there are fewer
    together = sum(max(left[name] for name in names) for names in table.linked)
    alone = sum(n for name, n in left.items() if not any(name in names for names in table.linked))
    most = "" if len(left) == 1 or (table.linked and not alone) else "up to "
    records = rotation.wrapping(dek).section.table
    return [
        f'table "{table.name}": {most}{together + alone:,} DEKs will be made, as new records of {records}'
    ]


def _in_scope(fields: Sequence[FieldCount], from_versions: Sequence[str]) -> int:
    named = sum(one.versions[version] for one in fields for version in from_versions)
    return named + sum(one.in_old_layout for one in fields)
