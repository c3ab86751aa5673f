"""What is reckoned of uses of a budget: (when, how many units), in any order."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


def busiest_second(uses: Sequence[tuple[float, float]], width_s: float = 1.0) -> float:
    """The most units that were used in any stretch of a second."""
    within: deque[tuple[float, float]] = deque()
    most = total = 0.0
    for at, units in sorted(uses):
        within.append((at, units))
        total += units
        while within[0][0] <= at - width_s:
            total -= within.popleft()[1]
        most = max(most, total)
    return most


def jain(shares: Sequence[float]) -> float:
    """Jain's index of fairness: 1 when all have the same, 1/n when one has all."""
    return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))
