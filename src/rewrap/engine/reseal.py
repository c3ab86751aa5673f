"""Pure: a batch of stored values in, new values and outcomes out. Compiled once for a target.

No object is made for a row, and nothing is asked of a value that a whole batch can answer: values are opened,
sealed and opened again column by column, packed if they came packed. Only where a column is mixed is it
judged as a list, and only when that fails is it gone through value by value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from rewrap.crypto.answers import Unresolved
from rewrap.crypto.ciphers import OPEN_FAILURES, Batch
from rewrap.crypto.failures import Unsealable
from rewrap.crypto.layout import BoundLayout, Layout, Malformed, Unopenable, Value
from rewrap.engine.judged import AadPair, Aads, FieldTransform, Judged
from rewrap.engine.linked import hold_back
from rewrap.errors import ResealMismatch, UsageError
from rewrap.interfaces import OversizeMark, Page, Row, SwapBatch
from rewrap.keys.keyring import Digester
from rewrap.model import Fault, Outcome, Reason, Table, Tally, key_text
from rewrap.packed import HELD_BACK, Column, Packed, listed, picked

_HELD_BACK_BYTES = HELD_BACK.encode()


@dataclass(slots=True)
class Resealed:
    """What became of a batch of rows: what is to be written, what is settled, what failed.

    `swap` holds the rows with at least one new value; `tally` the outcomes that need no write; `large` the
    keys of rows that must be fetched whole and judged alone (nothing of them is in `swap` or `tally`).
    `postponed` counts, by field and outcome, rows in `swap` of which something is left nevertheless, `probed`
    values as `Judged` does.
    """

    swap: SwapBatch
    tally: Tally
    faults: list[Fault]
    large: list[Any]
    opened: Counter[tuple[str, str]]
    postponed: Tally = field(default_factory=dict)
    probed: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Form:
    """One way in which values of a field may be stored: a layout, bound to the key of a version.

    `new` says whether it is the layout that values get, and so which associated data bind them.
    """

    bound: BoundLayout
    new: bool = True

    @property
    def version(self) -> str:
        return self.bound.version


@dataclass(frozen=True)
class FieldReseal:
    """One field's transform: from any of `sources` to `target`.

    `old` and `new` are its layouts, the same unless the layout changes too; with a change, values under the
    target's own key in the old layout are a source like any other. `probes` are tried on values without a
    marker; `adopt` says whether such values are resealed too.
    """

    table: str
    column: str
    old: Layout
    new: Layout
    sources: tuple[Form, ...]
    target: BoundLayout
    probes: tuple[Form, ...]
    adopt: bool
    digester: Digester

    def judge(self, values: Column, aads: AadPair, row_ids: Sequence[Any]) -> Judged:
        """Classifies a column of values and reseals those in scope.

        Values are text or bytes, None or a mark.
        """
        try:
            whole = self._judge_whole(values, aads)
            return whole if whole is not None else self._judge_list(listed(values), aads, row_ids)
        except Unsealable as exc:
            raise UsageError(
                f'column "{self.column}": a value does not fit the layout "{self.new.name}": {exc}',
                hint="nothing of its batch was written; name another layout in to_layout",
            ) from None

    @property
    def probed(self) -> bool:
        """Whether some values name no version, and have to be opened to be told apart."""
        return False

    def version_of(self, value: Value) -> str | None:
        """The version that a value's marker names, in the new layout or in the old one."""
        layouts = (self.new,) if self.old is self.new else (self.new, self.old)
        named = [version for layout in layouts if (version := layout.version_of(value)) is not None]
        # what is foreign to one may be the other's own, which names it without its beginning
        return min(named, key=len, default=None)

    def _judge_whole(self, values: Column, aads: AadPair) -> Judged | None:
        """A column that is wholly under one source and opens; None for any other."""
        for form in self.sources:
            source, bound = form.bound, aads[form.new]
            try:
                if isinstance(values, Packed):
                    plain = source.open_packed(values, bound)
                else:
                    plain = source.open_values(values, bound) if source.begins_all(values) else None
            except OPEN_FAILURES:
                return None
            if plain is None:
                continue
            plain = self._converted(form, plain)
            news: Column
            if isinstance(values, Packed):
                news = self.target.seal_packed(plain, aads[True])
                self._compare(self.target.open_packed(news, aads[True]), plain)
            else:
                news = self._seal(plain, aads[True])
            opened = Counter({(self.column, source.version): len(plain)})
            return Judged(None, values, news, opened=opened)
        return None

    def _judge_list(self, values: list[Any], aads: AadPair, row_ids: Sequence[Any]) -> Judged:
        places: list[int] = []
        olds: list[Any] = []
        news: list[Any] = []
        out = Judged(places, olds, news)
        rest: Sequence[int] = range(len(values))
        for form in self.sources:
            prefix: Any = form.bound.prefix
            kind = type(prefix)
            hits = [i for i in rest if type(v := values[i]) is kind and v.startswith(prefix)]
            if not hits:
                continue
            taken = set(hits)
            rest = [i for i in rest if i not in taken] if len(hits) < len(rest) else []
            mine = hits if len(hits) < len(values) else range(len(values))
            good, plain = self._open(form, mine, values, aads[form.new], row_ids, out)
            if plain:
                news += self._seal(self._converted(form, plain), _at(aads[True], good))
                places += good
                olds += _at(values, good) or []
        adopted = self._judge_rest(rest, values, aads, row_ids, out) if rest else []
        if adopted:
            found = [i for i, _ in adopted]
            news += self._seal([plain_text for _, plain_text in adopted], _at(aads[True], found))
            places += found
            olds += [values[i] for i in found]
        if len(places) == len(values) and all(a < b for a, b in pairwise(places)):
            out.places = None
        return out

    def _judge_rest(
        self, rest: Sequence[int], values: list[Any], aads: AadPair, row_ids: Sequence[Any], out: Judged
    ) -> list[tuple[int, bytes]]:
        """Counts the values under no source's marker; places and plaintexts of those to be resealed."""
        adopted: list[tuple[int, bytes]] = []
        for i in rest:
            value = values[i]
            if self._classified(value, row_ids[i], out):
                continue
            plain_text = self._classify_unmarked(value, aads, i, row_ids[i], out)
            if plain_text is not None:
                adopted.append((i, plain_text))
        return adopted

    def _open(
        self,
        form: Form,
        places: Sequence[int],
        values: list[Any],
        aads: Aads,
        row_ids: Sequence[Any],
        out: Judged,
    ) -> tuple[Sequence[int], Batch]:
        """Opens the values at some places: the places of those that open, and their plaintexts."""
        source = form.bound
        olds, bound = _at(values, places) or [], _at(aads, places)
        try:
            plain = source.open_values(olds, bound)
        except OPEN_FAILURES:
            places, plain = self._one_by_one(source, places, olds, bound, row_ids, out)
        out.opened[self.column, source.version] += len(plain)
        return places, plain

    def _converted(self, form: Form, plain: Batch) -> Batch:
        """Plaintexts with what the new layout carries in front of them, where the old one carries another."""
        old, new = form.bound.layout, self.new
        if old is new or old.carry_kind == new.carry_kind:
            return plain
        drop = old.carry_bytes
        return [new.fresh_carry() + text[drop:] for text in plain]

    def _seal(self, plain: Batch, aads: Aads) -> list[Any]:
        news = self.target.seal_values(plain, aads)
        try:
            opened = self.target.open_values(news, aads)
        except Unresolved:
            # asked for, and compared when the attempt is made again: others of it may have to ask as well
            return news
        self._compare(opened, plain)
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
    ) -> tuple[Sequence[int], Batch]:
        good: list[int] = []
        plain: Batch = []
        for at, old in enumerate(olds):
            aad = None if aads is None else aads[at]
            try:
                plain.append(source.open_one(old, aad))
                good.append(places[at])
            except Malformed:
                self._fault(out, row_ids[places[at]], old, Reason.MALFORMED, source.version)
            except Unopenable:
                self._fault(out, row_ids[places[at]], old, Reason.UNOPENABLE, source.version)
        return good, plain

    def _classified(self, value: Any, row_id: Any, out: Judged) -> bool:
        """Counts a value that is under no source, unless only its payload can tell what it is."""
        if value is None:
            out.counts[Outcome.NULL] += 1
        elif isinstance(value, OversizeMark):
            self._classify_oversize(value, row_id, out)
        elif self._is_current(value):
            out.counts[Outcome.CURRENT] += 1
        elif self.version_of(value) is not None:
            out.counts[Outcome.OTHER_VERSION] += 1
        else:
            return False
        return True

    def _is_current(self, value: Any) -> bool:
        """Whether a value's beginning says that it is under the target already."""
        return bool(value.startswith(self.target.prefix))

    def _classify_oversize(self, value: OversizeMark, row_id: Any, out: Judged) -> None:
        """By its marker alone: only what would have to be resealed is too large."""
        head: Any = value.head
        if self._is_current(head):
            out.counts[Outcome.CURRENT] += 1
        elif any(head.startswith(form.bound.prefix) for form in self.sources):
            self._fault(out, row_id, value.stands_for, Reason.TOO_LARGE, None)
        elif self.version_of(head) is not None:
            out.counts[Outcome.OTHER_VERSION] += 1
        else:
            self._classify_large_unmarked(value, row_id, out)

    def _classify_large_unmarked(self, value: OversizeMark, row_id: Any, out: Judged) -> None:
        if self.adopt:
            # it may be sealed: nobody can tell without reading it
            self._fault(out, row_id, value.stands_for, Reason.TOO_LARGE, None)
        else:
            out.counts[Outcome.PLAINTEXT] += 1

    def _open_bare(self, value: Value, aads: AadPair, at: int) -> list[tuple[bytes, bytes]]:
        """What a value without a marker opens to: key and plaintext, for each probe that opens it."""
        opened: dict[tuple[bytes, bytes], None] = {}
        for form in self.probes:
            bound = aads[form.new]
            try:
                plain = form.bound.open_bare(value, None if bound is None else bound[at])
            except (Malformed, Unopenable):
                continue
            opened[form.bound.key, self._converted(form, [plain])[0]] = None
        return list(opened)

    def _classify_unmarked(
        self, value: Value, aads: AadPair, at: int, row_id: Any, out: Judged
    ) -> bytes | None:
        opened = self._open_bare(value, aads, at)
        if not opened:
            out.counts[Outcome.PLAINTEXT] += 1
        elif not self.adopt:
            out.counts[Outcome.UNMARKED] += 1
        elif len(opened) > 1:
            # AES-GCM does not commit to its key: two keys that both open prove neither
            self._fault(out, row_id, value, Reason.AMBIGUOUS_KEY, None)
        else:
            return opened[0][1]
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

    def page(self, page: Page, only: frozenset[str] | None = None) -> Resealed:
        """Judges a page; rows with a value held back are only named. `only` restricts it to some fields."""
        held = sorted({place for column in page.fields for place in _held_back(column)})
        if not held:
            return self._judge(page, only)
        kept = set(range(len(page))).difference(held)
        result = self._judge(page.part(sorted(kept)), only)
        result.large = [page.keys[i] for i in held]
        return result

    @property
    def probed(self) -> frozenset[str]:
        """The fields whose values have to be opened to tell which version they are under."""
        return frozenset(entry.column for entry in self.fields if entry.probed)

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
            old = new = _rendered(entry.old, texts, len(page))
            if entry.new is not entry.old:
                new = _rendered(entry.new, texts, len(page))
            judged[entry.column] = entry.judge(values, (old, new), page.keys)
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
            postponed={name: Counter(column.postponed.values()) for name, column in judged.items()},
            probed=sum((column.probed for column in judged.values()), Counter()),
        )

    def _blamed(self, column: str, row_id: Any, value: Any, reason: Reason) -> Fault:
        entry = next(entry for entry in self.fields if entry.column == column)
        if isinstance(value, OversizeMark):
            value = value.stands_for
        digest = self.digest(column, key_text(row_id), value)
        return Fault(key_text(row_id), column, reason, digest, entry.version_of(value))

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


def _rendered(layout: Layout, texts: Mapping[str, list[Any]], count: int) -> Aads:
    return None if layout.aad is None else layout.aad.render_all(texts, count)


def _at(items: list[Any] | None, places: Sequence[int]) -> list[Any] | None:
    """The items at some places, in the list's own order; the list itself when that is all of them."""
    if items is None or len(places) == len(items):
        return items
    return [items[i] for i in places]


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
