"""What a rotation cannot mend where the old key is known to others."""

from __future__ import annotations

from collections.abc import Sequence

from rewrap.events import Notice, RunEnded


def warning_of_compromise(ended: RunEnded, from_versions: Sequence[str]) -> Notice:
    """What whoever had the old key can do yet, or that nothing was re-encrypted at all."""
    counts = [one for fields in ended.outcomes.values() for one in fields.values()]
    if ended.resealed_late or any(one.get("resealed") for one in counts):
        return Notice(
            level="warning",
            message="whoever had the old key could write values that were resealed here as genuine, and can "
            "read any copy of the old ones: authenticity since the compromise is not established",
        )
    tried = any(one.get("quarantined") or one.get("deferred") for one in counts)
    nothing = f"nothing was in scope of {', '.join(from_versions)}"
    why = "what was in scope could not be resealed" if tried else nothing
    return Notice(
        level="warning",
        message=f"{why}, and therefore nothing was re-encrypted: what the compromise disclosed is as it was",
        hint=None if tried else "name the version that values, or their DEKs' records, are under",
    )
