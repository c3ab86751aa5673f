"""What every command shares: options, the two consoles, signals, and errors as two lines."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import anyio
import typer
from rich.console import Console, RenderableType

from rewrap.engine.pipeline import StopFlag
from rewrap.errors import RewrapError
from rewrap.events import SCHEMA
from rewrap.hints import DEFAULT_JOB as DEFAULT_JOB
from rewrap.hints import named as named
from rewrap.interfaces import Sink
from rewrap.job import Job
from rewrap.report import reporter

T = TypeVar("T")

UsageMistake: type[Exception] = typer.BadParameter.__bases__[0]
"""click's UsageError, which typer does not name: a missing option, an unknown one, a value out of range."""

JobArgument = Annotated[
    Path, typer.Argument(help="The job file; rewrap.toml if not named.", metavar="JOB", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON Lines on stdout, one event a line.")]
DebugOption = Annotated[
    bool, typer.Option("--debug", help="On an error, also show where it arose (frames, no values).")
]

UNCUT_COLUMNS = 10_000


def quiet_libraries() -> None:
    """Libraries log exceptions with their messages, which may hold row values: they stay silent."""
    for name in ("asyncio", "sqlalchemy", "aiosqlite", "asyncpg", "aiohttp", "azure", "msal", "urllib3"):
        logger = logging.getLogger(name)
        logger.addHandler(logging.NullHandler())
        logger.propagate = False


def stdout_console() -> Console:
    """The console for results. Where nobody looks, no width cuts what a program may read."""
    console = Console(soft_wrap=True, highlight=False)
    if not console.is_terminal:
        console.width = UNCUT_COLUMNS
    return console


def print_drawn(console: Console, drawn: RenderableType) -> None:
    """Prints a table; off a terminal without the spaces that fill its last column."""
    if console.is_terminal:
        console.print(drawn)
        return
    with console.capture() as captured:
        console.print(drawn)
    for line in captured.get().splitlines():
        console.file.write(line.rstrip() + "\n")


def stderr_console() -> Console:
    return Console(stderr=True, highlight=False)


@contextmanager
def errors_shown(*, as_json: bool, debug: bool) -> Iterator[None]:
    """Turns errors into `error:` and `hint:` lines and the exit code they carry."""
    try:
        yield
    except RewrapError as exc:
        if debug:
            _show_frames(exc)
        _fail(exc.message, exc.hint, exc.exit_code, as_json)
    except KeyboardInterrupt:
        # at once: a driver's thread may be in the middle of a look, and would be waited for
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(130)
    except (typer.Exit, typer.Abort):
        raise
    except BrokenPipeError:
        # `rewrap … | head`: what is left in the buffer has no reader either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _fail(
            "stdout was closed by its reader",
            "let the whole output be read, or write it to a file; rewrap resume goes on with a run",
            1,
            False,
        )
    except Exception as exc:
        # the message of an exception that is not ours may hold a stored value
        if debug:
            _show_frames(exc)
        _fail(
            f"internal error ({type(exc).__name__})",
            "this is a defect, please report it with the output of --debug; "
            "nothing that was not acknowledged counts as done, and rewrap resume goes on",
            1,
            as_json,
        )


def show_usage_mistake(exc: Exception) -> int:
    """Shows a mistake on the command line as every other error is shown; its exit code."""
    said: str = exc.format_message()  # type: ignore[attr-defined]  # as click's exceptions have it
    if not said:
        # no command was named: the help has been shown instead
        return 2
    message, _, advice = said.partition(". ")
    context = getattr(exc, "ctx", None)
    command = context.command_path if context is not None else "rewrap"
    hint = f"{_begun_small(advice).rstrip('.')} " if advice else ""
    typer.echo(f"error: {_begun_small(message).rstrip('.')}", err=True)
    typer.echo(f"hint: {hint}see {command} --help", err=True)
    return 2


def _begun_small(text: str) -> str:
    return text[:1].lower() + text[1:]


def _show_frames(exc: BaseException) -> None:
    frames = "".join(traceback.format_list(traceback.extract_tb(exc.__traceback__)))
    typer.echo(f"{frames}{type(exc).__name__}", err=True)


def _fail(message: str, hint: str | None, exit_code: int, as_json: bool) -> NoReturn:
    if as_json:
        shown = {
            "type": "error", "schema": SCHEMA, "message": message, "hint": hint,
            "exit_code": exit_code,
        }  # fmt: skip
        typer.echo(json.dumps(shown, ensure_ascii=False))
    typer.echo(f"error: {message}", err=True)
    if hint:
        typer.echo(f"hint: {hint}", err=True)
    raise typer.Exit(exit_code) from None


def load_job(path: Path) -> Job:
    return Job.load(path)


def supervised(work: Callable[[Sink, StopFlag], Awaitable[T]], *, as_json: bool) -> T:
    """Runs `work` with progress shown, until it ends or is told to stop.

    The first SIGINT or SIGTERM ends it at the next batch's edge; a second one leaves at once, which is as
    safe as any crash: what was not acknowledged is read again.
    """
    console = stderr_console()
    shown = reporter(json_lines=as_json, out=sys.stdout, console=console)
    stop = StopFlag()
    results: list[T] = []
    failures: list[Exception] = []

    async def watch() -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for received in signals:
                if stop.requested:
                    console.show_cursor(True)
                    os._exit(128 + received)
                stop.set(received.name)
                console.print(
                    f"{received.name}: finishing the batch in hand (again: leave at once)",
                    soft_wrap=True,
                )

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            try:
                results.append(await work(shown, stop))
            except Exception as exc:
                failures.append(exc)
            group.cancel_scope.cancel()

    with shown:
        anyio.run(main)
    if failures:
        raise failures[0]
    return results[0]
