"""Verify: an independent count of what is stored, and with `deep` an opening of every value.

It shares no code with the engine but the layouts: its queries are its own, and it opens values itself. What
the engine believes it did plays no part, except that values in quarantine are named as such, after their
bytes were compared with the digest under which they were put aside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from rewrap.crypto.ciphers import OPEN_FAILURES
from rewrap.crypto.layout import BoundLayout, Layout
from rewrap.dekcount import DekCounts
from rewrap.deks import DekCensus
from rewrap.errors import FenceError
from rewrap.events import Notice, Verdict
from rewrap.forms import Forms
from rewrap.interfaces import Census, Sink
from rewrap.job import Job
from rewrap.keys.keyring import Keyring
from rewrap.labels import shown_version
from rewrap.ledgers.sql import ExceptionRecord, RelationRecord
from rewrap.model import Table
from rewrap.opening import Aside, Opening, Told, associated, misindexed, opened, opens_all
from rewrap.targets import FieldSection
from rewrap.verdict import MUST_BE_ZERO, FieldCount, verdict_of
from rewrap.witness import Witness


@dataclass(frozen=True, slots=True)
class Verification:
    """What verify found. `healed` are entries put aside whose values are settled or gone by now."""

    verdict: Verdict
    fields: tuple[FieldCount, ...]
    values: dict[str, int]
    healed: tuple[ExceptionRecord, ...]

    @property
    def exit_code(self) -> int:
        return 0 if self.verdict.complete else 3


async def verify(
    job: Job,
    census: Census,
    keyring: Keyring,
    to_version: str,
    exceptions: Sequence[ExceptionRecord],
    sink: Sink,
    *,
    left_versions: Sequence[str] | None = None,
    deep: bool = False,
    fence: bool = False,
    drain_s: float | None = None,
    worked_on: Sequence[RelationRecord] = (),
    witness: Witness | None = None,
    looks: Mapping[str, DekCensus] | None = None,
) -> Verification:
    """Counts every configured column in one snapshot, by version and class.

    `worked_on` are the tables of earlier runs: what one of them still holds is told, though it may be no
    partition of its target any more. `looks` are, by store, verify's own at records of DEKs.

    `left_versions` are the versions that values came from (the job's others, if not given). A value without
    a marker that looks sealed is told from plaintext by their keys; where one is not at hand, verify does
    not say complete.

    With `witness`, what a run had to leave as it was is compared with its fingerprints, in the same snapshot.
    """
    others = [version for version in job.versions if version != to_version]
    look = _Look(job, census, keyring, to_version, exceptions, tuple(left_versions or others))
    look.deks = DekCounts(job, looks or {}, census, keyring, to_version, exceptions, look.healed)
    tables = await census.tables()
    # an old value in an open transaction is in no snapshot, and in the table the moment after
    reasons = [
        f"{writer} has written something and not yet ended: it may still commit an old value"
        for writer in await census.drain(job.limits.drain_s if drain_s is None else drain_s)
    ]
    counted: list[FieldCount] = []
    async with census:
        values = {}
        tables = await census.tables_now(tables)
        for table in tables:
            found = await look.table(table, deep=deep)
            values[table.relation] = sum(one.values for one in found)
            counted += found
            for one in found:
                sink(one.event())
        reasons += await look.left_behind(tables, worked_on)
        if witness is not None:
            reasons += await witness.look(census, sink)
        reasons += await look.deks.referred(sink)
        await census.check_kept()
        position = await census.position()
    verdict = verdict_of(
        counted, reasons, to_version, look.missing, deep, position, census.identity, census.manner
    )
    if witness is not None:
        verdict = replace(verdict, untouched=witness.counts)
    try:
        if fence:
            await _fence(job, census, tables, to_version, verdict, sink)
    finally:
        # what was counted is told, and which fences were added, though one could not be
        sink(verdict)
    return Verification(verdict, tuple(counted), values, tuple(look.healed))


def _fields(job: Job, table: Table, to_version: str) -> list[tuple[FieldSection, Forms]]:
    target = next(target for target in job.targets if target.table == table.target)
    return [(entry, job.forms(entry, to_version)) for entry in target.fields]


@dataclass
class _Look:
    """One verification at work: the job, the keys at hand, and what was put aside before."""

    job: Job
    census: Census
    keyring: Keyring
    to_version: str
    exceptions: Sequence[ExceptionRecord]
    left_versions: tuple[str, ...]
    healed: list[ExceptionRecord] = field(default_factory=list)
    deks: DekCounts = field(init=False)

    async def table(self, table: Table, *, deep: bool) -> list[FieldCount]:
        """Every field of a table, counted."""
        target = next(target for target in self.job.targets if target.table == table.target)
        if target.dek is not None:
            return [await self.deks.count(table, target.dek, entry, deep=deep) for entry in target.fields]
        fields = _fields(self.job, table, self.to_version)
        _, classes = await self.census.count(table, {entry.name: forms for entry, forms in fields})
        found = []
        for entry, forms in fields:
            opening = Opening(forms, self.keyring, self.left_versions, table.target, entry.name, deep)
            found.append(await self.at(table, entry.name, opening, classes[entry.name], deep=deep))
        return found

    @property
    def missing(self) -> list[str]:
        """Versions that values came from and whose keys are not at hand (the new key is not theirs)."""
        if not self.left_versions and self.keyring.unlisted:
            return ["versions that this identity may not have listed"]
        new = self.keyring.get(self.to_version).secret
        return [
            version
            for version in self.left_versions
            if version not in self.keyring or self.keyring.get(version).secret == new
        ]

    async def at(
        self,
        table: Table,
        column: str,
        opening: Opening,
        counts: Sequence[tuple[str, str | None, int]],
        *,
        deep: bool,
    ) -> FieldCount:
        """Everything about one column, from its counts by class and version."""
        out = FieldCount(table.name, table.target, table.relation, column)
        forms = opening.forms
        for kind, version, number in counts:
            out.values += number
            if kind == "null":
                out.classes["null"] += number
            elif version is None:
                out.classes["plaintext"] += number
            else:
                if number:
                    out.versions[shown_version(version, self.job.versions)] += number
                out.classes[self._class(version, new=kind == "marked")] += number
                if kind == "old" and version == self.to_version:
                    out.in_old_layout += number
        marked_new = out.versions[self.to_version] - out.in_old_layout
        aside = await self._explain(table, column, forms, out)
        if out.classes["plaintext"] and forms.probed:
            await self._tell_unnamed(table, column, opening, aside, out)
        elif out.classes["plaintext"]:
            await self._tell_unmarked(table, column, opening, out)
        self._excuse_unmarked(aside, out)
        if deep and forms.new.versioned:
            await self._open_all(table, column, opening, marked_new, out)
        return out

    def _class(self, version: str, *, new: bool) -> str:
        """The class of values under a version; in the old layout none is current."""
        if version == self.to_version and new:
            return "current"
        return "stale" if version in self.job.versions else "other_version"

    async def left_behind(self, tables: Sequence[Table], worked_on: Sequence[RelationRecord]) -> list[str]:
        """What tables still hold that were rotated with a target and are no part of it any more."""
        here = self.census.identity.origin if self.census.identity else ""
        present = {table.oid for table in tables}
        gone = {(r.oid, r.target) for r in worked_on if r.origin == here and r.oid not in present}
        found: list[str] = []
        for oid, target in sorted(gone):
            table = await self.census.former(target, oid)
            if table is None:
                continue
            for one in await self.table(table, deep=False):
                left = sum(one.classes[name] for name in MUST_BE_ZERO) + one.undecided
                if left:
                    found.append(
                        f"{table.relation}.{one.column}: {left} not at {self.to_version}; the table was "
                        f'part of "{target}" and is not any more: attach it, name it as a target, or drop it'
                    )
        return found

    async def _tell_unmarked(self, table: Table, column: str, opening: Opening, out: FieldCount) -> None:
        """Moves what opens without a marker out of plaintext; counts what only a missing key could tell."""
        async for page in self.census.bare(table, column, opening.forms):
            told = await self.keyring.resolved(partial(_opened_bare, table, opening, page))
            for opens in told:
                if opens:
                    out.classes["plaintext"] -= 1
                    out.classes["unmarked"] += 1
                elif opens is False and self.missing:
                    out.undecided += 1

    async def _tell_unnamed(
        self, table: Table, column: str, opening: Opening, aside: Aside, out: FieldCount
    ) -> None:
        """Opens every value whose version no marker names, and moves it to the class that this tells."""
        untold = out.classes.pop("plaintext")
        aside.looked = True
        async for page in self.census.unnamed(table, column, opening.forms):
            each = await self.keyring.resolved(partial(_told, table, opening, page))
            for row, told in zip(page, each, strict=True):
                untold -= 1
                out.misindexed += not told.indexed
                if told.version is not None:
                    out.versions[told.version] += 1
                entry = aside.take(row[1]) if told.kind != "current" else None
                if entry is not None:
                    self._put(entry, told.version, out)
                    continue
                if told.kind == "stale" and told.version == self.to_version:
                    out.in_old_layout += 1
                if told.kind in ("ambiguous", "sealed"):
                    out.adrift += 1
                if told.kind == "sealed" and self.missing:
                    out.undecided += 1
                out.classes[_CLASS_OF.get(told.kind, told.kind)] += 1
        # too large to be opened here: what it is, only its digest may say
        for entry in aside.large:
            self._put(entry, None, out)
            untold -= 1
        aside.large.clear()
        out.classes["other_version"] += untold

    async def _explain(self, table: Table, column: str, forms: Forms, out: FieldCount) -> Aside:
        """Moves values that were put aside, and still hold the same bytes, into classes of their own.

        Those that name no version are left to whoever opens them.
        """
        aside = Aside()
        digester = self.keyring.get(self.to_version).digester()
        for entry in self.exceptions:
            if (entry.relation, entry.field) != (table.relation, column):
                continue
            stored = await self.census.value(table, column, forms, entry.row_id)
            same = stored is not None and entry.digest in {
                digester.digest(table.relation, column, entry.row_id, text)
                # a value too large to read was put aside by its size and hash
                for text in (stored.whole or "", f"{stored.size} bytes {stored.sha256}")
            }
            if not same or stored is None:
                self.healed.append(entry)
                continue
            named = forms.named_by(stored.head)
            if named is None:
                aside.add(entry, stored)
                continue
            version, new = named
            was = self._class(version, new=new)
            if was == "current":
                self.healed.append(entry)
            elif out.classes[was] > 0:
                out.classes[was] -= 1
                out.in_old_layout -= version == self.to_version
                self._put(entry, version, out)
        return aside

    def _excuse_unmarked(self, aside: Aside, out: FieldCount) -> None:
        """What was put aside and names no version, where it is not looked for by opening it.

        After such a look, what is left of it turned out to be current.
        """
        for entry in aside.rest():
            was = "unmarked" if out.classes["unmarked"] else "plaintext"
            if aside.looked:
                self.healed.append(entry)
            elif out.classes[was] > 0:
                out.classes[was] -= 1
                self._put(entry, None, out)

    def _put(self, entry: ExceptionRecord, version: str | None, out: FieldCount) -> None:
        now = "deferred" if entry.deferred else "quarantined"
        out.classes["waived" if entry.state == "waived" else now] += 1
        if not entry.deferred:
            out.excused[version] += 1

    async def _open_all(
        self, table: Table, column: str, opening: Opening, marked: int, out: FieldCount
    ) -> None:
        """Opens every value marked as current with the new key alone."""
        key, layout = self.keyring.get(self.to_version), opening.forms.new
        place = table.target, opening.column
        bound = layout.bind(self.to_version, key.secret, *place, index_key=key.index)
        many = next(field.many for field in table.fields if field.name == column)
        found = 0
        async for page in self.census.marked(table, column, opening.forms):
            opens = _opening_elements if many else _opening
            here, misled = await self.keyring.resolved(partial(opens, table, bound, page))
            found += here
            out.misindexed += misled
        # what was counted as current and not opened does not open, or went missing: either is no proof
        out.unopenable = max(0, marked - found)


def _opened_bare(table: Table, opening: Opening, page: Sequence[Any]) -> list[bool | None]:
    return [opening.opens_bare(row[1], associated(table, opening.forms, row)) for row in page]


def _told(table: Table, opening: Opening, page: Sequence[Any]) -> list[Told]:
    return [opening.tell(row[1], associated(table, opening.forms, row)) for row in page]


def _opening(table: Table, bound: BoundLayout, page: Sequence[Any]) -> tuple[int, int]:
    """How many values of a page open, and how many of them have blind indexes that are not theirs."""
    layout, values = bound.layout, [row[1] for row in page]
    aads = [_aad(table, layout, row) for row in page] if layout.aad else None
    plains: list[bytes | None]
    try:
        plains = [*bound.open_values(values, aads)]
    except OPEN_FAILURES:
        bounds = [None] * len(values) if aads is None else aads
        plains = [opened(bound, value, aad) for value, aad in zip(values, bounds, strict=True)]
    return len(plains) - plains.count(None), misindexed(bound, values, plains)


def _opening_elements(table: Table, bound: BoundLayout, page: Sequence[Any]) -> tuple[int, int]:
    return sum(opens_all(bound, row[1], _aad(table, bound.layout, row)) for row in page), 0


def _aad(table: Table, layout: Layout, row: Sequence[Any]) -> bytes | None:
    if layout.aad is None:
        return None
    return layout.aad.render(dict(zip(table.aad_columns, row[2:], strict=True)))


_CLASS_OF = {"ambiguous": "stale", "sealed": "other_version"}
"""Where values are counted that no one key opens, as long as no run has put them aside."""


async def _fence(
    job: Job,
    census: Census,
    tables: Sequence[Table],
    to_version: str,
    verdict: Verdict,
    sink: Sink,
) -> None:
    if not verdict.complete:
        raise FenceError(
            f"no fence was added: {'; '.join(verdict.reasons)}",
            hint="a fence admits only NULL and the new version; finish the rotation first",
        )
    bare = verdict.plaintext + verdict.waived
    if bare:
        raise FenceError(
            f"no fence was added: {bare} values are plaintext or waived, and it would refuse them",
            hint="a fence admits only NULL and the new version; seal or clear these values first",
        )
    without: dict[str, list[str]] = {}
    for table in tables:
        for entry, forms in _fields(job, table, to_version):
            many = next(field.many for field in table.fields if field.name == entry.name)
            if many or not forms.new.versioned or entry.dek_id is not None:
                why = "a constraint cannot look into the elements of an array"
                why = why if many else "values there name no version to be tested for"
                without.setdefault(why, []).append(f"{table.name}.{entry.name}")
                continue
            added = await census.add_fence(table, entry.name, forms.new.prefix_of(to_version))
            word = "added and validated" if added else "was there already"
            sink(Notice(level="info", message=f"fence on {table.name}.{entry.name} {word}"))
    if without:
        places = "; ".join(f"on {', '.join(names)}: {why}" for why, names in without.items())
        raise FenceError(
            f"no fence was added {places}",
            hint="what keeps the old key out is taking it from the application; run rewrap verify again then",
        )
