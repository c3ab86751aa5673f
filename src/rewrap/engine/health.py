"""Pure: tells a wrong key from bad rows. A wrong key must stop a run, and never quarantine a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rewrap.errors import KeyRefused
from rewrap.model import Fault, Reason

_KEY_REASONS = frozenset({Reason.UNOPENABLE, Reason.MALFORMED, Reason.NO_DEK})

FIRST_VALUES = 20
"""If this many values of a column and version fail before one opens, the key or the AAD is wrong."""

UNNAMED = ""
"""Stands for the version of values that name none, and that no key at hand opens."""

UNRECORDED = "(no record)"
"""Stands for the version of values that name a DEK of which there is no record."""

Place = tuple[str, str, str]
"""(relation, column, version): a key may be right for one table, and another's AAD declared wrongly."""


@dataclass(slots=True)
class KeyHealth:
    """Counts opened and failed values over a whole run, and says when to stop.

    `max_faults` and `max_share` are the job's limits: a number of values, and a share of those tried.
    """

    max_faults: int = 100
    max_share: float = 0.001
    _opened: Counter[Place] = field(default_factory=Counter)
    _failed: Counter[Place] = field(default_factory=Counter)

    def opened(self, relation: str, counts: Mapping[tuple[str, str], int]) -> None:
        """Notes values that opened, by column and version."""
        for (column, version), count in counts.items():
            self._opened[relation, column, version] += count

    def failed(self, relation: str, faults: Iterable[Fault]) -> None:
        """Notes faults; only those that a key has a part in count."""
        for fault in faults:
            if fault.version is not None and fault.reason in _KEY_REASONS:
                self._failed[relation, fault.field, fault.version] += 1

    def check(self) -> None:
        """Raises KeyRefused when what failed so far speaks against a key. Call before quarantining."""
        for (relation, column, version), failed in self._failed.items():
            if self._opened[relation, column, version] == 0 and failed >= FIRST_VALUES:
                if version == UNNAMED:
                    raise _none_opens(relation, column, failed)
                if version == UNRECORDED:
                    raise none_recorded(relation, column, failed)
                raise KeyRefused(
                    f'key version "{version}" opens none of the first {failed} values marked with it in '
                    f"{relation}.{column}",
                    hint="check that the variable or file holds the key the application used, and the "
                    "layout's aad; what this run had quarantined was withdrawn",
                )
        for version in {place[2] for place in self._failed}:
            self._check_share(version)

    def _check_share(self, version: str) -> None:
        opened = sum(count for place, count in self._opened.items() if place[2] == version)
        failed = sum(count for place, count in self._failed.items() if place[2] == version)
        allowed = max(self.max_faults, int(self.max_share * (opened + failed)))
        if failed > allowed:
            whose = _WHOSE.get(version, f'key version "{version}" fails')
            raise KeyRefused(
                f"{whose} on {failed} of {opened + failed} values, "
                f"more than the {allowed} that limits.max_quarantine allows",
                hint="check the key and the layout's aad; if the values are really broken, raise "
                "limits.max_quarantine; what this run had quarantined was withdrawn",
            )


_WHOSE = {UNNAMED: "every key at hand fails", UNRECORDED: "a record of a DEK is missing"}


def none_recorded(relation: str, column: str, failed: int) -> KeyRefused:
    return KeyRefused(
        f"none of the first {failed} DEKs that {relation}.{column} names has a record",
        hint="check the section deks: its table or container, its id; and the field's dek_id; if records "
        "were lost, restore them; what this run had quarantined was withdrawn",
    )


def _none_opens(relation: str, column: str, failed: int) -> KeyRefused:
    return KeyRefused(
        f"no value of {relation}.{column} has opened under a version that values leave, and {failed} look "
        "sealed and open under no key at hand",
        hint="its values name no version, so all keys at hand were tried; check that the variables or files "
        "hold the keys the application used, and the layout's aad; what this run had quarantined was "
        "withdrawn",
    )
