"""Progress for people and for programs. Consumes events and nothing else."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Protocol, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rewrap.events import (
    Event,
    FieldVerdict,
    FingerprintTaken,
    Notice,
    Progress,
    Quarantined,
    RunEnded,
    RunStarted,
    Steered,
    SweepDone,
    SweepStarted,
    Untouched,
    Verdict,
)
from rewrap.model import shown_key
from rewrap.progresstable import ProgressRow, progress_drawn

LINE_INTERVAL_S = 5.0
"""Seconds between two progress lines of one table where there is no terminal."""

QUARANTINE_LINES = 10
"""Quarantined values shown one by one; the rest are counted (rewrap quarantine list has them all)."""


class Reporter(Protocol):
    """Shows events as they come. Used as a context around a run."""

    def __call__(self, event: Event) -> None: ...

    def __enter__(self) -> Reporter: ...

    def __exit__(self, *exc: object) -> None: ...


class JsonLines:
    """One JSON object a line, as it happens."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def __call__(self, event: Event) -> None:
        self._out.write(json.dumps(event.as_json(), ensure_ascii=False) + "\n")
        self._out.flush()

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *exc: object) -> None:
        pass


class Lines:
    """Plain lines on stderr: one for each table and interval. For logs, pipes and CI."""

    def __init__(self, console: Console, interval_s: float = LINE_INTERVAL_S) -> None:
        self.console = console
        self._interval_s = interval_s
        self._said: dict[str, float] = {}
        self._quarantined = 0
        self._from = "the old version"
        self._dry = False

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *exc: object) -> None:
        hidden = self._quarantined - QUARANTINE_LINES
        if hidden > 0:
            self.say(Text(f"… and {hidden:,} more in quarantine: rewrap quarantine list"))

    def say(self, text: Text) -> None:
        self.console.print(text, soft_wrap=True, highlight=False)

    def __call__(self, event: Event) -> None:
        match event:
            case RunStarted():
                self._from = " or ".join(event.from_versions)
                self._dry = event.dry_run
                self.say(_started(event))
            case Notice():
                self.say(notice_text(event))
            case Steered():
                self.say(_steered(event))
            case FingerprintTaken():
                self.say(_fingerprint_taken(event))
            case Quarantined():
                self._quarantined += 1
                if self._quarantined <= QUARANTINE_LINES:
                    self.say(
                        Text.assemble(
                            (f"[{event.target}] ", "cyan"),
                            ("quarantined ", "yellow"),
                            f"row {shown_key(event.row)}, {event.field}: {event.reason}",
                        )
                    )
            case Progress():
                self.progress(event)
            case SweepStarted():
                self._said[event.target] = time.monotonic()
                if event.sweep > 1:
                    self.say(
                        Text.assemble(
                            (f"[{event.target}] ", "cyan"),
                            f"sweep {event.sweep}: looking for values still under {self._from}",
                        )
                    )
            case SweepDone():
                self.say(_sweep_done(event, dry=self._dry))
            case _:
                pass

    def progress(self, event: Progress) -> None:
        now = time.monotonic()
        if now - self._said.get(event.target, 0.0) < self._interval_s:
            return
        self._said[event.target] = now
        left = eta(event)
        self.say(
            Text.assemble(
                (f"[{event.target}] ", "cyan"),
                f"{event.rows_done:,}/{event.rows_estimated:,} rows — {event.resealed:,} "
                f"{'to reseal' if self._dry else 'resealed'}, {event.quarantined:,} "
                f"{'to quarantine' if self._dry else 'quarantined'}, {event.rows_per_s:,.0f} rows/s"
                f"{left and f', ETA {left}'} (held back by {event.waiting_for})",
            )
        )


