"""Proves the keys on stored values before the first write.

A key proven against itself proves nothing: a mistyped new key seals and opens its own values perfectly. So
values that the application stored are opened under every version of the rotation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rewrap.crypto.layout import BoundLayout, Malformed, Unopenable
from rewrap.engine.health import FIRST_VALUES, KeyHealth, Place
from rewrap.errors import KeyRefused
from rewrap.interfaces import Row, Store
from rewrap.keys.keyring import Key, Keyring
from rewrap.model import Table

SAMPLE_VALUES = 20
"""Stored values opened for each version and table."""

Bind = Callable[[Table, str, str], BoundLayout]
"""The layout of a table's column, bound to a version."""


@dataclass(slots=True)
class Proof:
    """What opening stored values showed, by place, and some rows in scope for each table."""

    opened: Counter[Place] = field(default_factory=Counter)
    failed: Counter[Place] = field(default_factory=Counter)
    where: dict[str, str] = field(default_factory=dict)
    rows: dict[str, list[Row]] = field(default_factory=dict)

    def count(self, version: str) -> tuple[int, int]:
        """Values of a version that opened and that failed, over all places."""
        opened = sum(n for place, n in self.opened.items() if place[2] == version)
        failed = sum(n for place, n in self.failed.items() if place[2] == version)
        return opened, failed

    def feed(self, health: KeyHealth) -> None:
        """Tells a run's health what is known to open."""
        for (relation, column, version), count in self.opened.items():
            health.opened(relation, {(column, version): count})


async def gather_proof(
    store: Store,
    tables: Sequence[Table],
    versions: Sequence[str],
    in_scope: frozenset[str],
    bind: Bind,
) -> Proof:
    """Opens up to SAMPLE_VALUES stored values of each version in each table."""
    proof = Proof()
    for table in tables:
        reader = store.reader(table, full=False)
        try:
            for version in versions:
                bound = {name: bind(table, name, version) for name in table.field_names}
                prefixes = {name: layout.prefix for name, layout in bound.items()}
                rows = await reader.sample(SAMPLE_VALUES, prefixes)
                if version in in_scope:
                    proof.rows.setdefault(table.relation, []).extend(rows)
                for row in rows:
                    _try(proof, table, version, bound, row)
        finally:
            await reader.close()
    return proof


def _try(proof: Proof, table: Table, version: str, bound: dict[str, BoundLayout], row: Row) -> None:
    texts = dict(zip(table.aad_columns, row[1 + len(table.fields) :], strict=True))
    for at, (column, layout) in enumerate(bound.items()):
        value = row[1 + at]
        if value is None or not value.startswith(layout.prefix):
            continue
        aad = layout.layout.aad.render(texts) if layout.layout.aad else None
        try:
            layout.open_one(value, aad)
            proof.opened[table.relation, column, version] += 1
        except (Malformed, Unopenable):
            proof.failed[table.relation, column, version] += 1
            proof.where.setdefault(version, f"{table.relation} row {row[0]}")


def judge_sources(proof: Proof, from_versions: Sequence[str], keyring: Keyring) -> None:
    """Raises KeyRefused when a from-version has stored values and opens none of those tried.

    That is asked of the key as a whole, and of each column with enough values to tell: there it may be the
    associated data that are declared wrongly.
    """
    for version in from_versions:
        opened, failed = proof.count(version)
        if failed and not opened:
            raise KeyRefused(
                f'key version "{version}" opens none of {failed} stored values marked with it',
                hint=f"the key at hand is {keyring.get(version).fingerprint}; compare it with the "
                "application's; nothing was written or quarantined",
            )
        for (relation, column, marked), count in proof.failed.items():
            if marked == version and count >= FIRST_VALUES and not proof.opened[relation, column, version]:
                raise KeyRefused(
                    f'key version "{version}" opens none of {count} stored values marked with it in '
                    f"{relation}.{column}, though it opens others",
                    hint="check the layout of this column, its aad above all; nothing was written or "
                    "quarantined",
                )


def judge_target(
    proof: Proof,
    key: Key,
    *,
    expected_fingerprint: str | None,
    allow_unseen: bool,
    allow_unopenable: bool,
) -> None:
    """Raises KeyRefused unless stored values, or the operator, vouch for the key to be written under."""
    version = key.version
    opened, failed = proof.count(version)
    if expected_fingerprint is not None and not _same_fingerprint(expected_fingerprint, key):
        raise KeyRefused(
            f'key version "{version}" has the fingerprint {key.fingerprint}, not {expected_fingerprint}',
            hint="the key at hand is not the one you expected; nothing was written",
        )
    if failed and not (allow_unopenable and opened):
        tried = failed + opened
        raise KeyRefused(
            f'key version "{version}" does not open {failed} of {tried} stored values '
            f"marked with it (first: {proof.where[version]})",
            hint=f"the key at hand is {key.fingerprint}; somebody wrote with another key: "
            + (
                "if those few values are known to be broken, pass --allow-unopenable-target"
                if opened
                else "compare it with the application's key; nothing was written"
            ),
        )
    if not opened and expected_fingerprint is None and not allow_unseen:
        raise KeyRefused(
            f'no stored value is under "{version}" yet, so nothing proves that its key is the application\'s',
            hint=f"its fingerprint is {key.fingerprint} (sha256 of the key's bytes); compare it, then "
            f"pass --to-fingerprint {key.fingerprint}, or --allow-unseen-target to go on without",
        )


def _same_fingerprint(expected: str, key: Key) -> bool:
    digits = expected.lower().removeprefix("sha256:").strip()
    full = key.fingerprint.removeprefix("sha256:")
    return len(digits) >= 8 and (full.startswith(digits) or digits.startswith(full))
