"""One application over two databases: rows in Postgres, documents in Cosmos DB."""

import asyncio

from rewrap.demo.application import Application, Audit, Tally
from rewrap.demo.documents import Documents


class Pair:
    """Does with both halves what is asked of one application, and adds up what they say."""

    def __init__(self, rows: Application, documents: Documents, deks: int) -> None:
        """`deks` is how many DEKs are loaded."""
        self._rows, self._documents, self.deks = rows, documents, deks

    @property
    def errors(self) -> list[str]:
        return self._rows.errors + self._documents.errors

    async def create(self) -> None:
        await self._rows.create()
        await self._documents.create()

    async def load(self, rows_per_table: int) -> None:
        await asyncio.gather(self._rows.load(rows_per_table), self._documents.load(self.deks))

    def start(self) -> None:
        self._rows.start()
        self._documents.start()

    async def stop(self) -> None:
        await asyncio.gather(self._rows.stop(), self._documents.stop())

    def switch(self, version: str) -> None:
        self._rows.switch(version)
        self._documents.switch(version)

    def tally(self) -> Tally:
        """What both did; of latencies the worse."""
        rows, documents = self._rows.tally(), self._documents.tally()
        return Tally(
            inserts=rows.inserts + documents.inserts,
            updates=rows.updates + documents.updates,
            annotations=rows.annotations + documents.annotations,
            moves=rows.moves + documents.moves,
            deletes=rows.deletes + documents.deletes,
            reads=rows.reads + documents.reads,
            seconds=rows.seconds,
            p50_ms=max(rows.p50_ms, documents.p50_ms),
            p99_ms=max(rows.p99_ms, documents.p99_ms),
        )

    async def versions(self) -> dict[str, int]:
        return _added(*await asyncio.gather(self._rows.versions(), self._documents.versions()))

    async def audit(self) -> Audit:
        rows, documents = await asyncio.gather(self._rows.audit(), self._documents.audit())
        return Audit(
            rows=rows.rows + documents.rows,
            lost=rows.lost + documents.lost,
            undecryptable=rows.undecryptable + documents.undecryptable,
            other_columns_wrong=rows.other_columns_wrong + documents.other_columns_wrong,
            by_version=_added(dict(rows.by_version), dict(documents.by_version)),
        )

    async def close(self) -> None:
        await self._documents.close()


def _added(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {version: one.get(version, 0) + other.get(version, 0) for version in {**one, **other}}
