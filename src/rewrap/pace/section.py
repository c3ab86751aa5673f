"""The `[pace]` of a job file: how hard a run works."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, PrivateAttr, StringConstraints

from rewrap.pace.thresholds import Health, LoadProbe
from rewrap.targets import Name, Section

BudgetName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$")]


class SharedSection(Section):
    """`[pace.shared.NAME]`: a budget that jobs share over one ledger, and the store that draws on it.

    `rate` is rows a second, for all of them together.
    """

    store: Name | None = None
    rate: Annotated[float, Field(gt=0, le=1e9)]


class Pace(Section):
    """`[pace]`: how hard a run works. Not part of the job's identity: change it at any time.

    `max_rate` is in rows a second, of each store; `in_flight` is how many batches may be written at once.
    While there is a `pause_file` the run is paused.
    """

    batch_size: Annotated[int, Field(ge=1, le=10_000)] = 1_000
    batch_bytes: Annotated[int, Field(ge=65_536, le=64 * 2**20)] = 4 * 2**20
    shards: Annotated[int, Field(ge=1, le=32)] = 4
    max_value_bytes: Annotated[int, Field(ge=1_024, le=256 * 2**20)] = 64 * 2**20
    max_rate: Annotated[float, Field(gt=0, le=1e9)] | None = None
    in_flight: Annotated[int, Field(ge=1, le=64)] | None = None
    health: Health = Health()
    probe: list[LoadProbe] = Field(default_factory=list)
    shared: dict[BudgetName, SharedSection] = Field(default_factory=dict)
    pause_file: Annotated[str, Field(min_length=1)] | None = None

    _given: tuple[str, ...] = PrivateAttr(default=())

    def given_over(self, changes: Mapping[str, float]) -> Pace:
        """The same with what somebody gave apart from the file: on a command line."""
        pace = self.model_copy(update=changes)
        pace._given = tuple(changes)
        return pace

    @property
    def given(self) -> dict[str, float]:
        """The fields that were given so, with their values."""
        return {name: getattr(self, name) for name in self._given}


def refused_shared(
    shared: Mapping[str, SharedSection], stores: Mapping[str, str]
) -> tuple[str, str, str] | None:
    """Where a shared budget is of nothing that the job has, why, and what to do; None when all fit.

    `stores` are the kinds of the job's, by name.
    """
    taken: dict[str, str] = {}
    for name, section in shared.items():
        where = f"pace.shared.{name}"
        if section.store is None and len(stores) > 1:
            why = "is missing: the job has more than one store"
            return f"{where}.store", why, f"stores are {', '.join(stores)}"
        of = section.store or next(iter(stores))
        if of not in stores:
            return f"{where}.store", f'there is no store "{of}"', f"stores are {', '.join(stores)}"
        if stores[of] != "postgres":
            return where, f'"{of}" is a store of kind {stores[of]}', "only those in Postgres share a budget"
        if of in taken:
            return where, f'store "{of}" has a shared budget already', f"{taken[of]}; leave one of both out"
        taken[of] = name
    return None
