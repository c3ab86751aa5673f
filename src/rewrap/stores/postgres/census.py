"""Verify's own look at Postgres: its own connection, its own queries, one snapshot over every table.

Nothing here is shared with the reading and writing of a run but the names of things.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from rewrap.crypto.layout import MARKER_BYTES_MAX, Layout
from rewrap.errors import StoreError
from rewrap.forms import Forms, Named
from rewrap.interfaces import ClassCount, Prefix
from rewrap.job import Job
from rewrap.model import FieldColumn, ServerIdentity, StoredValue, Table, key_parts
from rewrap.packed import ELEMENT
from rewrap.stores.postgres.connection import Address, Connection, close, connect, translated
from rewrap.stores.postgres.drain import drain
from rewrap.stores.postgres.fence import add_fence
from rewrap.stores.postgres.fingerprints import entries, settle
from rewrap.stores.postgres.keys import KeySql
from rewrap.stores.postgres.moment import NOT_THERE, as_seen, hold, known
from rewrap.stores.postgres.places import literal, quote, sha256_of, value_of
from rewrap.stores.postgres.schema import find_table, former_table, identify, same_leaves, survey
from rewrap.stores.postgres.statements import byte_literal
from rewrap.untouched import Witnessed

_FETCH_ROWS = 200
"""Rows a server-side cursor hands over at a time."""

LOCK_TIMEOUT_S = 10
"""How long a look waits for somebody's lock on a table before it says so."""

_SNAPSHOTS = 5
"""Snapshots that are begun before verify gives up on tables that keep changing under it."""

_SMALL_BYTES = 32 * 1024

_VALUE_BYTES_MAX = 64 * 2**20


_OTHERS = """
SELECT count(*) FROM pg_stat_activity
 WHERE backend_type = 'client backend' AND NOT starts_with(application_name, 'rewrap')
   AND (state <> 'idle' OR state_change > clock_timestamp() - interval '1 second')
"""
"""Sessions of others that were at work within the last second, as far as the role may see."""


