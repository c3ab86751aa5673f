"""The gate before a new key version: which versions stored values are under, and which are in use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rewrap.errors import GateClosed
from rewrap.job import Job
from rewrap.keys.keyring import Keyring
from rewrap.labels import values_are
from rewrap.rotations import close_all
from rewrap.stores.open import Stores
from rewrap.verify import verify

UNMARKED = "(unmarked)"
"""In place of a version: values that open under a key at hand and name none."""


@dataclass(frozen=True, slots=True)
class Gate:
    """Values by version, and the versions that values may be under when another version is made.

    `foreign` are those of them that are sealed otherwise than the job's layouts say, `a2.k…`: by the whole
    name that they give, and counted in `held` under the version at its end.
    """

    held: Mapping[str, int]
    allowed: Sequence[str]
    foreign: Mapping[str, int] = field(default_factory=dict)
    versions: Sequence[str] = ()

    @property
    def stranded(self) -> dict[str, int]:
        """Values that one more version would strand, by theirs; foreign ones by their whole name."""
        counts = Counter(self.held)
        for name, number in self.foreign.items():
            counts[str(version_in(name, self.versions))] -= number
        stranded = {version: n for version, n in counts.items() if n > 0 and version not in self.allowed}
        return {**stranded, **self.foreign}

    def require_open(self, job_file: str = "", current: str = "AWSCURRENT") -> None:
        """Raises GateClosed, which names the versions and how many values each has."""
        if self.stranded:
            told = ", ".join(f"{n:,} under {version}" for version, n in sorted(self.stranded.items()))
            number = sum(self.stranded.values())
            raise GateClosed(
                f"{values_are(number)} under versions that are not in use: {told}",
                hint="; ".join(self._ways_out(job_file, current)),
            )

    def _ways_out(self, job_file: str, current: str) -> list[str]:
        ours = [version for version in self.stranded if version not in self.foreign]
        ways = []
        if any(version in self.versions or version == UNMARKED for version in ours):
            ways.append(
                f"rotate them to the current version first: rewrap run{job_file} --from any --to {current}"
            )
        gone = [version for version in ours if version not in self.versions and version != UNMARKED]
        if gone:
            ways.append(
                f"the secret has no {', '.join(sorted(gone))}: no run opens what is under it; have those "
                "values set anew"
            )
        if self.foreign:
            ways.append(
                f"{', '.join(sorted(self.foreign))}: sealed otherwise than this job's layouts say, and no "
                "run takes them; declare a layout for them, or have the application rewrite them"
            )
        return ways


def version_in(name: str, versions: Sequence[str]) -> str | None:
    """The version that a name ends in, `a2.k$VERSION`: the longest of those there are; None if it is none."""
    return max((one for one in versions if name.endswith(one)), key=len, default=None)


def gate_of(counted: Mapping[str, int], versions: Sequence[str], allowed: Sequence[str]) -> Gate:
    """The gate, from values by the name that each gives for its version."""
    held, foreign = Counter[str](), Counter[str]()
    for name, number in counted.items():
        version = version_in(name, versions)
        held[version or name] += number
        if version is not None and version != name:
            foreign[name] += number
    return Gate(dict(+held), allowed, dict(+foreign), versions)


async def held_by_version(
    job: Job, keyring: Keyring, readable: str, environ: Mapping[str, str]
) -> dict[str, int]:
    """How many values are under each version, counted as verify counts them, in one snapshot.

    By what their markers say, so that no key decides; `readable` is any version whose key is at hand, which
    verify asks for.
    """
    job = job.with_versions(keyring.known)
    stores = Stores(job, environ)
    census, looks = stores.census(), stores.dek_censuses()
    try:
        found = await verify(
            job, census, keyring, readable, [], lambda _event: None, drain_s=0.0, looks=looks
        )  # fmt: skip
    finally:
        await close_all(census, *looks.values())
    held = Counter[str]()
    for one in found.fields:
        held.update(one.versions)
        held[UNMARKED] += one.classes["unmarked"]
    return dict(+held)
