"""What moving a label comes to, before anything moves: pure, over lists of versions."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from rewrap.errors import GateClosed, KeyAccessError, KeyRefused, UsageError
from rewrap.gate import gate_of
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


def test_value_of_another_algorithm_is_under_its_version() -> None:
    """It keeps the version's last label, and it closes the gate: no run of this job takes it away."""
    gate = gate_of({"a2.kolder": 2, "old": 5}, ["older", "old"], ["old", "older"])
    assert gate.held == {"older": 2, "old": 5}
    kept = versions(older="rewrap-keep-older", old="AWSCURRENT")
    with pytest.raises(GateClosed, match="2 values are under older, and rewrap-keep-older is its last label"):
        planned("rewrap-keep-older", "older", None, kept, gate.held)
    assert gate.stranded == {"a2.kolder": 2}
    with pytest.raises(GateClosed, match=r"2 values are under .*: 2 under a2\.kolder") as info:
        gate.require_open(" arda.toml")
    assert "declare a layout" in str(info.value.hint)
    assert "--from any" not in str(info.value.hint)


def test_longest_version_that_a_name_ends_in_is_its() -> None:
    """And what is under a version that is gone is under no other."""
    counted = {"a2.kfolder": 1, "a2.kgone": 2, "gone": 3, "older": 4}
    gate = gate_of(counted, ["older", "folder"], ["folder"])
    assert gate.held == {"folder": 1, "a2.kgone": 2, "gone": 3, "older": 4}
    with pytest.raises(GateClosed, match="10 values are under") as info:
        gate.require_open(" arda.toml")
    assert "rewrap run arda.toml --from any --to AWSCURRENT" in str(info.value.hint)
    assert "the secret has no a2.kgone, gone: no run opens" in str(info.value.hint)
    with pytest.raises(GateClosed, match="1 value is under"):
        gate_of({"older": 1}, ["older"], []).require_open()


def test_label_that_no_version_has_is_an_error() -> None:
    """A slip of the pen is no success, and says which labels there are."""
    with pytest.raises(UsageError, match='no version has the label "rewrap-candidat"') as info:
        planned("rewrap-candidat", "new", None, THREE, {})
    assert info.value.hint == "labels are AWSCURRENT, AWSPREVIOUS, rewrap-candidate"
