"""RESULTS.md, from the lines that the benches left; what people wrote into it stays."""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.journal import Line
from benchmarks.measure import Spread
from benchmarks.targets import TARGETS

_HEAD = """\
# Results

Written by `scripts/bench` from `results/*.jsonl`; [docs/benchmarks.md](../docs/benchmarks.md) says what is
measured and how. Figures are medians of the rounds, with the lowest and the highest round beside them. Text
between the marks `by hand` is kept.
"""

_BY_HAND = re.compile(r"<!-- by hand: (\w+) -->\n(.*?)<!-- end by hand -->", re.S)


def write(output: Path, names: Iterable[str]) -> None:
    """RESULTS.md and the plots, of all benches that have left their lines."""
    page = output / "RESULTS.md"
    kept = dict(_BY_HAND.findall(page.read_text(encoding="utf-8"))) if page.exists() else {}
    sections = [_HEAD]
    results = {name: lines for name in names if (lines := _read(output / "results" / f"{name}.jsonl"))}
    plots = _draw(output / "plots", results)
    for name, lines in results.items():
        sections.append(_section(name, lines, kept.get(name, ""), plots.get(name)))
    page.write_text("\n".join(sections), encoding="utf-8")


def _read(path: Path) -> list[Line]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _draw(folder: Path, results: dict[str, list[Line]]) -> dict[str, str]:
    """The plots by bench, as paths from RESULTS.md on; none without matplotlib."""
    try:
        from benchmarks import plots
    except ModuleNotFoundError as exc:
        print(f"report: no plots: {exc.name} is not installed (scripts/setup bench)", file=sys.stderr)
        return {}
    return plots.draw(folder, results)


def _section(name: str, lines: list[Line], by_hand: str, plot: str | None) -> str:
    runs = [line for line in lines if line.get("type") == "run"]
    summary = lines[-1]
    parts = [f"## {name}"]
    if lines[0].get("type") == "setting":
        parts.append(_setting(lines[0]))
    parts += [f"**MISSING** {peer}: {lack}" for peer, lack in lines[0].get("missing", {}).items()]
    parts += [f"**FAILED** {run}: {reason}" for run, reason in summary.get("failed", {}).items()]
    if "rounds" not in summary:
        # it did not come to its end
        runs = []
    if targets := TARGETS[name]:
        rows = [
            [
                target.title,
                target.wanted,
                _number(target.figure(summary)),
                _range(target.spread(summary)),
                target.verdict(summary),
            ]
            for target in targets
        ]
        parts.append(_table(["figure", "target", "measured", "rounds", ""], rows))
    if runs:
        parts.append(_TABLES[name](runs, summary))
    if plot:
        parts.append(f"![{name}]({plot})")
    parts.append(f"<!-- by hand: {name} -->\n{by_hand}<!-- end by hand -->")
    return "\n\n".join(parts) + "\n"


def _setting(line: Line) -> str:
    """Where, when and how: three lines above a bench's tables."""
    shown = [
        f"`{line['command']}`, {line['date']}, commit `{line['commit'] or 'unknown'}`",
        f"{line['cores']} cores of {line['cpu']}, {line['memory_gb']} GB, Linux {line['kernel']}, "
        f"Python {line['python']}",
    ]
    if "postgres" in line:
        settings = ", ".join(f"{name} = {value}" for name, value in line["settings"].items())
        shown.append(f"Postgres {line['postgres']} on {line['filesystem']}: {settings}")
    sizes = line.get("sizes") or [line["rows"]] if "rows" in line or "sizes" in line else []
    what = f"{' / '.join(f'{size:,}' for size in sizes)} rows, " if sizes else ""
    shown.append(f"{what}{line['rounds']} round{'s' if line['rounds'] > 1 else ''}")
    return "\n".join(f"- {text}" for text in shown)


def _hotpath(runs: list[Line], summary: Line) -> str:
    """All runs, the floors too; ratios are of the same round's one-connection floor over text."""
    floors = {line["round"]: line["rows_per_s"] for line in runs if line["run"] == "floor"}
    rows = []
    for run, lines in _by(runs, "run").items():
        ratios = [line["rows_per_s"] / floors[line["round"]] for line in lines if line["round"] in floors]
        rows.append(
            [
                run,
                *_spread(lines, "rows_per_s"),
                _number(Spread.of(ratios).median) if ratios else "",
                _number(summary.get(f"ratio_to_own_floor_{run}")),
                *(_median(lines, field) for field in _COSTS),
            ]
        )
    heads = ["run", "rows/s", "rounds", "of the floor", "of its own floor", *_COST_HEADS]
    return _table(heads, rows)


_COSTS = (
    "sweep_rows_per_s",
    "server_us_per_row",
    "client_us_per_row",
    "wal_bytes_per_row",
    "hot_share",
    "rss_mb",
)
_COST_HEADS = ("sweep 1 rows/s", "server µs/row", "client µs/row", "WAL B/row", "HOT", "RSS MB")


def _peers(runs: list[Line], summary: Line) -> str:
    rows = [
        [
            run,
            f"{lines[0]['rows']:,}",
            *_spread(lines, "rows_per_s"),
            _number(summary["times_faster"].get(run)),
            _range(summary["ranges"].get(run)),
            _median(lines, "server_us_per_row"),
            _median(lines, "client_us_per_row"),
        ]
        for run, lines in _by(runs, "run").items()
    ]
    heads = ["run", "rows", "rows/s", "rounds", "rewrap is faster by", "rounds"]
    return _table([*heads, "server µs/row", "client µs/row"], rows)


