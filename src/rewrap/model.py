"""The words every layer shares: what a value ended as, where a run stands, what a table is."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """The final class of one value (row, field). Every value read ends in exactly one."""

    RESEALED = "resealed"
    CURRENT = "current"
    CONVERGED = "converged"
    DEFERRED = "deferred"
    QUARANTINED = "quarantined"
    UNMARKED = "unmarked"
    PLAINTEXT = "plaintext"
    NULL = "null"
    OTHER_VERSION = "other_version"
    GONE = "gone"


class Reason(StrEnum):
    """Why a value is in quarantine, or put off.

    An AEAD cannot tell a bad tag from a wrong key or wrong associated data, so they share `unopenable`.
    `no_dek`: the value names a DEK of which there is no record, or looks sealed and names none.
    """

    MALFORMED = "malformed"
    UNOPENABLE = "unopenable"
    TOO_LARGE = "too_large"
    REJECTED = "rejected"
    AMBIGUOUS_KEY = "ambiguous_key"
    NO_DEK = "no_dek"
    LINKED = "linked"
    CONTENDED = "contended"


class RunState(StrEnum):
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    INCOMPLETE = "incomplete"
    COMPLETE = "complete"
    CANCELLED = "cancelled"
    ABANDONED = "abandoned"

    @property
    def finished(self) -> bool:
        """Whether nobody goes on with it."""
        return self in (
            RunState.INCOMPLETE, RunState.COMPLETE, RunState.CANCELLED, RunState.ABANDONED,
        )  # fmt: skip

    @property
    def live(self) -> bool:
        """Whether a process has it, unless that was killed."""
        return self in (RunState.RUNNING, RunState.PAUSING, RunState.PAUSED)


Tally = dict[str, Counter[str]]
"""Counts of outcomes by field: `{"title": Counter({"resealed": 500})}`."""


def merge_tally(into: Tally, other: Mapping[str, Mapping[str, int]]) -> None:
    """Adds `other` to `into`, field by field and outcome by outcome."""
    for name, counts in other.items():
        mine = into.setdefault(name, Counter())
        for outcome, n in counts.items():
            mine[outcome] += n


def tally_total(tally: Mapping[str, Mapping[str, int]]) -> int:
    """The number of values in a tally."""
    return sum(sum(counts.values()) for counts in tally.values())


@dataclass(frozen=True, slots=True)
class Fault:
    """One value that could not be resealed. Never holds the value: only where it is and a keyed digest."""

    row_id: str
    field: str
    reason: Reason
    digest: str
    version: str | None = None


Path = tuple[str | int | None, ...]
"""Steps into a document: an object's key, an array's index, or None for every element of an array."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job says that a part of a value is stored: a column, and a path if it is one of jsonb."""

    column: str
    path: Path = ()


class Role(StrEnum):
    """What a stored part of a value is."""

    VERSION = "version"
    NONCE = "nonce"
    TAG = "tag"
    PAYLOAD = "payload"
    INDEX = "index"


@dataclass(frozen=True, slots=True)
class Location:
    """Where one part of a value is stored: a column, or a path inside a column of jsonb.

    `type_name` is the column's declared type, `base` the catalog's name of the type beneath any domain.
    A step of `path` is an object's key or an array's index; None is every element of an array.
    """

    role: Role
    column: str
    type_name: str
    base: str
    path: Path = ()


@dataclass(frozen=True, slots=True)
class FieldColumn:
    """One encrypted field: a column, a path in a document, or several of them that make up one value.

    `name` is how a job calls it: the column, and the path if there is one. `binary` when its values are
    bytes, not text. `parts` are where it is stored, in the order version, nonce, tag, payload, indexes; with
    more than one, the field's value is one text of all of them, U+001E between them, bytes in hex.
    """

    name: str
    type_name: str
    nullable: bool
    parts: tuple[Location, ...]
    aad_columns: tuple[str, ...] = ()
    binary: bool = False

    @property
    def many(self) -> bool:
        """Whether a row has one value for each element of an array, joined by U+001D."""
        return None in self.parts[0].path


@dataclass(frozen=True, slots=True)
class KeyColumn:
    """One column of the key that a table's rows are found by.

    `type_name` is the type beneath any domain, as casts name it. The values of a `native` column travel in
    arrays of that type; of any other as the server's text. `order` is what else decides the column's order:
    its collation and that collation's version.
    """

    name: str
    type_name: str
    native: bool = True
    order: str = ""


def key_text(key: Any) -> str:
    """A row's key as one text, for cursors, quarantine and messages.

    The text of a single column's value as it is; of several columns a JSON array of their texts. What is no
    text that every ledger takes, a lone surrogate say, is escaped: alone as JSON behind U+0002.
    """
    if isinstance(key, tuple):
        parts = [str(part) for part in key]
        whole = json.dumps(parts, ensure_ascii=False, separators=(",", ":"))
        return whole if is_text(whole) else json.dumps(parts, separators=(",", ":"))
    text = str(key)
    return text if is_text(text) else _ESCAPED + json.dumps(text)


