"""What is asked of a job's running process, and what it answers: one row, through which both talk."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from rewrap.ledgers.records import now
from rewrap.ledgers.tables import control

RUN, PAUSE, CANCEL = "run", "pause", "cancel"
"""What a process may be asked to be."""

TUNED = ("max_rate", "batch_size", "in_flight")
"""What of its pace may be asked for, named as in `[pace]`."""

NO_RATE = 0.0
"""Stands for a rate that nobody caps: none at all means that nobody has asked."""


@dataclass(frozen=True, slots=True)
class ControlRecord:
    """What is asked, by whom and when, and what the process last said of itself.

    `number` goes up with every wish, and `seen` is the last one that the process has taken up. `beat` goes up
    while it lives. `budgets` is what it keeps to: one object for each store.
    """

    run_id: str
    number: int
    state: str
    state_by: str
    state_at: str
    max_rate: float | None
    batch_size: int | None
    in_flight: int | None
    tuned_by: str
    tuned_at: str
    seen: int
    beat: int
    beat_at: str
    process: str
    budgets: tuple[Mapping[str, Any], ...]

    @property
    def tuned(self) -> dict[str, float | None]:
        """The fields of `[pace]` that were asked for, with their values as a job file has them."""
        asked = {name: getattr(self, name) for name in TUNED if getattr(self, name) is not None}
        if asked.get("max_rate") == NO_RATE:
            asked["max_rate"] = None
        return asked


NOTHING_ASKED = ControlRecord("", 0, RUN, "", "", None, None, None, "", "", 0, 0, "", "", ())
"""As good as a row that is not there."""


class Control:
    """The wishes about one job. Every method is one transaction: of two operators the later one is heeded."""

    def __init__(
        self,
        job: str,
        writing: Callable[[], AbstractAsyncContextManager[AsyncConnection]],
        rows: Callable[[sa.Select[Any]], Awaitable[Sequence[sa.Row[Any]]]],
    ) -> None:
        self._job = job
        self._writing = writing
        self._rows = rows

    async def now(self) -> ControlRecord:
        """What is asked at this moment."""
        found = await self._rows(sa.select(control).where(control.c.job == self._job))
        if not found:
            return NOTHING_ASKED
        (row,) = found
        return ControlRecord(
            row.run_id, row.number, row.state, row.state_by, row.state_at, row.max_rate, row.batch_size,
            row.in_flight, row.tuned_by, row.tuned_at, row.seen, row.beat, row.beat_at, row.process,
            tuple(row.budgets),
        )  # fmt: skip

    async def ask(self, state: str, by: str, run_id: str = "") -> int:
        """Asks that a run be at work, paused or cancelled. The wish's number.

        A pause is for whichever run of the job is at work or begins; to cancel takes the run's id.
        """
        asked = {"state": state, "state_by": by, "state_at": now()}
        return await self._change({**asked, "run_id": run_id} if run_id else asked)

    async def tune(self, changes: Mapping[str, float | None], by: str, run_id: str) -> int:
        """Asks for another pace, in the fields given; None lifts a rate. The wish's number."""
        asked = {name: NO_RATE if value is None else value for name, value in changes.items()}
        return await self._change({**asked, "tuned_by": by, "tuned_at": now(), "run_id": run_id})

    async def adopt(self, run_id: str, given: Sequence[str] = ()) -> None:
        """Begins to listen for a run: what was asked of an earlier one is forgotten, but for a pause.

        Of the pace, `given` is forgotten too: a command line has just said otherwise.
        """
        nothing = {**dict.fromkeys(TUNED), "tuned_by": "", "tuned_at": ""}
        mine = control.c.job == self._job
        other = sa.and_(mine, control.c.run_id != run_id)
        async with self._writing() as connection:
            await connection.execute(
                control.update().where(other, control.c.state == CANCEL).values(state=RUN)
            )
            await connection.execute(control.update().where(other).values(run_id=run_id, **nothing))
            if given:
                await connection.execute(control.update().where(mine).values(**dict.fromkeys(given)))

    async def answer(
        self, run_id: str, seen: int, process: str, budgets: Sequence[Mapping[str, Any]]
    ) -> None:
        """The process says that it lives, which wish it has taken up, and what it keeps to."""
        said = {"seen": seen, "beat_at": now(), "process": process, "budgets": list(budgets)}
        async with self._writing() as connection:
            await connection.execute(
                _upsert(
                    connection,
                    {**self._row(), **said, "run_id": run_id, "beat": 1},
                    {**said, "beat": control.c.beat + 1},
                )
            )

    async def forget(self) -> None:
        """Forgets every wish: the run that they were about is finished."""
        async with self._writing() as connection:
            await connection.execute(control.delete().where(control.c.job == self._job))

    async def _change(self, changes: Mapping[str, Any]) -> int:
        async with self._writing() as connection:
            fresh = {**self._row(), **changes, "number": 1}
            await connection.execute(_upsert(connection, fresh, {**changes, "number": control.c.number + 1}))
            number = await connection.scalar(sa.select(control.c.number).where(control.c.job == self._job))
        return int(number or 0)

    def _row(self) -> dict[str, Any]:
        texts = ("run_id", "state_by", "state_at", "tuned_by", "tuned_at", "beat_at", "process")
        numbers = ("number", "seen", "beat")
        return {
            "job": self._job, "state": RUN, "budgets": [],
            **dict.fromkeys(texts, ""), **dict.fromkeys(numbers, 0), **dict.fromkeys(TUNED),
        }  # fmt: skip


def _upsert(connection: AsyncConnection, fresh: Mapping[str, Any], changes: Mapping[str, Any]) -> sa.Insert:
    """A row made, or changed where it is there: two who write the first one must not lose a wish."""
    if connection.dialect.name == "postgresql":
        made = postgresql.insert(control).values(**fresh)
        return made.on_conflict_do_update(index_elements=["job"], set_=dict(changes))
    kept = sqlite.insert(control).values(**fresh)
    return kept.on_conflict_do_update(index_elements=["job"], set_=dict(changes))
