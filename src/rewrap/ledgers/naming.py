"""By what names an operator may call the tables that a ledger speaks of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rewrap.errors import UsageError
from rewrap.job import Job
from rewrap.ledgers.records import ExceptionRecord, RelationRecord


def of_table(
    entries: Sequence[ExceptionRecord], table: str, job: Job, worked_on: Sequence[RelationRecord]
) -> list[ExceptionRecord]:
    """The entries of one table, named as the job does or as the store does.

    A partitioned table stands for its partitions. Raises UsageError where there is no such table.
    """
    found = [entry for entry in entries if table in _names(entry.relation, worked_on)]
    known = (name for one in worked_on for name in _names(one.relation, worked_on))
    if not found and table not in known and table.replace('"', "") not in _declared(job, table):
        named = dict.fromkeys(target.table for target in job.targets)
        raise UsageError(f'there is no table "{table}" in the job', hint=f"its tables are {', '.join(named)}")
    return found


def _names(relation: str, worked_on: Sequence[RelationRecord]) -> set[str]:
    """What a relation is called: "public"."notes" is also public.notes, notes, and what the job says."""
    plain = relation.replace('"', "")
    targets = {one.target for one in worked_on if one.relation == relation}
    return {relation, plain, plain.partition(".")[2], *targets}


def _declared(job: Job, table: str) -> Iterable[str]:
    """What a job's targets may be called before any run has said where they were found."""
    for target in job.targets:
        section = job.stores[job.store_of(target)]
        plain = target.table.replace('"', "")
        yield plain
        if section.kind == "cosmos":
            yield f"{section.database}/{plain}"
        elif "." in plain:
            yield plain.partition(".")[2]
        else:
            # the schema is the search path's to say
            schema = table.replace('"', "").partition(".")[0]
            yield f"{schema}.{plain}"
