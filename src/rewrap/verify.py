"""Verify: an independent count of what is stored, and with `deep` an opening of every value.

It shares no code with the engine but the layouts: its queries are its own, and it opens values itself. What
the engine believes it did plays no part, except that values in quarantine are named as such, after their
bytes were compared with the digest under which they were put aside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rewrap.crypto.ciphers import OPEN_FAILURES
from rewrap.crypto.layout import BoundLayout, Layout, LayoutError, Malformed, Unopenable
from rewrap.errors import FenceError
from rewrap.events import FieldVerdict, Notice, Verdict
from rewrap.interfaces import Sink
from rewrap.job import Job
from rewrap.keys.keyring import Keyring
from rewrap.ledgers.sql import ExceptionRecord
from rewrap.model import ServerIdentity, StoredValue, Table


class Census(Protocol):
    """What verify asks of a store: counts and values, in one snapshot."""

    identity: ServerIdentity | None

    async def tables(self) -> list[Table]: ...

    async def drain(self, table: Table, timeout_s: float) -> list[str]: ...

    async def __aenter__(self) -> Census: ...

    async def __aexit__(self, *exc: object) -> None: ...

    async def rows(self, table: Table) -> int: ...

    async def count(
        self, table: Table, column: str, layout: Layout, versions: Sequence[str]
    ) -> list[tuple[str, str | None, int]]: ...

    def bare(self, table: Table, column: str, layout: Layout) -> AsyncIterator[list[Any]]: ...

    def marked(self, table: Table, column: str, marker: str) -> AsyncIterator[list[Any]]: ...

    async def value(self, table: Table, column: str, row_id: str) -> StoredValue | None: ...

    async def position(self) -> str: ...

    async def add_fence(self, table: Table, column: str, marker: str) -> bool: ...

    async def close(self) -> None: ...


@dataclass(slots=True)
class FieldCount:
    """One column's values by class, and by version where they carry one."""

    target: str
    column: str
    values: int = 0
    classes: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    unopenable: int = 0


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
    deep: bool = False,
    fence: bool = False,
    drain_s: float | None = None,
) -> Verification:
    """Counts every configured column in one snapshot, by version and class.

    Only versions whose keys are in `keyring` can be told from plaintext where a value has no marker.
    """
    tables = await census.tables()
    patience = job.limits.drain_s if drain_s is None else drain_s
    reasons = []
    for table in tables:
        # an old value in an open transaction is in no snapshot, and in the table the moment after
        for writer in await census.drain(table, patience):
            reasons.append(f"table {table.name}: {writer} has written and not yet ended")
    counted: list[FieldCount] = []
    healed: list[ExceptionRecord] = []
    async with census:
        values = {}
        for table in tables:
            values[table.relation] = await census.rows(table) * len(table.fields)
            for entry in _fields(job, table):
                one = await _count(job, census, keyring, to_version, table, *entry)
                healed += await _explain(
                    census, keyring, to_version, table, entry[0], entry[1], exceptions, one
                )
                if deep:
                    await _open_all(census, keyring, to_version, table, *entry, one)
                counted.append(one)
                sink(
                    FieldVerdict(
                        target=one.target,
                        field=one.column,
                        values=one.values,
                        classes=dict(+one.classes),
                        versions=dict(one.versions),
                    )
                )
        position = await census.position()
    verdict = _verdict(counted, reasons, to_version, deep, position, census.identity)
    if fence:
        await _fence(job, census, tables, to_version, verdict, sink)
    sink(verdict)
    return Verification(verdict, tuple(counted), values, tuple(healed))


def _fields(job: Job, table: Table) -> list[tuple[str, Layout]]:
    target = next(target for target in job.targets if target.table == table.name)
    return [(entry.column, job.layout(entry.layout)) for entry in target.fields]


def _known_versions(job: Job, layout: Layout, to_version: str) -> list[str]:
    known = [to_version]
    for version in job.keys.versions:
        try:
            layout.marker_of(version)
        except LayoutError:
            continue
        if version not in known:
            known.append(version)
    return known


async def _count(
    job: Job,
    census: Census,
    keyring: Keyring,
    to_version: str,
    table: Table,
    column: str,
    layout: Layout,
) -> FieldCount:
    out = FieldCount(table.name, column)
    known = _known_versions(job, layout, to_version)
    for kind, version, number in await census.count(table, column, layout, known):
        out.values += number
        if kind == "null":
            out.classes["null"] += number
        elif kind == "bare":
            out.classes["plaintext"] += number
        else:
            assert version is not None
            out.versions[version] += number
            if version == to_version:
                out.classes["current"] += number
            else:
                out.classes["stale" if version in known else "other_version"] += number
    if out.classes["plaintext"]:
        unmarked = await _count_unmarked(census, keyring, table, column, layout)
        out.classes["plaintext"] -= unmarked
        out.classes["unmarked"] += unmarked
    return out


