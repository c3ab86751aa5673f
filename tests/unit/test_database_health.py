"""What looks at a server leave of the speed, and why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from rewrap.pace.health import HALF, LEAST, Brake, Judge, left_at
from rewrap.pace.thresholds import Health, LoadProbe, Threshold
from rewrap.pace.vitals import Replica, Swelling, Vitals

MIB = 2**20

QUIET = Vitals(at=100.0, took_s=0.002, position=1_000 * MIB)


def later(vitals: Vitals, seconds: float, mib: float, **changes: object) -> Vitals:
    """A look after some seconds, in which the server wrote some log."""
    position = (vitals.position or 0) + int(mib * MIB)
    changed: Any = changes
    return replace(vitals, at=vitals.at + seconds, position=position, **changed)


def test_a_figure_leaves_less_and_less() -> None:
    """All up to slow, nothing from pause on, and in between what is in between."""
    limit = Threshold(slow=10, pause=20)
    assert [left_at(figure, limit) for figure in (0, 10, 15, 20, 99)] == [1, 1, 0.5, 0, 0]
    assert left_at(19.99, limit) == 0.05
    assert [left_at(figure, Threshold(slow=10)) for figure in (10, 1e9)] == [1, HALF]
    assert [left_at(figure, Threshold(pause=10)) for figure in (9.9, 10)] == [1, 0]


def test_nothing_is_wrong_with_a_quiet_server() -> None:
    """Full speed at the first look and at every other."""
    judge = Judge(Health())
    vitals = QUIET
    for _ in range(20):
        assert judge.judge(vitals).left == 1
        vitals = later(vitals, 0.25, 10)


def test_a_replica_far_behind_in_bytes() -> None:
    judge = Judge(Health())
    there = (Replica("east", 160 * MIB, 840 * MIB),)
    verdict = judge.judge(replace(QUIET, replicas=there))
    assert 0 < verdict.left < 1
    assert verdict.why == "replica east is 160 MiB behind"
    assert judge.judge(replace(QUIET, replicas=(Replica("east", 256 * MIB, 744 * MIB),))).left == 0


def test_what_is_on_its_way_to_a_replica_counts() -> None:
    """A pause takes hold a moment later: the limit is to be kept until then."""
    judge = Judge(Health(replica_lag_bytes=Threshold(pause=100.0 * MIB)))
    judge.judge(QUIET)
    fast = later(QUIET, 0.25, 50, replicas=(Replica("east", 10 * MIB, 1_040 * MIB),))
    assert judge.judge(fast).left == 0


def test_a_replica_that_stands_still_is_as_old_as_its_position() -> None:
    """Seconds since the server wrote what it has replayed."""
    judge = Judge(Health(replica_lag_bytes=False))
    vitals = replace(QUIET, replicas=(Replica("east", 0, 1_000 * MIB),))
    why = []
    for _ in range(160):
        vitals = later(vitals, 0.25, 1)
        verdict = judge.judge(replace(vitals, replicas=(Replica("east", 9, 1_000 * MIB),)))
        why.append((verdict.left, verdict.why))
    assert why[10][0] == 1
    assert 0 < why[80][0] < 1
    assert why[80][1] == "replica east is 20 s behind"
    assert why[130][0] == 0


def test_a_replica_that_replays_slowly_is_behind_by_what_it_needs() -> None:
    """Bytes over the rate of replay, once it is behind at all."""
    judge = Judge(Health(replica_lag_bytes=False))
    vitals, replayed = QUIET, 1_000.0
    for _ in range(20):
        vitals = later(vitals, 0.25, 10)
        replayed += 1
        lag = (vitals.position or 0) - int(replayed * MIB)
        judge.judge(replace(vitals, replicas=(Replica("east", lag, int(replayed * MIB)),)))
    assert judge.behind_s("east", lag, vitals.at) == pytest.approx(180 / 4, rel=0.05)


def test_an_idle_replica_is_not_behind() -> None:
    """Nothing to replay is no reason to wait."""
    judge = Judge(Health())
    vitals = replace(QUIET, replicas=(Replica("east", 0, QUIET.position or 0),))
    for _ in range(100):
        vitals = later(vitals, 0.25, 0)
        assert judge.judge(vitals).left == 1


def test_the_log_grows_too_fast() -> None:
    """What is left is what brings the rate to the limit."""
    judge = Judge(Health(wal_bytes_per_s=Threshold(slow=10.0 * MIB)))
    judge.judge(QUIET)
    verdict = judge.judge(later(QUIET, 1.0, 40))
    assert verdict.left == pytest.approx(0.25)
    assert verdict.why == "the log grows by 40.0 MiB/s"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"retained": {"cdc": 10 * 2**30}}, "slot cdc retains 10,240 MiB of log"),
        ({"tables": (Swelling("notes", 20, 80, vacuumed=False),)}, "table notes has 80% dead rows"),
        ({"tables": (Swelling("notes", 99, 1, vacuumed=True),)}, "table notes is being vacuumed"),
        ({"blocked": 5}, "5 sessions wait for locks of the run"),
        ({"took_s": 0.8}, "the server takes 0.8 s for a look"),
    ],
)
def test_each_signal_slows_and_says_why(changes: dict[str, object], why: str) -> None:
    """And none of them does where it is switched off."""
    vitals = replace(QUIET, **changes)  # type: ignore[arg-type]  # any of its fields
    verdict = Judge(Health(vacuum=True)).judge(vitals)
    assert 0 < verdict.left < 1
    assert verdict.why == why
    switched_off = Health(
        replica_lag_s=False, replica_lag_bytes=False, slot_bytes=False, dead_share=False, blocked=False,
        latency_s=False,
    )  # fmt: skip
    assert Judge(switched_off).judge(vitals).left == 1


def test_one_late_look_is_nothing() -> None:
    """A server is slow when it is slow four times in a row."""
    judge = Judge(Health())
    assert [judge.judge(replace(QUIET, took_s=took)).left for took in (0.01, 9, 9, 9)] == [1, 1, 1, 1]
    assert judge.judge(replace(QUIET, took_s=9)).left == 0


def test_a_brake_falls_in_steps_and_lets_go_in_steps() -> None:
    """At most by half in a second, never to nothing, and it ends where it holds nothing back any more."""
    brake = Brake()
    assert brake.apply(1.0, 8_000, 0.0) is None
    assert brake.apply(0.05, 8_000, 1.0) == 4_000
    assert brake.apply(0.05, 4_000, 1.5) == 4_000
    assert brake.apply(0.05, 4_000, 2.0) == 2_000
    for at in range(3, 30):
        lowest = brake.apply(0.05, 0, at)
    assert lowest == LEAST
    caps = [brake.apply(1.0, 8_000, at) for at in range(30, 90)]
    assert caps[0] == LEAST * 1.25
    assert caps[-1] is None


def test_thresholds_are_in_order() -> None:
    with pytest.raises(ValidationError, match="slow is below pause"):
        Health(blocked=Threshold(slow=3, pause=2))


@pytest.mark.parametrize(
    "told",
    [
        {"kind": "sql", "slow": 1.0},
        {"kind": "sql", "query": "SELECT 1"},
        {"kind": "sql", "query": "SELECT 1", "url": "http://there/", "slow": 1.0},
        {"kind": "http", "url": "ftp://there/", "slow": 1.0},
        {"kind": "http", "url": "http://there/", "slow": 2.0, "pause": 1.0},
    ],
)
def test_a_probe_without_sense_is_refused(told: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LoadProbe.model_validate({"name": "one", **told})
