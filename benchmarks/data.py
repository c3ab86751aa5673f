"""The rows: made once for a bench, then copied into a fresh table for each run.

Table `source` holds every value there is, by row number. A run's own table, `customers`, is filled from it
in the order of its key, indexed, vacuumed and checkpointed, so that all runs begin in the same state.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import asyncpg

from benchmarks.errors import BenchError
from benchmarks.server import Server
from benchmarks.values import Keys, plaintext

TABLE = "customers"

SAMPLE = 1_000
"""Values of a column that are opened after a run."""

NEW_VALUES = 3
"""The last rows of a table are under v2: the application has been switched already."""

_CHUNK = 5_000
"""Rows of one COPY."""


@dataclass(frozen=True, slots=True)
class Column:
    """An encrypted column: how its values are stored, and which row's plaintext stands in it.

    `shift` moves the plaintexts down by so many rows, so that columns of one row differ.
    """

    name: str = "ciphertext"
    form: str = "gcm"
    shift: int = 0

    @property
    def binary(self) -> bool:
        return self.form == "raw"

    def number(self, row: int, rows: int) -> int:
        """The number of the plaintext in a row."""
        return (row - 1 + self.shift) % rows + 1


@dataclass(frozen=True, slots=True)
class Shape:
    """A kind of table: its key, its encrypted columns, how full its pages are."""

    name: str
    columns: tuple[Column, ...] = (Column(),)
    key: str = "bigint"
    fillfactor: int = 100

    @property
    def forms(self) -> set[str]:
        return {column.form for column in self.columns}

    def key_of(self, number: str) -> str:
        """SQL for the key of a row."""
        return number if self.key == "bigint" else f"md5({number}::text)::uuid"


TEXT = Shape("text")
SECRETBOX = Shape("secretbox", (Column(form="box"),))
BYTEA = Shape("bytea", (Column(form="raw"),))
THREE = Shape("three", tuple(Column(f"ciphertext{at}", shift=at - 1) for at in (1, 2, 3)))
UUID = Shape("uuid", key="uuid")
HOT = Shape("hot", fillfactor=50)


@dataclass(slots=True)
class Data:
    """The rows of a bench on its server."""

    server: Server
    keys: Keys
    rows: int

    def load(self, *, secretbox: bool = False, smallest: int | None = None) -> None:
        """Seals and stores `rows` rows. A table of any multiple of `smallest` rows ends with new values."""
        every = smallest or self.rows
        self.server.execute("CREATE TABLE source (n bigint NOT NULL, gcm text NOT NULL, box text)")
        asyncio.run(self._copy(every, secretbox))
        self.server.execute("ALTER TABLE source ADD PRIMARY KEY (n)", "VACUUM (FREEZE, ANALYZE) source")

    def renew(self, shape: Shape, rows: int | None = None) -> None:
        """A fresh table of the first `rows` rows, with nothing of an earlier run beside it."""
        rows = rows or self.rows
        definitions = ", ".join(
            f"{column.name} {'bytea' if column.binary else 'text'} NOT NULL" for column in shape.columns
        )
        values = ", ".join(_value(column, f"s{at}") for at, column in enumerate(shape.columns))
        joins = " ".join(
            f"JOIN {_source(column)} s{at} ON s{at}.n = (s0.n - 1 + {column.shift}) % {rows} + 1"
            for at, column in enumerate(shape.columns[1:], 1)
        )
        self.server.execute(
            f"DROP TABLE IF EXISTS {TABLE}",
            "DROP SCHEMA IF EXISTS rewrap CASCADE",
            f"CREATE TABLE {TABLE} (id {shape.key} NOT NULL, account_id bigint NOT NULL,"
            f" created_at timestamptz NOT NULL, note text NOT NULL, {definitions})"
            f" WITH (fillfactor = {shape.fillfactor})",
            f"INSERT INTO {TABLE} SELECT {shape.key_of('s0.n')}, s0.n % 500,"
            " timestamptz '2024-01-01 00:00:00+00' + s0.n * interval '1 minute',"
            f" md5(s0.n::text) || md5((-s0.n)::text), {values}"
            f" FROM {_source(shape.columns[0])} s0 {joins} WHERE s0.n <= {rows} ORDER BY s0.n",
        )
        self.settle()

    def settle(self) -> None:
        """Indexes, vacuums and checkpoints the fresh table."""
        self.server.execute(
            f"ALTER TABLE {TABLE} ADD PRIMARY KEY (id)", f"VACUUM (FREEZE, ANALYZE) {TABLE}", "CHECKPOINT"
        )

    def row_bytes(self, rows: int) -> float:
        """Bytes of a row in the fresh table, page and tuple headers included."""
        return float(self.server.value("SELECT pg_table_size($1::regclass)", TABLE)) / rows

    def hot_share(self) -> float:
        """The share of updates since the table was made that stayed on their page and touched no index."""
        query = "SELECT n_tup_hot_upd, n_tup_upd FROM pg_stat_user_tables WHERE relname = $1"
        hot, updates = self.server.fetch(query, TABLE)[0]
        return round(hot / updates, 3) if updates else 0.0

    def check_markers(self, shape: Shape, rows: int) -> None:
        """Every value of the table is marked v2; BenchError otherwise."""
        marked = [
            f"substr({column.name}, 1, 3) = 'v2:'" + ("::bytea" if column.binary else "")
            for column in shape.columns
        ]
        query = f"SELECT count(*), count(*) FILTER (WHERE {' AND '.join(marked)}) FROM {TABLE}"
        counted, right = self.server.fetch(query)[0]
        if counted != rows or right != rows:
            raise BenchError(f"{right:,} of {counted:,} rows are under v2; {rows:,} were expected")

    def check_sample(self, shape: Shape, rows: int) -> None:
        """A sample opens under key v2 to the plaintexts that were sealed; BenchError otherwise."""
        numbers = random.sample(range(1, rows + 1), min(SAMPLE, rows))
        names = ", ".join(column.name for column in shape.columns)
        query = f"SELECT n, {names} FROM unnest($1::bigint[]) n JOIN {TABLE} ON id = {shape.key_of('n')}"
        found = self.server.fetch(query, numbers)
        if len(found) != len(numbers):
            raise BenchError(f"{len(numbers) - len(found):,} rows of the sample are gone")
        openers = [(column, self.keys.opener(column.form)) for column in shape.columns]
        for row in found:
            for column, opened in openers:
                try:
                    version, plain = opened(row[column.name])
                except Exception as exc:
                    raise BenchError(f"{column.name} of row {row['n']} does not open") from exc
                if version != "v2" or plain != plaintext(column.number(row["n"], rows)):
                    raise BenchError(f"{column.name} of row {row['n']} is not what was sealed")

    async def _copy(self, every: int, secretbox: bool) -> None:
        connection = await asyncpg.connect(self.server.dsn)
        try:
            for records in _sealed(self.keys, self.rows, every, secretbox):
                await connection.copy_records_to_table("source", records=records, columns=["n", "gcm", "box"])
        finally:
            await connection.close()


Record = tuple[int, str, str | None]


def _sealed(keys: Keys, rows: int, every: int, secretbox: bool) -> Iterator[list[Record]]:
    """All records, in order, sealed on all cores."""
    starts = range(1, rows + 1, _CHUNK)
    jobs = iter([(keys, start, min(start + _CHUNK, rows + 1), every, secretbox) for start in starts])
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores) as pool:
        # a few ahead of the COPY and no more: five million rows do not fit into this process
        ahead = deque(pool.submit(_seal, *job) for job in itertools.islice(jobs, 2 * cores))
        while ahead:
            yield ahead.popleft().result()
            ahead.extend(pool.submit(_seal, *job) for job in itertools.islice(jobs, 1))


def _seal(keys: Keys, start: int, stop: int, every: int, secretbox: bool) -> list[Record]:
    records: list[Record] = []
    for number in range(start, stop):
        version = "v2" if (number - 1) % every >= every - NEW_VALUES else "v1"
        plain = plaintext(number)
        box = keys.seal_box(version, plain) if secretbox else None
        records.append((number, keys.seal_gcm(version, plain), box))
    return records


def _source(column: Column) -> str:
    """The table that a column's values come from: a peer's own form has one of its own."""
    return "source" if column.form in ("gcm", "box", "raw") else f"source_{column.form}"


def _value(column: Column, source: str) -> str:
    """SQL for a column's value, from a row of its source."""
    if column.form == "raw":
        return f"substr({source}.gcm, 1, 3)::bytea || decode(substr({source}.gcm, 4), 'base64')"
    return f"{source}.{column.form if column.form in ('gcm', 'box') else 'value'}"
