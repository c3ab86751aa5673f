"""Pure: fields that share one stored version change together in a row, or not at all.

Where one column says under which version several others are sealed, writing one of them alone would leave
the others under a version that is not theirs, and unreadable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rewrap.engine.judged import Judged
from rewrap.model import Fault, Outcome, Reason
from rewrap.packed import Column, listed

Blame = Callable[[str, Any, Any, Reason], Fault]
"""A fault of a column's value in a row, with its digest: (column, row id, value, reason)."""


def hold_back(
    names: Sequence[str],
    judged: Mapping[str, Judged],
    columns: Mapping[str, Column],
    row_ids: Sequence[Any],
    blame: Blame,
) -> None:
    """Takes back the new values of rows in which another value of the group is not resealed too.

    `columns` are the group's stored values. What is taken back is quarantined as `linked`; or put off, when
    the other value is one that nobody was asked to judge (it has come since).
    """
    mine = {name: judged[name] for name in names if name in judged}
    if all(column.places is None for column in mine.values()) and len(mine) == len(names):
        return
    count = len(row_ids)
    places = {name: set(column.every(count)) for name, column in mine.items()}
    stored = {name: listed(columns[name]) for name in names}
    for place in sorted(set().union(*places.values())):
        others = [
            name for name in names if place not in places.get(name, ()) and stored[name][place] is not None
        ]
        if not others:
            continue
        reason = Reason.LINKED if all(name in mine for name in others) else Reason.CONTENDED
        outcome = Outcome.QUARANTINED if reason is Reason.LINKED else Outcome.DEFERRED
        for name, column in mine.items():
            if place in places[name]:
                column.drop(place, count)
                column.counts[outcome] += 1
                column.faults.append(blame(name, row_ids[place], stored[name][place], reason))
