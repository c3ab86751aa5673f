"""What verify has counted, and what follows from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from rewrap.events import FieldVerdict, Verdict
from rewrap.model import ServerIdentity


@dataclass(slots=True)
class FieldCount:
    """One column's values by class, and by version where it is known.

    `excused` are the quarantined and waived ones by version. `in_old_layout` are those under the new version
    that have the old layout still, `adrift` those that name no version and open under no key or under two:
    both only as far as they are neither quarantined nor waived.
    """

    target: str
    declared: str
    relation: str
    column: str
    values: int = 0
    classes: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    excused: Counter[str | None] = field(default_factory=Counter)
    in_old_layout: int = 0
    adrift: int = 0
    unopenable: int = 0
    misindexed: int = 0
    undecided: int = 0

    def left(self, from_versions: Sequence[str], *, unmarked: bool) -> int:
        """Values that a further sweep from these versions would find: neither quarantined nor waived."""
        left = sum(self.versions[version] - self.excused[version] for version in from_versions)
        left += self.in_old_layout + self.adrift
        return left + (self.classes["unmarked"] if unmarked else 0)

    def event(self) -> FieldVerdict:
        return FieldVerdict(
            target=self.target,
            field=self.column,
            values=self.values,
            classes=dict(+self.classes),
            versions=dict(self.versions),
        )


MUST_BE_ZERO = ("stale", "unmarked", "other_version", "deferred", "quarantined")

_SAYS = {
    "stale": "still under an old version",
    "unmarked": "sealed but without a marker",
    "other_version": "under a version that the job does not know, or under no key at hand",
    "deferred": "put off because others held the row",
    "quarantined": "in quarantine (see rewrap quarantine list)",
}


def verdict_of(
    counted: Sequence[FieldCount],
    reasons: Sequence[str],
    to_version: str,
    missing: Sequence[str],
    deep: bool,
    position: str,
    identity: ServerIdentity | None,
    manner: str,
) -> Verdict:
    """Whether everything that must be 0 is, and what is not; `missing` are versions without a key at hand."""
    total: Counter[str] = Counter()
    why = list(reasons)
    for one in counted:
        total.update(one.classes)
        for name in MUST_BE_ZERO:
            if one.classes[name]:
                why.append(f"{one.target}.{one.column}: {one.classes[name]} {_SAYS[name]}")
        if one.unopenable:
            why.append(
                f"{one.target}.{one.column}: {one.unopenable} marked {to_version} do not open under it"
            )
        if one.misindexed:
            why.append(
                f"{one.target}.{one.column}: {one.misindexed} values whose blind index does not belong to "
                "them"
            )
        if one.undecided:
            why.append(
                f"{one.target}.{one.column}: {one.undecided} that name no version look sealed, and the key "
                f"of {', '.join(missing)} is not at hand to tell them from plaintext"
            )
    return Verdict(
        complete=not why,
        deep=deep,
        to_version=to_version,
        values=sum(one.values for one in counted),
        stale=total["stale"],
        unmarked=total["unmarked"],
        other_version=total["other_version"],
        plaintext=total["plaintext"],
        quarantined=total["quarantined"],
        waived=total["waived"],
        deferred=total["deferred"],
        unopenable=sum(one.unopenable for one in counted),
        undecided=sum(one.undecided for one in counted),
        misindexed=sum(one.misindexed for one in counted),
        reasons=why,
        log_position=position,
        origin=identity.origin if identity else "",
        counted=manner,
    )
