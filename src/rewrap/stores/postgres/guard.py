"""The guard: one lock a table and one checkpoint a shard, kept in the database that holds the rows.

Two machines may have two ledgers, but they share the rows; so the lock, the fence and the cursor live with
them. A swap and its checkpoint land in one transaction, and a restored or failed-over database brings back
the cursor that belongs to its rows.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio

from rewrap.errors import LeaseHeld, LeaseLost, StoreError, UnsafeTarget
from rewrap.interfaces import Claim
from rewrap.model import ServerIdentity, ShardLease, ShardRange
from rewrap.stores.claims import (
    Standing,
    lease_lost,
    load_tally,
    may_go_on,
    origin_of,
    out_of_order,
    refuse_others,
)
from rewrap.stores.postgres.connection import Address, Connection, close, connect, translated
from rewrap.stores.postgres.places import quote

_CLAIM_LOCK = 0x7265777261700001
"""Advisory lock for the one transaction that claims tables: "rewrap" in ASCII, and a number."""


class PostgresGuard:
    """Claims tables for one process, keeps its leases alive, and gives them back."""

    def __init__(self, address: Address, schema: str, identity: ServerIdentity) -> None:
        self._address = address
        self._schema = schema
        self.table = f"{quote(schema)}.shard"
        self._identity = identity
        self._connection: Connection | None = None
        # beats come beside everything else, and a connection does one thing at a time
        self._turn = anyio.Lock()
        self._claim: Claim | None = None
        self._shards = 0
        self.notices: list[str] = []

    @property
    def _subject(self) -> str:
        return f"schema {quote(self._schema)}"

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(self._address, application_name="rewrap guard")
        return self._connection

    @asynccontextmanager
    async def _connected_alone(self) -> AsyncIterator[Connection]:
        async with self._turn:
            connection = await self._connected()
            with translated(self._subject):
                yield connection

    async def exists(self) -> bool:
        """Whether the guard's table is there; looks, and changes nothing."""
        connection = await self._connected()
        with translated(self._subject):
            found = await connection.fetchrow(_EXISTING, self.table)
        if found["there"] and not found["ours"]:
            raise UnsafeTarget(
                f"{self._subject} has a table {self.table} that is not rewrap's",
                hint="name another schema in stores.*.guard_schema; rewrap makes it, and its one table in it",
            )
        return bool(found["there"])

    async def create(self) -> None:
        """Makes the schema and its one table, unless they are there."""
        if await self.exists():
            return
        connection = await self._connected()
        try:
            with translated(self._subject):
                async with connection.transaction():
                    # two first runs at once would both try to create it
                    await connection.execute("SELECT pg_advisory_xact_lock($1)", _CLAIM_LOCK)
                    # even IF NOT EXISTS, making a schema needs a right on the database
                    if not await connection.fetchval(
                        "SELECT to_regnamespace($1) IS NOT NULL", quote(self._schema)
                    ):
                        await connection.execute(f"CREATE SCHEMA {quote(self._schema)}")
                    await connection.execute(_TABLE.format(self.table))
        except StoreError as exc:
            if exc.sqlstate != "42501":
                raise
            raise StoreError(
                f"this role may not create the {self._subject}, "
                "where rewrap keeps its lock and its checkpoints",
                hint=f"have an owner run: CREATE SCHEMA {quote(self._schema)} AUTHORIZATION <role>; "
                "or name a schema the role owns in stores.*.guard_schema",
                sqlstate=exc.sqlstate,
            ) from None

    async def claim(self, claim: Claim) -> dict[str, list[ShardLease]]:
        await self.create()
        try:
            return await self._claim_all(claim)
        except StoreError as exc:
            if exc.sqlstate != "55P03":
                raise
            raise LeaseHeld(
                f"{self._subject}: a statement of an earlier process is still running in the server",
                hint="it ends by itself soon; or end it (application_name 'rewrap writer' in "
                "pg_stat_activity), then rewrap resume",
            ) from None

    async def _claim_all(self, claim: Claim) -> dict[str, list[ShardLease]]:
        connection = await self._connected()
        leases: dict[str, list[ShardLease]] = {}
        with translated(self._subject):
            async with connection.transaction():
                await connection.execute("SET LOCAL lock_timeout = '10s'")
                await connection.execute("SELECT pg_advisory_xact_lock($1)", _CLAIM_LOCK)
                began = await connection.fetchval(
                    "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8"
                )
                for relation, ranges in claim.ranges.items():
                    held = await connection.fetch(_HELD.format(self.table), relation)
                    keep = self._may_take(relation, held, claim)
                    # from the clock where there is no older one: a fence is never used twice
                    fence = 1 + max([row["fence"] for row in held], default=began)
                    if not keep:
                        await connection.execute(f"DELETE FROM {self.table} WHERE relation = $1", relation)
                        await connection.executemany(
                            _INSERT.format(self.table),
                            [self._row(relation, entry, claim, fence) for entry in ranges],
                        )
                    rows = await connection.fetch(
                        _TAKE.format(self.table), relation, claim.owner, claim.ttl_s, fence
                    )
                    leases[relation] = [_lease(row) for row in rows]
        self._claim = claim
        self._shards = sum(len(entries) for entries in leases.values())
        return leases

    def _may_take(self, relation: str, held: list[Connection], claim: Claim) -> bool:
        """Whether the shards there are this run's to go on with; raises when they are somebody else's."""
        standings = [_standing(row) for row in held]
        for standing in standings:
            refuse_others("table", relation, standing, claim)
        if not may_go_on(standings, claim, self._identity.origin):
            return False
        moved = out_of_order("table", relation, standings, claim)
        if moved is not None:
            self.notices.append(moved)
        return moved is None

    def _row(self, relation: str, entry: ShardRange, claim: Claim, fence: int) -> tuple[Any, ...]:
        return (
            relation, entry.shard, claim.run_id,
            origin_of(self._identity.origin, claim, relation),
            ",".join(claim.from_versions), claim.to_version, entry.lower, entry.upper, fence,
            claim.owner,
        )  # fmt: skip

    async def begin_sweep(self, relation: str, sweep: int) -> list[ShardLease]:
        assert self._claim is not None
        async with self._connected_alone() as connection:
            rows = await connection.fetch(_SWEEP.format(self.table), relation, self._claim.owner, sweep)
        if not rows:
            raise self._lost()
        return [_lease(row) for row in rows]

    async def lease(self, relation: str, shard: int) -> ShardLease:
        assert self._claim is not None
        async with self._connected_alone() as connection:
            row = await connection.fetchrow(
                f"SELECT * FROM {self.table} WHERE relation = $1 AND shard = $2 AND owner = $3",
                relation,
                shard,
                self._claim.owner,
            )
        if row is None:
            raise self._lost()
        return _lease(row)

    async def beat(self) -> None:
        assert self._claim is not None
        async with self._connected_alone() as connection:
            alive = await connection.fetch(_BEAT.format(self.table), self._claim.owner, self._claim.ttl_s)
        if len(alive) < self._shards:
            raise self._lost()

    async def release(self, *, finished: bool, void: bool = False) -> None:
        if self._claim is None:
            return
        async with self._connected_alone() as connection:
            await connection.execute(_RELEASE.format(self.table), self._claim.owner, finished or void, void)
        self._claim = None

    async def close(self) -> None:
        if self._connection is not None:
            await close(self._connection)
            self._connection = None

    def _lost(self) -> LeaseLost:
        return lease_lost(self._subject)


