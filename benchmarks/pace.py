"""pace: what gates make of services that throttle, simulated; no speed of any machine has a part in it."""

from __future__ import annotations

from benchmarks.journal import Journal
from benchmarks.options import Options
from benchmarks.simulated import (
    SERVICES,
    SHORT_BACKOFF_S,
    Capacity,
    Seen,
    World,
    moving,
    simulate,
    steady,
    step,
)

UNITS = 4_000.0
"""What a service gives in a second: 400 attempts of 10 on average."""


KEPT = 0.975
"""Of what a service gives, the budget that workers share: a little less, so that none is throttled."""


def run(journal: Journal, options: Options) -> None:
    """The worst of all services, and of those that say when to ask again and those that do not."""
    journal.record(type="setting", **options.setting(), rounds=1)
    used, throttled, recovery, moved, fairness = [], [], [], [], []
    for service in list(SERVICES)[: 1 if options.quick else None]:
        for says in (True, False):
            even = _seen(service, says, steady(UNITS), 45)
            halved = _seen(service, says, step(UNITS, UNITS / 2, 20), 40)
            doubled = _seen(service, says, step(UNITS / 2, UNITS, 20), 40)
            shifting = _seen(service, says, moving(UNITS), 90)
            four = _seen(service, says, steady(UNITS), 45, 4)
            sharing = _seen(service, says, steady(UNITS), 45, 4, KEPT * UNITS)
            line = {
                "steady_used": round(even.used(15), 4),
                "steady_throttled": round(even.refused(15), 4),
                "halved_s": halved.recovery_s(20),
                "doubled_s": doubled.recovery_s(20),
                "moving_used": round(shifting.used(10), 4),
                "four_used": round(four.used(15), 4),
                "four_throttled": round(four.refused(15), 4),
                "strangers_fairness": round(four.fairness(15), 4),
                "shared_used": round(sharing.used(15), 4),
                "shared_throttled": round(sharing.refused(15), 4),
                "fairness": round(sharing.fairness(15), 4),
            }
            journal.record(type="run", run=f"{service}, {'says when' if says else 'does not say'}", **line)
            used += [line["steady_used"], line["four_used"]]
            throttled += [line["steady_throttled"], line["four_throttled"]]
            recovery += [line["halved_s"], line["doubled_s"]]
            moved.append(line["moving_used"])
            fairness.append(line["fairness"])
    journal.summarise(
        steady_used=min(used), steady_throttled=max(throttled), recovery_s=max(recovery),
        moving_used=min(moved), fairness=min(fairness),
    )  # fmt: skip


def _seen(
    service: str,
    says: bool,
    capacity: Capacity,
    seconds: int,
    workers: int = 1,
    shared: float | None = None,
) -> Seen:
    """What was seen of a service that says when to ask again, or does not."""
    kind = SERVICES[service]
    return simulate(
        World(kind, capacity, seconds, workers, names_times=says, backoff=SHORT_BACKOFF_S, shared=shared)
    )