class PostgresCensus:
    """Counts and reads values in one snapshot. Use as `async with census:` after `tables()`."""

    manner = "in one snapshot"

    def __init__(self, job: Job, address: Address) -> None:
        self._job = job
        self._address = address
        self._connection: Connection | None = None
        self._transaction: Any = None
        self._kept: list[Table] = []
        self.identity: ServerIdentity | None = None

    async def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = await connect(
                self._address, application_name="rewrap verify", lock_timeout=f"{LOCK_TIMEOUT_S}s"
            )
        return self._connection

    async def tables(self) -> list[Table]:
        """The job's tables, as they are; refuses a standby, which may lag."""
        connection = await self._connected()
        self.identity = await identify(connection, f"database {self._address.shown}")
        return [entry.table for entry in await survey(connection, self._job, writing=False)]

    async def tables_now(self, tables: Sequence[Table]) -> list[Table]:
        """The same tables, or as they are in the snapshot: partitions may have come and gone since.

        From here on nobody changes them: a table that was rewritten, or gave its name to another, after the
        snapshot would look empty in it. Where one was, the snapshot is begun anew.
        """
        for _ in range(_SNAPSHOTS):
            try:
                found = await self._held(tables)
            except StoreError as exc:
                # a partition that the snapshot has was dropped, or has another name now
                if exc.sqlstate not in NOT_THERE:
                    raise
                found = None
            if found is not None:
                return found
            await self.__aexit__()
            await self._begin()
        raise StoreError(
            f"database {self._address.shown}: its tables were altered each time that verify began to look",
            hint="a migration seems to be at work (see pg_stat_activity); try again when it is through",
        )

    async def _held(self, tables: Sequence[Table]) -> list[Table] | None:
        """The tables, kept as the snapshot has them; None when one has changed since."""
        connection = await self._connected()
        for target in self._job.targets:
            with translated(f'table "{target.table}"'):
                oid = await find_table(connection, target.table)
                if oid is not None and not await known(connection, oid):
                    return None
        found = list(tables)
        if not await same_leaves(connection, self._job, tables):
            found = [entry.table for entry in await survey(connection, self._job, writing=False)]
        for table in found:
            if not await hold(connection, table):
                return None
        self._kept = list(found)
        return found

    async def former(self, target: str, oid: int) -> Table | None:
        """A table that held rows of a target once, if it is still there and could hold its values."""
        section = next((section for section in self._job.targets if section.table == target), None)
        if section is None:
            return None
        connection = await self._connected()
        table = await former_table(connection, self._job, section, oid)
        if table is not None:
            if not await hold(connection, table):
                raise _altered(table)
            self._kept.append(table)
        return table

    async def drain(self, timeout_s: float) -> list[str]:
        """Waits for the write transactions that are open; describes those that did not end."""
        return await drain(await self._connected(), "verify", timeout_s)

    async def __aenter__(self) -> PostgresCensus:
        await self._begin()
        return self

    async def _begin(self) -> None:
        connection = await self._connected()
        with translated("verify"):
            self._transaction = connection.transaction(isolation="repeatable_read", readonly=True)
            await self._transaction.start()
            # the snapshot is that of the first statement
            others = await connection.fetchval(_OTHERS)
            if others and self._job.pace.health.yield_to_others:
                # a count by several processes at once would leave an application none of the processors
                await connection.execute("SET LOCAL max_parallel_workers_per_gather = 0")

    async def __aexit__(self, *_exc: object) -> None:
        transaction, self._transaction = self._transaction, None
        if transaction is not None and self._connection is not None:
            if self._connection.is_closed():
                return
            with translated("verify"):
                await transaction.rollback()

    async def count(
        self, table: Table, columns: Mapping[str, Forms]
    ) -> tuple[int, dict[str, list[ClassCount]]]:
        """The rows of a table, and each column's values by class, in one pass over it.

        Only a column that also holds something else than the forms that a marker names is counted again, by
        whatever versions its markers name.
        """
        connection = await self._connected()
        with translated(table.relation):
            found = list(await connection.fetchrow(known_query(table, columns)))
            rows, counts = found[0], found[1:]
            classes: dict[str, list[ClassCount]] = {}
            for column, forms in columns.items():
                named = forms.named
                present, marked = counts[0], counts[1 : 1 + len(named)]
                counts = counts[1 + len(named) :]
                if not named or sum(marked) == present:
                    known = [(_class(f), f.version, n) for f, n in zip(named, marked, strict=True)]
                    rest = [("bare", None, present)] if not named else []
                    classes[column] = [("null", None, rows - present), *known, *rest]
                    continue
                detail = await connection.fetch(count_query(table, column, forms))
                classes[column] = [(row["class"], row["version"], row["n"]) for row in detail]
        return rows, classes

    async def bare(self, table: Table, column: str, forms: Forms) -> AsyncIterator[list[Any]]:
        """Pages of (key, value, AAD texts…) without a marker that could be a sealed payload."""
        value = _worst(table, column, forms)
        shortest = min(_shortest(layout) for layout in forms.layouts)
        condition = _unmarked(value, forms)
        if not _field(table, column).many:
            condition += f" AND octet_length({value}) >= {shortest:d}"
        plain = [layout for layout in forms.layouts if not (layout.apart or layout.separator or layout.lead)]
        if not _field(table, column).many and all(
            layout in plain and layout.encoding in _BASE64 for layout in forms.layouts
        ):
            condition += f' AND {value} COLLATE "C" !~ {literal("[^A-Za-z0-9+/=_-]")}'
        condition += f" AND octet_length({value}) <= {_VALUE_BYTES_MAX:d}"
        async for page in self._pages(table, column, condition):
            yield page

    async def unnamed(self, table: Table, column: str, forms: Forms) -> AsyncIterator[list[Any]]:
        """Pages of (key, value, AAD texts…) of every value without a marker, but those over the limit."""
        value = _value(table, column)
        limit = max(_VALUE_BYTES_MAX, self._job.pace.max_value_bytes)
        condition = f"{_unmarked(value, forms)} AND octet_length({value}) <= {limit:d}"
        async for page in self._pages(table, column, condition):
            yield page

    async def marked(self, table: Table, column: str, forms: Forms) -> AsyncIterator[list[Any]]:
        """Pages of (key, value, AAD texts…) marked as current, in no order."""
        prefix = forms.new.prefix_of(forms.versions[0])
        async for page in self._pages(table, column, _begins(_worst(table, column, forms), prefix)):
            yield page

    async def _pages(self, table: Table, column: str, condition: str) -> AsyncIterator[list[Any]]:
        """Small values many at a time, large ones one by one: a page is never more than a few MiB."""
        connection = await self._connected()
        value = _value(table, column)
        columns = [
            *(KeySql(table.key).values[:1] or ["NULL"]),
            value,
            *(f"{quote(name)}::text" for name in table.aad_columns),
        ]
        for size, rows in ((f"<= {_SMALL_BYTES:d}", _FETCH_ROWS), (f"> {_SMALL_BYTES:d}", 1)):
            statement = (
                f"SELECT {', '.join(columns)} FROM {table.relation} AS t "
                f"WHERE {condition} AND octet_length({value}) {size}"
            )
            with translated(table.relation):
                cursor = await connection.cursor(statement)
                while page := await cursor.fetch(rows):
                    yield page

    async def value(self, table: Table, column: str, forms: Forms, row_id: str) -> StoredValue | None:
        """What a column of one row holds; None when the row is gone. A very large value stays there."""
        connection = await self._connected()
        key = KeySql(table.key)
        value = _value(table, column)
        query = (
            f"SELECT substring({_worst(table, column, forms)} from 1 for {MARKER_BYTES_MAX}) AS head, "
            f"octet_length({value}) AS size, "
            f"CASE WHEN octet_length({value}) <= {_VALUE_BYTES_MAX:d} THEN {value} END AS whole, "
            f"CASE WHEN octet_length({value}) > {self._job.pace.max_value_bytes:d} "
            f"THEN {sha256_of(_field(table, column))} END AS sha256 "
            f"FROM {table.relation} AS t WHERE {key.compared('=', 1)}"
        )
        try:
            parts = key_parts(row_id, key.width)
            with translated(table.relation):
                # within the snapshot's transaction, which a text that is no such key must not end
                async with connection.transaction():
                    row = await connection.fetchrow(query, *parts)
        except ValueError:
            row = None
        except StoreError as exc:
            # put aside when the table had another key: nothing is excused under that name any more
            if not exc.sqlstate.startswith("22"):
                raise
            row = None
        return (
            None
            if row is None
            else StoredValue(
                row["head"] or row["whole"] or "", row["whole"], row["size"] or 0, row["sha256"] or ""
            )
        )

    async def settled(self, what: Witnessed) -> Witnessed:
        """What is to be fingerprinted, as the table has it; keeps the table from being altered."""
        return await settle(await self._connected(), what)

    async def entries(self, what: Witnessed) -> AsyncIterator[bytes]:
        """Its sorted entries, in the snapshot."""
        async for page in entries(await self._connected(), what):
            yield page

    async def check_kept(self) -> None:
        """Raises StoreError when a table that was looked at had lost its name: a schema may be renamed."""
        connection = await self._connected()
        for table in self._kept:
            if not await as_seen(connection, table):
                raise _altered(table)

    async def position(self) -> str:
        """Up to where the log is durable: a commit of our own has waited for it before the snapshot."""
        connection = await self._connected()
        with translated("verify"):
            return str(await connection.fetchval("SELECT pg_current_wal_flush_lsn()::text"))

    async def add_fence(self, table: Table, column: str, prefix: Prefix) -> bool:
        return await add_fence(await self._connected(), table, column, prefix)

    async def close(self) -> None:
        if self._connection is not None:
            await close(self._connection)
            self._connection = None


