"""Every statement of the hot path, named and in one place: built once for a table, then only executed.

Identifiers are quoted; values are parameters; the only literals are row limits and escaped markers.
"""

from __future__ import annotations

from dataclasses import dataclass

from rewrap.crypto.layout import MARKER_BYTES_MAX
from rewrap.interfaces import Prefix, Scope
from rewrap.model import FieldColumn, ShardRange, Table
from rewrap.packed import ABSENT, ELEMENT, HELD_BACK, SEPARATOR
from rewrap.stores.postgres.keys import KeySql
from rewrap.stores.postgres.places import assignments, literal, quote, sha256_of, value_of

_HELD_BACK_SQL = f"chr({ord(HELD_BACK)})"
_HELD_BACK_BYTES_SQL = f"'\\x{HELD_BACK.encode().hex()}'::bytea"


@dataclass(frozen=True, slots=True)
class Statements:
    """The statements of one table. `guard` is the quoted name of the shard table."""

    table: Table
    guard: str

    @property
    def key(self) -> KeySql:
        return KeySql(self.table.key)

    def fetch(self, shard: ShardRange, *, first: bool, limit: int, scope: Scope) -> str:
        """A keyset page as one row: the keys, an array for each of their columns, and the rows' stamps; then
        for each field how many values it has that are not NULL, and its values; then the same for each AAD
        column.

        Values of text come packed (see `rewrap.packed`), bytes as an array. $1 is the size in bytes above
        which a value is held back. Then come the texts of the key after which to start (absent when `first`
        and the shard has no lower bound), and those of the upper bound.

        One row for a page, because a row each costs both sides more than the value in it does.
        """
        parts = [*(f"array_agg({name})" for name in self.key.names), "array_agg(x)"]
        for at, column in enumerate(self.table.fields):
            value = self._bounded(f"f{at}", column.binary, 1)
            parts += [f"count(f{at})", f"array_agg({value})" if column.binary else _packed_sql(value)]
        for at in range(len(self.table.aad_columns)):
            parts += [f"count(a{at})", _packed_sql(f"a{at}")]
        return f"SELECT {', '.join(parts)} FROM ({self._page(shard, first, limit, scope)}) AS page"

    def fetch_rows(self, shard: ShardRange, *, first: bool, limit: int, scope: Scope) -> str:
        """The same page row by row, for values that cannot be packed. Parameters as in `fetch`."""
        values = [self._bounded(f"f{at}", field.binary, 1) for at, field in enumerate(self.table.fields)]
        values += [f"a{at}" for at in range(len(self.table.aad_columns))]
        page = self._page(shard, first, limit, scope, ranked=True)
        order = ", ".join(f"s{at}" for at in range(self.key.width))
        return f"SELECT {', '.join([*self.key.names, *values])} FROM ({page}) AS page ORDER BY {order}"

    def _page(self, shard: ShardRange, first: bool, limit: int, scope: Scope, *, ranked: bool = False) -> str:
        key, number = self.key, 2
        where = []
        if not first or shard.lower is not None:
            where.append(key.compared(">", number))
            number += key.width
        if shard.upper is not None:
            where.append(key.compared("<=", number))
        if scope.markers is not None:
            where.append(f"({self._in_scope(scope)})")
        condition = f" WHERE {' AND '.join(where)}" if where else ""
        columns = [f"{value} AS {name}" for value, name in zip(key.values, key.names, strict=True)]
        columns.append("t.xmin AS x")
        columns += [f"{value_of(field, 't')} AS f{at}" for at, field in enumerate(self.table.fields)]
        columns += [f"t.{quote(name)}::text AS a{at}" for at, name in enumerate(self.table.aad_columns)]
        if ranked:
            # in their own types: as text, keys would come in another order
            columns += [f"{stored} AS s{at}" for at, stored in enumerate(key.stored)]
        # the limit is a literal: with a parameter the planner guesses, and may sort the whole table
        source = f"{self.table.relation} AS t{condition}"
        return f"SELECT {', '.join(columns)} FROM {source} ORDER BY {key.sorted} LIMIT {limit:d}"

    def fetch_large(self) -> str:
        """One row whole. The key's columns come first, then $n, the size in bytes above which a value is not
        fetched at all."""
        values = [*self.key.values, self._bounded_values(1 + self.key.width)]
        return f"SELECT {', '.join(values)} FROM {self.table.relation} AS t WHERE {self.key.equal(1)}"

    def heads(self) -> str:
        """Of each value of one row, by its key: its length in bytes, its first characters, and its SHA-256.

        The last parameter is the length above which the hash is wanted.
        """
        limit = f"${self.key.width + 1:d}::int8"
        heads = ", ".join(
            f"octet_length({value_of(field)}), {head(field)}, "
            f"CASE WHEN octet_length({value_of(field)}) > {limit} THEN {sha256_of(field)} END"
            for field in self.table.fields
        )
        return f"SELECT {heads} FROM {self.table.relation} AS t WHERE {self.key.equal(1)}"

    def sample(
        self, prefixes: dict[str, Prefix], *, percent: float | None, limit: int, mixed: bool = False
    ) -> str:
        """Rows from anywhere in the table under a marker. $1 is the size above which a value is held back.

        `mixed` reads all of it and takes any: a row that was rewritten stands at the table's end.
        """
        order = " ORDER BY pg_catalog.random()" if mixed else ""
        sampled = f" TABLESAMPLE SYSTEM ({percent:.6f})" if percent is not None else ""
        markers = " OR ".join(
            begins(field, prefixes[field.name]) for field in self.table.fields if field.name in prefixes
        )
        return (
            f"SELECT {', '.join(self.key.values)}, {self._bounded_values(1)} "
            f"FROM {self.table.relation} AS t{sampled} WHERE {markers}{order} LIMIT {limit:d}"
        )

    def bounds(self, percent: float, shares: list[float]) -> str:
        """Keys that cut the table into about equal shards, in the server's own order: one a row, as texts."""
        key = self.key
        source = f"{self.table.relation} AS t TABLESAMPLE SYSTEM ({percent:.6f})"
        if key.columns[0].native and key.width == 1:
            points = ", ".join(f"{share:.6f}" for share in shares)
            return (
                f"SELECT unnest(percentile_disc(ARRAY[{points}]) WITHIN GROUP (ORDER BY {key.sorted}))::text "
                f"FROM {source}"
            )
        texts = ", ".join(f"{stored}::text AS {n}" for stored, n in zip(key.stored, key.names, strict=True))
        places = ", ".join(f"ceil({share:.6f} * n)::int8" for share in shares)
        return (
            f"SELECT {', '.join(key.names)} FROM (SELECT {texts}, count(*) OVER () AS n, "
            f"row_number() OVER (ORDER BY {key.sorted}) AS r FROM {source}) AS sampled "
            f"WHERE r IN ({places}) ORDER BY r"
        )

    def swap(
        self, *, consecutive: bool, skip_locked: bool = False, stamped: bool = False, packs: bool = True
    ) -> str:
        """Compare-and-swap of a batch, with the checkpoint and the fence in the same transaction.

        $1 cursor, $2 rows, $3 tally, $4 relation, $5 shard, $6 fence, $7 lease in seconds; from $8 on the
        keys in order, an array for each of their columns. Then, if `stamped`, the stamps and the new values
        of each field: a row is swapped while the transaction that wrote it is still the one that was read,
        so that nothing of it has changed. If not, for each field the old and the new values, and for each
        AAD column its texts (as an array unless it `packs`): all that decides how a value opens. Text is
        packed, bytes are arrays.

        The fence is an UPDATE, not a look: it waits for, and is waited for by, whoever raises it.
        `consecutive` bounds the rows looked at by the first and the last key, so that one walk along the
        index finds a whole page. A batch that lies scattered over the table is looked up key by key.
        """
        key = self.key
        parameters = _Parameters(8 + key.width)
        arrays, names, compares, some = key.arrays(8), key.names, [], []
        linked = {name for names in self.table.linked for name in names}
        if stamped:
            arrays.append(parameters.array("xid"))
            names.append("x")
            compares.append("t.xmin = d.x")
        for at, field in enumerate(self.table.fields):
            if not stamped:
                arrays.append(parameters.column(field))
                names.append(f"o{at}")
                # IS NOT DISTINCT FROM keeps the values out of the join's hash: only keys belong there
                same = f"{value_of(field, 't')} IS NOT DISTINCT FROM d.o{at}{_as_bytes(field)}"
                alone = field.name not in linked
                compares.append(f"(d.n{at} IS NULL OR {same})" if alone else same)
            arrays.append(parameters.column(field))
            names.append(f"n{at}")
            some.append(f"d.n{at} IS NOT NULL")
        for at, name in enumerate(self.table.aad_columns if not stamped else ()):
            arrays.append(parameters.texts() if packs else parameters.array("text"))
            names.append(f"a{at}")
            compares.append(f't.{quote(name)}::text IS NOT DISTINCT FROM d.a{at} COLLATE "C"')
        free, join = "", ""
        if consecutive:
            join = f" AND {key.between_ends(8)}"
        if skip_locked:
            free = f", free AS ({self._free(join)})"
            join += f" AND {_tuple(key.stored)} IN (SELECT * FROM free)"
        return (
            f"WITH held AS ({self._advance()} RETURNING 1){free} "
            f"UPDATE {self.table.relation} AS t SET {', '.join(assignments(self.table.fields))} "
            f"FROM unnest({', '.join(arrays)}) AS d({', '.join(names)}) "
            f"WHERE {key.joined()} AND {' AND '.join(compares)} AND ({' OR '.join(some)}) "
            f"AND (SELECT count(*) FROM held) = 1 AND ({self.unchanged()}){join}"
        )

    def unchanged(self) -> str:
        """Whether the table's name and its columns' still mean what they meant when it was surveyed.

        A rename touches no row: every stamp would hold, and the values would go to another column. It waits
        for a statement that is at work, and one that begins after it sees the new names.
        """
        named = ", ".join(f"({literal(name)}, {number:d})" for name, number in self.table.attributes)
        return (
            f"SELECT count(*) = {len(self.table.attributes):d} FROM pg_catalog.pg_attribute AS a "
            f"WHERE a.attrelid = {self.table.oid:d}::oid AND (a.attname, a.attnum) IN ({named}) "
            f"AND pg_catalog.to_regclass({literal(self.table.relation)})::oid = a.attrelid"
        )

    def _free(self, bounds: str) -> str:
        """The keys of those rows of a batch that nobody holds a lock on, locked."""
        key = self.key
        source = f"{self.table.relation} AS t"
        if key.width == 1 and key.columns[0].native:
            condition = f"{key.stored[0]} = ANY ({key.arrays(8)[0]})"
        else:
            source += f", unnest({', '.join(key.arrays(8))}) AS e({', '.join(key.names)})"
            condition = key.joined("e") + bounds
        return (
            f"SELECT {', '.join(key.stored)} FROM {source} WHERE {condition} "
            f"ORDER BY {key.sorted} FOR NO KEY UPDATE OF t SKIP LOCKED"
        )

    def unsettled(self, *, consecutive: bool) -> str:
        """The rows of a batch that do not hold its new values now, by their place in it (from 1).

        $1 is the size above which a value is held back; from $2 on the keys in order, an array for each of
        their columns; then the new values of each field.
        """
        key = self.key
        parameters = _Parameters(2 + key.width)
        arrays, names, differs = key.arrays(2), key.names, [f"{key.stored[0]} IS NULL"]
        values = []
        for at, field in enumerate(self.table.fields):
            column = value_of(field, "t")
            arrays.append(parameters.column(field))
            names.append(f"n{at}")
            differs.append(f"(d.n{at} IS NOT NULL AND {column} IS DISTINCT FROM d.n{at}{_as_bytes(field)})")
            values.append(self._bounded(column, field.binary, 1))
        values += [f"t.{quote(name)}::text" for name in self.table.aad_columns]
        bounds = f" AND {key.between_ends(2)}" if consecutive else ""
        return (
            f"SELECT d.place, {', '.join([*key.values, *values])} "
            f"FROM unnest({', '.join(arrays)}) WITH ORDINALITY AS d({', '.join(names)}, place) "
            f"LEFT JOIN {self.table.relation} AS t ON {key.joined()}{bounds} WHERE {' OR '.join(differs)}"
        )

    def bound(self) -> str:
        """What the values of a batch's rows are bound to now; keys as in `unsettled`, from $1 on."""
        key = self.key
        texts = ", ".join(f"t.{quote(name)}::text" for name in self.table.aad_columns)
        return (
            f"SELECT {texts} FROM unnest({', '.join(key.arrays(1))}) WITH ORDINALITY "
            f"AS d({', '.join(key.names)}, place) JOIN {self.table.relation} AS t ON {key.joined()} "
            "ORDER BY d.place"
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

    def _bounded_values(self, size_parameter: int) -> str:
        parts = [self._bounded(value_of(field), field.binary, size_parameter) for field in self.table.fields]
        parts += [f"{quote(name)}::text" for name in self.table.aad_columns]
        return ", ".join(parts)

    @staticmethod
    def _bounded(column: str, binary: bool, size_parameter: int) -> str:
        """A value, or what stands for it when it is too large."""
        # octet_length does not read a TOASTed value, so a large one costs nothing until it is wanted
        fits = f"CASE WHEN octet_length({column}) <= ${size_parameter}::int8 THEN {column}"
        size = f"octet_length({column})::text"
        if binary:
            stand_in = f"{_HELD_BACK_BYTES_SQL} || convert_to({size}, 'UTF8')"
            return f"{fits} WHEN {column} IS NOT NULL THEN {stand_in} END"
        return f"{fits} ELSE {_HELD_BACK_SQL} || {size} END"

    def _in_scope(self, scope: Scope) -> str:
        assert scope.markers is not None
        fields = {field.name: field for field in self.table.fields}
        parts = [
            begins(fields[name], marker) for name, markers in scope.markers.items() for marker in markers
        ]
        parts += [_unlike(fields[name], regex) for name, regex in scope.unmarked.items()]
        return " OR ".join(parts)


@dataclass(slots=True)
class _Parameters:
    """Numbers the parameters of a statement as they are used."""

    next: int

    def texts(self) -> str:
        number, self.next = self.next, self.next + 1
        return f"string_to_array(${number}::text, {literal(SEPARATOR)}, {literal(ABSENT)})"

    def array(self, kind: str) -> str:
        number, self.next = self.next, self.next + 1
        return f"${number}::{kind}[]"

    def column(self, field: FieldColumn) -> str:
        return self.array("bytea") if field.binary else self.texts()


def _tuple(columns: list[str]) -> str:
    return columns[0] if len(columns) == 1 else f"({', '.join(columns)})"


def _packed_sql(value: str) -> str:
    return f"string_agg(coalesce({value}, {literal(ABSENT)}), {literal(SEPARATOR)})"


def _as_bytes(field: FieldColumn) -> str:
    # bytes decide: a non-deterministic collation would find "ABC" equal to "abc"
    return "" if field.binary else ' COLLATE "C"'


def _unlike(field: FieldColumn, regex: str) -> str:
    """The condition that a value has no marker; with several elements, that one of them has none."""
    if field.many:
        elements = f"unnest(string_to_array({value_of(field)}, {literal(ELEMENT)}))"
        head = f"substring(x from 1 for {MARKER_BYTES_MAX:d})"
        return f"EXISTS (SELECT FROM {elements} AS x WHERE {head} !~ {literal(regex)})"
    return f"({value_of(field)} IS NOT NULL AND {as_text(field)} !~ {literal(regex)})"


def begins(field: FieldColumn, prefix: Prefix) -> str:
    """The condition that a field's value begins with a marker; of many elements, that one of them does."""
    value = value_of(field)
    if field.many:
        assert isinstance(prefix, str)
        return f"strpos({literal(ELEMENT)} || {value}, {literal(ELEMENT + prefix)}) > 0"
    if isinstance(prefix, bytes):
        return f"substring({value} from 1 for {len(prefix):d}) = {byte_literal(prefix)}"
    # starts_with, not LIKE: an opaque version may hold _ or %; and byte by byte, whatever the collation says
    return f'pg_catalog.starts_with({value} COLLATE "C", {literal(prefix)})'


def head(field: FieldColumn) -> str:
    """A value's first characters, or bytes: enough for any marker."""
    bytewise = "" if field.binary else ' COLLATE "C"'
    return f"substring({value_of(field)}{bytewise} from 1 for {MARKER_BYTES_MAX:d})"


def as_text(field: FieldColumn) -> str:
    """A value's beginning as text that a marker's regular expression can be tried on.

    Bytes outside ASCII come out as \\nnn; a marker of bytes has none, and no backslash either.
    """
    return f"encode({head(field)}, 'escape')" if field.binary else head(field)


def byte_literal(raw: bytes) -> str:
    """Bytes as a literal of type bytea."""
    return f"'\\x{raw.hex()}'::bytea"
