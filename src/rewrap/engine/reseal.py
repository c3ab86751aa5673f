"""Pure: a batch of stored rows in, new values and outcomes out. Compiled once for a target.

No object is made for a row, and nothing is asked of a row that a whole batch can answer: values are opened,
sealed and opened again list by list. Only when a list fails is it gone through value by value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from rewrap.crypto.ciphers import OPEN_FAILURES, Batch
from rewrap.crypto.layout import BoundLayout, Layout, Malformed, Unopenable
from rewrap.errors import ResealMismatch
from rewrap.interfaces import OversizeMark, Row, SwapBatch
from rewrap.keys.keyring import Digester
from rewrap.model import Fault, Outcome, Reason, Table, Tally

_HELD_BACK = "\x01"

Aads = list[bytes] | None


@dataclass(slots=True)
class Resealed:
    """What became of a batch of rows: what is to be written, what is settled, what failed.

    `swap` holds the rows with at least one new value; `tally` the outcomes that need no write; `large` the
    places of rows that must be fetched whole and judged alone (nothing of them is in `swap` or `tally`).
    """

    swap: SwapBatch
    tally: Tally
    faults: list[Fault]
    large: list[Any]
    opened: Counter[tuple[str, str]]


@dataclass(slots=True)
class Judged:
    """One column of a batch: new values and the places they belong to, and everything else by class."""

    places: list[int]
    olds: list[str]
    news: list[str]
    counts: Counter[str] = field(default_factory=Counter)
    opened: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)


@dataclass(frozen=True)
class FieldReseal:
    """One column's transform: from any of `sources` to `target`.

    `probes` are tried on values without a marker; `adopt` says whether such values are resealed too.
    """

    table: str
    column: str
    layout: Layout
    sources: tuple[BoundLayout, ...]
    target: BoundLayout
    probes: tuple[BoundLayout, ...]
    adopt: bool
    digester: Digester

    def judge(self, values: Sequence[Any], aads: Aads, row_ids: Sequence[Any]) -> Judged:
        """Classifies a column of values and reseals those in scope. Values are text, None or a mark."""
        out = Judged([], [], [])
        everything = range(len(values))
        rest: Sequence[int] = everything
        for source in self.sources:
            prefix = source.prefix
            hits = [
                i for i in rest if (v := values[i]) is not None and type(v) is str
                and v.startswith(prefix)
            ]  # fmt: skip
            if not hits:
                continue
            taken = set(hits)
            rest = [i for i in rest if i not in taken] if len(hits) < len(rest) else []
            self._reseal(source, hits, values, aads, row_ids, out)
        for i in rest:
            self._classify(i, values[i], None if aads is None else aads[i], row_ids[i], out)
        return out

    def _reseal(
        self,
        source: BoundLayout,
        places: list[int],
        values: Sequence[Any],
        aads: Aads,
        row_ids: Sequence[Any],
        out: Judged,
    ) -> None:
        olds = list(values) if len(places) == len(values) else [values[i] for i in places]
        bound = aads if aads is None or len(places) == len(aads) else [aads[i] for i in places]
        try:
            plain = source.open_values(olds, bound)
        except OPEN_FAILURES:
            places, olds, bound, plain = self._one_by_one(source, places, olds, bound, row_ids, out)
        out.opened[self.column, source.version] += len(plain)
        if not plain:
            return
        out.news += self._seal(plain, bound)
        out.places += places
        out.olds += olds

    def _seal(self, plain: Batch, aads: Aads) -> list[str]:
        news = self.target.seal_values(plain, aads)
        # open what is about to be sent, by index, with the new key: afterwards it is too late
        if self.target.open_values(news, aads) != plain:
            raise ResealMismatch(
                f'column "{self.column}": a new value does not open to what was sealed; nothing was written',
                hint="this is a defect in rewrap or its libraries, please report it",
            )
        return news

    def _one_by_one(
        self,
        source: BoundLayout,
        places: list[int],
        olds: list[str],
        aads: Aads,
        row_ids: Sequence[Any],
        out: Judged,
    ) -> tuple[list[int], list[str], Aads, Batch]:
        good: list[int] = []
        plain: Batch = []
        for at, old in enumerate(olds):
            aad = None if aads is None else aads[at]
            try:
                plain.append(source.open_one(old, aad))
                good.append(at)
            except Malformed:
                self._fault(out, row_ids[places[at]], old, Reason.MALFORMED, source.version)
            except Unopenable:
                self._fault(out, row_ids[places[at]], old, Reason.UNOPENABLE, source.version)
        return (
            [places[at] for at in good],
            [olds[at] for at in good],
            None if aads is None else [aads[at] for at in good],
            plain,
        )

    def _classify(self, place: int, value: Any, aad: bytes | None, row_id: Any, out: Judged) -> None:
        if value is None:
            out.counts[Outcome.NULL] += 1
        elif isinstance(value, OversizeMark):
            self._classify_oversize(value, row_id, out)
        elif value.startswith(self.target.prefix):
            out.counts[Outcome.CURRENT] += 1
        elif self.layout.version_of(value) is not None:
            out.counts[Outcome.OTHER_VERSION] += 1
        else:
            self._classify_unmarked(place, value, aad, row_id, out)

    def _classify_oversize(self, value: OversizeMark, row_id: Any, out: Judged) -> None:
        """By its marker alone: only what would have to be resealed is too large."""
        version = self.layout.version_of(value.head)
        if version == self.target.version:
            out.counts[Outcome.CURRENT] += 1
        elif any(version == source.version for source in self.sources):
            self._fault(out, row_id, f"{value.size} bytes", Reason.TOO_LARGE, None)
        else:
            out.counts[Outcome.PLAINTEXT if version is None else Outcome.OTHER_VERSION] += 1

    def _classify_unmarked(self, place: int, value: str, aad: bytes | None, row_id: Any, out: Judged) -> None:
        opened: list[tuple[BoundLayout, bytes]] = []
        for probe in self.probes:
            try:
                opened.append((probe, probe.open_bare(value, aad)))
            except (Malformed, Unopenable):
                continue
        if not opened:
            out.counts[Outcome.PLAINTEXT] += 1
        elif not self.adopt:
            out.counts[Outcome.UNMARKED] += 1
        elif len(opened) > 1:
            # AES-GCM does not commit to its key: two keys that both open prove neither
            self._fault(out, row_id, value, Reason.AMBIGUOUS_KEY, None)
        else:
            out.news += self._seal([opened[0][1]], None if aad is None else [aad])
            out.places.append(place)
            out.olds.append(value)

    def _fault(self, out: Judged, row_id: Any, value: str, reason: Reason, version: str | None) -> None:
        out.counts[Outcome.QUARANTINED] += 1
        digest = self.digester.digest(self.table, self.column, str(row_id), value)
        out.faults.append(Fault(str(row_id), self.column, reason, digest, version))


class Reseal:
    """The transform of one table's rows: `(key, values…, AAD texts…)` in, `Resealed` out."""

    def __init__(self, table: Table, fields: Sequence[FieldReseal]) -> None:
        self.table = table
        self.fields = tuple(fields)
        self._first_aad = 1 + len(self.fields)
        self._renderers: list[Callable[[Sequence[str | None]], bytes] | None] = [
            entry.layout.aad.renderer(table.aad_columns) if entry.layout.aad else None
            for entry in self.fields
        ]

    def digest(self, fields: str, row_id: str, value: str) -> str:
        """The keyed digest under which quarantine knows a value."""
        return self.fields[0].digester.digest(self.table.relation, fields, row_id, value)

    def __call__(self, rows: Sequence[Row], only: frozenset[str] | None = None) -> Resealed:
        """Judges rows; `only` restricts it to some fields (a lost row's, read again)."""
        large = self._large(rows)
        if large:
            held = set(large)
            places = [i for i in range(len(rows)) if i not in held]
            result = self._judge([rows[i] for i in places], only)
            result.large = [rows[i][0] for i in large]
            return result
        return self._judge(rows, only)

    def _large(self, rows: Sequence[Row]) -> list[int]:
        found: set[int] = set()
        for at in range(1, self._first_aad):
            found.update(
                i for i, row in enumerate(rows)
                if (v := row[at]) and type(v) is str and v[0] == _HELD_BACK
            )  # fmt: skip
        return sorted(found)

    def judge_whole(self, row: Row, only: frozenset[str] | None = None) -> Resealed:
        """Judges one row whose values were fetched whole, whatever they begin with."""
        return self._judge([row], only)

    def _judge(self, rows: Sequence[Row], only: frozenset[str] | None) -> Resealed:
        keys = [row[0] for row in rows]
        tokens = [row[self._first_aad :] for row in rows] if self.table.aad_columns else None
        judged: dict[str, Judged] = {}
        for at, entry in enumerate(self.fields):
            if only is not None and entry.column not in only:
                continue
            render = self._renderers[at]
            aads: Aads = None
            if render is not None:
                # a template without columns is the same for every row
                aads = [render(token) for token in tokens or [()] * len(rows)]
            judged[entry.column] = entry.judge([row[1 + at] for row in rows], aads, keys)
        return Resealed(
            swap=self._gather(keys, tokens, judged),
            tally={name: column.counts for name, column in judged.items()},
            faults=[fault for column in judged.values() for fault in column.faults],
            large=[],
            opened=sum((column.opened for column in judged.values()), Counter()),
        )

    def _gather(self, keys: list[Any], tokens: list[Any] | None, judged: dict[str, Judged]) -> SwapBatch:
        names = [entry.column for entry in self.fields]
        if len(names) == 1:
            column = judged[names[0]]
            places = column.places
            olds: dict[str, list[str | None]] = {names[0]: list(column.olds)}
            news: dict[str, list[str | None]] = {names[0]: list(column.news)}
            if len(places) > 1 and any(a > b for a, b in pairwise(places)):
                order = sorted(range(len(places)), key=places.__getitem__)
                places = [places[i] for i in order]
                olds = {names[0]: [column.olds[i] for i in order]}
                news = {names[0]: [column.news[i] for i in order]}
        else:
            by_place = {
                name: {
                    place: (old, new)
                    for place, old, new in zip(column.places, column.olds, column.news, strict=True)
                }
                for name, column in judged.items()
            }
            # key order, for every batch alike: two writers never wait for each other in a circle
            places = sorted({place for pairs in by_place.values() for place in pairs})
            nothing: dict[int, tuple[str, str]] = {}
            olds, news = {}, {}
            for name in names:
                pairs = by_place.get(name, nothing)
                olds[name] = [pairs[i][0] if i in pairs else None for i in places]
                news[name] = [pairs[i][1] if i in pairs else None for i in places]
        batch = SwapBatch(
            keys if len(places) == len(keys) else [keys[i] for i in places],
            olds,
            news,
            None if tokens is None else [tokens[i] for i in places],
        )
        if any(len(entry) != len(batch) for entry in (*olds.values(), *news.values())):
            raise ResealMismatch(
                "old and new values of a batch differ in number; nothing was written",
                hint="this is a defect in rewrap, please report it",
            )
        return batch
