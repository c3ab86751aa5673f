"""Proves the keys on stored records of DEKs, and on documents, before the first write.

A fresh DEK that is wrapped under a mistyped key opens perfectly under that key: so the application's own
records have to open, under every version of the rotation.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from rewrap.engine.compile import Rotation
from rewrap.engine.health import FIRST_VALUES, UNRECORDED, none_recorded
from rewrap.engine.reseal import Resealed
from rewrap.interfaces import Store
from rewrap.model import Table, shown_key

if TYPE_CHECKING:
    from rewrap.engine.proof import Proof

SAMPLE_RECORDS, SAMPLE_DOCUMENTS = 20, 100
"""Records opened for each version, and documents judged of each table."""


async def prove_deks(proof: Proof, store: Store, table: Table, rotation: Rotation, name: str) -> None:
    """Adds what opening records of `[deks.NAME]`, and values of a table under such DEKs, shows.

    Raises KeyRefused when none of the DEKs that a field names has a record.
    """
    await _try_records(proof, rotation, name)
    reader = store.reader(table, full=False)
    try:
        rows = await reader.sample(SAMPLE_DOCUMENTS, dict.fromkeys(table.field_names, ""))
    finally:
        await reader.close()
    judged: Resealed = await rotation.resolved(partial(rotation.reseal(table), rows))
    failed: Counter[tuple[str, str]] = Counter()
    for fault in judged.faults:
        failed[fault.field, fault.version or ""] += 1
    for column in table.field_names:
        unrecorded = failed[column, UNRECORDED]
        if unrecorded >= FIRST_VALUES and not judged.opened[column, UNRECORDED]:
            raise none_recorded(table.relation, column, unrecorded)
        for version in rotation.from_versions:
            proof.opened[table.relation, column, version] += judged.opened[column, version]
            proof.failed[table.relation, column, version] += failed[column, version]
    kept = proof.rows.setdefault(table.relation, [])
    changed = set(judged.swap.keys)
    kept += [row for row in rows if row[0] in changed][:SAMPLE_RECORDS]


async def _try_records(proof: Proof, rotation: Rotation, name: str) -> None:
    wrapping, deks = rotation.wrapping(name), rotation.deks[name]
    entry = wrapping.section.wrapped
    assert entry is not None
    place = wrapping.section.table, entry.name
    for version in (*rotation.from_versions, rotation.to_version):
        if proof.opened[(*place, version)] or proof.failed[(*place, version)]:
            # another table's documents have the same records
            continue
        found = await deks.sample(wrapping.bind(version).prefix, SAMPLE_RECORDS)
        records = {one.id: one for one in found}
        for dek_id, dek in (await rotation.resolved(partial(wrapping.opened, records))).items():
            if isinstance(dek, bytes):
                proof.opened[(*place, version)] += 1
            else:
                proof.failed[(*place, version)] += 1
                proof.where.setdefault(version, f"{place[0]} record {shown_key(dek_id)}")
