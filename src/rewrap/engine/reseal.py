"""Pure: a batch of stored values in, new values and outcomes out. Compiled once for a target.

No object is made for a row, and nothing is asked of a value that a whole batch can answer: values are opened,
sealed and opened again column by column, packed if they came packed. Only where a column is mixed is it
judged as a list, and only when that fails is it gone through value by value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rewrap.crypto.ciphers import OPEN_FAILURES, Batch
from rewrap.crypto.layout import BoundLayout, Layout, Malformed, Unopenable, Value
from rewrap.engine.judged import FieldTransform, Judged
from rewrap.engine.linked import hold_back
from rewrap.errors import ResealMismatch
from rewrap.interfaces import OversizeMark, Page, Row, SwapBatch
from rewrap.keys.keyring import Digester
from rewrap.model import Fault, Outcome, Reason, Table, Tally, key_text
from rewrap.packed import HELD_BACK, Column, Packed, listed, picked

_HELD_BACK_BYTES = HELD_BACK.encode()

Aads = list[bytes] | None


@dataclass(slots=True)
class Resealed:
    """What became of a batch of rows: what is to be written, what is settled, what failed.

    `swap` holds the rows with at least one new value; `tally` the outcomes that need no write; `large` the
    keys of rows that must be fetched whole and judged alone (nothing of them is in `swap` or `tally`).
    """

    swap: SwapBatch
    tally: Tally
    faults: list[Fault]
    large: list[Any]
    opened: Counter[tuple[str, str]]


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

    def judge(self, values: Column, aads: Aads, row_ids: Sequence[Any]) -> Judged:
        """Classifies a column of values and reseals those in scope.

        Values are text or bytes, None or a mark.
        """
        whole = self._judge_whole(values, aads)
        return whole if whole is not None else self._judge_list(listed(values), aads, row_ids)

    def _judge_whole(self, values: Column, aads: Aads) -> Judged | None:
        """A column that is wholly under one source and opens; None for any other."""
        for source in self.sources:
            try:
                if isinstance(values, Packed):
                    plain = source.open_packed(values, aads)
                else:
                    plain = source.open_values(values, aads) if source.begins_all(values) else None
            except OPEN_FAILURES:
                return None
            if plain is None:
                continue
            news: Column
            if isinstance(values, Packed):
                news = self.target.seal_packed(plain, aads)
                self._compare(self.target.open_packed(news, aads), plain)
            else:
                news = self._seal(plain, aads)
            opened = Counter({(self.column, source.version): len(plain)})
            return Judged(None, values, news, opened=opened)
        return None

    def _judge_list(self, values: list[Any], aads: Aads, row_ids: Sequence[Any]) -> Judged:
        places: list[int] = []
        olds: list[Any] = []
        news: list[Any] = []
        out = Judged(places, olds, news)
        rest: Sequence[int] = range(len(values))
        for source in self.sources:
            prefix: Any = source.prefix
            kind = type(prefix)
            hits = [i for i in rest if type(v := values[i]) is kind and v.startswith(prefix)]
            if not hits:
                continue
            taken = set(hits)
            rest = [i for i in rest if i not in taken] if len(hits) < len(rest) else []
            mine = hits if len(hits) < len(values) else range(len(values))
            good, taken_olds, plain, bound = self._open(source, mine, values, aads, row_ids, out)
            if plain:
                news += self._seal(plain, bound)
                places += good
                olds += taken_olds
        adopted: list[tuple[int, bytes]] = []
        for i in rest:
            plain_text = self._classify(values[i], None if aads is None else aads[i], row_ids[i], out)
            if plain_text is not None:
                adopted.append((i, plain_text))
        if adopted:
            news += self._seal(
                [plain_text for _, plain_text in adopted],
                None if aads is None else [aads[i] for i, _ in adopted],
            )
            places += [i for i, _ in adopted]
            olds += [values[i] for i, _ in adopted]
        if len(places) == len(values) and all(a < b for a, b in pairwise(places)):
            out.places = None
        return out

    def _open(
        self,
        source: BoundLayout,
        places: Sequence[int],
        values: list[Any],
        aads: Aads,
        row_ids: Sequence[Any],
        out: Judged,
    ) -> tuple[Sequence[int], list[Any], Batch, Aads]:
        """Opens the values at some places: those that open, with their places, plaintexts and AAD."""
        olds = values if len(places) == len(values) else [values[i] for i in places]
        bound = aads if aads is None or len(places) == len(aads) else [aads[i] for i in places]
        try:
            plain = source.open_values(olds, bound)
        except OPEN_FAILURES:
            places, olds, bound, plain = self._one_by_one(source, places, olds, bound, row_ids, out)
        out.opened[self.column, source.version] += len(plain)
        return places, olds, plain, bound

    def _seal(self, plain: Batch, aads: Aads) -> list[Any]:
        news = self.target.seal_values(plain, aads)
        self._compare(self.target.open_values(news, aads), plain)
        return news

    def _compare(self, opened: Batch | None, plain: Batch) -> None:
        # open what is about to be sent, by index, with the new key: afterwards it is too late
        if opened != plain:
            raise ResealMismatch(
                f'column "{self.column}": a new value does not open to what was sealed; nothing was written',
                hint="this is a defect in rewrap or its libraries, please report it",
            )

    def _one_by_one(
        self,
        source: BoundLayout,
        places: Sequence[int],
        olds: list[Any],
        aads: Aads,
        row_ids: Sequence[Any],
        out: Judged,
    ) -> tuple[Sequence[int], list[Any], Aads, Batch]:
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

    def _classify(self, value: Any, aad: bytes | None, row_id: Any, out: Judged) -> bytes | None:
        """Counts a value that is under no source; its plaintext if it is to be adopted."""
        if value is None:
            out.counts[Outcome.NULL] += 1
        elif isinstance(value, OversizeMark):
            self._classify_oversize(value, row_id, out)
        elif value.startswith(self.target.prefix):
            out.counts[Outcome.CURRENT] += 1
        elif self.layout.version_of(value) is not None:
            out.counts[Outcome.OTHER_VERSION] += 1
        else:
            return self._classify_unmarked(value, aad, row_id, out)
        return None

    def _classify_oversize(self, value: OversizeMark, row_id: Any, out: Judged) -> None:
        """By its marker alone: only what would have to be resealed is too large."""
        version = self.layout.version_of(value.head)
        if version == self.target.version:
            out.counts[Outcome.CURRENT] += 1
        elif any(version == source.version for source in self.sources):
            self._fault(out, row_id, f"{value.size} bytes", Reason.TOO_LARGE, None)
        else:
            out.counts[Outcome.PLAINTEXT if version is None else Outcome.OTHER_VERSION] += 1

    def _classify_unmarked(self, value: Value, aad: bytes | None, row_id: Any, out: Judged) -> bytes | None:
        opened: list[bytes] = []
        for probe in self.probes:
            try:
                opened.append(probe.open_bare(value, aad))
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
            return opened[0]
        return None

    def _fault(self, out: Judged, row_id: Any, value: Value, reason: Reason, version: str | None) -> None:
        out.counts[Outcome.QUARANTINED] += 1
        digest = self.digester.digest(self.table, self.column, key_text(row_id), value)
        out.faults.append(Fault(key_text(row_id), self.column, reason, digest, version))


class Reseal:
    """The transform of one table's rows: a page or rows `(key, values…, AAD texts…)` in, `Resealed` out."""

    def __init__(self, table: Table, fields: Sequence[FieldTransform]) -> None:
        self.table = table
        self.fields = tuple(fields)

    def digest(self, fields: str, row_id: str, value: Value) -> str:
        """The keyed digest under which quarantine knows a value."""
        return self.fields[0].digester.digest(self.table.relation, fields, row_id, value)

    def page(self, page: Page) -> Resealed:
        """Judges a page; rows with a value held back are only named."""
        held = sorted({place for column in page.fields for place in _held_back(column)})
        if not held:
            return self._judge(page, None)
        kept = set(range(len(page))).difference(held)
        result = self._judge(page.part(sorted(kept)), None)
        result.large = [page.keys[i] for i in held]
        return result

    def __call__(self, rows: Sequence[Row]) -> Resealed:
        """Judges rows as a page of them."""
        return self.page(Page.of(rows, self.table))

    def judge_whole(self, row: Row, only: frozenset[str] | None = None) -> Resealed:
        """Judges one row whose values were fetched whole, whatever they begin with.

        `only` restricts it to some fields (a lost row's, read again).
        """
        return self._judge(Page.of([row], self.table), only)

    def _judge(self, page: Page, only: frozenset[str] | None) -> Resealed:
        texts = {
            name: listed(tokens) for name, tokens in zip(self.table.aad_columns, page.tokens, strict=True)
        }
        judged: dict[str, Judged] = {}
        for entry, values in zip(self.fields, page.fields, strict=True):
            if only is not None and entry.column not in only:
                continue
            aad = entry.layout.aad
            aads = aad.render_all(texts, len(page)) if aad is not None else None
            judged[entry.column] = entry.judge(values, aads, page.keys)
        for names in self.table.linked:
            hold_back(
                names,
                judged,
                dict(zip(self.table.field_names, page.fields, strict=True)),
                page.keys,
                self._blamed,
            )
        return Resealed(
            swap=self._gather(page, judged),
            tally={name: column.counts for name, column in judged.items()},
            faults=[fault for column in judged.values() for fault in column.faults],
            large=[],
            opened=sum((column.opened for column in judged.values()), Counter()),
        )

    def _blamed(self, column: str, row_id: Any, value: Any, reason: Reason) -> Fault:
        entry = next(entry for entry in self.fields if entry.column == column)
        if isinstance(value, OversizeMark):
            value = f"{value.size} bytes"
        digest = self.digest(column, str(row_id), value)
        return Fault(str(row_id), column, reason, digest, entry.layout.version_of(value))

    def _gather(self, page: Page, judged: dict[str, Judged]) -> SwapBatch:
        names = [entry.column for entry in self.fields]
        if len(judged) == len(names) and all(column.places is None for column in judged.values()):
            olds = {name: judged[name].olds for name in names}
            news = {name: judged[name].news for name in names}
            return _checked(SwapBatch(page.keys, olds, news, page.tokens, page.stamps))
        by_place = {
            name: {
                place: (old, new)
                for place, old, new in zip(
                    range(len(page)) if column.places is None else column.places,
                    listed(column.olds),
                    listed(column.news),
                    strict=True,
                )
            }
            for name, column in judged.items()
        }
        # key order, for every batch alike: two writers never wait for each other in a circle
        places = sorted({place for pairs in by_place.values() for place in pairs})
        # what shares its version with a value that is written is compared though it is not written itself
        linked = {name for names in self.table.linked for name in names}
        stored = {
            name: picked(column, places) if name in linked else [None] * len(places)
            for name, column in zip(names, page.fields, strict=True)
        }
        pairs = {
            name: [by_place.get(name, {}).get(i, (old, None)) for i, old in zip(places, olds, strict=True)]
            for name, olds in stored.items()
        }
        return _checked(
            SwapBatch(
                [page.keys[i] for i in places],
                {name: [old for old, _ in pairs[name]] for name in names},
                {name: [new for _, new in pairs[name]] for name in names},
                tuple(picked(tokens, places) for tokens in page.tokens),
                None if page.stamps is None else [page.stamps[i] for i in places],
            )
        )


def _held_back(column: Column) -> list[int]:
    """The places of what begins with U+0001."""
    if isinstance(column, Packed):
        if HELD_BACK not in column.text:
            return []
        column = column.split()
    marks = (HELD_BACK, _HELD_BACK_BYTES)
    return [i for i, value in enumerate(column) if value and not isinstance(value, OversizeMark)
            and value[:1] in marks]  # fmt: skip


def _checked(batch: SwapBatch) -> SwapBatch:
    if any(len(column) != len(batch) for column in (*batch.olds.values(), *batch.news.values())):
        raise ResealMismatch(
            "old and new values of a batch differ in number; nothing was written",
            hint="this is a defect in rewrap, please report it",
        )
    return batch
