"""The one trace that swapped keys leave where values name no version: there is nothing to rewrite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rewrap.events import Notice, RunEnded
from rewrap.hints import named
from rewrap.job import Job
from rewrap.model import Outcome


def warning_of_swapped(
    job: Job, from_versions: Sequence[str], to_version: str, ended: RunEnded
) -> Notice | None:
    """A warning when a first run to a version ended and found its values under that version already."""
    found: Counter[str] = Counter()
    for fields in ended.outcomes.values():
        for counts in fields.values():
            found.update(counts)
    rewritten = found[Outcome.RESEALED] + found[Outcome.CONVERGED] + ended.resealed_late
    if ended.exit_code not in (0, 3) or rewritten or not found[Outcome.CURRENT]:
        return None
    old = ", ".join(from_versions)
    return Notice(
        level="warning",
        message=f"nothing was rewritten: {found[Outcome.CURRENT]} values were under {to_version} already, "
        f"and the ledger knows no earlier run that completed to it; the keys of {old} and {to_version} may "
        "have been swapped",
        hint=f"compare their fingerprints with those that the application's owner states: rewrap keys "
        f"list{named(job)}; the key that values are under must not be retired",
    )
