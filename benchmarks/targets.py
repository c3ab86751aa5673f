"""What was aimed at, by bench: on two cores, without foreground load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.journal import Line


@dataclass(frozen=True, slots=True)
class Target:
    """A figure of a bench's summary, and the limit it has to reach, or to keep below.

    `field` may lead into an object of the summary: `times_faster.php_sodium`.
    """

    title: str
    field: str
    limit: float
    at_least: bool = True
    unit: str = ""

    @property
    def wanted(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}{self.unit}"

    def figure(self, summary: Line) -> float | None:
        """The median; None when nothing was measured."""
        found: Any = summary
        for name in self.field.split("."):
            found = (found or {}).get(name)
        return None if found is None else float(found)

    def spread(self, summary: Line) -> list[float] | None:
        """The lowest and the highest of the rounds, where there are some."""
        found: list[float] | None = (summary.get("ranges") or {}).get(self.field.rpartition(".")[2])
        return found

    def verdict(self, summary: Line) -> str:
        figure = self.figure(summary)
        if figure is None:
            return "**not measured**"
        met = figure >= self.limit if self.at_least else figure <= self.limit
        return "met" if met else "**missed**"


TARGETS: dict[str, tuple[Target, ...]] = {
    "hotpath": (
        Target("AES-GCM text, of the floor", "ratio_to_floor", 0.92),
        Target("secretbox text, of the text floor", "ratio_to_floor_secretbox", 0.80),
        Target("AES-GCM bytea, of the text floor", "ratio_to_floor_bytea", 1.0),
        Target("memory of the whole program, any variant", "rss_mb_highest", 100, False, " MB"),
        Target("server CPU, of the floor's", "server_ratio", 1.35, False),
        Target("WAL, of the floor's", "wal_ratio", 1.01, False),
    ),
    "peers": (
        Target("psycopg SELECT 500 + UPDATE each", "times_faster.psycopg_update_each", 20, unit=" times"),
        Target("psycopg executemany of 500", "times_faster.psycopg_executemany", 2.5, unit=" times"),
        Target("PHP sodium + PDO", "times_faster.php_sodium", 10, unit=" times"),
        Target("Ruby Lockbox.rotate", "times_faster.lockbox_rotate", 60, unit=" times"),
    ),
    "scale": (
        Target("memory of the whole program, largest table", "rss_mb_highest", 100, False, " MB"),
        Target("memory gained on a table ten times the smallest", "rss_growth_mb_tenfold", 2, False, " MB"),
    ),
    "latency": (Target("2 ms each way, of its own loopback speed", "ratio_with_latency", 0.8),),
    "ciphers": (),
    "probing": (),
    "foreground": (
        Target("p99 of pgbench's transactions, of the same without a run", "p99_ratio", 2, False),
        Target("speed once pgbench has gone, of that without it", "speed_back", 0.8),
    ),
    "pace": (
        Target("a steady service, used", "steady_used", 0.97),
        Target("attempts throttled by it", "steady_throttled", 0.01, False),
        Target("half or twice the capacity, found", "recovery_s", 8, False, " s"),
        Target("used beside a moving load", "moving_used", 0.92),
        Target("fairness among four without a shared budget", "fairness", 0.95),
    ),
}
