"""`rewrap pause`, `tune` and `cancel`, and what `resume` does to a run that another process has."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

import anyio
import typer

from rewrap import api
from rewrap.cli.terminal import (
    DEFAULT_JOB,
    DebugOption,
    JobArgument,
    JsonOption,
    errors_shown,
    load_job,
    named,
    stderr_console,
)
from rewrap.engine import quiescence
from rewrap.errors import RewrapError, UsageError
from rewrap.events import SCHEMA, Event, Notice
from rewrap.job import Job
from rewrap.ledgers.control import PAUSE
from rewrap.ledgers.records import RunRecord
from rewrap.model import RunState
from rewrap.report import notice_text

LEAST_RATE = 0.001
"""Rows a second: no run is to be slower than a row in a quarter of an hour."""


def pause(job: JobArgument = DEFAULT_JOB, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Have the run wait, from another terminal: it ends the batch in hand, and begins nothing new."""
    with errors_shown(as_json=as_json, debug=debug):
        loaded = load_job(job)
        waiting = _Waiting("the batch in hand is being finished (Ctrl-C: leave it to that, the pause stands)")
        answer = anyio.run(partial(api.pause, loaded, waiting=waiting))
        run = answer.run
        later = f"until {quiescence.resuming(loaded)}"
        if run is None or run.state.finished:
            if waiting.said_of:
                _print(answer, f"run {waiting.said_of} has ended: {_state(answer)}", as_json)
                return
            _print(
                answer,
                f'no run of job "{loaded.name}" is at work, says {answer.ledger}: the next one waits {later}',
                as_json,
            )
        elif not answer.answered and run.state.live:
            raise _silent(run, "the pause stands: whatever goes on with the run waits")
        elif not answer.answered:
            _print(
                answer,
                f"run {run.run_id}: {run.state}, and no process is at work on it: the next one waits {later}",
                as_json,
            )
        elif run.state is not RunState.PAUSED:
            raise RewrapError(
                f"run {run.run_id} is {run.state}: {answer.control.state_by} has let it go on meanwhile",
                hint="see rewrap status --watch",
            )
        else:
            _print(
                answer, f"run {run.run_id}: paused — it goes on with {quiescence.resuming(loaded)}", as_json
            )


