"""Fingerprints of documents: read page by page, hashed here, and sorted on disk.

A document goes in as JSON with sorted names, without the properties that the server writes. There is no
snapshot: what is written while it is read goes in as it was or as it is. The definition of an entry is in
`rewrap.fingerprint`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import closing
from typing import Any

from rewrap.fingerprint import entry
from rewrap.model import Path, Place
from rewrap.stores.cosmos.client import Account, Query
from rewrap.stores.cosmos.documents import MISSING
from rewrap.stores.cosmos.queries import ALL, expression
from rewrap.stores.cosmos.shape import partition_paths
from rewrap.targets import parse_place
from rewrap.untouched import Witnessed

_PAGE = 1_000
"""Documents of a page at most; the server sends fewer where they are large."""

_PART = 8_192
"""Entries that are handed on at a time: 256 KiB, which is also what the ledger keeps as one part."""

_SERVERS = frozenset({"_rid", "_self", "_etag", "_ts", "_attachments"})
"""Properties that the server writes: each write of whatever else changes them."""


async def settle(account: Account, what: Witnessed) -> Witnessed:
    """The same: a document is told by its id and its partition key. Raises SchemaMismatch without it."""
    await account.container(what.table).properties()
    return what


async def entries(account: Account, what: Witnessed) -> AsyncIterator[bytes]:
    """The sorted entries of every document of a container."""
    container = account.container(what.table)
    partition = partition_paths(await container.properties())
    # a database of its own on disk, which goes with its connection: memory stays flat
    with closing(sqlite3.connect("")) as spool:
        spool.execute("CREATE TABLE entry (bytes BLOB)")
        async for page in container.every(_query(what, partition), limit=_PAGE):
            found = [(entry_of(document, what, partition),) for document in page]
            spool.executemany("INSERT INTO entry VALUES (?)", found)
        rows = spool.execute("SELECT bytes FROM entry ORDER BY bytes")
        while part := rows.fetchmany(_PART):
            yield b"".join([row[0] for row in part])


def _query(what: Witnessed, partition: Sequence[Path]) -> Query:
    """Whole documents, or the properties that matter under their own names."""
    if what.whole:
        return Query(f"SELECT * FROM c WHERE {ALL}")
    names = ["id", *(str(path[0]) for path in partition), *(place.column for place in what.parsed)]
    pairs = (f"{json.dumps(name)}: {expression((name,))}" for name in dict.fromkeys(names))
    return Query(f"SELECT VALUE {{{', '.join(pairs)}}} FROM c WHERE {ALL}")


def entry_of(document: Mapping[str, Any], what: Witnessed, partition: Sequence[Path]) -> bytes:
    """The entry of one document."""
    key = [_bytes(_within(document, ("id",))), *(_bytes(_within(document, path)) for path in partition)]
    values = [_bytes(_within(document, (place.column, *place.path))) for place in what.parsed]
    if what.whole:
        written = [_steps(parse_place(text)) for text in what.written]
        rest = {name: value for name, value in document.items() if name not in _SERVERS}
        values.append(_bytes(_without(rest, written)))
    return entry(key, values)


def _steps(place: Place) -> Path:
    return (place.column, *place.path)


def _bytes(value: Any) -> bytes | None:
    """A value as JSON, the same for equal values; None for one that is not there."""
    if value is MISSING:
        return None
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _within(value: Any, path: Path) -> Any:
    """What is at a path; through an array, of each element a list of it, or an empty one."""
    for at, step in enumerate(path):
        if step is None:
            if not isinstance(value, list):
                return value
            found = [_within(one, path[at + 1 :]) for one in value]
            return [[] if one is MISSING else [one] for one in found]
        by_name = isinstance(value, Mapping) and isinstance(step, str) and step in value
        by_place = isinstance(value, list) and isinstance(step, int) and step < len(value)
        if not by_name and not by_place:
            return MISSING
        value = value[step]
    return value


def _without(value: Any, paths: Sequence[Path]) -> Any:
    """A value without what lies at some paths. An element that is left out leaves its place."""
    if () in paths:
        return None
    if isinstance(value, Mapping):
        below = {name: [path[1:] for path in paths if path[0] == name] for name in value}
        return {name: _without(one, below[name]) for name, one in value.items() if () not in below[name]}
    if isinstance(value, list):
        return [
            _without(one, [path[1:] for path in paths if path[0] is None or path[0] == at])
            for at, one in enumerate(value)
        ]
    return value
