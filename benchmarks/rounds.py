"""Runs that are compared with each other, one after the other, in rounds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.errors import BenchError
from benchmarks.journal import Journal, Line


@dataclass(slots=True)
class Rounds:
    """What each run measured, by its name and the number of the round."""

    lines: dict[str, dict[int, Line]] = field(default_factory=lambda: defaultdict(dict))

    def figures(self, run: str, field: str) -> list[float]:
        """A field of a run, round by round."""
        return [line[field] for line in self.lines[run].values() if field in line]

    def ratios(self, run: str, to: str, field: str = "rows_per_s", *, of: str | None = None) -> list[float]:
        """A run's field by another's of the same round: what slows the whole machine slows both.

        `of` is the field of the first where it has another name.
        """
        ours, theirs = self.lines[run], self.lines[to]
        return [ours[at][of or field] / theirs[at][field] for at in sorted(ours.keys() & theirs.keys())]


def run_rounds(journal: Journal, runs: Mapping[str, Callable[[], Line]], rounds: int) -> Rounds:
    """Runs all of them in each round; one that failed is left out from then on, and named."""
    measured = Rounds()
    for number, order in enumerate(_orders(list(runs), rounds), 1):
        for name in order:
            if name in journal.failed:
                continue
            try:
                line = runs[name]()
            except BenchError as exc:
                journal.fail(name, str(exc))
                continue
            measured.lines[name][number] = line
            journal.record(type="run", round=number, run=name, **line)
            journal.say(f"round {number} of {rounds}: {name}: {line['rows_per_s']:,} rows/s")
    return measured


def _orders(runs: Sequence[str], rounds: int) -> list[list[str]]:
    """The order of runs in each round, begun elsewhere each time, so that none is always the first."""
    step = max(1, len(runs) // rounds)
    begins = [number * step % len(runs) for number in range(rounds)]
    return [[*runs[begin:], *runs[:begin]] for begin in begins]
