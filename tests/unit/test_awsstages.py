"""What moving a label comes to, before anything moves: pure, over lists of versions."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from rewrap.errors import GateClosed, KeyAccessError, KeyRefused
from rewrap.keys.awssecret import StoredVersion
from rewrap.keys.awsstages import Move, candidates, planned, rolled_back


def versions(**labels: str) -> dict[str, StoredVersion]:
    """Versions in the order of their age, each with labels in one text."""
    made = {}
    for day, (version, text) in enumerate(labels.items(), 1):
        made[version] = StoredVersion(version, tuple(text.split()), datetime(2026, 1, day, tzinfo=UTC))
    return made


THREE = versions(older="AWSPREVIOUS", old="AWSCURRENT", new="rewrap-candidate")


def test_previous_follows_current_and_what_is_needed_is_kept() -> None:
    """AWS moves AWSPREVIOUS itself: the version that had it is the one that may be lost."""
    needed = planned("AWSCURRENT", "old", "new", THREE, {"older": 3})
    assert needed == Move("AWSCURRENT", "old", "new", False, {"older": "rewrap-keep-older"}, ())
    assert planned("AWSCURRENT", "old", "new", THREE, {"old": 3}).lost == ("older",)
    # one that had no label before, and is needed
    bare = {**THREE, **versions(bare="")}
    assert planned("AWSCURRENT", "old", "new", bare, {"bare": 1}).kept == {"bare": "rewrap-keep-bare"}


def test_move_that_was_made_is_done() -> None:
    """Whoever asks again, because an answer was lost, gets the same."""
    after = versions(older="rewrap-keep-older", old="AWSPREVIOUS", new="AWSCURRENT rewrap-candidate")
    assert planned("AWSCURRENT", "old", "new", after, {"older": 3}).done
    with pytest.raises(KeyRefused, match="is at new, and not at older"):
        planned("AWSCURRENT", "older", "old", after, {})
    with pytest.raises(KeyAccessError, match='no version "nowhere"'):
        planned("AWSCURRENT", "new", "nowhere", after, {})


def test_last_label_of_what_is_needed_stays() -> None:
    """Taking a label off is refused while values are under a version that has no other."""
    kept = versions(older="rewrap-keep-older", old="AWSPREVIOUS more", new="AWSCURRENT")
    with pytest.raises(GateClosed, match="3 values are under older, and rewrap-keep-older is its last label"):
        planned("rewrap-keep-older", "older", None, kept, {"older": 3})
    assert planned("rewrap-keep-older", "older", None, kept, {}).lost == ("older",)
    assert planned("AWSPREVIOUS", "old", None, kept, {"old": 3}).lost == ()


def test_candidate_is_what_nobody_uses_and_nothing_needs() -> None:
    """Neither in use nor kept; a label of somebody else's counts."""
    assert candidates(THREE) == ["new"]
    assert candidates(versions(older="rewrap-keep-older", old="AWSCURRENT", bare="")) == []
    assert candidates(versions(old="AWSCURRENT", new="AWSPENDING")) == ["new"]


def test_switch_that_was_taken_back_is_seen() -> None:
    """By the age of what AWSCURRENT left."""
    assert not rolled_back(versions(older="AWSPREVIOUS", old="AWSCURRENT"))
    assert rolled_back(versions(old="AWSCURRENT", new="AWSPREVIOUS"))
    assert not rolled_back(versions(old="AWSCURRENT"))
