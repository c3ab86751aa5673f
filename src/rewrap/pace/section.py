"""The `[pace]` of a job file: how hard a run works."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated

from pydantic import Field, PrivateAttr, StringConstraints, model_validator

from rewrap.pace.thresholds import Health, LoadProbe
from rewrap.targets import Name, Section

BudgetName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$")]


class SharedSection(Section):
    """`[pace.shared.NAME]`: a budget that jobs share over one ledger, and what of this job draws on it.

    `rate` is for all of them together, a second: rows of a Postgres store, request units of a Cosmos store,
    calls to a vault where `keys` is true.
    """

    store: Name | None = None
    keys: bool = False
    rate: Annotated[float, Field(gt=0, le=1e9)]

    @model_validator(mode="after")
    def _one_of_both(self) -> SharedSection:
        if self.keys and self.store is not None:
            raise ValueError("names a store and the keys: each has a budget of its own")
        return self


class Pace(Section):
    """`[pace]`: how hard a run works. Not part of the job's identity: change it at any time.

    `max_rate` is in rows a second, of each store; `in_flight` is how many batches may be written at once,
    and `target_s` the seconds that one may take where others wait for all of it.
    While there is a `pause_file` the run is paused.
    """

    batch_size: Annotated[int, Field(ge=1, le=10_000)] = 1_000
    batch_bytes: Annotated[int, Field(ge=65_536, le=64 * 2**20)] = 4 * 2**20
    shards: Annotated[int, Field(ge=1, le=32)] = 4
    max_value_bytes: Annotated[int, Field(ge=1_024, le=256 * 2**20)] = 64 * 2**20
    max_rate: Annotated[float, Field(gt=0, le=1e9)] | None = None
    in_flight: Annotated[int, Field(ge=1, le=64)] | None = None
    target_s: Annotated[float, Field(gt=0, le=60)] = 0.1
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
    shared: Mapping[str, SharedSection], stores: Collection[str], *, remote: bool
) -> tuple[str, str, str] | None:
    """Where a shared budget is of nothing that the job has, why, and what to do; None when all fit.

    `remote` says whether the job's keys are in a vault.
    """
    taken: dict[str, str] = {}
    names = f"stores are {', '.join(stores)}"
    for name, section in shared.items():
        where = f"pace.shared.{name}"
        if section.keys and not remote:
            return f"{where}.keys", "the job's keys are local, and no calls are made for them", "leave it out"
        if not section.keys and section.store is None and len(stores) > 1:
            return f"{where}.store", "is missing: the job has more than one store", names
        if section.store is not None and section.store not in stores:
            return f"{where}.store", f'there is no store "{section.store}"', names
        whose = "the vault" if section.keys else f'store "{section.store or next(iter(stores))}"'
        if whose in taken:
            return where, f"{whose} has a shared budget already", f"{taken[whose]}; leave one of both out"
        taken[whose] = name
    return None
