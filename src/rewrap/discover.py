"""Discover: columns that look like ciphertext, wherever they are, and what opens them.

Looks at samples, and says nothing of what is in them: only forms, lengths and markers that values share.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from rewrap.errors import StoreError
from rewrap.events import ColumnFound, ColumnSkipped, Discovered
from rewrap.job import Job
from rewrap.recognise import Likeness, Look, Sampled, look_at
from rewrap.stores.postgres.columns import DOCUMENT_TYPES, StoredColumn, StoredTable, is_locked, why_not_read

PATHS_MAX = 200
"""Leaves of one column of documents that are looked at."""

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,40}")

_NONCE_BYTES, _TAG_BYTES = frozenset({12, 16, 24}), frozenset({16, 32})

_PART_NAMES = {
    "nonce": ("iv", "nonce"),
    "tag": ("tag", "auth_tag", "authtag", "mac", "at"),
    "version": (
        "version", "key_version", "key_id", "kek_version", "mek_version", "dek_version", "master_key_id",
        "encryption_version", "keyversion", "i",
    ),
}  # fmt: skip

_VERSION_TYPES = ("text", "varchar", "int2", "int4", "int8")

_STEM = re.compile(
    r"^(?:encrypted_|enc_|wrapped_)|_(?:encrypted|ciphertext|cipher|ct|enc|data|value|payload)$"
)


class Source(Protocol):
    """What discover asks of a database."""

    async def tables(self) -> list[StoredTable]: ...

    async def sample(self, table: StoredTable, column: StoredColumn, count: int) -> list[Any]: ...

    async def labels(self, table: StoredTable, column: str) -> list[str]:
        """The few different texts of a column, for a version beside a value; nothing if they are many."""
        ...


@dataclass(frozen=True)
class Opened:
    """A layout that opened sampled values under a version: how many, of how many, and bound to what."""

    layout: str
    version: str
    aad: str | None
    opened: int
    tried: int


@dataclass
class Place:
    """A column, or a path in a column of documents, and what its values look like."""

    table: StoredTable
    column: StoredColumn
    path: str | None
    look: Look
    values: list[Sampled] = field(repr=False)
    parts: dict[str, str] = field(default_factory=dict)
    form: str | None = None
    opens: list[Opened] = field(default_factory=list)
    fits: list[str] = field(default_factory=list)
    refused: str | None = None
    in_job: bool = False

    @property
    def name(self) -> str:
        return self.column.name if self.path is None else f"{self.column.name}.{self.path}"

    def event(self) -> ColumnFound:
        look = self.look
        return ColumnFound(
            table=self.table.name,
            column=self.name,
            likeness=look.likeness,
            form=look.family,
            in_job=self.in_job,
            marker=look.marker,
            encoding=look.encoding,
            versions=dict(look.versions),
            sampled=look.sampled,
            share=round(look.share, 3),
            length_min=look.lengths[0],
            length_max=look.lengths[2],
            parts=self.parts,
            opens=[
                {"layout": o.layout, "version": o.version, "aad": o.aad, "opened": o.opened, "tried": o.tried}
                for o in self.opens
            ],
            fits=self.fits,
            refused=self.refused,
        )


@dataclass
class Discovery:
    """Everything that was found, and everything that was not looked at."""

    places: list[Place]
    skipped: list[ColumnSkipped]
    tables: int
    columns: int

    def of(self, *likenesses: Likeness) -> list[Place]:
        return [place for place in self.places if place.look.likeness in likenesses]

    @property
    def fresh(self) -> list[Place]:
        """What looks like ciphertext and is in no job."""
        return [place for place in self.of(Likeness.CIPHERTEXT) if not place.in_job]

    def event(self, written: str | None) -> Discovered:
        return Discovered(
            tables=self.tables,
            columns=self.columns,
            ciphertext=len(self.fresh),
            doubtful=len(self.of(Likeness.HASH, Likeness.TOKEN)),
            skipped=len(self.skipped),
            written=written,
        )


async def discover(source: Source, job: Job | None, count: int) -> Discovery:
    """Samples every column of a database that could hold ciphertext. Reads only."""
    tables = await source.tables()
    known = (
        {(target.table, entry.name) for target in job.targets for entry in target.fields} if job else set()
    )
    places: list[Place] = []
    skipped: list[ColumnSkipped] = []
    columns = 0
    for table in tables:
        mine: list[Place] = []
        locked: str | None = None
        for column in table.columns:
            reason = column.skipped or locked
            if reason is None:
                try:
                    mine += _places(table, column, await source.sample(table, column, count))
                    columns += 1
                except StoreError as exc:
                    reason = why_not_read(exc)
                    if is_locked(exc):
                        # the next column would wait as long, and in vain
                        locked = reason
            if reason is not None:
                skipped.append(ColumnSkipped(table=table.name, column=column.name, reason=reason))
        found = await _joined_up(source, table, mine)
        for place in found:
            place.in_job = (table.name, place.name) in known
        places += found
    return Discovery(places, skipped, len(tables), columns)


def _places(table: StoredTable, column: StoredColumn, values: list[Any]) -> Iterator[Place]:
    if column.base not in DOCUMENT_TYPES:
        yield Place(table, column, None, look_at(values), values)
        return
    leaves: dict[str, list[Sampled]] = {}
    seen: Counter[str] = Counter()
    for text in values:
        here: dict[str, list[Sampled]] = {}
        _walk(json.loads(text), "", here)
        for path, found in here.items():
            seen[path] += 1
            if path in leaves or len(leaves) < PATHS_MAX:
                leaves.setdefault(path, []).extend(found)
    for path, texts in leaves.items():
        # a key that one document alone has may be somebody's name
        if seen[path] > 1 or len(values) == 1:
            yield Place(table, column, path, look_at(texts), texts)


def _walk(node: Any, path: str, into: dict[str, list[Sampled]]) -> None:
    """The texts of a document by path; elements of an array all have one path."""
    if isinstance(node, dict):
        for key, child in node.items():
            if _KEY.fullmatch(key):
                _walk(child, f"{path}.{key}" if path else key, into)
    elif isinstance(node, list):
        for child in node[:100]:
            _walk(child, f"{path}[*]", into)
    elif isinstance(node, str) and node and path:
        into.setdefault(path, []).append(node)


async def _joined_up(source: Source, table: StoredTable, places: list[Place]) -> list[Place]:
    """The places of a table, those that are parts of another one's values told to it."""
    taken: set[str] = set()
    payloads = [place for place in places if _may_be_payload(place)]
    for place in payloads:
        if place.name in taken or _role_of(place, places, payloads):
            continue
        for role in ("nonce", "tag"):
            for other in places:
                if other is not place and _is_part(role, place, other, payloads):
                    place.parts[role] = other.name
                    taken.add(other.name)
                    break
        await _find_version(source, table, place, places, payloads)
        taken |= set(place.parts.values())
        if "nonce" in place.parts and place.look.likeness is not Likeness.CIPHERTEXT:
            place.look = replace(place.look, likeness=Likeness.CIPHERTEXT, family="bare")
    return [
        place
        for place in places
        if place.name not in taken and place.look.likeness is not Likeness.NOTHING
    ]  # fmt: skip


