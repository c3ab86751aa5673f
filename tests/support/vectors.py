"""The vectors of tests/vectors: what is in them, and what rewrap must make of each.

tests/vectors/README.md says what the fields mean.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from rewrap.crypto.layout import BoundLayout, Layout, Value, builtin_descriptors, compiled
from rewrap.engine.compile import Rotation
from rewrap.job import Job
from rewrap.keys.keyring import Key, Keyring
from rewrap.model import FieldColumn, KeyColumn, Location, Role, Table

FOLDER = Path(__file__).parent.parent / "vectors"
FILES = sorted(path.stem for path in FOLDER.glob("*.json"))

CAUSES = ("ok", "bad-tag", "bad-aad", "unknown-key", "malformed")
"""What can be said of a value; a vector expects one of these."""

RUNS = ("resealed", "unopenable", "malformed", "other_version", "plaintext", "unmarked")
"""What can become of such a value in a run."""

NEW_VERSIONS = {
    "tink": "7",
    "tink-base64": "7",
    "elixir-cloak": "AES.GCM.V3",
    "elixir-cloak-base64": "AES.GCM.V3",
    "47ng-cloak": "0badc0de",
}
"""The version to which a layout's values are rotated, where it is no free text."""

Made = dict[str, Any]

_JOB = """
name = "vectors"
[stores.main]
kind = "postgres"
url = "postgresql://localhost/none"
[keys.versions."{old}"]
material = "env:KEY_OLD"
[keys.versions."{new}"]
material = "env:KEY_NEW"
[layouts.stored]
{layout}
[[targets]]
table = "{table}"
[[targets.fields]]
column = "{column}"
layout = "stored"
{apart}
"""


@cache
def _layout(declared: str, apart: tuple[str, ...], form: str | None) -> Layout:
    return compiled("stored", json.loads(declared)).joined(apart, form)


@cache
def _bound(layout: Layout, version: str, key: bytes, table: str, column: str) -> BoundLayout:
    """Made once for each key: one may be slow to derive, or to look through."""
    return layout.bind(version, key, table, column)


@dataclass(frozen=True)
class Vector:
    """One stored value, with all that is said of it: its set's fields, and its own."""

    made: Made

    @property
    def expect(self) -> str:
        return str(self.made["expect"])

    @property
    def opens(self) -> bool:
        return self.expect == "ok"

    @property
    def told(self) -> str:
        """What a failing test says of it."""
        layout, stored = json.dumps(self.made["layout"]), self.made.get("value", self.made.get("bytes"))
        return f"{layout}: {self.expect}, {self.made.get('why', 'made by the program')}: {stored!r}"

    @cached_property
    def value(self) -> Value:
        return bytes.fromhex(self.made["bytes"]) if "bytes" in self.made else str(self.made["value"])

    @property
    def plain(self) -> bytes:
        return bytes.fromhex(self.made["plain"])

    @property
    def version(self) -> str:
        return str(self.made.get("version", "v1"))

    @property
    def key(self) -> bytes:
        return bytes.fromhex(self.made["key"])

    @property
    def new_version(self) -> str:
        return NEW_VERSIONS.get(self.made["layout"].get("like", ""), "v2")

    @property
    def new_key(self) -> bytes:
        """Another key, of the same kind."""
        return bytes.fromhex(self.made["spare"]) if "spare" in self.made else self.key[::-1]

    @property
    def place(self) -> tuple[str, str]:
        return self.made.get("table", "t"), self.made.get("column", "c")

    @property
    def columns(self) -> dict[str, str | None]:
        found: dict[str, str | None] = self.made.get("columns", {})
        return found

    @cached_property
    def declared(self) -> Made:
        """The layout's descriptor."""
        declared = dict(self.made["layout"])
        base = builtin_descriptors()[declared.pop("like")] if "like" in declared else {}
        return {**base, **declared}

    @cached_property
    def layout(self) -> Layout:
        """Its layout as a job would have it, with what is stored apart joined to it."""
        return _layout(json.dumps(self.declared), tuple(self.made.get("apart", ())), self.made.get("form"))

    @property
    def aad(self) -> bytes | None:
        return None if self.layout.aad is None else self.layout.aad.render(self.columns)

    def bound(self, *, new: bool = False) -> BoundLayout:
        """What opens it, or what seals it anew."""
        key, version = (self.new_key, self.new_version) if new else (self.key, self.version)
        return _bound(self.layout, version, key, *self.place)

    @property
    def run(self) -> str:
        """What becomes of it in a run to another version: one of RUNS.

        An AEAD cannot tell a damaged value from a wrong key or other associated data: all are `unopenable`.
        What has a marker and cannot be parsed is `malformed`.
        """
        if "run" in self.made:
            return str(self.made["run"])
        if self.expect == "unknown-key" and "named" in self.made:
            return "other_version"
        return {"ok": "resealed", "malformed": "malformed"}.get(self.expect, "unopenable")

    @property
    def rotation(self) -> tuple[Rotation, Table]:
        """A rotation of the table that it is in, to another version and key."""
        (table, column), apart = self.place, self.made.get("apart", [])
        roles = [Role(name) for name in (*apart, "payload")]
        names = [column if role is Role.PAYLOAD else f"{column}_{role.value}" for role in roles]
        told = [
            f'{part} = {{ column = "{column}_{part}"'
            + (f', form = "{self.made["form"]}" }}' if part == "version" and "form" in self.made else " }")
            for part in apart
        ]
        layout = "\n".join(f"{name} = {_toml(value)}" for name, value in self.made["layout"].items())
        text = _JOB.format(
            old=self.version,
            new=self.new_version,
            layout=layout,
            table=table,
            column=column,
            apart="\n".join(told),
        )
        job = Job.parse(text, path=Path("rewrap.toml"), environ={})
        keys = Keyring([Key(self.version, self.key), Key(self.new_version, self.new_key)])
        kind = "bytea" if self.layout.binary else "text"
        aads = self.layout.aad.columns if self.layout.aad else ()
        parts = tuple(Location(role, name, kind, kind) for role, name in zip(roles, names, strict=True))
        field = FieldColumn(column, kind, True, parts, aads, self.layout.binary)
        relation = f'"public"."{table}"'
        found = Table(table, relation, 1, (KeyColumn("id", "bigint"),), (field,), aads, 0, 0)
        return Rotation(job, keys, (self.version,), self.new_version), found

    @property
    def row_texts(self) -> tuple[str | None, ...]:
        """The texts of its row's columns that it is bound to."""
        return tuple(self.columns.get(name) for name in self.layout.aad.columns) if self.layout.aad else ()


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_toml(one)}" for name, one in value.items()) + " }"
    return json.dumps(value)


def of_sets(sets: list[Made]) -> Iterator[Vector]:
    """The vectors of some sets: what programs made, then what is broken of it."""
    for one in sets:
        about = {name: value for name, value in one.items() if name not in ("vectors", "broken")}
        for vector in (*one["vectors"], *one["broken"]):
            yield Vector({**about, **vector})


@cache
def vectors(name: str) -> tuple[Vector, ...]:
    """The vectors of a file."""
    return tuple(of_sets(json.loads((FOLDER / f"{name}.json").read_text())["sets"]))


def alike(found: tuple[Vector, ...]) -> list[list[Vector]]:
    """Vectors that could be in one column: of the same layout, keys and place."""
    names = ("layout", "key", "spare", "version", "table", "column", "apart", "form")
    groups: dict[str, list[Vector]] = {}
    for vector in found:
        groups.setdefault(json.dumps([vector.made.get(name) for name in names]), []).append(vector)
    return list(groups.values())
