"""Proves the keys on stored values before the first write.

A key proven against itself proves nothing: a mistyped new key seals and opens its own values perfectly. So
values that the application stored are opened under every version of the rotation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rewrap.crypto.layout import Malformed, Unopenable
from rewrap.engine.compile import Rotation
from rewrap.engine.dekproof import prove_deks
from rewrap.engine.health import FIRST_VALUES, UNNAMED, KeyHealth, Place
from rewrap.engine.reseal import Form, Reseal, Resealed
from rewrap.errors import KeyRefused
from rewrap.interfaces import Page, Prefix, Row, Scope, ShardReader, Store
from rewrap.keys.keyring import Key, Keyring
from rewrap.model import Outcome, ShardRange, Table, key_text, shown_key
from rewrap.packed import ELEMENT

SAMPLE_VALUES = 20
"""Stored values opened for each version and table."""

SAMPLE_UNNAMED = 100
"""Stored values opened of each field whose values name no version."""

FIELDS_SAID = 3
"""Fields that a message names, of those in which a key fails."""

_WALKED_ROWS = 500
"""Rows a page, where a value under an old key is looked for over the whole table."""

Vouched = Callable[[Place], Awaitable[int]]
"""How many values of a place a key opened before, as the ledger remembers it."""


async def nobody(_place: Place) -> int:
    """Vouches for no key: there is no ledger to ask."""
    return 0


@dataclass(slots=True)
class Proof:
    """What opening stored values showed, by place, and some rows in scope for each table.

    `unnamed` are the fields, by relation and name, whose values name no version. What of theirs looks sealed
    and opens under no key counts as failed under UNNAMED.
    """

    opened: Counter[Place] = field(default_factory=Counter)
    failed: Counter[Place] = field(default_factory=Counter)
    where: dict[str, str] = field(default_factory=dict)
    rows: dict[str, list[Row]] = field(default_factory=dict)
    unnamed: set[tuple[str, str]] = field(default_factory=set)

    def count(self, version: str) -> tuple[int, int]:
        """Values of a version that opened and that failed, over all places."""
        opened = sum(n for place, n in self.opened.items() if place[2] == version)
        failed = sum(n for place, n in self.failed.items() if place[2] == version)
        return opened, failed

    def failing(self, version: str) -> str:
        """The fields with values that a version's key did not open, in words: a few by name."""
        places = sorted(
            {(place[0], place[1]) for place, n in self.failed.items() if place[2] == version and n}
        )
        named = ", ".join(f"{relation}.{name}" for relation, name in places[:FIELDS_SAID])
        return named + (f" and {len(places) - FIELDS_SAID} more" if len(places) > FIELDS_SAID else "")

    def opened_under(self, relation: str, name: str, versions: Sequence[str]) -> int:
        """Values of a field that opened under one of some versions."""
        return sum(self.opened[relation, name, version] for version in versions)

    def feed(self, health: KeyHealth, from_versions: Sequence[str]) -> None:
        """Tells a run's health what is known to open."""
        for (relation, column, version), count in self.opened.items():
            health.opened(relation, {(column, version): count})
        for relation, name in self.unnamed:
            health.opened(relation, {(name, UNNAMED): self.opened_under(relation, name, from_versions)})


async def gather_proof(
    store: Store, tables: Sequence[Table], rotation: Rotation, vouched: Vouched = nobody
) -> Proof:
    """Opens stored values of each version in each table, up to SAMPLE_VALUES.

    Of a field whose values name no version, up to SAMPLE_UNNAMED of any; and more, if some of them open
    under no key, until one is found that opens under a version that values leave.
    """
    proof = Proof()
    for table in tables:
        dek = rotation.target(table).dek
        if dek is not None:
            await prove_deks(proof, store, table, rotation, dek)
            continue
        reader = store.reader(table, full=False)
        try:
            for version in (*rotation.from_versions, rotation.to_version):
                for forms in rotation.marked_forms(table, version):
                    prefixes = {name: form.bound.prefix for name, form in forms.items()}
                    rows = await reader.sample(SAMPLE_VALUES, prefixes)
                    if version in rotation.from_versions:
                        proof.rows.setdefault(table.relation, []).extend(rows)
                    for found in await rotation.resolved(partial(_tried, table, forms, rows)):
                        _note_tried(proof, table, version, found)
        finally:
            await reader.close()
        await _probe(proof, store, table, rotation, vouched)
    return proof


