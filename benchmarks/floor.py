"""The floor: the server rewrites the markers by itself, a thousand rows a statement, and no value is opened.

Nothing that changes every row in batches and commits each of them can be faster on one connection. It is no
rotation: it shows what Postgres alone needs.
"""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from typing import Any

import asyncpg

from benchmarks.data import TABLE, Column, Data, Shape
from benchmarks.measure import Cost, cost_of_statements
from benchmarks.server import Server

CHUNK_ROWS = 1_000


def run_floor(data: Data, shape: Shape, rows: int, *, connections: int = 1) -> Cost:
    """Rewrites the markers of a fresh table, its key range shared out among the connections."""
    bounds = _bounds(data.server, shape)
    cost = cost_of_statements(
        data.server, rows, lambda: asyncio.run(_rewrite(data.server, shape, bounds, connections))
    )
    data.check_markers(shape, rows)
    return cost


def _bounds(server: Server, shape: Shape) -> list[Any]:
    """The keys that chunks lie between: each begins after one and ends with the next."""
    found = server.fetch(
        f"SELECT id FROM (SELECT id, row_number() OVER (ORDER BY id) AS place, count(*) OVER () AS rows"
        f" FROM {TABLE}) AS numbered WHERE place % {CHUNK_ROWS} = 0 OR place = rows ORDER BY 1"
    )
    lowest = 0 if shape.key == "bigint" else "00000000-0000-0000-0000-000000000000"
    return [lowest, *(record["id"] for record in found)]


async def _rewrite(server: Server, shape: Shape, bounds: list[Any], count: int) -> float:
    connections = [await asyncpg.connect(server.dsn) for _ in range(count)]
    try:
        chunks = list(pairwise(bounds))
        share = -(-len(chunks) // count)
        update = _update(shape)
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for at, connection in enumerate(connections):
                group.create_task(_work(connection, update, chunks[at * share : (at + 1) * share]))
        return time.monotonic() - began
    finally:
        for connection in connections:
            await connection.close()


async def _work(connection: Any, update: str, chunks: list[tuple[Any, Any]]) -> None:
    statement = await connection.prepare(update)
    for after, last in chunks:
        await statement.fetch(after, last)


def _update(shape: Shape) -> str:
    changes = ", ".join(f"{column.name} = {_marked(column)}" for column in shape.columns)
    return f"UPDATE {TABLE} SET {changes} WHERE id > $1 AND id <= $2"


def _marked(column: Column) -> str:
    marker = "'v2:'::bytea" if column.binary else "'v2:'"
    return f"{marker} || substr({column.name}, 4)"
