"""Looks, while a run is at work, whether the keys whose bytes it has are still there, and still the same."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

import anyio

from rewrap.engine.pipeline import StopFlag
from rewrap.errors import AccountingError, KeyAccessError
from rewrap.keys.keyring import WatchedKeeper

T = TypeVar("T")


class KeyWatch:
    """The keys of one run. Found to be gone, it ends at the next checkpoint, as one that is stopped."""

    def __init__(self, keeper: WatchedKeeper | None, every_s: float, stop: StopFlag) -> None:
        self._keeper = keeper
        self._every_s = every_s
        self._stop = stop
        self._found: KeyAccessError | None = None

    async def look(self) -> None:
        """Raises KeyAccessError when a key in use is gone, disabled or another."""
        if self._keeper is None:
            return
        try:
            await self._keeper.still_there()
        except KeyAccessError as exc:
            # never KeyRefused: the key was right while it was there, and what was done with it stands
            hint = f"{exc.hint or 'restore the key'}; when it is back, rewrap resume goes on"
            raise KeyAccessError(exc.message, hint=f"{hint}: nothing was put aside", code=exc.code) from None

    async def run(self) -> None:
        """Looks again and again, until it is cancelled or has found something.

        A keeper that is away has not withdrawn a key: the run has its bytes, and goes on.
        """
        while self._keeper is not None and self._found is None:
            await anyio.sleep(self._every_s)
            try:
                await self.look()
            except KeyAccessError as exc:
                if exc.code != "key-away":
                    self._found = exc
                    self._stop.set("a look at its keys")

    async def over(self, work: Awaitable[T]) -> T:
        """The result of the run's work; raises what was found of its keys, which has ended it."""
        try:
            result = await work
        except AccountingError:
            # stopped in the middle of a count, it says so: that is not the reason
            self._judge()
            raise
        self._judge()
        return result

    def _judge(self) -> None:
        if self._found is not None:
            raise self._found
