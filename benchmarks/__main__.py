"""The command line: `python -m benchmarks [NAME…]`. scripts/bench makes the environment first."""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import sys
from pathlib import Path

from benchmarks import report
from benchmarks.errors import BenchError
from benchmarks.journal import Journal
from benchmarks.options import Options
from rewrap.demo.postgres import DemoError

HERE = Path(__file__).resolve().parent

BENCHES = ("hotpath", "peers", "scale", "latency", "ciphers", "probing", "foreground", "pace")


def main(arguments: list[str]) -> int:
    """Runs the benches; 0 when nothing failed."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    if unknown := set(asked.names) - set(BENCHES):
        parser.error(f"unknown bench {', '.join(sorted(unknown))}; there are {', '.join(BENCHES)}")
    options = Options(tuple(arguments), asked.quick, asked.rows, asked.rounds)
    # figures of a trial do not take the place of measured ones
    output = asked.output or (None if asked.quick else HERE)
    if asked.render:
        report.write(output or HERE, BENCHES)
        return 0
    failed = []
    for name in asked.names or BENCHES:
        journal = Journal(name)
        try:
            importlib.import_module(f"benchmarks.{name}").run(journal, options)
        except (BenchError, DemoError) as exc:
            journal.fail(name, str(exc))
            journal.summarise()
        if journal.failed:
            failed.append(name)
        if output is not None:
            _keep(output, journal)
            report.write(output, BENCHES)
    for name in failed:
        print(f"error: {name} failed in part or whole: see above", file=sys.stderr)
    return 1 if failed else 0


def _keep(output: Path, journal: Journal) -> None:
    """The lines of a bench in results/NAME.jsonl, in place of those of an earlier time."""
    folder = output / "results"
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in journal.lines)
    (folder / f"{journal.bench}.jsonl").write_text(text, encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures rewrap: JSON Lines on stdout, progress on stderr. See docs/benchmarks.md.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHES)}; all by default")
    parser.add_argument("--quick", action="store_true", help="tiny tables, one round: a trial, not kept")
    parser.add_argument("--rows", type=_positive, metavar="N", help="rows of the (largest) table")
    parser.add_argument("--rounds", type=_positive, metavar="N", help="rounds of interleaved runs")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where RESULTS.md, results/ and plots/ go (benchmarks/)"
    )
    parser.add_argument("--render", action="store_true", help="write RESULTS.md and plots from results/ only")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


if __name__ == "__main__":
    # a shell starts what runs in the background with SIGINT ignored; every server would outlive a Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
