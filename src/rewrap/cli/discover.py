"""`rewrap discover`, and what `rewrap job init` shares with it."""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import anyio
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rewrap import preflight
from rewrap.cli.terminal import (
    DEFAULT_JOB,
    DebugOption,
    JsonOption,
    errors_shown,
    print_drawn,
    stdout_console,
)
from rewrap.discover import Discovery, Place
from rewrap.draft import Draft, described, quoted, shown_layout
from rewrap.errors import UsageError
from rewrap.events import Notice
from rewrap.job import Job
from rewrap.recognise import Likeness
from rewrap.report import JsonLines
from rewrap.stores.open import Stores
from rewrap.stores.postgres.connection import Address, address_of
from rewrap.unfinished import UnfinishedJob

SKIPPED_LINES = 20
"""Columns that were not looked at, shown one by one; the rest are counted (--json has them all)."""

WriteOption = Annotated[
    Path | None,
    typer.Option("--write", metavar="FILE", help="Write a job file for review; never overwrites one."),
]
SampleOption = Annotated[
    int, typer.Option("--sample", min=5, max=10_000, metavar="N", help="Values looked at in each column.")
]


def discover(
    source: Annotated[
        str | None,
        typer.Argument(
            help="A database URL, or a job file whose keys are tried; rewrap.toml if not named.",
            metavar="URL-or-JOB",
            show_default=False,
        ),
    ] = None,
    write: WriteOption = None,
    sample: SampleOption = 200,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Look for columns that hold ciphertext and are in no job. Shows forms, never values."""
    with errors_shown(as_json=as_json, debug=debug):
        address, job = _source(source)
        found = look(address, job, sample)
        text = draft_of(found, address, job) if write else ""
        if write:
            write_new(write, text)
        if as_json:
            lines = JsonLines(sys.stdout)
            for exc in found.keys_refused:
                lines(Notice(level="warning", message=f"not tried: {exc.message}", hint=exc.hint))
            for place in found.places:
                lines(place.event())
            for one in found.skipped:
                lines(one)
            lines(found.event(str(write) if write else None))
            return
        console = stdout_console()
        show(console, found)
        if write:
            console.print(f"written for review: {write}")
            console.print(f"next: read it, set the keys it names, then rewrap check {write}")
        elif found.fresh:
            console.print("next: rewrap discover … --write FILE makes a job file of it, for review")


def _source(source: str | None) -> tuple[Address, Job | None]:
    if source is not None and "://" in source:
        return address_of(source), None
    if source is None and not DEFAULT_JOB.exists() and os.environ.get("DATABASE_URL"):
        raise UsageError(
            f"there is no {DEFAULT_JOB} here, and no database is named",
            hint='rewrap discover "$DATABASE_URL" looks at it; rewrap job init makes a first job file',
        )
    job = UnfinishedJob.load(Path(source or DEFAULT_JOB))
    asked = Stores(job, os.environ).asked
    if asked is None:
        raise UsageError(
            f'job "{job.name}" has no store in Postgres, and discover looks into no other',
            hint="name the properties of a container by hand (docs/job-file.md)",
        )
    return asked, job


def look(address: Address, job: Job | None, sample: int) -> Discovery:
    async def work() -> Discovery:
        return await preflight.find_columns(address, job, sample=sample)

    return anyio.run(work)


def draft_of(found: Discovery, address: Address, job: Job | None) -> str:
    """The job file for what was found and is in no job yet."""
    if job is None:
        name = "".join(c if c.isalnum() or c in "._-" else "-" for c in address.shown.rpartition("/")[2])
        return Draft(name.strip(".-_")[:60] or "database", found.fresh).toml()
    declared = tomllib.loads(job.path.read_text(encoding="utf-8"))
    kept: dict[str, Any] = {
        section: declared[section] for section in ("stores", "keys", "layouts") if section in declared
    }
    head = f"name = {quoted(job.name[:57] + '-found')}\n{_toml(kept)}"
    return Draft(job.name, found.fresh, frozenset(job.layouts), head).toml()


def _toml(tables: Mapping[str, Any], path: str = "") -> str:
    """Nested tables of a job file, as TOML."""
    out = ""
    for name, value in tables.items():
        bare = name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else quoted(name)
        here = f"{path}.{bare}" if path else bare
        scalars = {key: one for key, one in value.items() if not isinstance(one, dict)}
        if scalars:
            out += f"\n[{here}]\n" + "".join(f"{key} = {_scalar(one)}\n" for key, one in scalars.items())
        out += _toml({key: one for key, one in value.items() if isinstance(one, dict)}, here)
    return out


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return quoted(value) if isinstance(value, str) else str(value)


def write_new(path: Path, text: str) -> None:
    """Writes a file that is not there yet."""
    try:
        with path.open("x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError:
        raise UsageError(
            f"file {path} is there already, and is not overwritten", hint="name another file in --write"
        ) from None
    except OSError as exc:
        raise UsageError(f"file {path} cannot be written: {exc.strerror}", hint="check the folder") from None


def show(console: Console, found: Discovery) -> None:
    """What was found, for people."""
    sealed = [*found.of(Likeness.CIPHERTEXT), *(p for p in found.of(Likeness.NOTHING) if p.in_job)]
    if sealed:
        drawn = Table(box=None, pad_edge=False, header_style="bold")
        drawn.add_column("column", style="cyan")
        drawn.add_column("looks like")
        drawn.add_column("share", justify="right")
        for name in ("versions", "opens as"):
            drawn.add_column(name)
        for place in sealed:
            drawn.add_row(
                Text(f"{place.table.name}.{place.name}"), Text(described(place)), place.look.shown_share,
                Text(", ".join(f"{v} {n}" for v, n in sorted(place.look.versions.items()))),
                Text(_opens(place)),
            )  # fmt: skip
        print_drawn(console, drawn)
    doubtful = found.of(Likeness.HASH, Likeness.TOKEN)
    if doubtful:
        console.print("look like hashes or tokens, and stay out of a job:")
        for place in doubtful:
            console.print(Text(f"  {place.table.name}.{place.name}: {place.look.family}"))
    if found.skipped:
        console.print("not looked at, so that what is in them is not known:")
        for one in found.skipped[:SKIPPED_LINES]:
            console.print(Text(f"  {one.table}.{one.column}: {one.reason}"))
        if len(found.skipped) > SKIPPED_LINES:
            console.print(f"  … and {len(found.skipped) - SKIPPED_LINES:,} more (--json names them)")
    for place in sealed:
        if place.undecided and not place.in_job:
            console.print(
                Text(
                    f"note: {place.table.name}.{place.name}: {' or '.join(place.undecided)} may name its "
                    "key; decide, and name it as its version, before you run"
                )
            )
    for exc in found.keys_refused:
        console.print(Text(f"note: not tried: {exc.message}"))
        console.print(Text(f"      {exc.hint}"))
    refused = [place for place in sealed if place.refused]
    for place in refused:
        console.print(
            Text(f"note: {place.table.name}.{place.name} cannot be rotated as it is: {place.refused}")
        )
    fresh = len(found.fresh)
    console.print(
        f"looked at {found.columns:,} column{'' if found.columns == 1 else 's'} of {found.tables:,} "
        f"table{'' if found.tables == 1 else 's'}: {fresh:,} "
        f"look{'s' if fresh == 1 else ''} like ciphertext and {'is' if fresh == 1 else 'are'} in no job"
    )


def _opens(place: Place) -> str:
    told = [f"{shown_layout(one)} under {one.version} ({one.opened}/{one.tried})" for one in place.opens]
    if not told and place.fits:
        told = [f"fits {', '.join(place.fits)}"]
    if place.in_job:
        told.append("in this job")
    if place.tried and place.in_job and not place.opens:
        told.append("opens under no layout tried: check its layout (order, aad) and the keys")
    return "; ".join(told)