class LiveTable(Lines):
    """A table that is drawn again in place, on a terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._progress: dict[str, Progress | None] = {}
        self._read: dict[str, SweepDone] = {}
        self._sweeping: dict[str, str] = {}
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._draw)

    def __enter__(self) -> LiveTable:
        self._live.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.refresh()
        self._live.__exit__(None, None, None)
        super().__exit__(*exc)

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._progress = dict.fromkeys(event.targets)
        if isinstance(event, SweepStarted) and event.sweep > 1:
            # it has a place of its own in the table
            self._sweeping[event.target] = f"sweep {event.sweep}"
            return
        if isinstance(event, SweepDone) and event.sweep == 1:
            self._read[event.target] = event
        if isinstance(event, SweepDone) and event.sweep > 1:
            self._sweeping[event.target] = f"sweep {event.sweep} found {event.found:,}"
            if not event.found:
                return
        super().__call__(event)

    def progress(self, event: Progress) -> None:
        if event.sweep == 1:
            self._progress[event.target] = event
        else:
            self._sweeping[event.target] = f"sweep {event.sweep}, {event.waiting_for}"

    def _draw(self) -> Group:
        if not any(self._progress.values()) and not self._sweeping:
            # a run that is refused has nothing to show
            return Group()
        rows = []
        for target, event in self._progress.items():
            if event is None:
                rows.append(ProgressRow(target, reason=self._sweeping.get(target, "")))
                continue
            read = self._read.get(target)
            rows.append(
                ProgressRow(
                    target, event.rows_done, event.rows_estimated,
                    read.rows_done / max(read.seconds, 0.001) if read else event.rows_per_s,
                    event.stale_left, event.quarantined,
                    "done" if read else eta(event),
                    self._sweeping.get(target, "") if read else event.waiting_for,
                )
            )  # fmt: skip
        return progress_drawn(rows, self.console, self.console.width)


def reporter(*, json_lines: bool, out: TextIO, console: Console) -> Reporter:
    """What suits the place: JSON Lines where asked for, a live table on a terminal, lines elsewhere."""
    if json_lines:
        return JsonLines(out)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveTable(console)
    return Lines(console)


_METERED = {"request_units": "request units", "vault_calls": "vault calls"}
"""What people call the units of `RunEnded.spent`."""


def summary(ended: RunEnded, verdict: Verdict | None) -> list[Text]:
    """The result of a run, for stdout."""
    colour = {0: "green", 3: "yellow", 4: "yellow", 5: "yellow"}.get(ended.exit_code, "red")
    dry = ended.state == "dry-run"
    lines = [
        Text.assemble(
            "dry run: " if dry else f"run {ended.run_id}: ",
            ("nothing was written" if dry else ended.state, f"bold {colour}"),
            f" — {ended.rows:,} rows, {ended.values:,} values {'read ' if dry else ''}"
            f"in {duration(ended.seconds)} ({ended.rows_per_s:,.0f} rows/s)",
        )
    ]
    for target, fields in ended.outcomes.items():
        for name, counts in fields.items():
            said = f"{'would be ' if dry else ''}{classes(counts)}" if any(counts.values()) else "no values"
            lines.append(Text(f"  {target}.{name}: {said}"))
    if ended.resealed_late:
        lines.append(
            Text(f"  written under the old version meanwhile, and resealed: {ended.resealed_late:,}")
        )
    if ended.probed.get("opened"):
        every, first = ended.probed["opened"], ended.probed.get("first", 0)
        lines.append(
            Text(f"  keys found by trying: {every:,} values, {first / every:.1%} by the key tried first")
        )
    if ended.spent:
        used = ", ".join(f"{_METERED.get(unit, unit)} {count:,.0f}" for unit, count in ended.spent.items())
        lines.append(Text(f"  used by this process: {used}"))
    if verdict is not None:
        lines += verdict_lines(verdict)
    lines += [
        Text.assemble(("  left: ", "yellow"), reason)
        for reason in ended.reasons
        if verdict is None or reason not in verdict.reasons
    ]
    return lines


def verdict_lines(verdict: Verdict) -> list[Text]:
    """What verify found, for stdout."""
    shown = {
        "stale": verdict.stale,
        "unmarked": verdict.unmarked,
        "other_version": verdict.other_version,
        "quarantined": verdict.quarantined,
        "deferred": verdict.deferred,
        "plaintext": verdict.plaintext,
        "waived": verdict.waived,
    }
    if verdict.deep:
        shown["unopenable"] = verdict.unopenable
    head = ("complete", "bold green") if verdict.complete else ("not complete", "bold yellow")
    how = f"counted, each under {verdict.to_version} tried with its key," if verdict.deep else "counted"
    lines = [
        Text.assemble(
            f"verify to {verdict.to_version}: ",
            head,
            f" — {verdict.values:,} values {how} {verdict.counted}; "
            + ", ".join(f"{name} {count:,}" for name, count in shown.items()),
        )
    ]
    lines += [Text.assemble(("  left: ", "yellow"), reason) for reason in verdict.reasons]
    return lines


def field_lines(fields: list[FieldVerdict]) -> Table:
    """Verify's census as a table: a row for each column, classes and versions."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("column", style="cyan")
    table.add_column("values", justify="right")
    table.add_column("classes")
    table.add_column("versions")
    for one in fields:
        table.add_row(
            f"{one.target}.{one.field}",
            f"{one.values:,}",
            classes(one.classes),
            ", ".join(f"{version} {count:,}" for version, count in sorted(one.versions.items())),
        )
    return table


