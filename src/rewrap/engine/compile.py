"""From a job and a keyring to the transforms of each table, for one rotation."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rewrap.crypto.layout import Layout, Value
from rewrap.deks import DekStore
from rewrap.engine.dekring import DekRing, DekWrapping
from rewrap.engine.elements import ElementsReseal, OneTransform
from rewrap.engine.envelope import EnvelopeField, EnvelopeReseal
from rewrap.engine.judged import FieldTransform
from rewrap.engine.minting import Mint
from rewrap.engine.probe import ProbedReseal
from rewrap.engine.reseal import FieldReseal, Form, Reseal
from rewrap.errors import KeyRefused
from rewrap.forms import fits
from rewrap.interfaces import Scope, Store
from rewrap.job import Job
from rewrap.keys.keyring import Keyring
from rewrap.keys.resolving import Source, resolved
from rewrap.model import Table
from rewrap.targets import FieldSection, TargetSection

T = TypeVar("T")


@dataclass(frozen=True)
class Rotation:
    """One rotation of a job: from some versions to one, with the keys at hand.

    `deks` are who keeps the records of DEKs, by the name of their section; `labels` the versions that labels
    stood for when it began, by label.
    """

    job: Job
    keyring: Keyring
    from_versions: tuple[str, ...]
    to_version: str
    deks: Mapping[str, DekStore] = field(default_factory=dict, repr=False, compare=False)
    labels: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    _made: dict[str, tuple[FieldReseal, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _wrappings: dict[str, DekWrapping] = field(default_factory=dict, init=False, repr=False, compare=False)

    async def resolved(self, attempt: Callable[[], T]) -> T:
        """What a pure computation over stored values gives, once all that it asks for is there: of vaults,
        and of those who keep the records of DEKs."""
        if not self.deks:
            return await self.keyring.resolved(attempt)
        return await resolved(attempt, {**self.keyring.sources, **self._mints})

    @property
    def _mints(self) -> dict[Hashable, Source]:
        patience_s = self.job.limits.reconnect_s
        mints = [Mint(self.wrapping(name), store, patience_s) for name, store in self.deks.items()]
        return {
            **{mint.wrapping.records: mint.records for mint in mints},
            **{mint.wrapping.fresh: mint.fresh for mint in mints},
        }

    def wrapping(self, name: str) -> DekWrapping:
        """How the DEKs of a `[deks.NAME]` are wrapped."""
        if name not in self._wrappings:
            section = self.job.deks[name]
            assert section.wrapped is not None
            layout = self.job.new_layout(section.wrapped)
            for version in (*self.from_versions, self.to_version):
                if not fits(layout, version) or not layout.takes(self.keyring.get(version).secret):
                    raise KeyRefused(
                        f'the key of {version} does not fit the layout "{section.wrapped.layout}" of deks '
                        f'"{name}"',
                        hint="a key has to have the length that the layout's cipher takes",
                    )
            self._wrappings[name] = DekWrapping(
                name, section, layout, self.keyring, self.from_versions, self.to_version
            )
        return self._wrappings[name]

    def spent(self, store: Store) -> dict[str, float]:
        """What was used up so far of what the stores and the keys' keepers meter."""
        total: dict[str, float] = {}
        for used in (self.keyring.spent(), store.spent(), *(one.spent() for one in self.deks.values())):
            for unit, count in used.items():
                total[unit] = round(total.get(unit, 0.0) + count, 2)
        return total

    def target(self, table: Table) -> TargetSection:
        return next(target for target in self.job.targets if target.table == table.target)

    def new_layout(self, table: Table, name: str) -> Layout:
        """The layout that new values of a field get."""
        return self.job.new_layout(self._entry(table, name))

    def keyed_layout(self, table: Table, name: str) -> Layout:
        """The layout of what the job's keys themselves seal for a field: its values, or their DEKs."""
        dek = self.target(table).dek
        return self.new_layout(table, name) if dek is None else self.wrapping(dek).layout

    def _entry(self, table: Table, name: str) -> FieldSection:
        return next(entry for entry in self.target(table).fields if entry.name == name)

    def reseal(self, table: Table, *, writes: bool = False) -> Reseal:
        """The compiled transform of a table. Unless it `writes`, no records of DEKs are made for it."""
        dek = self.target(table).dek
        if dek is not None:
            ring = DekRing(self.wrapping(dek), table.relation, dry=not writes)
            return EnvelopeReseal(table, [_each(table, one) for one in self._enveloped(table, ring)], ring)
        return Reseal(table, [_each(table, one) for one in self._fields(table)])

    def _enveloped(self, table: Table, ring: DekRing) -> list[EnvelopeField]:
        target, digester = self.target(table), self.keyring.get(self.to_version).digester()
        seals = target.plaintext == "seal"
        return [
            EnvelopeField(
                table.relation, entry.name, table.target, self.job.new_layout(entry), ring, seals, digester
            )
            for entry in target.fields
        ]

    def _fields(self, table: Table) -> tuple[FieldReseal, ...]:
        """Each field's transform, made once: a key may be slow to derive."""
        if table.relation not in self._made:
            target = self.target(table)
            self._made[table.relation] = tuple(self._field(table, target, entry) for entry in target.fields)
        return self._made[table.relation]

    def _field(self, table: Table, target: TargetSection, entry: FieldSection) -> FieldReseal:
        old, new = self.job.old_layout(entry), self.job.new_layout(entry)
        changes = old != new
        bind = _Binder(self.keyring, table, entry)
        goal = bind(new, self.to_version, new=True)
        # a value under the new key in the old layout is not done either: it gets the new layout
        old_versions = (*self.from_versions, self.to_version) if changes else self.from_versions
        in_old = [bind(old, version, new=not changes) for version in old_versions]
        in_new = [bind(new, version, new=True) for version in self.from_versions] if changes else []
        sources = [form for form in (*in_old, *in_new) if form is not None]
        if goal is None or not {form.version for form in sources}.issuperset(self.from_versions):
            raise KeyRefused(
                f"the keys of {', '.join((*self.from_versions, self.to_version))} do not all fit the layouts "
                f"of {table.name}.{entry.name}",
                hint="a key has to have the length that the layout's cipher takes; see docs/layouts.md",
            )
        layouts = ((new, True), (old, False)) if changes else ((new, True),)
        every = [bind(layout, v, new=is_new) for v in self._distinct for layout, is_new in layouts]
        everywhere = [form for form in every if form is not None]
        known: dict[str, Any] = {
            "table": table.relation,
            "column": entry.name,
            "old": old if changes else new,
            "new": new,
            "sources": tuple(form for form in sources if form.bound.layout.versioned),
            "target": goal.bound,
            "adopt": target.unmarked == "reseal",
            "digester": self.keyring.get(self.to_version).digester(),
        }
        if old.versioned and new.versioned:
            return FieldReseal(**known, probes=tuple(everywhere))
        used = {(form.version, form.new) for form in (goal, *sources)}
        others = [form for form in everywhere if (form.version, form.new) not in used]
        return ProbedReseal(
            **known,
            # without its marker, a value is looked for only where there is one to be without
            probes=tuple(form for form in everywhere if form.bound.prefix),
            unnamed=tuple(form for form in (goal, *sources, *others) if not form.bound.layout.versioned),
            resealed=frozenset(form.version for form in sources),
        )

    @property
    def _distinct(self) -> list[str]:
        """The versions at hand. One key under two names is one key: what it opens is not ambiguous."""
        by_secret = {key.secret: key.version for key in self.keyring}
        for version in (self.to_version, *self.from_versions):
            by_secret[self.keyring.get(version).secret] = version
        return list(by_secret.values())

    def marked_forms(self, table: Table, version: str) -> list[dict[str, Form]]:
        """What values under a version begin with, by field, where they say so: once for each layout."""
        if self.target(table).dek is not None:
            # only their DEKs' records name a version
            return []
        found: list[dict[str, Form]] = [{}, {}]
        for entry in self._fields(table):
            forms = [form for form in (Form(entry.target), *entry.sources) if form.version == version]
            for at, form in enumerate(form for form in forms if form.bound.layout.versioned):
                found[at][entry.column] = form
        return [forms for forms in found if forms]

    def scope(self, table: Table) -> Scope:
        """What is in scope of this rotation, as the store can search for it.

        Of a field whose values name no version that is everything: nothing but opening tells.
        """
        if self.target(table).dek is not None:
            return Scope(dict.fromkeys(table.field_names, ("",)))
        markers: dict[str, tuple[Value, ...]] = {}
        unmarked: dict[str, str] = {}
        for entry in self._fields(table):
            nothing: Value = b"" if entry.new.binary else ""
            named = tuple(form.bound.prefix for form in entry.sources)
            markers[entry.column] = (nothing,) if entry.probed else named
            if entry.adopt:
                regexes = dict.fromkeys((entry.new.version_regex, entry.old.version_regex))
                unmarked[entry.column] = "|".join(regexes)
        return Scope(markers, unmarked)

    def adopts(self, relation_name: str) -> bool:
        """Whether values of a target without a marker are resealed too."""
        return next(t for t in self.job.targets if t.table == relation_name).unmarked == "reseal"

    def target_markers(self, table: Table) -> dict[str, Value]:
        """The prefix each column's new values carry; none where it is their own DEK's id."""
        if self.target(table).dek is not None:
            return {}
        return {
            entry.name: self.job.new_layout(entry).prefix_of(self.to_version)
            for entry in self.target(table).fields
        }


def _each(table: Table, one: OneTransform) -> FieldTransform:
    """A field's transform, or that of each element where it has many."""
    many = next(field.many for field in table.fields if field.name == one.column)
    return ElementsReseal(one) if many else one


@dataclass(frozen=True)
class _Binder:
    """Binds the layouts of one field to keys at hand."""

    keyring: Keyring
    table: Table
    entry: FieldSection

    def __call__(self, layout: Layout, version: str, *, new: bool) -> Form | None:
        """The form; None when the layout cannot name the version, or cannot take its key."""
        key = self.keyring.get(version)
        if not fits(layout, version) or not layout.takes(key.secret):
            return None
        place = self.table.target, self.entry.name
        return Form(layout.bind(version, key.secret, *place, index_key=key.index), new)