def _altered(table: Table) -> StoreError:
    return StoreError(
        f"table {table.relation} was altered while verify looked: what it holds is not known",
        hint="a migration seems to be at work (see pg_stat_activity); try again when it is through",
    )


def known_query(table: Table, columns: Mapping[str, Forms]) -> str:
    """Rows; then for each column its values that are not NULL, and those of each form with a marker.

    A value under two markers, were there such a thing, counts for the first.
    """
    parts = ["count(*)"]
    for column, forms in columns.items():
        value = _worst(table, column, forms)
        begins = [_begins(value, form.prefix) for form in forms.named]
        parts.append(f"count({value})")
        for at, condition in enumerate(begins):
            alone = "".join(f" AND NOT {earlier}" for earlier in begins[:at])
            parts.append(f"count(*) FILTER (WHERE {condition}{alone})")
    return f"SELECT {', '.join(parts)} FROM {table.relation}"


def count_query(table: Table, column: str, forms: Forms) -> str:
    """The census of one column as one statement, as it is run and as it is printed for psql."""
    value = _worst(table, column, forms)
    kinds = versions = ""
    for form in forms.named:
        begins = _begins(value, form.prefix)
        kinds += f" WHEN {begins} THEN '{_class(form)}'"
        versions += f" WHEN {begins} THEN {literal(form.version)}"
    for layout in (layout for layout in forms.layouts if layout.versioned):
        matches = f"{_head_text(value, layout)} ~ {literal(layout.version_regex)}"
        kinds += f" WHEN {matches} THEN '{'marked' if layout is forms.new else 'old'}'"
        found = f"substring({_head_text(value, layout)} from {literal(layout.version_regex)})"
        versions += f" WHEN {matches} THEN {found}"
    version = f"CASE{versions} END" if versions else "NULL"
    return (
        "SELECT class, version, count(*) AS n FROM (SELECT "
        f"CASE WHEN {value} IS NULL THEN 'null'{kinds} ELSE 'bare' END AS class, {version} AS version "
        f"FROM {table.relation}) AS v GROUP BY 1, 2 ORDER BY 1, 2"
    )


