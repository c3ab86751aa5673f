"""Every statement of the hot path, named and in one place: built once for a table, then only executed.

Identifiers are quoted; values are parameters; the only literals are row limits and escaped markers.
"""

from __future__ import annotations

from dataclasses import dataclass

from rewrap.crypto.layout import MARKER_BYTES_MAX
from rewrap.interfaces import Scope
from rewrap.model import ShardRange, Table
from rewrap.stores.postgres.schema import quote

HELD_BACK = "\x01"
"""First character of what stands for a value over the page's size limit; its length follows.

A stored value may begin with it too: whatever begins with it is fetched again by key, and judged then.
"""


def literal(text: str) -> str:
    """A string literal that means the same whatever standard_conforming_strings says."""
    escaped = text.replace("\\", "\\\\").replace("'", "''")
    return f"E'{escaped}'"


@dataclass(frozen=True, slots=True)
class Statements:
    """The statements of one table. `guard` is the quoted name of the shard table."""

    table: Table
    guard: str

    def fetch(self, shard: ShardRange, *, first: bool, limit: int, scope: Scope) -> str:
        """A keyset page. $1 is the size in bytes above which a value is held back, $2 the key after which
        to start (absent when `first` and the shard has no lower bound), the last one the upper bound.
        """
        key, number = quote(self.table.key), 1
        where = []
        if not first or shard.lower is not None:
            number += 1
            where.append(f"{key} > (${number}::text)::{self.table.key_type}")
        if shard.upper is not None:
            number += 1
            where.append(f"{key} <= (${number}::text)::{self.table.key_type}")
        if scope.markers is not None:
            where.append(f"({self._in_scope(scope)})")
        condition = f" WHERE {' AND '.join(where)}" if where else ""
        # the limit is a literal: with a parameter the planner guesses, and may sort the whole table
        return (
            f"SELECT {key}, {self._bounded_values('', 1)} FROM {self.table.relation}{condition} "
            f"ORDER BY {key} LIMIT {limit:d}"
        )

    def fetch_large(self) -> str:
        """One row whole. $1 is the key, $2 the size in bytes above which a value is not fetched at all."""
        key = quote(self.table.key)
        return (
            f"SELECT {key}, {self._bounded_values('', 2)} FROM {self.table.relation} "
            f"WHERE {key} = $1::{self.table.key_type}"
        )

    def heads(self) -> str:
        """The length in bytes and the first characters of each of one row's values. $1 is the key."""
        heads = ", ".join(
            f"octet_length({quote(name)}), left({quote(name)}, {MARKER_BYTES_MAX:d})"
            for name in self.table.field_names
        )
        return (
            f"SELECT {heads} FROM {self.table.relation} "
            f"WHERE {quote(self.table.key)} = $1::{self.table.key_type}"
        )

    def sample(self, prefixes: dict[str, str], *, percent: float | None, limit: int) -> str:
        """Rows from anywhere in the table under a marker. $1 is the size above which a value is held back."""
        sampled = f" TABLESAMPLE SYSTEM ({percent:.6f})" if percent is not None else ""
        markers = " OR ".join(
            f"starts_with({quote(name)}, {literal(prefix)})" for name, prefix in prefixes.items()
        )
        return (
            f"SELECT {quote(self.table.key)}, {self._bounded_values('', 1)} "
            f"FROM {self.table.relation}{sampled} WHERE {markers} LIMIT {limit:d}"
        )

    def bounds(self, percent: float, shares: list[float]) -> str:
        """Keys that cut the table into about equal shards, in the server's own order."""
        key = quote(self.table.key)
        points = ", ".join(f"{share:.6f}" for share in shares)
        return (
            f"SELECT percentile_disc(ARRAY[{points}]) WITHIN GROUP (ORDER BY {key})::text[] "
            f"FROM {self.table.relation} TABLESAMPLE SYSTEM ({percent:.6f})"
        )

    def swap(self, *, skip_locked: bool) -> str:
        """Compare-and-swap of a batch, with the checkpoint and the fence in the same transaction.

        $1 cursor, $2 rows, $3 tally, $4 relation, $5 shard, $6 fence, $7 lease in seconds, $8 keys; then for
        each field the old and the new values as one text each, joined by commas, empty for "leave alone";
        then for each AAD column an array of texts. The fence is an UPDATE, not a look: it waits for, and is
        waited for by, whoever raises it.
        """
        key, fields = quote(self.table.key), self.table.field_names
        number, arrays, names, sets, compares, some = (
            9,
            ["$8::" + self.table.key_type + "[]"],
            ["k"],
            [],
            [],
            [],
        )
        for at, name in enumerate(fields):
            column = quote(name)
            arrays += [
                f"string_to_array(${number}::text, ',', '')",
                f"string_to_array(${number + 1}::text, ',', '')",
            ]
            names += [f"o{at}", f"n{at}"]
            number += 2
            # bytes decide: a non-deterministic collation would find "ABC" equal to "abc"
            same = f't.{column} = d.o{at} COLLATE "C"'
            if len(fields) == 1:
                sets.append(f"{column} = d.n{at}")
                compares.append(same)
            else:
                sets.append(f"{column} = coalesce(d.n{at}, t.{column})")
                compares.append(f"(d.n{at} IS NULL OR {same})")
            some.append(f"d.n{at} IS NOT NULL")
        for at, name in enumerate(self.table.aad_columns):
            arrays.append(f"${number}::text[]")
            names.append(f"a{at}")
            number += 1
            compares.append(f't.{quote(name)}::text COLLATE "C" IS NOT DISTINCT FROM d.a{at}')
        free, join = "", ""
        if skip_locked:
            free = (
                f", free AS (SELECT {key} AS k FROM {self.table.relation} WHERE {key} = ANY ($8) "
                f"ORDER BY {key} FOR NO KEY UPDATE SKIP LOCKED)"
            )
            join = f" AND t.{key} IN (SELECT k FROM free)"
        return (
            f"WITH held AS ({self._advance()} RETURNING 1){free} "
            f"UPDATE {self.table.relation} AS t SET {', '.join(sets)} "
            f"FROM unnest({', '.join(arrays)}) AS d({', '.join(names)}) "
            f"WHERE t.{key} = d.k AND {' AND '.join(compares)} AND ({' OR '.join(some)}) "
            f"AND (SELECT count(*) FROM held) = 1{join}"
        )

    def unsettled(self) -> str:
        """The rows of a batch that do not hold its new values now, by their place in it (from 1).

        $1 is the size above which a value is held back, $2 the keys; then the new values of each field.
        """
        key, number = quote(self.table.key), 3
        arrays, names, differs = [f"$2::{self.table.key_type}[]"], ["k"], [f"t.{key} IS NULL"]
        for at, name in enumerate(self.table.field_names):
            arrays.append(f"string_to_array(${number}::text, ',', '')")
            names.append(f"n{at}")
            number += 1
            differs.append(f'(d.n{at} IS NOT NULL AND t.{quote(name)} IS DISTINCT FROM d.n{at} COLLATE "C")')
        return (
            f"SELECT d.place, t.{key}, {self._bounded_values('t.', 1)} "
            f"FROM unnest({', '.join(arrays)}) WITH ORDINALITY AS d({', '.join(names)}, place) "
            f"LEFT JOIN {self.table.relation} AS t ON t.{key} = d.k WHERE {' OR '.join(differs)}"
        )

    def checkpoint(self) -> str:
        """Saves a shard's place. $1 to $7 as in `swap`, $8 whether the shard is done."""
        return f"{self._advance(', done = $8')} RETURNING fence"

    def fence(self) -> str:
        """A shard's fence and write count now. $1 relation, $2 shard."""
        return f"SELECT fence, seq FROM {self.guard} WHERE relation = $1 AND shard = $2"

    def _advance(self, more: str = "") -> str:
        return (
            f"UPDATE {self.guard} SET cursor_key = $1, row_count = $2, tally = $3, "
            "seq = seq + 1, updated_at = clock_timestamp(), "
            f"lease_until = clock_timestamp() + make_interval(secs => $7){more} "
            "WHERE relation = $4 AND shard = $5 AND fence = $6"
        )

    def _bounded_values(self, prefix: str, size_parameter: int) -> str:
        # octet_length does not read a TOASTed value, so a large one costs nothing until it is wanted
        parts = []
        for name in self.table.field_names:
            column = prefix + quote(name)
            parts.append(
                f"CASE WHEN octet_length({column}) <= ${size_parameter}::int8 THEN {column} "
                f"ELSE chr(1) || octet_length({column})::text END"
            )
        parts += [f"{prefix}{quote(name)}::text" for name in self.table.aad_columns]
        return ", ".join(parts)

    def _in_scope(self, scope: Scope) -> str:
        assert scope.markers is not None
        parts = [
            # starts_with, not LIKE: an opaque version may hold _ or %
            f"starts_with({quote(name)}, {literal(marker)})"
            for name, markers in scope.markers.items()
            for marker in markers
        ]
        parts += [
            f"({quote(name)} IS NOT NULL AND {quote(name)} !~ {literal(regex)})"
            for name, regex in scope.unmarked.items()
        ]
        return " OR ".join(parts)
