"""The tables behind a target: the one it names, or the partitions that hold a partitioned table's rows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rewrap.model import Partitioned
from rewrap.stores.postgres.connection import Connection
from rewrap.stores.postgres.places import quote


@dataclass(frozen=True, slots=True)
class Leaf:
    """One table that holds rows of a target: its oid, and what the job names if that is not it."""

    oid: int
    name: str
    partition_of: Partitioned | None = None

    @property
    def subject(self) -> str:
        """What errors call it."""
        if self.partition_of is None:
            return f'table "{self.name}"'
        return f'partition "{self.name}" of table "{self.partition_of.name}"'


async def find_leaves(connection: Connection, oid: int, name: str, taken: Collection[str] = ()) -> list[Leaf]:
    """The tables that hold the rows of the table with this oid, at any depth, in order of their names.

    A partition is called by its own name; with its schema where that is another one or the name is `taken`.
    """
    root = await connection.fetchrow(_ROOT, oid)
    if root is None or root["relkind"] != "p":
        return [Leaf(oid, name)]
    whole = Partitioned(name, f"{quote(root['nspname'])}.{quote(root['relname'])}", oid)
    rows = await connection.fetch(_LEAVES, oid)
    leaves = []
    for row in rows:
        short = row["nspname"] == root["nspname"] and row["relname"] not in taken
        leaves.append(
            Leaf(row["oid"], row["relname"] if short else f"{row['nspname']}.{row['relname']}", whole)
        )
    return leaves


async def partition_columns(connection: Connection, oid: int) -> Sequence[str]:
    """The columns that decide in which partition the rows of this one are."""
    rows = await connection.fetch(_PARTITION_COLUMNS, oid)
    return [row["attname"] for row in rows]


_ROOT = """
SELECT c.relkind::text AS relkind, n.nspname::text AS nspname, c.relname::text AS relname
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1::int8::oid
"""

# not pg_partition_tree: it leaves out a partition that is being detached concurrently, and still holds rows
_LEAVES = """
WITH RECURSIVE part AS (
  SELECT i.inhrelid FROM pg_inherits i WHERE i.inhparent = $1::int8::oid
  UNION ALL SELECT i.inhrelid FROM pg_inherits i JOIN part p ON i.inhparent = p.inhrelid)
SELECT c.oid::int8 AS oid, n.nspname::text AS nspname, c.relname::text AS relname
  FROM part p JOIN pg_class c ON c.oid = p.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind <> 'p' ORDER BY 2, 3
"""

_PARTITION_COLUMNS = """
WITH RECURSIVE above AS (
  SELECT i.inhparent FROM pg_inherits i WHERE i.inhrelid = $1::int8::oid
  UNION ALL SELECT i.inhparent FROM pg_inherits i JOIN above a ON i.inhrelid = a.inhparent)
SELECT DISTINCT t.attname::text AS attname
  FROM above a
  JOIN pg_partitioned_table p ON p.partrelid = a.inhparent
  JOIN pg_attribute t ON t.attrelid = a.inhparent AND t.attnum = ANY (p.partattrs::int2[])
"""