async def _count_unmarked(census: Census, keyring: Keyring, table: Table, column: str, layout: Layout) -> int:
    probes = [layout.bind(key.version, key.secret) for key in keyring]
    found = 0
    async for page in census.bare(table, column, layout):
        for row in page:
            aad = _aad(table, layout, row)
            found += any(_opens_bare(probe, row[1], aad) for probe in probes)
    return found


def _opens_bare(probe: BoundLayout, value: str, aad: bytes | None) -> bool:
    try:
        probe.open_bare(value, aad)
    except (Malformed, Unopenable):
        return False
    return True


def _aad(table: Table, layout: Layout, row: Sequence[Any]) -> bytes | None:
    if layout.aad is None:
        return None
    return layout.aad.render(dict(zip(table.aad_columns, row[2:], strict=True)))


async def _explain(
    census: Census,
    keyring: Keyring,
    to_version: str,
    table: Table,
    column: str,
    layout: Layout,
    exceptions: Sequence[ExceptionRecord],
    out: FieldCount,
) -> list[ExceptionRecord]:
    """Moves values that were put aside, and still hold the same bytes, out of stale; returns the others."""
    healed: list[ExceptionRecord] = []
    mine = [e for e in exceptions if (e.relation, e.field) == (table.relation, column)]
    if not mine:
        return healed
    digester = keyring.get(to_version).digester()
    for entry in mine:
        stored = await census.value(table, column, entry.row_id)
        if stored is None or entry.digest not in {
            digester.digest(table.relation, column, entry.row_id, text)
            # a value too large to read was put aside by its size
            for text in (stored.whole or "", f"{stored.size} bytes")
        }:
            healed.append(entry)
            continue
        version = layout.version_of(stored.head)
        if version == to_version:
            healed.append(entry)
            continue
        was = "unmarked"
        if version is not None:
            was = "stale" if out.classes["stale"] and version in keyring else "other_version"
            was = was if out.classes[was] else "stale"
        elif not out.classes["unmarked"]:
            was = "plaintext"
        if out.classes[was] > 0:
            out.classes[was] -= 1
            now = "deferred" if entry.deferred else "quarantined"
            out.classes["waived" if entry.state == "waived" else now] += 1
    return healed


async def _open_all(
    census: Census,
    keyring: Keyring,
    to_version: str,
    table: Table,
    column: str,
    layout: Layout,
    out: FieldCount,
) -> None:
    """Opens every current value with the new key alone."""
    bound = layout.bind(to_version, keyring.get(to_version).secret)
    opened = 0
    async for page in census.marked(table, column, bound.prefix):
        values = [row[1] for row in page]
        aads = [_aad(table, layout, row) or b"" for row in page] if layout.aad else None
        try:
            opened += len(bound.open_values(values, aads))
        except OPEN_FAILURES:
            for at, value in enumerate(values):
                try:
                    bound.open_one(value, None if aads is None else aads[at])
                    opened += 1
                except (Malformed, Unopenable):
                    out.unopenable += 1
    # every value counted as current was opened or is named: a page that went missing shows here
    out.unopenable += max(0, out.versions[to_version] - opened - out.unopenable)


_MUST_BE_ZERO = ("stale", "unmarked", "other_version", "deferred", "quarantined")

_SAYS = {
    "stale": "still under an old version",
    "unmarked": "sealed but without a marker",
    "other_version": "under a version that the job does not know",
    "deferred": "put off because others held the row",
    "quarantined": "in quarantine (see rewrap quarantine list)",
}


def _verdict(
    counted: Sequence[FieldCount],
    reasons: Sequence[str],
    to_version: str,
    deep: bool,
    position: str,
    identity: ServerIdentity | None,
) -> Verdict:
    total: Counter[str] = Counter()
    why = list(reasons)
    for one in counted:
        total.update(one.classes)
        for name in _MUST_BE_ZERO:
            if one.classes[name]:
                why.append(f"{one.target}.{one.column}: {one.classes[name]} {_SAYS[name]}")
        if one.unopenable:
            why.append(
                f"{one.target}.{one.column}: {one.unopenable} marked {to_version} do not open under it"
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
        reasons=why,
        log_position=position,
        origin=identity.origin if identity else "",
    )


async def _fence(
    job: Job,
    census: Census,
    tables: Sequence[Table],
    to_version: str,
    verdict: Verdict,
    sink: Sink,
) -> None:
    if not verdict.complete or verdict.plaintext or verdict.waived:
        raise FenceError(
            "no fence was added: "
            + ("; ".join(verdict.reasons) or f"{verdict.plaintext + verdict.waived} values without "
               f"the marker of {to_version}"),
            hint="a fence admits only NULL and the new version; finish the rotation first",
        )  # fmt: skip
    for table in tables:
        for column, layout in _fields(job, table):
            added = await census.add_fence(table, column, layout.marker_of(to_version))
            word = "added and validated" if added else "was there already"
            sink(Notice(level="info", message=f"fence on {table.name}.{column} {word}"))
