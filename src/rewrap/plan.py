"""Plan: what a rotation would meet, before anything is read in earnest or written at all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from rewrap.engine.compile import Rotation
from rewrap.forecast import Forecast, Server, TableShape, forecast, whole
from rewrap.interfaces import Store
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
    forecasts: dict[str, Forecast] = field(default_factory=dict)

    @property
    def forecast(self) -> Forecast:
        """The forecast of a whole run."""
        return whole(list(self.forecasts.values()))


Shape = Callable[[Table], Awaitable[tuple[Server, TableShape] | None]]
"""The settings of a table's server, and its shape; None for a container, which has neither."""


async def plan(rotation: Rotation, store: Store, census: Verification, shape_of: Shape) -> Plan:
    """Puts the store's survey, a census and a forecast side by side. Reads only."""
    tables = await store.tables()
    notices = list(store.notices)
    for table in tables:
        await store.refuse_fenced(table, rotation.target_markers(table))
        if table.estimated_rows == 0:
            notices.append(f'table "{table.name}" is empty')
        notices += _fresh_records(rotation, table, census.fields)
    job = rotation.job
    forecasts = {}
    for table in tables:
        known = await shape_of(table)
        sampled = await measure(rotation, store, table)
        work = work_in(rotation, table, census.fields)
        batch_size = job.pace.batch_size
        shards = job.shards_at_once(job.store_of(rotation.target(table)))
        if known is None:
            forecasts[table.name] = forecast_documents(
                table.estimated_rows, sampled, work, batch_size=batch_size, shards=shards
            )
            continue
        server, shape = known
        forecasts[table.name] = forecast(shape, server, sampled, work, batch_size=batch_size, shards=shards)
    return Plan(
        tuple(tables),
        census.fields,
        tuple(notices),
        _in_scope(census.fields, rotation.from_versions),
        forecasts,
    )


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
