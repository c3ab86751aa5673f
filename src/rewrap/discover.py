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

from rewrap.errors import KeyAccessError, StoreError
from rewrap.events import ColumnFound, ColumnSkipped, Discovered
from rewrap.job import Job
from rewrap.labels import names_a_key, parse_labels
from rewrap.recognise import Likeness, Look, Sampled, look_at
from rewrap.stores.postgres.columns import (
    DOCUMENT_TYPES,
    LABELS_MAX,
    StoredColumn,
    StoredTable,
    is_locked,
    why_not_read,
)
from rewrap.targets import FieldSection

PATHS_MAX = 200
"""Leaves of one column of documents that are looked at."""

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,40}")

_NONCE_BYTES, _TAG_BYTES = frozenset({12, 16, 24}), frozenset({16, 32})

_PART_NAMES = {
    "nonce": ("iv", "nonce"),
    "tag": ("tag", "auth_tag", "authtag", "mac", "at"),
    "version": (
        "version", "key_version", "key_id", "kek_version", "mek_version", "dek_version", "master_key_id",
        "encryption_version", "keyversion", "kid", "dek_id", "kek_id", "mek_id", "enc_version", "i",
    ),
}  # fmt: skip

_VERSION_TYPES = ("text", "varchar", "int2", "int4", "int8", "uuid")

_STEM = re.compile(
    r"^(?:encrypted_|enc_|wrapped_)|_(?:encrypted|ciphertext|cipher|ct|enc|data|value|payload)$"
)


class Source(Protocol):
    """What discover asks of a database."""

    async def tables(self) -> list[StoredTable]: ...

    async def sample(self, table: StoredTable, column: StoredColumn, count: int) -> list[Any]: ...

    async def labels(self, table: StoredTable, column: str, count: int) -> dict[str, int]:
        """The few different texts of a column in some rows, counted; nothing if they are many."""
        ...


@dataclass(frozen=True)
class Made:
    """A layout made from the looks of values: with a cipher, an order, a nonce's length if not the cipher's.

    `constant` where what values begin with names no version.
    """

    cipher: str
    order: str = ""
    nonce_bytes: int = 0
    constant: bool = False

    @property
    def shown(self) -> str:
        told = [self.cipher, self.order, f"nonces of {self.nonce_bytes} bytes" if self.nonce_bytes else ""]
        return ", ".join(one for one in told if one)


@dataclass(frozen=True)
class Opened:
    """A layout that opened sampled values under a version: how many, of how many, and bound to what."""

    layout: str
    version: str
    aad: str | None
    opened: int
    tried: int
    made: Made | None = None


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
    undecided: list[str] = field(default_factory=list)
    opens: list[Opened] = field(default_factory=list)
    fits: list[str] = field(default_factory=list)
    refused: str | None = None
    in_job: bool = False
    tried: bool = False

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
            share=1.0 if look.share == 1 else min(round(look.share, 3), 0.999),
            length_min=look.lengths[0],
            length_max=look.lengths[2],
            parts=self.parts,
            undecided=self.undecided,
            opens=[
                {
                    "layout": o.layout,
                    "version": o.version,
                    "aad": o.aad,
                    "opened": o.opened,
                    "tried": o.tried,
                    "order": (o.made.order or None) if o.made else None,
                }
                for o in self.opens
            ],
            fits=self.fits,
            refused=self.refused,
        )


@dataclass
class Discovery:
    """Everything that was found, and everything that was not looked at.

    `quiet` is what looks like nothing of ours: only a key could tell. `keys_refused` says which keys
    could not be tried.
    """

    places: list[Place]
    skipped: list[ColumnSkipped]
    tables: int
    columns: int
    quiet: list[Place] = field(default_factory=list)
    keys_refused: list[KeyAccessError] = field(default_factory=list)

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
        {(target.table, entry.name): entry for target in job.targets for entry in target.fields}
        if job
        else {}
    )
    places: list[Place] = []
    quiet: list[Place] = []
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
        found = await _joined_up(source, table, mine, count)
        stated: set[str] = set()
        for place in found:
            entry = known.get((table.name, place.name))
            if entry is not None:
                _take_from_job(place, entry)
                stated |= set(place.parts.values())
        for place in found:
            if place.name not in stated:
                silent = place.look.likeness is Likeness.NOTHING
                (quiet if silent else places).append(place)
    return Discovery(places, skipped, len(tables), columns, quiet)


def _take_from_job(place: Place, entry: FieldSection) -> None:
    """Where the parts of a place's values are, as the job says it."""
    place.in_job, place.undecided = True, []
    place.parts = {}
    for role, part in (("nonce", entry.nonce), ("tag", entry.tag), ("version", entry.version)):
        if part is not None:
            column = part.column or entry.column
            place.parts[role] = column if part.path is None else f"{column}.{part.path}"
    place.form = entry.version.form if entry.version else None


