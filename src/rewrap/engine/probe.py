"""Pure: finds by opening them which key values are under, where nothing in them says so.

An AEAD refuses every key but its own, so a value is tried under all keys at hand. All, even after one has
opened it: AES-GCM does not commit to its key, and a value that opens under two proves neither (safety of a
rotation hangs on it: resealed with the wrong plaintext, the right one would be gone).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from rewrap.crypto.layout import Malformed, Unopenable
from rewrap.engine.health import UNNAMED
from rewrap.engine.judged import AadPair, Judged
from rewrap.engine.reseal import FieldReseal, Form
from rewrap.interfaces import OversizeMark
from rewrap.model import Outcome, Reason

Opened = tuple[Form, bytes]
"""A form that opens a value, and the plaintext, as the new layout has it."""


@dataclass(frozen=True)
class ProbedReseal(FieldReseal):
    """A field's transform where its old layout, its new one, or both name no version in their values.

    `unnamed` are the forms of such a layout: the target's first if it is one, then those to be resealed,
    then those of the job's other keys at hand. `sources` are the forms of the layout that has markers.
    """

    unnamed: tuple[Form, ...] = ()
    resealed: frozenset[str] = frozenset()

    @property
    def probed(self) -> bool:
        return True

    def _judge_rest(
        self, rest: Sequence[int], values: list[Any], aads: AadPair, row_ids: Sequence[Any], out: Judged
    ) -> list[tuple[int, bytes]]:
        tried = [i for i in rest if not self._classified(values[i], row_ids[i], out)]
        if not tried:
            return []
        forms = self._led(tried, values, aads)
        columns = [(form, self._each(form, tried, values, aads)) for form in forms]
        (lead, plains), *others = columns
        out.probed["first"] += len(plains) - plains.count(None) - (lead is not self.unnamed[0])
        if None not in plains and all(plain is None for _, column in others for plain in column):
            out.probed["opened"] += len(tried)
            return self._classify_all(lead, tried, cast("list[bytes]", plains), out)
        adopted = []
        for at, i in enumerate(tried):
            opened = [
                (form, self._converted(form, [plain])[0])
                for form, plain in ((form, column[at]) for form, column in columns)
                if plain is not None
            ]
            if not opened:
                self._classify_unopened(values[i], aads, i, row_ids[i], out)
                continue
            out.probed["opened"] += 1
            resealed = self._classify_opened(values[i], opened, row_ids[i], out)
            if resealed is not None:
                adopted.append((i, resealed))
        return adopted

    def _led(self, tried: Sequence[int], values: list[Any], aads: AadPair) -> Sequence[Form]:
        """The forms, and in front the one that opens the first value: its neighbours are mostly like it.

        A run finds old values, a repeated one new ones: which is so, nobody has to say. It saves no opening,
        since all keys are tried on every value; what opens wholly under the first is settled in one go.
        """
        if len(tried) > 1:
            for at, form in enumerate(self.unnamed):
                if self._each(form, tried[:1], values, aads)[0] is not None:
                    return (form, *self.unnamed[:at], *self.unnamed[at + 1 :])
        return self.unnamed

    @staticmethod
    def _each(form: Form, places: Sequence[int], values: list[Any], aads: AadPair) -> Sequence[bytes | None]:
        """What the value at each place opens to; None where it does not."""
        prefix: Any = form.bound.prefix
        bound = aads[form.new]
        mine = places if not prefix else [i for i in places if values[i].startswith(prefix)]
        plains = form.bound.open_each(
            [values[i] for i in mine], None if bound is None else [bound[i] for i in mine]
        )
        if len(mine) == len(places):
            return plains
        found = dict(zip(mine, plains, strict=True))
        return [found.get(i) for i in places]

    def _classify_all(
        self, form: Form, tried: Sequence[int], plains: list[bytes], out: Judged
    ) -> list[tuple[int, bytes]]:
        """Counts values that all open under one form, and under no other; those to be resealed."""
        if form.bound is self.target:
            out.counts[Outcome.CURRENT] += len(tried)
            return []
        if form.version not in self.resealed:
            out.counts[Outcome.OTHER_VERSION] += len(tried)
            return []
        out.opened[self.column, form.version] += len(tried)
        out.opened[self.column, UNNAMED] += len(tried)
        return list(zip(tried, self._converted(form, plains), strict=True))

    def _is_current(self, value: Any) -> bool:
        return self.new.versioned and super()._is_current(value)

    def _classify_opened(self, value: Any, opened: list[Opened], row_id: Any, out: Judged) -> bytes | None:
        """Counts a value that opens; its plaintext if it is to be resealed."""
        if len({(form.bound.key, plain) for form, plain in opened}) > 1:
            self._fault(out, row_id, value, Reason.AMBIGUOUS_KEY, None)
            return None
        form, plain = opened[0]
        if any(form.bound is self.target for form, _ in opened):
            out.counts[Outcome.CURRENT] += 1
            return None
        if form.version not in self.resealed:
            out.counts[Outcome.OTHER_VERSION] += 1
            return None
        out.opened[self.column, form.version] += 1
        # values under the target say nothing of the keys of the others: they do not count here
        out.opened[self.column, UNNAMED] += 1
        return plain

    def _classify_unopened(self, value: Any, aads: AadPair, at: int, row_id: Any, out: Judged) -> None:
        """Sealed, damaged or plaintext: by its shape, since no key at hand opens it."""
        if self._open_bare(value, aads, at):
            out.counts[Outcome.UNMARKED] += 1
            return
        reason: Reason | None = None
        for form in self.unnamed:
            if not value.startswith(form.bound.prefix):
                continue
            bound = aads[form.new]
            aad = None if bound is None else bound[at]
            try:
                form.bound.open_one(value, aad)
            except Unopenable:
                reason = Reason.UNOPENABLE
                break
            except Malformed:
                # a beginning of its own is a marker, though it names no version; and what is sealed, and
                # written as the layout does not, an application may well open
                if form.bound.prefix or form.bound.written_otherwise(value, aad):
                    reason = Reason.MALFORMED
        if reason is None:
            out.counts[Outcome.PLAINTEXT] += 1
        else:
            self._fault(out, row_id, value, reason, UNNAMED)

    def _classify_large_unmarked(self, value: OversizeMark, row_id: Any, out: Judged) -> None:
        # without a marker nothing tells it from what would have to be resealed
        self._fault(out, row_id, value.stands_for, Reason.TOO_LARGE, None)
