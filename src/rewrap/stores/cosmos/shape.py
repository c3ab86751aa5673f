"""Pure: what of a container's documents a table needs, and how the rows of a page are made of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewrap.crypto.layout import MARKER_BYTES_MAX
from rewrap.interfaces import OversizeMark, Row
from rewrap.model import Table
from rewrap.packed import HELD_BACK
from rewrap.stores.cosmos.documents import MISSING, Steps, text_of, value_of
from rewrap.targets import parse_path

ETAG = "_etag"

SYSTEM = frozenset({"id", "_rid", "_self", "_etag", "_ts", "_attachments"})
"""Properties that the server writes, or that a document is found by."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A row's stamp: the etag of the document that was read, and what was read of it."""

    etag: str
    document: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Shape:
    """A table's rows in documents. `partition` are the steps of each path of the partition key."""

    table: Table
    partition: tuple[tuple[str, ...], ...]

    @property
    def by_id(self) -> bool:
        """Whether a document's id is its partition key too, and so its key alone."""
        return self.partition == (("id",),)

    @property
    def properties(self) -> tuple[str, ...]:
        """The top-level properties that rows are made of."""
        names = [
            "id",
            ETAG,
            *(path[0] for path in self.partition),
            *(part.column for column in self.table.fields for part in column.parts),
            *(str(aad_steps(name)[0]) for name in self.table.aad_columns),
        ]
        return tuple(dict.fromkeys(names))

    def key_of(self, document: Mapping[str, Any]) -> Any:
        """A document's key: its id, with the JSON of each value of the partition key; empty for none."""
        name = document["id"]
        if self.by_id:
            return name
        values = [_at(document, path) for path in self.partition]
        return (name, *("" if value is MISSING else _json(value) for value in values))

    def place_of(self, key: Any) -> tuple[str, Any]:
        """The id and the partition key, as the SDK takes them, of a row's key."""
        if self.by_id:
            return key, key
        from azure.cosmos.partition_key import NonePartitionKeyValue, NullPartitionKeyValue

        name, *texts = key
        if texts == [""]:
            return name, NonePartitionKeyValue
        values = [{} if text == "" else json.loads(text) for text in texts]
        if len(values) > 1:
            return name, values
        return name, NullPartitionKeyValue if values[0] is None else values[0]

    def tokens_of(self, document: Mapping[str, Any]) -> list[str | None]:
        """The texts of the columns of associated data."""
        return [text_of(document, aad_steps(name)) for name in self.table.aad_columns]

    def row_of(self, document: Mapping[str, Any], limit: int) -> Row:
        """A document as a row; a value of more than `limit` bytes is held back."""
        values = [value_of(document, column) for column in self.table.fields]
        return [
            self.key_of(document),
            *(value if value is None else _bounded(value, limit) for value in values),
            *self.tokens_of(document),
        ]

    def large_row_of(self, document: Mapping[str, Any], limit: int) -> Row:
        """A document as a row with its values whole; one over the limit is a mark."""
        row = list(self.row_of(document, limit))
        for at, column in enumerate(self.table.fields, 1):
            value = value_of(document, column)
            size = 0 if value is None else len(value.encode(errors="surrogatepass"))
            if value is None or size <= limit:
                row[at] = value
                continue
            whole = hashlib.sha256(value.encode(errors="surrogatepass")).hexdigest()
            row[at] = OversizeMark(size, value[:MARKER_BYTES_MAX], whole)
        return row


def partition_paths(properties: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    """The steps of each path of a container's partition key, of `/tenant/id` as of `/"tenant"/"id"`."""
    return tuple(
        tuple(step.strip('"') for step in path.strip("/").split("/"))
        for path in properties["partitionKey"]["paths"]
    )


def aad_steps(name: str) -> Steps:
    """The steps to what an AAD template names: `id`, `owner.id`, `tags[0]`. ValueError for no path."""
    return tuple(step for step in parse_path(name) if step is not None)


def _at(document: Mapping[str, Any], path: Sequence[str]) -> Any:
    value: Any = document
    for step in path:
        value = value.get(step, MISSING) if isinstance(value, Mapping) else MISSING
    return value


def _bounded(value: str, limit: int) -> str:
    # a character is at most four bytes: most values need no look at their bytes
    if len(value) * 4 <= limit:
        return value
    size = len(value.encode(errors="surrogatepass"))
    return value if size <= limit else f"{HELD_BACK}{size}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
