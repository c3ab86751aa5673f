"""What a role, a database or a server is set to, and what sessions are called: none of it may mislead."""

from __future__ import annotations

import asyncio
import time

import asyncpg
import pytest

from rewrap.stores.postgres.store import PostgresStore
from tests.integration.test_safety import QUICK, Holder
from tests.support.inprocess import load
from tests.support.values import box
from tests.support.workbench import Workbench


@pytest.mark.parametrize("name", ["rewrap", "rewrap writer", "rewrap guard", "rewrap ledger"])
def test_an_open_writer_is_waited_for_whatever_it_calls_itself(bench: Workbench, name: str) -> None:
    """An application may be called like a session of rewrap's, and commit an old value all the same."""
    bench.job(more=QUICK)
    bench.notes([box("one", "v2")])
    with Holder(bench, f"INSERT INTO notes (id, body) VALUES (9, '{box('late')}')", name=name):
        found = bench.rewrap("verify", "--to", "v2", "--json")
    assert found.code == 3
    assert any(f"({name})" in reason for reason in found.event("verdict")["reasons"])


def test_writers_that_come_and_go_are_not_waited_for_one_after_the_other(bench: Workbench) -> None:
    """Other runs, and the lease's sign of life, write all the time: each transaction is waited for once."""
    bench.notes([box("one")])

    async def work() -> tuple[list[str], float, int]:
        store = PostgresStore(load(bench))
        writers = [
            await asyncpg.connect(bench.dsn, server_settings={"application_name": "rewrap writer"})
            for _ in range(3)
        ]
        written = 0

        async def write(connection: asyncpg.Connection) -> None:
            nonlocal written
            while True:
                await connection.execute("UPDATE notes SET other = other || pg_sleep(0.02)::text")
                written += 1

        busy = [asyncio.create_task(write(connection)) for connection in writers]
        try:
            await store.identity()
            await asyncio.sleep(0.2)
            began = time.monotonic()
            left = await store.drain(20)
            return left, time.monotonic() - began, written
        finally:
            for task in busy:
                task.cancel()
            await asyncio.gather(*busy, return_exceptions=True)
            for connection in writers:
                await connection.close()
            await store.close()

    left, seconds, written = asyncio.run(work())
    assert left == []
    assert written > 0
    assert seconds < 5