def untouched_line(event: Untouched) -> Text:
    """What became of something that a run had to leave as it was, for stdout."""
    since = event.since[:19].replace("T", " ")
    text = Text.assemble((f"untouched {event.target}", "bold"), f" ({columns_said(event.columns)}): ")
    if event.fingerprint == event.fingerprint_before:
        return text.append("unchanged", "bold green").append(
            f" — {event.rows:,} rows, fingerprint {event.fingerprint[:16]} as at {since} UTC"
        )
    text.append(
        f"{event.changed:,} differ" if event.changed else "none differs",
        "bold yellow" if event.changed else "bold green",
    )
    return text.append(
        f" of {event.unchanged + event.changed:,} rows that were there at {since} UTC and are there now; "
        f"{event.inserted:,} new, {event.deleted:,} gone since"
    )


def columns_said(columns: Sequence[str]) -> str:
    """What of a table was fingerprinted, for people."""
    return ", ".join("every other column" if name == "*" else name for name in columns) or "whole rows"


def classes(counts: Mapping[str, int]) -> str:
    """`2,840 resealed, 7 current`: the classes that occur, largest first, equal ones by name."""
    ordered = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    return ", ".join(f"{count:,} {name}" for name, count in ordered if count)


def eta(event: Progress) -> str:
    """How long a table will take yet, for people; empty where nobody can say."""
    if not event.eta_s or event.rows_per_s < 1 or event.waiting_for.startswith(_STANDSTILLS):
        return ""
    return duration(event.eta_s)


_STANDSTILLS = ("reconnecting", "a lock on the table", "a pause by", "pause file")


def duration(seconds: float) -> str:
    """Seconds as people say them: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 05 min`, `3 d 4 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3_600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 48 * 3_600:
        return f"{whole // 3_600} h {whole % 3_600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3_600} h"


def _started(event: RunStarted) -> Text:
    verb = "dry run" if event.dry_run else "resuming run" if event.resumed else "run"
    name = "" if event.dry_run else f" {event.run_id}"
    keys = ", ".join(f"{version} {shown}" for version, shown in event.fingerprints.items())
    return Text.assemble(
        (f"{verb}{name}", "bold"),
        f" of {event.job}: {', '.join(event.from_versions)} → {event.to_version} over "
        f"{', '.join(event.targets)} (keys: {keys})",
    )


def _steered(event: Steered) -> Text:
    match event.asked, event.state:
        case "pause", "pausing":
            said, more = "pausing", "finishing the batch in hand"
        case "pause", _:
            said, more = "paused", "nothing is read or written; rewrap resume lets it go on"
            if event.by.startswith("pause file"):
                more = "nothing is read or written; it goes on when the file is taken away"
        case "cancel", _:
            said, more = "cancelled", "finishing the batch in hand"
        case "tune", _:
            said, more = "tuned" if event.by else "as the job says", pace_said(event)
        case _:
            said, more = "going on", ""
    text = Text.assemble((said, "bold yellow"), f" by {event.by}" if event.by else "")
    return text.append(f": {more}" if more else "")


def pace_said(pace: Steered) -> str:
    """A pace as people read it."""
    rate = "no max_rate" if pace.max_rate is None else f"max_rate {pace.max_rate:,g} rows/s"
    places = "as the job's shards allow" if pace.in_flight is None else f"{pace.in_flight}"
    return f"{rate}, batch_size {pace.batch_size:,}, in_flight {places}"


def _fingerprint_taken(event: FingerprintTaken) -> Text:
    return Text.assemble(
        (f"[{event.target}] ", "cyan"),
        f"fingerprint {event.fingerprint[:16]} of {event.rows:,} rows ({columns_said(event.columns)}) "
        f"taken in {duration(event.seconds)}",
    )


def notice_text(event: Notice) -> Text:
    """A notice with its hint, as people read it."""
    style = "yellow" if event.level == "warning" else ""
    text = Text.assemble((f"{event.level}: " if event.level != "info" else "", style), event.message)
    if event.hint:
        text.append(f"\nhint: {event.hint}")
    return text


def _sweep_done(event: SweepDone, *, dry: bool) -> Text:
    if event.sweep > 1:
        return Text.assemble(
            (f"[{event.target}] ", "cyan"),
            f"sweep {event.sweep} found {event.found:,}" + ("" if event.found else " — none left"),
        )
    total: dict[str, int] = {}
    for counts in event.outcomes.values():
        for name, count in counts.items():
            total[name] = total.get(name, 0) + count
    return Text.assemble(
        (f"[{event.target}] ", "cyan"),
        f"{'read' if dry else 'done'} — {event.rows_done:,} rows in {duration(event.seconds)}: "
        f"{'would be ' if dry and any(total.values()) else ''}{classes(total) or 'empty'}",
    )
