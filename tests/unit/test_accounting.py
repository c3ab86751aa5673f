"""The accounting identity: exact when quiet, bounded by the server's own counts when live."""

from __future__ import annotations

from rewrap.engine.accounting import Account
from rewrap.model import Activity

QUIET = Activity(100, 10)


def account(**counts: int) -> Account:
    return Account('"public"."notes"', 1, {"body": counts}, QUIET)


def test_quiet_table_must_match_exactly() -> None:
    """No inserts, no deletes: one value more or less does not close."""
    held = account(resealed=90, null=10)
    assert held.closes(100, QUIET)
    assert not held.closes(99, QUIET)
    assert not held.closes(101, QUIET)


def test_rows_that_came_and_went_explain_at_most_themselves() -> None:
    """The difference is within what was inserted above, and deleted below."""
    held = account(resealed=100)
    after = Activity(105, 13)
    assert held.closes(105, after)
    assert held.closes(97, after)
    assert not held.closes(106, after)
    assert not held.closes(96, after)


def test_values_that_were_gone_are_not_expected() -> None:
    """A row deleted between reading and writing is classified, and not there to be counted."""
    assert account(resealed=99, gone=1).closes(99, QUIET)


def test_each_row_counts_once_for_each_field() -> None:
    """Two encrypted columns: one inserted row explains two values."""
    held = Account("t", 2, {"a": {"resealed": 50}, "b": {"null": 50}}, QUIET)
    assert held.closes(102, Activity(101, 10))
    assert not held.closes(103, Activity(101, 10))


def test_counters_that_started_again_are_used_as_they_are() -> None:
    """A crashed server forgets its counts: what it counted since is all there is to go by."""
    assert account(resealed=100).closes(103, Activity(3, 0))
    assert not account(resealed=100).closes(104, Activity(3, 0))
