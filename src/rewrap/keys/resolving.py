"""Runs pure computations with what they ask of vaults: all of it side by side, then the computation again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import anyio

from rewrap.crypto.answers import AT_HAND, Answers
from rewrap.errors import ResealMismatch

T = TypeVar("T")

Source = Callable[[Sequence[Any]], Awaitable[Sequence[Any]]]
"""Answers items in their order. Raises what ends a run: a key refused, a vault that is away for too long."""

ROUNDS_MAX = 12
"""Attempts after which a missing answer is a defect: each can only ask for what the last one led to."""


async def resolved(attempt: Callable[[], T], sources: Mapping[Hashable, Source], reopen: float = 1.0) -> T:
    """The result of an attempt that found all its answers. It is made several times, and must be pure.

    `reopen` is the share of what the attempt wraps that is asked for again.

    Raises what the attempt raises once nothing is missing, and what a source raises.
    """
    at_hand = Answers(reopen=reopen)
    for _ in range(ROUNDS_MAX):
        at_hand.begin()
        token = AT_HAND.set(at_hand)
        failed: Exception | None = None
        try:
            result = attempt()
        except Exception as exc:
            # for want of an answer anything may fail; if nothing was missing it is raised below
            failed = exc
        finally:
            AT_HAND.reset(token)
        if not at_hand.missing:
            if failed is not None:
                raise failed
            return result
        await _ask(at_hand, sources)
    raise ResealMismatch(
        "what a value needs to be opened is asked for again and again",
        hint="this is a defect in rewrap, please report it",
    )


async def _ask(at_hand: Answers, sources: Mapping[Hashable, Source]) -> None:
    missing = {source: list(items) for source, items in at_hand.missing.items()}

    async def ask(source: Hashable, items: list[Hashable]) -> None:
        found = await sources[source](items)
        at_hand.known.update({(source, item): one for item, one in zip(items, found, strict=True)})

    try:
        async with anyio.create_task_group() as group:
            for source, items in missing.items():
                group.start_soon(ask, source, items)
    except BaseExceptionGroup as errors:
        error: BaseException = errors
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
