"""What a gate and its callers speak of: caps, shares, and giving up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class GivenUp(Exception):
    """Who waited does not want to pass any more: the run is to stop."""


def never() -> bool:
    """Waits as long as it takes."""
    return False


@dataclass(frozen=True, slots=True)
class Cap:
    """A rate that is not to be passed, and why, as what callers are held back by."""

    rate: float
    why: str


class Share(Protocol):
    """A part of a budget that other processes use too; see `rewrap.pace.shared`."""

    @property
    def piece(self) -> float:
        """Units that come together."""
        ...

    @property
    def reason(self) -> str:
        """What those who wait for units are held back by; empty when none waits."""
        ...

    async def take(self, cost: float, giving_up: Callable[[], bool]) -> bool:
        """Waits for units and takes them; False when its caller gave up."""
        ...

    def give_back(self, units: float) -> None: ...

    def charged(self, more: float) -> None:
        """An attempt cost so much more than was taken for it."""
        ...
