"""Proves the keys on stored values before the first write.

A key proven against itself proves nothing: a mistyped new key seals and opens its own values perfectly. So
values that the application stored are opened under every version of the rotation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rewrap.crypto.layout import BoundLayout, Malformed, Unopenable
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
    """What opening stored values showed: counts by version, and some rows in scope for each table."""

    opened: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    where: dict[str, str] = field(default_factory=dict)
    rows: dict[str, list[Row]] = field(default_factory=dict)


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
    for at, layout in enumerate(bound.values()):
        value = row[1 + at]
        if value is None or not value.startswith(layout.prefix):
            continue
        aad = layout.layout.aad.render(texts) if layout.layout.aad else None
        try:
            layout.open_one(value, aad)
            proof.opened[version] += 1
        except (Malformed, Unopenable):
            proof.failed[version] += 1
            proof.where.setdefault(version, f"{table.relation} row {row[0]}")


def judge_sources(proof: Proof, from_versions: Sequence[str], keyring: Keyring) -> None:
    """Raises KeyRefused when a from-version has stored values and opens none of those tried."""
    for version in from_versions:
        if proof.failed[version] and not proof.opened[version]:
            raise KeyRefused(
                f'key version "{version}" opens none of {proof.failed[version]} stored values marked with it',
                hint=f"the key at hand is {keyring.get(version).fingerprint}; compare it with the "
                "application's; nothing was written or quarantined",
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
    if expected_fingerprint is not None and not _same_fingerprint(expected_fingerprint, key):
        raise KeyRefused(
            f'key version "{version}" has the fingerprint {key.fingerprint}, not {expected_fingerprint}',
            hint="the key at hand is not the one you expected; nothing was written",
        )
    if proof.failed[version] and not (allow_unopenable and proof.opened[version]):
        tried = proof.failed[version] + proof.opened[version]
        raise KeyRefused(
            f'key version "{version}" does not open {proof.failed[version]} of {tried} stored values '
            f"marked with it (first: {proof.where[version]})",
            hint=f"the key at hand is {key.fingerprint}; somebody wrote with another key. "
            + (
                "If those few values are known to be broken, pass --allow-unopenable-target"
                if proof.opened[version]
                else "Compare it with the application's key; nothing was written"
            ),
        )
    if not proof.opened[version] and expected_fingerprint is None and not allow_unseen:
        raise KeyRefused(
            f'no stored value is under "{version}" yet, so nothing proves that its key is the application\'s',
            hint=f"its fingerprint is {key.fingerprint} (sha256 of the key's bytes); compare it, then "
            f"pass --to-fingerprint {key.fingerprint}, or --allow-unseen-target to go on without",
        )


def _same_fingerprint(expected: str, key: Key) -> bool:
    digits = expected.lower().removeprefix("sha256:").strip()
    full = key.fingerprint.removeprefix("sha256:")
    return len(digits) >= 8 and (full.startswith(digits) or digits.startswith(full))
