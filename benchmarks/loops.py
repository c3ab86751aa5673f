"""An event loop that wakes when it should."""

from __future__ import annotations

import asyncio
import selectors


def precise_loop() -> asyncio.AbstractEventLoop:
    """A loop that sleeps to the microsecond: epoll's timeouts are rounded up to whole milliseconds."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())
