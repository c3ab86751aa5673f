"""The way to a service that keeps keys: every attempt paced, throttling waited for, patience that ends.

A provider makes one attempt; it raises `Throttled` or `Unanswered` for what may be tried again, and a
KeyAccessError for what may not. The SDK's own retries are off: what it tried again nobody would count.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from rewrap.errors import KeyAccessError
from rewrap.pace.gate import Cap, Gate

T = TypeVar("T")

FIRST_S = 10.0
"""Seconds of patience with a service that has not answered yet at all: it may have another name."""


class Throttled(Exception):
    """It was too much for the service, which asks to wait that many seconds; None where it does not say."""

    def __init__(self, retry_after_s: float | None = None) -> None:
        super().__init__()
        self.retry_after_s = retry_after_s


class Unanswered(Exception):
    """The service did not do it, and may later. `said` completes "a vault that …": "answers 503"."""

    def __init__(self, said: str, retry_after_s: float | None = None) -> None:
        super().__init__()
        self.said = said
        self.retry_after_s = retry_after_s


class KeyService:
    """Attempts at a service, side by side and paced, with patience.

    `what` names it in reasons ("the vault"), `shown` the key and its place in messages. `calls_per_s` is
    what the job gives; without it `limit` and its reason hold, which `limited` may change. `patience_s` is
    how long it may throttle, or not answer, before it counts as away.
    """

    def __init__(
        self,
        what: str,
        shown: str,
        *,
        calls_per_s: float | None,
        limit: Cap,
        in_flight: int,
        patience_s: float,
    ) -> None:
        self.gate = Gate(what, "calls", in_flight)
        self.in_flight = in_flight
        self._shown = shown
        self._some = what.replace("the ", "a ", 1)
        self._given = calls_per_s
        self._patience_s = patience_s
        self._answered = False
        if calls_per_s is None:
            self.limited(limit)
        else:
            self._set(Cap(calls_per_s, "as the job says"))

    def limited(self, limit: Cap) -> None:
        """Takes another limit of the service for the pace, unless the job gives one; `why` says what of."""
        if self._given is None:
            self._set(limit)

    def _set(self, limit: Cap) -> None:
        self._budget = limit
        self.gate.cap("budget", Cap(limit.rate, f"the pace of {limit.rate:,.0f} calls/s ({limit.why})"))

    @property
    def calls_per_s(self) -> float:
        """Calls a second that are made at most."""
        return self._budget.rate

    @property
    def budget(self) -> str:
        """The same in words, with where it comes from."""
        return f"{self._budget.rate:,.0f} calls/s: {self._budget.why}"

    async def call(self, operation: str, attempt: Callable[[], Awaitable[T]], *, cost: float = 1.0) -> T:
        """The result of an attempt that the service took. Raises KeyAccessError when it stays away."""
        while True:
            async with self.gate.passed(cost) as passage:
                try:
                    result = await attempt()
                except Throttled as exc:
                    self._answered = True
                    waited, said = passage.throttled(exc.retry_after_s), "is throttled"
                except Unanswered as exc:
                    waited = self.gate.failed(f"{self._some} that {exc.said}", exc.retry_after_s)
                    said = f"{exc.said} to {operation}" if "answers" in exc.said else "cannot be reached"
                except KeyAccessError:
                    # whatever it says, it was not too much for it
                    self._answered = True
                    passage.accepted()
                    raise
                else:
                    self._answered = True
                    passage.accepted()
                    return result
            patience_s = self._patience_s if self._answered else min(FIRST_S, self._patience_s)
            if waited > patience_s:
                raise KeyAccessError(
                    f"{self._shown} {said}, and {patience_s:.0f} s of patience are over",
                    hint="nothing was put aside; later give the same command again, or after a run "
                    "rewrap resume; with a lower keys.max_calls_per_s if it was throttled",
                    code="key-away",
                )