def _standing(row: Connection) -> Standing:
    return Standing(
        run_id=row["run_id"],
        owner=row["owner"],
        from_versions=row["from_versions"],
        to_version=row["to_version"],
        origin=row["origin"],
        live=row["live"],
        finished=row["finished"],
    )


def _lease(row: Connection) -> ShardLease:
    return ShardLease(
        relation=row["relation"],
        range=ShardRange(row["shard"], row["lower_key"], row["upper_key"]),
        fence=row["fence"],
        sweep=row["sweep"],
        cursor=row["cursor_key"],
        done=row["done"],
        rows=row["row_count"],
        tally=load_tally(row["tally"]),
        seq=row["seq"],
    )


_EXISTING = """
SELECT to_regclass($1) IS NOT NULL AS there,
       (SELECT count(*) = 4 FROM pg_attribute a WHERE a.attrelid = to_regclass($1)
           AND a.attname IN ('relation', 'fence', 'cursor_key', 'lease_until')) AS ours
"""

_TABLE = """
CREATE TABLE IF NOT EXISTS {} (
    relation text NOT NULL, shard int NOT NULL, run_id text NOT NULL,
    origin text NOT NULL, from_versions text NOT NULL, to_version text NOT NULL,
    sweep int NOT NULL, lower_key text, upper_key text, cursor_key text,
    done boolean NOT NULL DEFAULT false, row_count bigint NOT NULL DEFAULT 0,
    tally text NOT NULL DEFAULT '{{}}', seq bigint NOT NULL DEFAULT 0,
    fence bigint NOT NULL, owner text NOT NULL,
    owner_pid int NOT NULL, owner_started timestamptz,
    lease_until timestamptz NOT NULL, finished boolean NOT NULL DEFAULT false,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (relation, shard)) WITH (fillfactor = 50)
"""

# A killed process loses its session at once, so its lease need not run out first. A live session with an
# expired lease is a frozen process: the raised fence stops it.
_HELD = """
SELECT s.*, s.lease_until > clock_timestamp() AND EXISTS (
         SELECT FROM pg_stat_activity a WHERE a.pid = s.owner_pid
            AND (a.backend_start IS NULL OR a.backend_start = s.owner_started)) AS live
  FROM {} s WHERE s.relation = $1 ORDER BY s.shard FOR UPDATE
"""

_INSERT = """
INSERT INTO {} (relation, shard, run_id, origin, from_versions, to_version, lower_key, upper_key, fence,
                owner, sweep, owner_pid, lease_until)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 1, pg_backend_pid(), clock_timestamp())
"""

_TAKE = """
UPDATE {} SET fence = $4, owner = $2, owner_pid = pg_backend_pid(), finished = false,
       owner_started = (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()),
       lease_until = clock_timestamp() + make_interval(secs => $3)
 WHERE relation = $1 RETURNING *
"""

_SWEEP = """
UPDATE {} SET sweep = $3, cursor_key = NULL, done = false, row_count = 0, tally = '{{}}',
       updated_at = clock_timestamp()
 WHERE relation = $1 AND owner = $2 RETURNING *
"""

_BEAT = """
UPDATE {} SET lease_until = clock_timestamp() + make_interval(secs => $2), owner_pid = pg_backend_pid(),
       owner_started = (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid())
 WHERE owner = $1 RETURNING 1
"""

_RELEASE = """
UPDATE {} SET lease_until = clock_timestamp(), finished = $2,
       run_id = CASE WHEN $3 THEN 'void' ELSE run_id END
 WHERE owner = $1
"""