def _class(form: Named) -> str:
    return "marked" if form.new else "old"


_BASE64 = frozenset({"base64", "base64url", "base64url-padded"})


def _shortest(layout: Layout) -> int:
    """Bytes, or characters, below which nothing is a payload of a layout."""
    least = layout.least_bytes
    # whatever the encoding: base64 is the densest
    return least if layout.binary else -(-least * 4 // 3)


def _unmarked(value: str, forms: Forms) -> str:
    """The condition that a value is there, and that no marker names its version."""
    patterns = [
        f" AND {_head_text(value, layout)} !~ {literal(layout.version_regex)}"
        for layout in forms.layouts
        if layout.versioned
    ]
    # a known marker is recognised whatever the pattern says of it
    begins = [f" AND NOT {_begins(value, form.prefix)}" for form in forms.named]
    return f"{value} IS NOT NULL{''.join((*begins, *patterns))}"


def _field(table: Table, column: str) -> FieldColumn:
    return next(field for field in table.fields if field.name == column)


def _value(table: Table, column: str) -> str:
    return value_of(_field(table, column))


def _worst(table: Table, column: str, forms: Forms) -> str:
    """A field's value; of many elements, the one that is farthest from done.

    That is one under a version that the job knows, then one under any other, then one without a marker.
    """
    value = _value(table, column)
    if not _field(table, column).many or not forms.named:
        return value
    target, *old = forms.named
    ranks = "".join(f" WHEN {_begins('x', form.prefix)} THEN 0" for form in old)
    ranks += f" WHEN {_begins('x', target.prefix)} THEN 3"
    ranks += "".join(
        f" WHEN {_head_text('x', layout)} ~ {literal(layout.version_regex)} THEN 1"
        for layout in forms.layouts
    )
    elements = f"unnest(string_to_array({value}, {literal(ELEMENT)})) WITH ORDINALITY AS e(x, n)"
    return f"(SELECT x FROM {elements} ORDER BY CASE{ranks} ELSE 2 END, n LIMIT 1)"


def _begins(value: str, prefix: Prefix) -> str:
    if isinstance(prefix, bytes):
        return f"substring({value} from 1 for {len(prefix):d}) = {byte_literal(prefix)}"
    return f'pg_catalog.starts_with({value} COLLATE "C", {literal(prefix)})'


def _head_text(value: str, layout: Layout) -> str:
    """The beginning of a value as text; bytes outside ASCII come out as an octal escape."""
    bytewise = "" if layout.binary else ' COLLATE "C"'
    start = f"substring({value}{bytewise} from 1 for {MARKER_BYTES_MAX:d})"
    return f"encode({start}, 'escape')" if layout.binary else start
