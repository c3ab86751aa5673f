"""Places: how many attempts may be under way at once, and the queue of those that wait for one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import anyio

STEP_S = 1.0
"""Seconds between two looks at whether who waits still wants a place; it is told when one is free."""


class Places:
    """So many places, given in the order in which they were asked for."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._taken = 0
        self._queue: deque[anyio.Event] = deque()

    @property
    def queued(self) -> int:
        """How many wait for one."""
        return len(self._queue)

    def taken_at_once(self) -> bool:
        """Takes a place, if one is free and nobody waits."""
        if self._queue or self._taken >= self.number:
            return False
        self._taken += 1
        return True

    async def taken(self, giving_up: Callable[[], bool]) -> bool:
        """Takes a place as soon as there is one; False when its caller gave up."""
        given = anyio.Event()
        self._queue.append(given)
        try:
            while not given.is_set():
                if giving_up():
                    self._queue.remove(given)
                    return False
                with anyio.move_on_after(STEP_S):
                    await given.wait()
        except BaseException:
            if given.is_set():
                self.free()
            else:
                self._queue.remove(given)
            raise
        return True

    def free(self) -> None:
        """Gives a place back, to the next who waits."""
        self._taken -= 1
        self._hand_out()

    def set_number(self, number: int) -> None:
        """Another number of places; what is under way stays so."""
        self.number = number
        self._hand_out()

    def _hand_out(self) -> None:
        while self._queue and self._taken < self.number:
            self._taken += 1
            self._queue.popleft().set()
