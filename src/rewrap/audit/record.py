"""What a run leaves for auditors: who rotated what, from which key to which, and how it ended.

A record is one JSON object. Fields may be added, never changed or removed. It holds names, counts and
fingerprints: no key, no stored value, no plaintext, no row's key.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rewrap.errors import RewrapError
from rewrap.events import Event, Progress, RunEnded, RunStarted, Verdict
from rewrap.interfaces import Sink
from rewrap.ledgers.records import now, operator

TYPE = "rewrap.run"

SCHEMA = 1
"""Version of the record; raised only if a field had to change its meaning."""

_JUDGED = (
    "stale",
    "unmarked",
    "other_version",
    "plaintext",
    "quarantined",
    "waived",
    "deferred",
    "unopenable",
)
"""Counts of a verdict that a record repeats."""


class Listener:
    """A sink that remembers of a run what its record says, and hands every event on."""

    def __init__(
        self,
        job: str,
        digest: str,
        asked_from: Sequence[str],
        to_version: str,
        *,
        compromised: bool,
        sink: Sink,
    ) -> None:
        self._asked = {"job": job, "job_digest": digest, "from_versions": list(asked_from)}
        self._asked["to_version"] = to_version
        self._reason = "compromise" if compromised else "routine"
        self._sink = sink
        self._started_at = now()
        self._started: RunStarted | None = None
        self._verdict: Verdict | None = None
        self._progress: dict[tuple[str, int], Progress] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._started = event
        elif isinstance(event, Verdict):
            self._verdict = event
        elif isinstance(event, Progress):
            self._progress[event.target, event.sweep] = event
        self._sink(event)

    def ended(self, end: RunEnded) -> dict[str, Any]:
        """The record of a run that came to an end or a stop."""
        counts = {
            target: dict(sum((Counter(classes) for classes in fields.values()), Counter[str]()))
            for target, fields in end.outcomes.items()
        }
        return self._record(
            outcome=end.state,
            exit_code=end.exit_code,
            counts=counts,
            rows=end.rows,
            values=end.values,
            resealed_late=end.resealed_late,
            spent=dict(end.spent),
            reasons=list(end.reasons),
        )

    def failed(self, exc: Exception) -> dict[str, Any]:
        """The record of a run that failed, or that was refused before it began.

        Its counts are those last reported: of values written since then nothing is known here.
        """
        counts: dict[str, dict[str, int]] = {}
        for (target, _sweep), last in self._progress.items():
            mine = Counter(counts.get(target, {}))
            mine.update({"resealed": last.resealed, "quarantined": last.quarantined})
            counts[target] = dict(mine)
        ours = isinstance(exc, RewrapError)
        return self._record(
            outcome="failed" if self._started else "refused",
            exit_code=exc.exit_code if isinstance(exc, RewrapError) else 1,
            counts=counts,
            rows=None,
            values=None,
            resealed_late=None,
            spent=None,
            # the message of an exception that is not ours may hold a stored value
            reasons=[str(exc) if ours else f"internal error ({type(exc).__name__})"],
            error=type(exc).__name__,
        )

    def _record(
        self, *, outcome: str, exit_code: int, error: str | None = None, **told: Any
    ) -> dict[str, Any]:
        from rewrap import __version__

        started, verdict = self._started, self._verdict
        asked = dict(self._asked)
        if started is not None:
            asked |= {"from_versions": started.from_versions, "to_version": started.to_version}
        return {
            "type": TYPE,
            "schema": SCHEMA,
            "event_id": uuid.uuid4().hex,
            "run_id": started.run_id if started else None,
            **asked,
            "fingerprints": started.fingerprints if started else {},
            "text_fingerprints": started.text_fingerprints if started else {},
            "targets": started.targets if started else [],
            "quiesced": started.quiesced if started else [],
            "operator": operator(),
            "reason": self._reason,
            "resumed": started.resumed if started else False,
            "started_at": self._started_at,
            "ended_at": now(),
            "outcome": outcome,
            "exit_code": exit_code,
            "error": error,
            # of a failed run nothing is concluded, whatever was counted before it failed
            "complete": verdict.complete and outcome == "complete" if verdict and error is None else None,
            "verdict": {name: getattr(verdict, name) for name in _JUDGED} if verdict else None,
            "origin": verdict.origin if verdict else None,
            **told,
            "rewrap": __version__,
        }
