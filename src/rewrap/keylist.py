"""The versions of a job's keys: what their keeper tells of them, and what stored values are under."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from rewrap import api
from rewrap.errors import KeyAccessError
from rewrap.events import KeyListed, KeysListed
from rewrap.job import Job
from rewrap.keys.listed import Listed
from rewrap.keys.open import listed_keys, open_keyring
from rewrap.ledgers.records import RunRecord
from rewrap.model import RunState
from rewrap.rotations import close_all
from rewrap.stores.open import Stores
from rewrap.verify import verify

NOT_LISTED = "not listed by its keeper"
"""The state of a version that a run or a stored value names, and nobody else."""


@dataclass(frozen=True, slots=True)
class KeyList:
    """All versions, those that only the ledger or stored values name last.

    `holds` is what share of stored values is under each, as the newest run left them; `values` how many, if
    they were counted.
    """

    job: Job
    keys: tuple[Listed, ...]
    run: RunRecord | None
    holds: Mapping[str, str]
    values: Mapping[str, int] | None

    def events(self) -> list[KeyListed]:
        return [
            KeyListed(
                version=one.version,
                current=one.current,
                labels=list(one.labels),
                usable=one.usable,
                state=one.state,
                created=None if one.created is None else one.created.isoformat(timespec="seconds"),
                fingerprint=one.fingerprint,
                fingerprint_of=one.fingerprint_of,
                permissions=[asdict(each) for each in one.permissions],
                holds=self.holds.get(one.version),
                values=None if self.values is None else self.values.get(one.version, 0),
                text_fingerprint=one.text_fingerprint,
            )
            for one in self.keys
        ]

    def end(self) -> KeysListed:
        run = self.run
        return KeysListed(
            job=self.job.name,
            provider=self.job.keys.provider,
            versions=len(self.keys),
            usable=sum(one.usable for one in self.keys),
            run_id=None if run is None else run.run_id,
            run_state=None if run is None else run.state,
            run_at=None if run is None else run.updated_at,
            counted=self.values is not None,
        )


async def list_keys(job: Job, *, count: bool = False, environ: Mapping[str, str] = os.environ) -> KeyList:
    """The key versions that there are; with `count`, how many stored values are under each.

    Without it, only the keeper and the ledger are asked. Raises KeyAccessError where the keeper cannot be
    asked; that some key cannot be had is told in the list.
    """
    listed = await listed_keys(job, environ)
    status = await api.status(job, environ=environ)
    holds = {} if status is None else _held(status)
    run = None if status is None else status.run
    values = await _counted(job, listed, run, environ) if count else None
    there = {one.version for one in listed}
    others = [version for version in dict.fromkeys((*holds, *(values or {}))) if version not in there]
    more = [Listed(version, usable=False, state=NOT_LISTED) for version in others]
    return KeyList(job, (*listed, *more), run, holds, values)


def _held(status: api.Status) -> dict[str, str]:
    """What share of the stored values is under each version of the newest run, as its record says."""
    run = status.run
    left = dict.fromkeys(run.from_versions, "some")
    if run.state == RunState.COMPLETE:
        left = dict.fromkeys(left, "none")
        # what was put aside and waived is where it was
        aside = {entry.version for entry in status.put_aside if entry.version in left}
        left |= dict.fromkeys((version for version in aside if version is not None), "some")
        return {**left, run.to_version: "some" if aside else "all"}
    counts = [one for each in status.progress for one in (each.tally or {}).values()]
    begun = any(one.get("resealed") or one.get("current") for one in counts)
    return {**left, run.to_version: "some"} if begun else left


async def _counted(
    job: Job, listed: list[Listed], run: RunRecord | None, environ: Mapping[str, str]
) -> dict[str, int]:
    """Values by the version in their marker, or that of the key that opens them."""
    at_hand = [one.version for one in listed if one.usable]
    current = [one.version for one in listed if one.usable and one.current]
    named = [] if run is None else [version for version in (run.to_version,) if version in at_hand]
    if not at_hand:
        raise KeyAccessError(
            "no key is at hand to count with", hint="leave out --count, or see rewrap verify --print-queries"
        )
    to_version = [*named, *current, *at_hand][0]
    keyring = await open_keyring(job, [to_version], environ, wanted=at_hand)
    earlier = () if run is None else (*run.from_versions, run.to_version)
    job = job.with_versions((*(one.version for one in listed), *earlier))
    stores = Stores(job, environ)
    census, looks = stores.census(), stores.dek_censuses()
    try:
        found = await verify(job, census, keyring, to_version, [], api.ignore, drain_s=0.0, looks=looks)
    finally:
        await close_all(census, *looks.values(), keyring)
    counts: Counter[str] = Counter()
    for field in found.fields:
        for version, number in field.versions.items():
            counts[version] += number
    return dict(+counts)