def _scale(runs: list[Line], summary: Line) -> str:
    rows = [
        [
            f"{int(run):,}",
            *_spread(lines, "rows_per_s"),
            _median(lines, "sweep_rows_per_s"),
            _median(lines, "ratio_to_floor"),
            _median(lines, "seconds"),
            *_spread(lines, "rss_mb"),
        ]
        for run, lines in sorted(_by(runs, "run").items(), key=lambda item: int(item[0]))
    ]
    heads = ["rows of the table", "rows/s", "rounds", "sweep 1 rows/s", "of the floor", "seconds"]
    return _table([*heads, "RSS MB", "rounds"], rows)


_RATE_HEADS = ("rows/s", "rounds", "sweep 1 rows/s")


def _latency(runs: list[Line], summary: Line) -> str:
    ways = [
        [
            run,
            _number(summary["round_trip_ms"].get(run)),
            *_spread(lines, "rows_per_s"),
            _median(lines, "sweep_rows_per_s"),
            _median(lines, "proxy_us_per_row"),
        ]
        for run, lines in _by(runs, "run").items()
        if run != "writers"
    ]
    tables = [_table(["by way of", "round trip ms", *_RATE_HEADS, "proxy µs/row"], ways)]
    writers = [line for line in runs if line["run"] == "writers"]
    if writers:
        felt = []
        for phase in ("quiet", "during"):
            ranks = [_spread(writers, f"writer_{rank}_ms_{phase}") for rank in ("p50", "p99", "max")]
            felt.append(
                [phase, _median(writers, f"writes_{phase}"), *(cell for rank in ranks for cell in rank)]
            )
        heads = ["an application's updates", "in a round", "p50 ms", "rounds", "p99 ms", "rounds"]
        tables.append(_table([*heads, "max ms", "rounds"], felt))
    return "\n\n".join(tables)


def _probing(runs: list[Line], summary: Line) -> str:
    rows = [
        [
            run,
            *_spread(lines, "values_per_s"),
            f"{lines[0]['first']:,}" if run.startswith("now") else "",
            _number(summary["times_faster"][run.split(", ")[1]]) if run.startswith("now") else "",
            _range(summary["ranges"][run.split(", ")[1]]) if run.startswith("now") else "",
        ]
        for run, lines in _by(runs, "run").items()
    ]
    heads = ["run", "values/s", "rounds", "opened by the first key", "faster by", "rounds"]
    return _table(heads, rows)


def _ciphers(runs: list[Line], summary: Line) -> str:
    rows = [
        [
            line["cipher"],
            line["column"],
            "yes" if line["aad"] else "no",
            f"{line['bytes']:,}",
            *(_number(line[field]) for field in ("open_us", "seal_us", "open_new_us", "us_per_row")),
            _range(line["us_per_row_range"]),
        ]
        for line in runs
    ]
    heads = ["cipher", "column", "AAD", "plaintext B", "open µs", "seal µs", "open the new µs"]
    return _table([*heads, "in all µs/row", "rounds"], rows)


def _foreground(runs: list[Line], summary: Line) -> str:
    beside = [line for line in runs if line["run"] == "beside"]
    felt = []
    for phase in ("quiet", "during"):
        ranks = [_spread(beside, f"{rank}_ms_{phase}") for rank in ("p50", "p99")]
        felt.append(
            [phase, _median(beside, f"transactions_{phase}"), *(cell for rank in ranks for cell in rank)]
        )
    speeds = [
        ["alone", *_spread([line for line in runs if line["run"] == "alone"], "rows_per_s")],
        ["beside pgbench", *_spread(beside, "rows_per_s")],
        ["after pgbench", *_spread(beside, "rows_per_s_after")],
    ]
    heads = ["pgbench's transactions", "in a round", "p50 ms", "rounds", "p99 ms", "rounds"]
    return "\n\n".join([_table(heads, felt), _table(["the run", "rows/s of sweep 1", "rounds"], speeds)])


def _pace(runs: list[Line], summary: Line) -> str:
    fields = ("steady_used", "steady_throttled", "halved_s", "doubled_s", "moving_used", "fairness")
    rows = [[line["run"], *(_number(line[field]) for field in fields)] for line in runs]
    heads = ["service", "used", "throttled", "halved s", "doubled s", "moving, used", "fairness of four"]
    return _table(heads, rows)


_TABLES: dict[str, Callable[[list[Line], Line], str]] = {
    "hotpath": _hotpath,
    "peers": _peers,
    "scale": _scale,
    "latency": _latency,
    "ciphers": _ciphers,
    "probing": _probing,
    "foreground": _foreground,
    "pace": _pace,
}


def _by(lines: Iterable[Line], field: str) -> dict[str, list[Line]]:
    found: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        found[line[field]].append(line)
    return found


def _spread(lines: list[Line], field: str) -> tuple[str, str]:
    """Median and range of a field; empty where no line has it."""
    figures = [line[field] for line in lines if field in line]
    if not figures:
        return "", ""
    spread = Spread.of(figures)
    return _number(spread.median), _range([spread.low, spread.high])


def _median(lines: list[Line], field: str) -> str:
    return _spread(lines, field)[0]


def _number(figure: Any) -> str:
    """Three figures that count, thousands with commas."""
    if figure is None:
        return ""
    return f"{figure:,.0f}" if abs(figure) >= 100 else f"{figure:.3g}"


def _range(spread: Sequence[float] | None) -> str:
    if not spread or spread[0] == spread[1]:
        return ""
    return f"{_number(spread[0])} to {_number(spread[1])}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