Tried = tuple[Any, str, bool]
"""A row's key, a field's name, and whether its value opened."""


def _note_tried(proof: Proof, table: Table, version: str, found: Tried) -> None:
    key, name, opened = found
    (proof.opened if opened else proof.failed)[table.relation, name, version] += 1
    if not opened:
        proof.where.setdefault(version, f"{table.relation} row {shown_key(key_text(key))}")


def _tried(table: Table, forms: dict[str, Form], rows: Sequence[Row]) -> list[Tried]:
    """Opens the values of some rows that are in one of these forms."""
    return [found for row in rows for found in _tried_in(table, forms, row)]


def _tried_in(table: Table, forms: dict[str, Form], row: Row) -> Iterator[Tried]:
    texts = dict(zip(table.aad_columns, row[1 + len(table.fields) :], strict=True))
    for at, name in enumerate(table.field_names):
        value, form = row[1 + at], forms.get(name)
        if form is None or value is None:
            continue
        layout = form.bound.layout
        aad = layout.aad.render(texts) if layout.aad else None
        for one in value.split(ELEMENT) if table.fields[at].many else (value,):
            if not one.startswith(form.bound.prefix):
                continue
            try:
                form.bound.open_one(one, aad)
                yield row[0], name, True
            except (Malformed, Unopenable):
                yield row[0], name, False


async def _probe(proof: Proof, store: Store, table: Table, rotation: Rotation, vouched: Vouched) -> None:
    """Opens values of the fields whose values name no version: from anywhere, then from everywhere."""
    reseal = rotation.reseal(table)
    if not reseal.probed:
        return
    reader = store.reader(table)
    try:
        for name in sorted(reseal.probed):
            proof.unnamed.add((table.relation, name))
            nothing: Prefix = b"" if rotation.new_layout(table, name).binary else ""
            rows = await reader.sample(SAMPLE_UNNAMED, {name: nothing})
            await _note(proof, reader, reseal, name, Page.of(rows, table), rotation)
            if not proof.failed[table.relation, name, UNNAMED]:
                continue
            known = [await vouched((table.relation, name, version)) for version in rotation.from_versions]
            if not any(known):
                await _walk(proof, reader, reseal, name, rotation)
    finally:
        await reader.close()


async def _walk(proof: Proof, reader: ShardReader, reseal: Reseal, name: str, rotation: Rotation) -> None:
    """Reads on until a value opens under an old key, or until enough fail to say that the key is wrong."""
    relation, after = reseal.table.relation, None
    everything = ShardRange(0, None, None)
    while not proof.opened_under(relation, name, rotation.from_versions):
        if proof.failed[relation, name, UNNAMED] >= FIRST_VALUES:
            return
        page = await reader.fetch(everything, after, _WALKED_ROWS, Scope())
        if after is None:
            # it meets again what the sample had
            proof.failed[relation, name, UNNAMED] = 0
        await _note(proof, reader, reseal, name, page, rotation)
        after = page.last
        if after is None:
            return


async def _note(
    proof: Proof, reader: ShardReader, reseal: Reseal, name: str, page: Page, rotation: Rotation
) -> None:
    """Adds what judging one field of some rows shows. What they are resealed to is thrown away."""
    relation, only = reseal.table.relation, frozenset({name})
    results: list[Resealed] = [await rotation.resolved(partial(reseal.page, page, only))]
    for key in results[0].large:
        row = await reader.fetch_large(key)
        if row is not None:
            results.append(await rotation.resolved(partial(reseal.judge_whole, row, only)))
    for result in results:
        for version in rotation.from_versions:
            proof.opened[relation, name, version] += result.opened[name, version]
        if not rotation.new_layout(reseal.table, name).versioned:
            current = result.tally[name][Outcome.CURRENT]
            proof.opened[relation, name, rotation.to_version] += current
        failed = [fault for fault in result.faults if fault.version == UNNAMED]
        proof.failed[relation, name, UNNAMED] += len(failed)
        if failed:
            proof.where.setdefault(UNNAMED, f"{relation} row {shown_key(failed[0].row_id)}")
    kept = proof.rows.setdefault(relation, [])
    for at, key in enumerate(page.keys):
        if len(kept) < SAMPLE_VALUES and key in results[0].swap.keys:
            kept.append(page.row(at))


