"""What one look at a database server finds: the figures that decide whether a run may go on as fast."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Replica:
    """One standby: bytes of log that it has not replayed yet, and how far it has come, in bytes of log."""

    name: str
    lag_bytes: int
    replayed: int


@dataclass(frozen=True, slots=True)
class Swelling:
    """One table: rows that are there, rows that are dead, and whether a vacuum is at work on it."""

    name: str
    live: int
    dead: int
    vacuumed: bool

    @property
    def dead_share(self) -> float:
        return self.dead / max(1, self.dead + self.live)


@dataclass(frozen=True, slots=True)
class Vitals:
    """One look. `at` and `took_s` are seconds of the clock of who looked; positions in the log are bytes.

    `busy` are the sessions of others that did something of late; where this role may not see them, there are
    all the `transactions` that the server ever ended. `blocked` sessions wait for a lock that the run holds.
    """

    at: float
    took_s: float
    busy: int = 0
    transactions: int | None = None
    blocked: int = 0
    position: int | None = None
    replicas: tuple[Replica, ...] = ()
    retained: dict[str, int] = field(default_factory=dict)
    tables: tuple[Swelling, ...] = ()