def tune(
    job: JobArgument = DEFAULT_JOB,
    max_rate: Annotated[
        str | None,
        typer.Option("--max-rate", metavar="N|none", help="Rows a second at most, of each store."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, max=10_000, metavar="N", help="Rows a batch.")
    ] = None,
    in_flight: Annotated[
        int | None,
        typer.Option(
            "--in-flight", min=1, max=64, metavar="N", help="Batches written at once, in each store."
        ),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Change the pace of the run, from another terminal; it is kept until the run has ended."""
    with errors_shown(as_json=as_json, debug=debug):
        changes: dict[str, float | None] = {}
        if max_rate is not None:
            changes["max_rate"] = _rate(max_rate)
        if batch_size is not None:
            changes["batch_size"] = batch_size
        if in_flight is not None:
            changes["in_flight"] = in_flight
        if not changes:
            raise UsageError("nothing to change", hint="name --max-rate, --batch-size or --in-flight")
        answer = anyio.run(partial(api.tune, load_job(job), changes))
        assert answer.run is not None
        run = answer.run
        if not answer.answered and run.state.live:
            raise _silent(run, "whatever goes on with the run keeps to it")
        if run.state.finished:
            _print(answer, f"run {run.run_id} has ended: {run.state}", as_json)
        elif not answer.answered:
            _print(answer, f"run {run.run_id}: {run.state}; whatever goes on with it keeps to that", as_json)
        else:
            _print(answer, f"run {run.run_id}: {tuned_said(answer.control.tuned)}", as_json)


def cancel(job: JobArgument = DEFAULT_JOB, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """End the run for good, from another terminal. Nothing is written back: both keys stay needed."""

    def tell(event: Event) -> None:
        if isinstance(event, Notice):
            stderr_console().print(notice_text(event), soft_wrap=True)

    with errors_shown(as_json=as_json, debug=debug):
        loaded = load_job(job)
        waiting = _Waiting("the batch in hand is being finished")
        answer = anyio.run(partial(api.cancel, loaded, sink=tell, waiting=waiting))
        assert answer.run is not None
        if not answer.run.state.finished:
            later = f"{answer.control.state_by} asked for {answer.control.state}"
            raise RewrapError(
                f"run {answer.run.run_id} goes on: {later} after it was to be cancelled",
                hint=f"rewrap cancel{named(loaded)} once more, if it is to end",
            )
        if answer.run.state is not RunState.CANCELLED:
            raise RewrapError(
                f"run {answer.run.run_id} had ended before it was to be cancelled: {answer.run.state}",
                hint="see rewrap status",
            )
        versions = ", ".join(answer.run.from_versions)
        _print(
            answer,
            f"run {answer.run.run_id}: cancelled — values are under {versions} and {answer.run.to_version}: "
            "keep both keys; rewrap run begins anew",
            as_json,
        )


def let_go(job: Job, *, as_json: bool) -> bool:
    """Whether `resume` has done all there is to do: the run goes on where it is, or there was only a wish."""
    answer = anyio.run(partial(api.let_go, job, changes=job.pace.given))
    if answer is None:
        return False
    run = answer.run
    if run is None or run.state.finished:
        _print(answer, f'job "{job.name}" is not paused any more; it has no unfinished run', as_json)
        return True
    if not answer.answered:
        if run.state.live:
            stderr_console().print(f"no process has run {run.run_id} any more: going on here", soft_wrap=True)
        return False
    if answer.control.state == PAUSE:
        raise RewrapError(
            f"run {run.run_id} is {run.state}: {answer.control.state_by} has paused it again",
            hint="see rewrap status --watch",
        )
    if run.state in (RunState.PAUSING, RunState.PAUSED):
        raise RewrapError(
            f"run {run.run_id} is still {run.state}, by {run.state_by}",
            hint="it goes on when that file is taken away",
        )
    _print(answer, f"run {run.run_id}: {run.state} — it goes on in its process", as_json)
    return True


def tuned_said(tuned: dict[str, float | None]) -> str:
    """What was asked of a run's pace, for people."""
    return ", ".join(f"{name} {'none' if value is None else f'{value:,g}'}" for name, value in tuned.items())


class _Waiting:
    """Says once what is waited for; on stderr, so that the answer stands alone on stdout."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._looks = 0
        self.said_of = ""

    def __call__(self, so_far: api.Answer) -> None:
        assert so_far.run is not None
        self._looks += 1
        self.said_of = so_far.run.run_id
        if self._looks == _PATIENT_LOOKS:
            stderr_console().print(f"run {self.said_of}: {self._what}", soft_wrap=True)


_PATIENT_LOOKS = 5
"""Looks for an answer after which is said what is waited for: most are there by then."""


def _state(answer: api.Answer) -> str:
    return answer.run.state if answer.run is not None else "gone"


def _silent(run: RunRecord, meanwhile: str) -> RewrapError:
    return RewrapError(
        f"run {run.run_id} does not answer: no sign of life of its process",
        hint=f"{meanwhile}; if its process is gone nothing is written, and if it is there it may not reach "
        "its ledger",
    )


def _rate(text: str) -> float | None:
    """A rate as a command line has it; None where none is to be kept."""
    if text == "none":
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not LEAST_RATE <= rate <= 1e9:
        raise UsageError(
            f'"{text}" is no rate', hint=f"rows a second, {LEAST_RATE:g} or more, or none: --max-rate 500"
        )
    return rate


def as_json_of(answer: api.Answer) -> dict[str, Any]:
    """An answer as `--json` prints it."""
    run = None
    if answer.run is not None:
        run = asdict(answer.run)
        del run["commitments"]
    return {
        "type": "control", "schema": SCHEMA, "asked": answer.asked, "answered": answer.answered, "run": run,
        "control": asdict(answer.control),
    }  # fmt: skip


def _print(answer: api.Answer, text: str, as_json: bool) -> None:
    typer.echo(json.dumps(as_json_of(answer), ensure_ascii=False) if as_json else text)