_ESCAPED = "\x02"


def _unescaped(text: str) -> str:
    if not text.startswith(_ESCAPED):
        return text
    try:
        alone = json.loads(text.removeprefix(_ESCAPED))
    except ValueError:
        return text
    return alone if isinstance(alone, str) and not is_text(alone) else text


def is_text(text: str) -> bool:
    """Whether a text is one for everybody: UTF-8 has no surrogates, and Postgres no NUL."""
    try:
        return b"\x00" not in text.encode()
    except UnicodeEncodeError:
        return False


def key_parts(text: str, width: int) -> list[str]:
    """The texts of a key of `width` columns; ValueError when the text is of another kind of key."""
    if width == 1:
        return [_unescaped(text)]
    parts = json.loads(text)
    if not isinstance(parts, list) or len(parts) != width or not all(isinstance(p, str) for p in parts):
        raise ValueError(f"not a key of {width} columns")
    return parts


_NO_SECRET = re.compile(r"-?[0-9]+|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

MASK = "…"
"""Stands on a screen for a key of text."""


def shown_key(text: str) -> str:
    """A key's text for a screen: numbers and uuids as they are, anything else masked.

    Keys of text are names, addresses and the like: personal data.
    """
    try:
        parts = json.loads(text) if text.startswith("[") else text
    except ValueError:
        return MASK
    if isinstance(parts, str):
        return parts if _NO_SECRET.fullmatch(parts) else MASK
    shown = [part if isinstance(part, str) and _NO_SECRET.fullmatch(part) else MASK for part in parts]
    return json.dumps(shown, ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Partitioned:
    """The partitioned table that a job names, of which a table is a partition."""

    name: str
    relation: str
    oid: int


@dataclass(frozen=True, slots=True)
class Table:
    """A table as it was found in the database: names as stored (unquoted), key, fields, AAD columns.

    `relation` is the schema-qualified, quoted name; it is what statements use. `name` is what people read:
    the job's name for it, or a partition's own. `partition_of` is what the job names in place of it.
    `attributes` are the columns in use with their numbers, which stay theirs when names change.
    """

    name: str
    relation: str
    oid: int
    key: tuple[KeyColumn, ...]
    fields: tuple[FieldColumn, ...]
    aad_columns: tuple[str, ...]
    estimated_rows: int
    estimated_bytes: int
    partition_of: Partitioned | None = None
    attributes: tuple[tuple[str, int], ...] = ()

    @property
    def target(self) -> str:
        """The name by which the job knows it."""
        return self.partition_of.name if self.partition_of else self.name

    @property
    def identity(self) -> tuple[int, tuple[tuple[str, int], ...]]:
        """What is another one once the table, or a column of it that is in use, was dropped and made anew."""
        return self.oid, self.attributes

    @property
    def order(self) -> str:
        """What a cursor into the table depends on: its key's columns, their types and collations."""
        columns = [[column.name, column.type_name, column.order] for column in self.key]
        return json.dumps(columns, ensure_ascii=False, separators=(",", ":"))

    @property
    def field_names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.fields)

    @property
    def linked(self) -> tuple[tuple[str, ...], ...]:
        """Fields that share one stored version, and so change together or not at all."""
        sharing: dict[Place, list[str]] = {}
        for column in self.fields:
            for part in column.parts:
                if part.role is Role.VERSION:
                    sharing.setdefault(Place(part.column, part.path), []).append(column.name)
        return tuple(tuple(names) for names in sharing.values() if len(names) > 1)


@dataclass(frozen=True, slots=True)
class ShardRange:
    """A range `(lower, upper]` of keys' texts; None is unbounded. The first and last shard always are."""

    shard: int
    lower: str | None
    upper: str | None


@dataclass(slots=True)
class ShardLease:
    """The right to write one shard, and where its work stands.

    `fence` is the token that every swap presents; a newer holder has raised it. `cursor` is the last key
    of the contiguous settled prefix, as text. `seq` counts the writes to the shard's record that this
    holder saw acknowledged: after a crash the server may have kept fewer.
    """

    relation: str
    range: ShardRange
    fence: int
    sweep: int
    cursor: str | None = None
    done: bool = False
    rows: int = 0
    tally: Tally = field(default_factory=dict)
    seq: int = 0


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """Which database this is, and on which history line: a restore or a failover changes it."""

    system_id: str
    timeline: str
    database: str
    version: int

    @property
    def origin(self) -> str:
        return f"{self.system_id}/{self.timeline}/{self.database}"


@dataclass(frozen=True, slots=True)
class Activity:
    """Rows other sessions and we inserted and deleted, as the server counts them, since it last reset."""

    inserted: int
    deleted: int


@dataclass(frozen=True, slots=True)
class StoredValue:
    """One stored value: its first characters, all of it unless it is very large, its size in bytes."""

    head: str | bytes = field(repr=False)
    whole: str | bytes | None = field(repr=False)
    size: int
    sha256: str = field(default="", repr=False)