def judge_sources(proof: Proof, from_versions: Sequence[str], keyring: Keyring) -> None:
    """Raises KeyRefused when a from-version has stored values and opens none of those tried.

    That is asked of the key as a whole, and of each column with enough values to tell: there it may be the
    layout or the associated data that are declared wrongly.
    """
    for fault in source_faults(proof, from_versions, keyring):
        raise fault


def source_faults(proof: Proof, from_versions: Sequence[str], keyring: Keyring) -> Iterator[KeyRefused]:
    """All that `judge_sources` could raise: a key as a whole, or each column that it does not open."""
    for version in from_versions:
        opened, failed = proof.count(version)
        if failed and not opened:
            yield KeyRefused(
                f'key version "{version}" opens none of {failed} stored values marked with it, in '
                f"{proof.failing(version)}",
                hint=f"the key at hand is {keyring.get(version).fingerprint}; compare it with the "
                "application's, and check the layouts: order, aad, kdf and its info; nothing was written or "
                "quarantined",
            )
            continue
        for (relation, column, marked), count in proof.failed.items():
            if marked == version and count >= FIRST_VALUES and not proof.opened[relation, column, version]:
                yield KeyRefused(
                    f'key version "{version}" opens none of {count} stored values marked with it in '
                    f"{relation}.{column}, though it opens others",
                    hint="check the layout of this column: its order, its aad; nothing was written or "
                    "quarantined",
                )


def judge_unnamed(proof: Proof, from_versions: Sequence[str], keyring: Keyring) -> None:
    """Raises KeyRefused when values that name no version look sealed, and none opens under any of these."""
    for fault in unnamed_faults(proof, from_versions, keyring):
        raise fault


def unnamed_faults(proof: Proof, from_versions: Sequence[str], keyring: Keyring) -> Iterator[KeyRefused]:
    """All that `judge_unnamed` could raise, a column each."""
    for relation, name in sorted(proof.unnamed):
        failed = proof.failed[relation, name, UNNAMED]
        if failed and not proof.opened_under(relation, name, from_versions):
            yield KeyRefused(
                f"no stored value of {relation}.{name} opens under {' or '.join(from_versions)}, and "
                f"{failed} look sealed and open under no key at hand (first: {proof.where[UNNAMED]})",
                hint="its values name no version, so all keys at hand were tried: "
                + ", ".join(f"{key.version} {key.fingerprint}" for key in keyring)
                + "; compare them with the application's, and check the layout of this column: its order, "
                "its aad; nothing was written or quarantined",
            )


def judge_target(
    proof: Proof,
    key: Key,
    *,
    expected_fingerprint: str | None,
    allow_unseen: bool,
    allow_unopenable: bool,
    recognised: bool = False,
) -> None:
    """Raises KeyRefused unless stored values, or the operator, vouch for the key to be written under.

    `recognised` when a run that goes on has begun with it.
    """
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
            f"marked with it, in {proof.failing(version)} (first: {proof.where[version]})",
            hint=f"the key at hand is {key.fingerprint}; somebody wrote with another key: "
            + (
                "if those few values are known to be broken, pass --allow-unopenable-target"
                if opened
                else "compare it with the application's key; nothing was written"
            ),
        )
    unopened = sum(proof.failed[(*place, UNNAMED)] for place in proof.unnamed)
    if unopened >= FIRST_VALUES and not (opened or expected_fingerprint or recognised):
        raise KeyRefused(
            f'{unopened} stored values open under no key at hand, and none under "{version}": they may be '
            "under the application's key of that name, and this one be another",
            hint=f"its fingerprint is {key.fingerprint} ({key.fingerprint_of}); compare it, then pass "
            f"--to-fingerprint {key.fingerprint}",
        )
    if not opened and expected_fingerprint is None and not (allow_unseen or recognised):
        raise KeyRefused(
            f'no stored value is under "{version}" yet, so nothing proves that its key is the application\'s',
            hint=f"its fingerprint is {key.fingerprint} ({key.fingerprint_of}); compare it, then "
            f"pass --to-fingerprint {key.fingerprint}, or --allow-unseen-target to go on without",
        )


def _same_fingerprint(expected: str, key: Key) -> bool:
    digits = expected.lower().removeprefix("sha256:").strip()
    full = key.fingerprint.removeprefix("sha256:")
    return len(digits) >= 8 and (full.startswith(digits) or digits.startswith(full))