def _places(table: StoredTable, column: StoredColumn, values: list[Any]) -> Iterator[Place]:
    if column.base not in DOCUMENT_TYPES:
        yield Place(table, column, None, look_at(values), values)
        return
    leaves: dict[str, list[Sampled]] = {}
    seen: Counter[str] = Counter()
    for text in values:
        here: dict[str, list[Sampled]] = {}
        try:
            _walk(json.loads(text, parse_int=_number), "", here)
        except (ValueError, RecursionError):
            # nested deeper than any application's, or no document that Python reads: the others tell
            continue
        for path, found in here.items():
            seen[path] += 1
            if path in leaves or len(leaves) < PATHS_MAX:
                leaves.setdefault(path, []).extend(found)
    for path, texts in leaves.items():
        # a key that one document alone has may be somebody's name
        if seen[path] > 1 or len(values) == 1:
            yield Place(table, column, path, look_at(texts), texts)


def _number(digits: str) -> int:
    """A number that may name a key's version; what has more digits than that is only a number."""
    return int(digits) if len(digits) < 20 else 0


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
    elif type(node) is int and names_a_key(_last(path)):
        # no ciphertext, but it may say which key one is under
        into.setdefault(path, []).append(str(node))


async def _joined_up(source: Source, table: StoredTable, places: list[Place], count: int) -> list[Place]:
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
        taken |= set(place.parts.values())
        if "nonce" in place.parts and place.look.likeness is not Likeness.CIPHERTEXT:
            place.look = replace(place.look, likeness=Likeness.CIPHERTEXT, family="bare")
    await _find_versions(source, table, places, taken, count)
    taken |= {name for place in places for name in place.parts.values()}
    return [place for place in places if place.name not in taken]


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


async def _find_versions(
    source: Source, table: StoredTable, places: Sequence[Place], taken: set[str], count: int
) -> None:
    """What names the key of each value, beside it: a column, or a key of the same object.

    One that is named after the value is taken; another only where nothing competes, on either side. What is
    not taken is said, for a person to decide.
    """
    payloads = [place for place in places if _may_be_payload(place) and place.name not in taken]
    sealed = [place for place in payloads if place.look.likeness is Likeness.CIPHERTEXT] or payloads
    for place in sealed:
        found: dict[str, tuple[str | None, Counter[str]]] = {}
        unread: list[str] = []
        for name, labels in await _labels_beside(source, table, place, places, count):
            parsed = parse_labels(list(labels))
            if parsed is not None:
                form, named = parsed
                found[name] = form, Counter({named[label]: n for label, n in labels.items()})
            elif names_a_key(_last(name)):
                unread.append(name)
        own = [name for name in found if _named_after(place, name)]
        rivals = [one for one in sealed if one is not place and not one.look.named]
        if place.look.named:
            # its marker names a version, or seems to; a column that does so too may be what counts
            place.undecided = [name for name in found if names_a_key(_last(name))]
            continue
        free = not rivals or (place.parts and not any(one.parts for one in rivals))
        chosen = own[:1] or (list(found) if len(found) == 1 and not unread and free else [])
        for name in chosen:
            place.parts["version"] = name
            place.form, versions = found[name]
            place.look = replace(place.look, versions=versions)
        if not chosen:
            place.undecided = [*found, *unread]


async def _labels_beside(
    source: Source, table: StoredTable, place: Place, places: Sequence[Place], count: int
) -> list[tuple[str, dict[str, int]]]:
    """What may name a value's key by its own name, with the texts found there."""
    found = []
    for name, base in table.others.items():
        if base not in _VERSION_TYPES or name == place.column.name or name in table.key:
            continue
        if not _may_name(place, name):
            continue
        try:
            found.append((name, await source.labels(table, name, count)))
        except StoreError:
            # too slow, or not to be read: its name alone is known
            found.append((name, {}))
    for other in places:
        prefix = place.name.rpartition(".")[0]
        if other is place or other.column != place.column or other.name.rpartition(".")[0] != prefix:
            continue
        if other.path is not None and _may_name(place, other.name):
            texts = Counter(str(value) for value in other.values)
            found.append((other.name, dict(texts) if len(texts) <= LABELS_MAX else {}))
    return found


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _may_name(place: Place, name: str) -> bool:
    last = _last(name).lower()
    return last in _PART_NAMES["version"] or names_a_key(_last(name)) or _named_after(place, name)


def _named_after(place: Place, name: str) -> bool:
    """Whether a version is named after a value, or after the parts that are: `ssn_key_version`."""
    own = _last(place.name).lower()
    stem = _STEM.sub("", _STEM.sub("", own))
    last = _last(name).lower()
    return any(
        last.startswith(base) and last[len(base) :].lstrip("_") in _PART_NAMES["version"]
        for base in {own, stem}
        if base
    )


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
