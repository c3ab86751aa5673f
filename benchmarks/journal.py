"""What a bench tells: JSON Lines on stdout and in a file, progress on stderr."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from typing import Any

Line = dict[str, Any]


@dataclass(slots=True)
class Journal:
    """The lines of one bench, in order. Every line has `bench`; the last one is its summary."""

    bench: str
    lines: list[Line] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """What failed, by run: the reason. A bench goes on without it, and the program ends with 1."""

    def say(self, text: str) -> None:
        """A line of progress."""
        print(f"{self.bench}: {text}", file=sys.stderr, flush=True)

    def record(self, **fields: Any) -> None:
        line = {"bench": self.bench, **fields}
        self.lines.append(line)
        print(json.dumps(line, ensure_ascii=False), flush=True)

    def fail(self, run: str, reason: str) -> None:
        """Says, loudly, that a run failed; it is in the summary too."""
        self.failed[run] = reason
        self.record(type="failed", run=run, reason=reason)
        self.say(f"FAILED: {run}: {reason}")

    def summarise(self, **fields: Any) -> None:
        """The last line: medians, and what failed."""
        self.record(**fields, **({"failed": self.failed} if self.failed else {}))