def _may_be_payload(place: Place) -> bool:
    look = place.look
    if look.family == "marker":
        return True
    return look.encoding is not None and look.likeness is not Likeness.NOTHING and look.decoded[2] > 0


def _role_of(place: Place, places: Sequence[Place], payloads: Sequence[Place]) -> str | None:
    """Whether a place is a part of another one, by its name and its length."""
    for role in ("nonce", "tag"):
        if any(o is not place and _is_part(role, o, place, payloads) for o in payloads):
            return role
    return None


def _is_part(role: str, payload: Place, part: Place, payloads: Sequence[Place]) -> bool:
    sizes = _NONCE_BYTES if role == "nonce" else _TAG_BYTES
    return (
        part.look.fixed in sizes
        and part.look.encoding == payload.look.encoding
        and payload.look.fixed != part.look.fixed
        and _named_for(role, payload, part.name, payloads)
    )


def _named_for(role: str, payload: Place, name: str, payloads: Sequence[Place]) -> bool:
    """Whether a name is that of a part of a payload: `ssn_iv` for `ssn`, or a plain `iv` beside one alone."""
    before, _, last = name.rpartition(".")
    prefix, _, own = payload.name.rpartition(".")
    if role != "version" and before != prefix and not before.startswith(prefix):
        return False
    last, own = last.lower(), own.lower()
    stem = _STEM.sub("", _STEM.sub("", own))
    for suffix in _PART_NAMES[role]:
        if last in {f"{base}{joint}{suffix}" for base in (own, stem) for joint in ("_", "")}:
            return True
    beside = [p for p in payloads if p.name.rpartition(".")[0] == prefix and not _part_like(p.name)]
    return last in _PART_NAMES[role] and len(beside) <= 1


def _part_like(name: str) -> bool:
    last = name.rpartition(".")[2].lower()
    return any(
        last == suffix or last.endswith(f"_{suffix}")
        for role in ("nonce", "tag")
        for suffix in _PART_NAMES[role]
    )


async def _find_version(
    source: Source, table: StoredTable, place: Place, places: Sequence[Place], payloads: Sequence[Place]
) -> None:
    """A column beside a value that names its key, if there is one: few different short texts."""
    if place.look.family == "marker":
        return
    for name, base in table.others.items():
        if base not in _VERSION_TYPES or not _named_for("version", place, name, payloads):
            continue
        if name == place.column.name:
            continue
        try:
            labels = await source.labels(table, name)
        except StoreError:
            # too slow, or not to be read: then it is not proposed
            continue
        parsed = [re.fullmatch(r"(.*?)((?:v|k)?[0-9]+)", label) for label in labels]
        heads = {found.group(1) for found in parsed if found}
        if not labels or None in parsed or len(heads) != 1:
            continue
        head = heads.pop()
        place.parts["version"] = name
        place.form = f"{head}{{version}}" if head else None
        versions = Counter(found.group(2) for found in parsed if found)
        place.look = replace(place.look, versions=versions)
        return


def candidates_for_aad(place: Place, sealed: Mapping[str, Any], most: int = 12) -> list[str]:
    """Columns of a row that a value may be bound to: its keys and numbers first."""
    table = place.table
    typed = [
        name
        for bases in (("uuid", "int8", "int4", "int2"), ("text", "varchar"))
        for name, base in table.others.items()
        if base in bases and name not in sealed
    ]
    ordered = [*table.key, *(n for n in typed if n.endswith("_id")), *typed]
    allowed = [name for name in dict.fromkeys(ordered) if name in table.others and name not in sealed]
    return allowed[:most]
