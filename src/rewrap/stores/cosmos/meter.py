"""The meter: what requests to an account cost, and what the next one of a kind will.

A request's charge is known once it was answered. Before that the gate is told what the last ones of its kind
cost, and after it the truth.
"""

from __future__ import annotations

Kind = tuple[str, bool, str]
"""What requests of about the same cost have in common: method, whether it is a query, and the container."""

FIRST_UNITS = 10.0
"""Request units that are taken for the first request of a kind: about those of a patch of 1 KB."""

_WEIGHT = 0.25
"""Of the newest charge in what is expected: a handful of requests show a change."""


def kind_of(method: str, path: str, *, is_query: bool) -> Kind:
    """The kind of a request: `/dbs/D/colls/C` is as far as its path counts."""
    return method, is_query, "/".join(path.split("/")[:5])


class Meter:
    """Adds up charges, in request units, and keeps what each kind of request costs."""

    def __init__(self) -> None:
        self.request_units = 0.0
        self._expected: dict[Kind, float] = {}

    def expected(self, kind: Kind) -> float:
        """What a request will cost."""
        return self._expected.get(kind, FIRST_UNITS)

    def charged(self, kind: Kind, request_units: float) -> None:
        """Notes what a request has cost."""
        self.request_units += request_units
        before = self._expected.get(kind, request_units)
        self._expected[kind] = before + _WEIGHT * (request_units - before)

    def refused(self, request_units: float) -> None:
        """Notes what a request has cost that came to nothing: it says nothing of its kind."""
        self.request_units += request_units
