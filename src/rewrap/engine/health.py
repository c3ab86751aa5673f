"""Pure: tells a wrong key from bad rows. A wrong key must stop a run, and never quarantine a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rewrap.errors import KeyRefused
from rewrap.model import Fault, Reason

_KEY_REASONS = frozenset({Reason.UNOPENABLE, Reason.MALFORMED})

FIRST_VALUES = 20
"""If this many values of a version fail before one opens, the key is wrong, not the values."""


@dataclass(slots=True)
class KeyHealth:
    """Counts opened and failed values by version over a whole run, and says when to stop.

    `max_faults` and `max_share` are the job's limits: a number of values, and a share of those tried.
    """

    max_faults: int = 100
    max_share: float = 0.001
    _opened: Counter[str] = field(default_factory=Counter)
    _failed: Counter[str] = field(default_factory=Counter)

    def opened(self, counts: Mapping[str, int]) -> None:
        self._opened.update(counts)

    def failed(self, faults: Iterable[Fault]) -> None:
        """Notes faults; only those that a key has a part in count."""
        self._failed.update(
            fault.version for fault in faults if fault.version is not None and fault.reason in _KEY_REASONS
        )

    def check(self) -> None:
        """Raises KeyRefused when what failed so far speaks against a key. Call before quarantining."""
        for version, failed in self._failed.items():
            opened = self._opened[version]
            if opened == 0 and failed >= FIRST_VALUES:
                raise KeyRefused(
                    f'key version "{version}" opens none of the first {failed} values marked with it',
                    hint="check that the variable or file holds the key the application used; "
                    "nothing was quarantined",
                )
            allowed = max(self.max_faults, int(self.max_share * (opened + failed)))
            if failed > allowed:
                raise KeyRefused(
                    f'key version "{version}" fails on {failed} of {opened + failed} values, '
                    f"more than the {allowed} that limits.max_quarantine allows",
                    hint="check the key and the layout's aad; if the values are really broken, raise "
                    "limits.max_quarantine; what this run had quarantined was withdrawn",
                )
