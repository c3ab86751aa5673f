"""A wrong key is told from bad rows."""

from __future__ import annotations

import pytest

from rewrap.engine.health import FIRST_VALUES, KeyHealth
from rewrap.errors import KeyRefused
from rewrap.model import Fault, Reason

TABLE = '"public"."notes"'


def faults(count: int, reason: Reason = Reason.UNOPENABLE) -> list[Fault]:
    return [Fault(str(i), "body", reason, "digest", "v1") for i in range(count)]


def test_nothing_but_failures_is_a_wrong_key() -> None:
    """Twenty failures before the first success stop a run; nineteen do not yet."""
    health = KeyHealth()
    health.failed(TABLE, faults(FIRST_VALUES - 1))
    health.check()
    health.failed(TABLE, faults(1))
    with pytest.raises(KeyRefused, match="opens none"):
        health.check()


def test_a_key_that_opened_something_may_meet_broken_values() -> None:
    """After one success the limit is the job's: a number, or a share of a large table."""
    health = KeyHealth(max_faults=100, max_share=0.001)
    health.opened(TABLE, {("body", "v1"): 1})
    health.failed(TABLE, faults(100))
    health.check()
    health.failed(TABLE, faults(1))
    with pytest.raises(KeyRefused, match="fails on 101"):
        health.check()


def test_share_of_a_large_table_allows_more() -> None:
    """0.1 % of a million values is a thousand."""
    health = KeyHealth(max_faults=100, max_share=0.001)
    health.opened(TABLE, {("body", "v1"): 1_000_000})
    health.failed(TABLE, faults(900))
    health.check()


def test_what_the_database_rejected_says_nothing_about_a_key() -> None:
    """Rejected, contended and too large values do not count against it."""
    health = KeyHealth()
    for reason in (Reason.REJECTED, Reason.CONTENDED, Reason.TOO_LARGE):
        health.failed(TABLE, faults(50, reason))
    health.check()


def test_a_key_that_opens_one_table_may_be_wrong_for_another() -> None:
    """Declared with the wrong associated data, a whole column fails though the key opens others."""
    health = KeyHealth()
    health.opened('"public"."letters"', {("body", "v1"): 1_000})
    health.failed(TABLE, faults(FIRST_VALUES))
    with pytest.raises(KeyRefused, match="notes"):
        health.check()
