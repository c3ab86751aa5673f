"""From a job and a keyring to the transforms of each table, for one rotation."""

from __future__ import annotations

from dataclasses import dataclass

from rewrap.crypto.layout import BoundLayout, Value
from rewrap.engine.elements import ElementsReseal
from rewrap.engine.judged import FieldTransform
from rewrap.engine.reseal import FieldReseal, Reseal
from rewrap.interfaces import Scope
from rewrap.job import Job
from rewrap.keys.keyring import Keyring
from rewrap.model import Table
from rewrap.targets import TargetSection


@dataclass(frozen=True)
class Rotation:
    """One rotation of a job: from some versions to one, with the keys at hand."""

    job: Job
    keyring: Keyring
    from_versions: tuple[str, ...]
    to_version: str

    def target(self, table: Table) -> TargetSection:
        return next(target for target in self.job.targets if target.table == table.target)

    def bind(self, table: Table, column: str, version: str) -> BoundLayout:
        """The layout of a column, bound to the key of a version."""
        entry = next(e for e in self.target(table).fields if e.name == column)
        return self.job.old_layout(entry).bind(
            version, self.keyring.get(version).secret, table.target, column
        )

    def reseal(self, table: Table) -> Reseal:
        """The compiled transform of a table."""
        target = self.target(table)
        digester = self.keyring.get(self.to_version).digester()
        # one key under two names is one key: what it opens is not ambiguous
        by_secret = {key.secret: key.version for key in self.keyring}
        for version in (self.to_version, *self.from_versions):
            by_secret[self.keyring.get(version).secret] = version
        probed = list(by_secret.values())
        return Reseal(
            table,
            [
                self._each(
                    table,
                    FieldReseal(
                        table=table.relation,
                        column=entry.name,
                        layout=self.job.old_layout(entry),
                        sources=tuple(self.bind(table, entry.name, v) for v in self.from_versions),
                        target=self.bind(table, entry.name, self.to_version),
                        probes=tuple(self.bind(table, entry.name, v) for v in probed),
                        adopt=target.unmarked == "reseal",
                        digester=digester,
                    ),
                )
                for entry in target.fields
            ],
        )

    @staticmethod
    def _each(table: Table, one: FieldReseal) -> FieldTransform:
        """A field's transform, or that of each element where it has many."""
        many = next(field.many for field in table.fields if field.name == one.column)
        return ElementsReseal(one) if many else one

    def scope(self, table: Table) -> Scope:
        """What is in scope of this rotation, as the store can search for it."""
        target = self.target(table)
        markers = {
            entry.name: tuple(self.job.old_layout(entry).prefix_of(v) for v in self.from_versions)
            for entry in target.fields
        }
        unmarked = {entry.name: self.job.old_layout(entry).version_regex for entry in target.fields}
        return Scope(markers, unmarked if target.unmarked == "reseal" else {})

    def adopts(self, relation_name: str) -> bool:
        """Whether values of a target without a marker are resealed too."""
        return next(t for t in self.job.targets if t.table == relation_name).unmarked == "reseal"

    def target_markers(self, table: Table) -> dict[str, Value]:
        """The prefix each column's new values carry."""
        return {
            entry.name: self.job.old_layout(entry).prefix_of(self.to_version)
            for entry in self.target(table).fields
        }
