"""The quiesced window: while a table is rotated whose readers know one key only, nobody else may work there.

Nothing is lost when somebody does: compare-and-swap never overwrites what another has written. But whoever
knows the old key alone cannot read what is rewritten, and whoever knows the new one alone cannot read the
rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rewrap.engine.compile import Rotation
from rewrap.engine.course import Course
from rewrap.errors import NotQuiesced, UsageError
from rewrap.events import Notice
from rewrap.hints import named
from rewrap.interfaces import Attended, Bystanders, Sink, Store
from rewrap.job import Job
from rewrap.model import Table

FLAG = "--acknowledge-quiesced"

CONSEQUENCE = (
    "whoever reads it knows one key only, and each value is unreadable to them from the moment it is "
    "rewritten until they are started with the key that it was rewritten to"
)


def tables_said(names: Sequence[str]) -> str:
    """`table secrets`, `tables secrets and tokens`."""
    *others, last = names
    return f"tables {', '.join(others)} and {last}" if others else f"table {last}"


def require(job: Job, acknowledged: bool) -> None:
    """Raises UsageError when a run of this job needs an acknowledgement that was not given."""
    if not job.quiesced or acknowledged:
        return
    raise UsageError(
        f"{tables_said(job.quiesced)} must be quiesced while a run is at work: {CONSEQUENCE}",
        hint="stop every process of the application, see in pg_stat_activity that it has no session left, "
        f"then say so: {FLAG}; nothing was begun",
    )


def needed(job: Job) -> list[str]:
    """What there is to know of it before a run, in words; empty where others may work on."""
    if not job.quiesced:
        return []
    return [f"{tables_said(job.quiesced)} must be quiesced for a run ({FLAG}): {CONSEQUENCE}"]


async def begin(rotation: Rotation, store: Store, tables: Sequence[Table], sink: Sink) -> None:
    """Looks for signs that somebody is at work after all, before the first write.

    Raises NotQuiesced when a transaction is open that has written one of the tables. Sessions that only exist
    are named in a warning: an operator's own may be among them.
    """
    job = rotation.job
    mine = [table for table in tables if table.target in job.quiesced]
    if not mine:
        return
    found = await store.bystanders(mine) if isinstance(store, Attended) else Bystanders()
    if found.writing:
        raise NotQuiesced(
            f"{tables_said(job.quiesced)} is not quiesced: written just now by {', '.join(found.writing)}",
            hint="stop what writes there, and wait for its transaction to end; nothing was written, and "
            f"{FLAG} has to be given again",
        )
    sink(
        Notice(
            level="warning",
            message=f"quiesced: the operator has acknowledged that nobody else works in "
            f"{tables_said(job.quiesced)}; {CONSEQUENCE}",
            hint="start it once every job of the application's tables is complete, with the key of "
            f"{rotation.to_version}; a write of its own stops the run",
        )
    )
    if found.sessions:
        sink(
            Notice(
                level="warning",
                message=f"other sessions in the database just now: {', '.join(found.sessions)}",
                hint="the application's must not be among them: if one is, press Ctrl-C and stop it",
            )
        )


def judge(rotation: Rotation, left: Sequence[Course], found: Mapping[str, int]) -> None:
    """Raises NotQuiesced where values to rewrite came into a table after it was swept.

    `found` is by relation how many values are left; what a sweep put off was there before. Where values name
    no version, one that was rewritten and then moved to other associated data counts as left, too.
    """
    for course in left:
        new = found[course.table.relation] - course.put_off
        if new > 0 and rotation.target(course.table).quiesced:
            old = " or ".join(rotation.from_versions)
            raise disproved(
                rotation.job,
                course.table.name,
                f"{new} values were written or moved after it had been swept: they are under {old}, or open "
                "no more where they are now",
            )


def resuming(job: Job) -> str:
    """The command that goes on with a run of this job."""
    return f"rewrap resume{named(job)}{f' {FLAG}' if job.quiesced else ''}"


def disproved(job: Job, table: str, how: str) -> NotQuiesced:
    """What is raised when a write by somebody else shows that a table was not quiesced."""
    return NotQuiesced(
        f"table {table} is not quiesced: {how}",
        hint="stop what writes there: if it knows the old key alone, it cannot read what was rewritten. "
        f"Nothing of its own was overwritten. Then {resuming(job)}, which takes along what is under the old "
        "key; what opens under no key at hand is put aside",
    )
