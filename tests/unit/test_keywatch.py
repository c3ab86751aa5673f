"""Looks at a run's keys: what ends it, and what does not."""

from __future__ import annotations

import anyio
import pytest

from rewrap.engine.keywatch import KeyWatch
from rewrap.engine.pipeline import StopFlag
from rewrap.errors import AccountingError, KeyAccessError, KeyRefused
from rewrap.pace.gate import Gate


class Keeper:
    """Answers each look with the next of some errors, and then that the keys are there."""

    def __init__(self, *answers: KeyAccessError | None) -> None:
        self.gate = Gate("the keeper", "looks", 1)
        self.answers = list(answers)

    async def still_there(self) -> None:
        answer = self.answers.pop(0) if self.answers else None
        if answer is not None:
            raise answer

    async def close(self) -> None:
        raise AssertionError("a watch closes nothing")


AWAY = KeyAccessError("it does not answer", code="key-away")
GONE = KeyRefused("it is disabled", hint="enable it", code="key-disabled")


def watched(keeper: Keeper) -> tuple[KeyWatch, StopFlag]:
    """A watch that has looked until it found something."""
    stop = StopFlag()
    watch = KeyWatch(keeper, 0.001, stop)

    async def work() -> None:
        with anyio.fail_after(30):
            await watch.run()

    anyio.run(work)
    return watch, stop


def over(watch: KeyWatch, raised: Exception | None = None) -> str:
    async def work() -> str:
        if raised is not None:
            raise raised
        return "done"

    async def main() -> str:
        return await watch.over(work())

    return anyio.run(main)


def test_a_keeper_that_is_away_ends_no_run_and_a_key_that_is_gone_does() -> None:
    """The bytes are here: only a key that is withdrawn stops it, and not as a wrong key would."""
    keeper = Keeper(None, AWAY, AWAY, GONE)
    watch, stop = watched(keeper)
    assert keeper.answers == []
    assert stop.requested
    with pytest.raises(KeyAccessError) as caught:
        over(watch)
    # a refused key would take back what the run has put aside, and its progress
    assert not isinstance(caught.value, KeyRefused)
    assert (caught.value.message, caught.value.code) == ("it is disabled", "key-disabled")
    assert str(caught.value.hint).startswith("enable it; when it is back, rewrap resume")


def test_what_ends_a_run_is_told_and_not_what_it_led_to() -> None:
    """Stopped in the middle of a count, the run says that; the key is the reason. Other errors stay."""
    watch, _ = watched(Keeper(GONE))
    with pytest.raises(KeyAccessError):
        over(watch, AccountingError("stopped while it was counted again"))
    with pytest.raises(ValueError, match="another"):
        over(watch, ValueError("another"))


def test_where_nobody_watches_a_run_ends_as_it_ends() -> None:
    """Keys that are elsewhere, or local, are looked at by nobody."""
    watch = KeyWatch(None, 0.001, StopFlag())
    anyio.run(watch.run)
    anyio.run(watch.look)
    assert over(watch) == "done"
    with pytest.raises(AccountingError):
        over(watch, AccountingError("as it is"))
