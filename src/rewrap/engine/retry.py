"""The only retry policies. Each wraps one attempt; what it retries is decided by class, never by text."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from rewrap.errors import LedgerUnavailable, StoreUnavailable

T = TypeVar("T")

RECONNECT_FIRST_S = 0.1
RECONNECT_MAX_S = 5.0

CONTENTION_PAUSES_S = (0.02, 0.1)
"""Seconds before a lost row's second and third attempt: longer than most transactions hold a row."""

LOCKED = "55P03"
"""Postgres' lock_not_available: lock_timeout passed."""

FORBIDDEN = "42501"
"""Postgres' insufficient_privilege."""

TABLE_LOCK_PAUSE_S = 0.25
TABLE_LOCKED = "a lock on the table"
"""What is said while somebody holds a whole table, and how long to wait before asking again."""

MAX_LOSSES = 3
"""Attempts at a row that others keep changing or locking; after that a later sweep has it."""


async def until_reachable(
    attempt: Callable[[], Awaitable[T]], patience_s: float, waiting: Callable[[], None]
) -> T:
    """The result of `attempt`, tried again while store or ledger cannot be reached, for `patience_s` seconds.

    `waiting` is called before each pause. The last error is raised when patience ends.
    """

    try:
        # nearly always the first attempt is the last: it goes without the machinery
        return await attempt()
    except (StoreUnavailable, LedgerUnavailable):
        if patience_s <= 0:
            raise
    waiting()
    await anyio.sleep(RECONNECT_FIRST_S)

    def before_pause(state: RetryCallState) -> None:
        waiting()

    async for trial in AsyncRetrying(
        retry=retry_if_exception_type((StoreUnavailable, LedgerUnavailable)),
        wait=wait_random_exponential(multiplier=RECONNECT_FIRST_S, max=RECONNECT_MAX_S),
        stop=stop_after_delay(patience_s),
        before_sleep=before_pause,
        sleep=anyio.sleep,
        reraise=True,
    ):
        with trial:
            return await attempt()
    raise AssertionError("unreachable: tenacity returns or raises")


def quiet() -> None:
    """Says nothing while something is tried again in the background."""
