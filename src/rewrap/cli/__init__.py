"""The command line: thin over `rewrap.api`; errors become two lines and an exit code."""

from __future__ import annotations

import gc
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from rewrap.cli import audit, check, discover, job, keys, plan, quarantine, run, status, steer, verify
from rewrap.cli.terminal import UsageMistake, quiet_libraries, show_usage_mistake

_ORDER = (
    "check", "plan", "run", "status", "verify", "pause", "resume", "tune", "cancel", "quarantine", "audit",
    "keys", "discover", "job",
)  # fmt: skip
"""The commands of a rotation in the order of their use, then the others."""


class _Ordered(TyperGroup):
    """Lists the commands in that order, groups among them."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=lambda name: _ORDER.index(name))


app = typer.Typer(
    name="rewrap",
    cls=_Ordered,
    help="Rotate encryption keys over live rows and documents: resumable, compare-and-swap, verified.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # a traceback with local variables would print keys and plaintext
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 failed, 2 usage or job file, 3 values remain, 4 stopped and "
    "resumable, 5 cancelled, 10 key unavailable or refused, 11 lease held by another run.",
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and leave."),
) -> None:
    """Rotate encryption keys over live rows and documents: resumable, compare-and-swap, verified."""
    if version:
        from rewrap import __version__

        typer.echo(f"rewrap {__version__}")
        raise typer.Exit


app.command("check")(check.check)
app.command("plan")(plan.plan)
app.command("run")(run.run)
app.command("status")(status.status)
app.command("verify")(verify.verify)
app.command("pause")(steer.pause)
app.command("resume")(run.resume)
app.command("tune")(steer.tune)
app.command("cancel")(steer.cancel)
app.add_typer(quarantine.app, name="quarantine")
app.add_typer(audit.app, name="audit")
app.add_typer(keys.app, name="keys")
app.command("discover")(discover.discover)
app.add_typer(job.app, name="job")


def main() -> None:
    """The console script."""
    quiet_libraries()
    # what was imported stays, and a batch makes thousands of objects without a cycle among them: left at its
    # defaults the collector walks all of it again and again (8 % of a run)
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)
    try:
        code = app(standalone_mode=False)
    except UsageMistake as exc:
        code = show_usage_mistake(exc)
    sys.exit(code or 0)
