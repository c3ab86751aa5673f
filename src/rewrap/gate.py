"""The gate before a new key version: which versions stored values are under, and which are in use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rewrap.errors import GateClosed
from rewrap.job import Job
from rewrap.keys.keyring import Keyring
from rewrap.rotations import close_all
from rewrap.stores.open import Stores
from rewrap.verify import verify

UNMARKED = "(unmarked)"
"""In place of a version: values that open under a key at hand and name none."""


@dataclass(frozen=True, slots=True)
class Gate:
    """Values by version, and the versions that values may be under when another version is made."""

    held: Mapping[str, int]
    allowed: Sequence[str]

    @property
    def stranded(self) -> dict[str, int]:
        """Values that one more version would strand, by theirs."""
        return {version: n for version, n in self.held.items() if n and version not in self.allowed}

    def require_open(self) -> None:
        """Raises GateClosed, which names the versions and how many values each has."""
        if self.stranded:
            told = ", ".join(f"{n:,} under {version}" for version, n in sorted(self.stranded.items()))
            raise GateClosed(
                f"{sum(self.stranded.values()):,} values are under versions that are not in use: {told}",
                hint="rotate them to the current version first: rewrap run --from any",
            )


async def held_by_version(
    job: Job, keyring: Keyring, current: str, environ: Mapping[str, str]
) -> dict[str, int]:
    """How many values are under each version, counted as verify counts them, in one snapshot."""
    job = job.with_versions(keyring.known)
    stores = Stores(job, environ)
    census, looks = stores.census(), stores.dek_censuses()
    try:
        found = await verify(
            job, census, keyring, current, [], lambda _event: None, drain_s=0.0, looks=looks
        )  # fmt: skip
    finally:
        await close_all(census, *looks.values())
    held = Counter[str]()
    for one in found.fields:
        held.update(one.versions)
        held[UNMARKED] += one.classes["unmarked"]
    return dict(+held)
