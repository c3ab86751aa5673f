"""Verify's count of values under DEKs: which version each is under, its DEK's record says.

Of the records it keeps id and version in memory, about 200 bytes each, up to RECORDS_KEPT of them; others are
looked up page by page. It shares no code with the engine's: a mistake in one is no mistake in the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rewrap.crypto.encodings import TEXT_ENCODINGS
from rewrap.crypto.layout import Layout, Malformed, Unopenable, builtin_layouts
from rewrap.deks import NO_DEK_ID, DekCensus, DekRecord
from rewrap.envelopes import DekSection
from rewrap.events import Notice
from rewrap.forms import Forms
from rewrap.interfaces import Census, Sink
from rewrap.job import Job
from rewrap.keys.keyring import Keyring
from rewrap.labels import shown_version
from rewrap.ledgers.sql import ExceptionRecord
from rewrap.model import Table
from rewrap.packed import ELEMENT, PART
from rewrap.targets import FieldSection
from rewrap.verdict import FieldCount

RECORDS_KEPT = 1_000_000
"""Records kept in memory: about 200 MB."""

SHOWN = 3
"""Ids that a message names at most."""

_ANYTHING = builtin_layouts()["fernet"]

ANY_VALUE = Forms(_ANYTHING, _ANYTHING, ("",))
"""Forms that name nothing: a census that is asked for what they do not name gives every value."""

_WORST_FIRST = ("stale", "adrift", "other_version", "plaintext", "current")


@dataclass(frozen=True, slots=True)
class Told:
    """What the records tell of a value: its class, and the version that its DEK is under.

    `kind` is that of the element that is worst off; "adrift" when it names a DEK without a record, or looks
    sealed and names none.
    """

    kind: str
    version: str | None = None


@dataclass
class Records:
    """What is known of the records of one `[deks.NAME]`: the version of each, and which ids are in use."""

    name: str
    section: DekSection
    forms: Forms
    look: DekCensus
    versions: dict[str, str | None] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    complete: bool = True

    async def load(self) -> None:
        """Takes in the versions of all records, or of as many as are kept."""
        if self.section.wrapped is None:
            return
        async for page in self.look.records(self.section):
            if len(self.versions) >= RECORDS_KEPT:
                self.complete = False
                return
            self.versions.update({record.id: self.version_in(record) for record in page})

    def version_in(self, record: DekRecord) -> str | None:
        named = self.forms.named_by(record.wrapped) if record.wrapped is not None else None
        return named[0] if named else None

    async def versions_of(self, ids: Iterable[str]) -> dict[str, str | None]:
        """The versions of some records; those that are not there are left out.

        What is not known was made since, or is one of too many: it is looked up.
        """
        wanted = set(ids)
        unknown = sorted(wanted.difference(self.versions))
        found = {one: self.versions[one] for one in wanted.intersection(self.versions)}
        for record in await self.look.find(self.section, unknown) if unknown else ():
            found[record.id] = self.version_in(record)
        self.used.update(wanted.intersection(self.versions) if self.complete else ())
        return found

    @property
    def unused(self) -> int:
        """Records that nothing refers to."""
        return len(self.versions) - len(self.used)


@dataclass
class DekCounts:
    """The values of a job that are under DEKs, and what refers to one. `looks` are by store."""

    job: Job
    looks: Mapping[str, DekCensus]
    census: Census
    keyring: Keyring
    to_version: str
    exceptions: Sequence[ExceptionRecord]
    healed: list[ExceptionRecord] = field(default_factory=list)
    _records: dict[str, Records] = field(default_factory=dict)

    async def records(self, name: str) -> Records:
        """The records of a `[deks.NAME]`, read once."""
        if name not in self._records:
            section = self.job.deks[name]
            wrapped = section.wrapped
            forms = self.job.forms(wrapped, self.to_version) if wrapped is not None else ANY_VALUE
            self._records[name] = Records(name, section, forms, self.looks[self.job.store_of(section)])
            await self._records[name].load()
        return self._records[name]

    async def count(self, table: Table, name: str, entry: FieldSection, *, deep: bool) -> FieldCount:
        """Everything about one field whose values are under DEKs; `name` is that of their section."""
        records = await self.records(name)
        out = FieldCount(table.name, table.target, table.relation, entry.name)
        layout = self.job.new_layout(entry)
        nulls, present = await self._present(table, entry.name)
        out.classes["null"], unread = nulls, present
        async for page in self.census.unnamed(table, entry.name, ANY_VALUE):
            versions = await records.versions_of(_ids(row[1] for row in page))
            told = [self._told(row[1], versions, layout) for row in page]
            unread -= len(page)
            for one in told:
                self._add(one, 1, out)
            if deep:
                opens = await self._opening(records, table, entry, layout, page, versions)
                current = sum(one.kind == "current" for one in told)
                out.unopenable += current - opens
        if unread > 0:
            # where there is no snapshot, some may have gone meanwhile; the others are too large to be read
            gone = present - (await self._present(table, entry.name))[1]
            out.classes["other_version"] += max(0, unread - max(0, gone))
        out.values = sum(out.classes.values())
        await self._explain(records, table, entry, layout, out)
        target = next(target for target in self.job.targets if target.table == table.target)
        if target.plaintext == "seal":
            # a further sweep finds it
            out.adrift += out.classes["plaintext"]
        return out

    async def _present(self, table: Table, column: str) -> tuple[int, int]:
        """How many rows have no value in a field, and how many have one."""
        _, classes = await self.census.count(table, {column: ANY_VALUE})
        nulls = sum(number for kind, _, number in classes[column] if kind == "null")
        return nulls, sum(number for _, _, number in classes[column]) - nulls

    def _add(self, told: Told, number: int, out: FieldCount) -> None:
        if told.kind == "adrift":
            out.adrift += number
        out.classes["other_version" if told.kind == "adrift" else told.kind] += number
        if told.version is not None:
            out.versions[shown_version(told.version, self.job.versions)] += number

    def _told(self, value: str, versions: Mapping[str, str | None], layout: Layout) -> Told:
        each = [self._told_one(one, versions, layout) for one in value.split(ELEMENT)]
        return min(each, key=lambda one: _WORST_FIRST.index(one.kind))

    def _told_one(self, value: str, versions: Mapping[str, str | None], layout: Layout) -> Told:
        dek_id, part, rest = value.partition(PART)
        if not part or dek_id in NO_DEK_ID:
            return Told("adrift" if part and _looks_sealed(rest, layout) else "plaintext")
        if dek_id not in versions:
            return Told("adrift")
        version = versions[dek_id]
        if version == self.to_version:
            return Told("current", version)
        return Told("stale" if version in self.job.versions else "other_version", version)

    async def _explain(
        self, records: Records, table: Table, entry: FieldSection, layout: Layout, out: FieldCount
    ) -> None:
        """Moves values that were put aside, and still hold the same bytes, into classes of their own."""
        digester = self.keyring.get(self.to_version).digester()
        for aside in self.exceptions:
            if (aside.relation, aside.field) != (table.relation, entry.name):
                continue
            stored = await self.census.value(table, entry.name, ANY_VALUE, aside.row_id)
            texts = (stored.whole or "", f"{stored.size} bytes {stored.sha256}") if stored else ()
            digests = {digester.digest(table.relation, entry.name, aside.row_id, text) for text in texts}
            if stored is None or aside.digest not in digests:
                self.healed.append(aside)
                continue
            text = stored.whole if stored.whole is not None else stored.head
            assert isinstance(text, str)
            told = self._told(text, await records.versions_of(_ids([text])), layout)
            was = "other_version" if told.kind == "adrift" or stored.whole is None else told.kind
            if was == "current" and told.kind == "current":
                # its record is there again, or was rewrapped since
                self.healed.append(aside)
            elif out.classes[was] > 0:
                out.classes[was] -= 1
                out.adrift -= told.kind == "adrift"
                now = "deferred" if aside.deferred else "quarantined"
                out.classes["waived" if aside.state == "waived" else now] += 1
                if not aside.deferred:
                    out.excused[told.version] += 1

    async def _opening(
        self, records: Records, table: Table, entry: FieldSection, layout: Layout, page: Sequence[Any],
        versions: Mapping[str, str | None],
    ) -> int:  # fmt: skip
        """How many values of a page open with DEKs that open under the new key alone."""
        current = [
            row
            for row in page
            if self._told(row[1], versions, layout).kind == "current"
        ]  # fmt: skip
        ids = sorted(_ids(row[1] for row in current))
        found = await records.look.find(records.section, ids) if ids else []
        opened = await self.keyring.resolved(partial(self._deks, records, found))
        return sum(self._opens(row, opened, table, entry, layout) for row in current)

    def _deks(self, records: Records, found: Sequence[DekRecord]) -> dict[str, bytes]:
        """The DEKs of some records that open under the new key."""
        section, layout, key = records.section, records.forms.new, self.keyring.get(self.to_version)
        assert section.wrapped is not None
        bound = layout.bind(self.to_version, key.secret, section.table, section.wrapped.name)
        names = tuple(dict.fromkeys(layout.aad.columns)) if layout.aad else ()
        out: dict[str, bytes] = {}
        for record in found:
            texts = dict(zip(names, record.texts, strict=True))
            try:
                plain = bound.open_one(record.wrapped or "", layout.aad.render(texts) if layout.aad else None)
                held = plain[layout.carry_bytes :]
                if section.holds != "raw":
                    (held,) = TEXT_ENCODINGS[section.holds].decode([held.decode()])
            except (Malformed, Unopenable, ValueError):
                continue
            out[record.id] = held
        return out

    @staticmethod
    def _opens(
        row: Sequence[Any], deks: Mapping[str, bytes], table: Table, entry: FieldSection, layout: Layout
    ) -> bool:
        texts = dict(zip(table.aad_columns, row[2:], strict=True))
        aad = layout.aad.render(texts) if layout.aad else None
        for one in row[1].split(ELEMENT):
            dek_id, _, rest = one.partition(PART)
            if dek_id not in deks:
                return False
            try:
                layout.bind("0", deks[dek_id], table.target, entry.name).open_one(f"0{PART}{rest}", aad)
            except (Malformed, Unopenable, ValueError):
                return False
        return True

    async def referred(self, sink: Sink) -> list[str]:
        """Reads what else refers to DEKs, tells of each `[deks.NAME]` what became of it; what is amiss."""
        reasons: list[str] = []
        for name, section in self.job.deks.items():
            records = await self.records(name)
            for place in section.referenced_by:
                lost: set[str] = set()
                async for page in self.looks[self.job.store_of(place)].references(place):
                    found = await records.versions_of(page)
                    lost.update(one for one in page if one not in found)
                if lost:
                    reasons.append(
                        f"{place.name}: {len(lost)} DEKs that are in use there have no record in "
                        f"{section.table}: {_shown(lost)}"
                    )
            if records.complete:
                sink(
                    Notice(
                        level="info",
                        message=f'deks "{name}": {len(records.versions)} records, {records.unused} of them '
                        "referred to by nothing that the job names",
                    )
                )
        return reasons


def _looks_sealed(rest: str, layout: Layout) -> bool:
    """Whether what names no DEK was sealed once: with a nonce or a tag beside it, or by its shape."""
    *beside, _ = rest.split(PART)
    if any(beside):
        return True
    try:
        layout.bind("0", bytes(layout.key_bytes or 32)).open_one(f"0{PART}{rest}", None)
    except Malformed:
        return False
    except Unopenable:
        pass
    return True


def _ids(values: Iterable[str]) -> set[str]:
    """The ids of DEKs that values name, those of elements each."""
    found = {one.partition(PART)[0] for value in values for one in value.split(ELEMENT) if PART in one}
    return found.difference(NO_DEK_ID)


def _shown(ids: Iterable[str]) -> str:
    # an id comes from a document: where one should be anything may stand
    first = sorted(shown_version(one, ()) for one in ids)
    return ", ".join(first[:SHOWN]) + (", …" if len(first) > SHOWN else "")
