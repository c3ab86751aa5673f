"""`python -m rewrap.demo`: plays the demonstration and says what it proved."""

import argparse
import json
import secrets
import sys
from collections.abc import Sequence

from rich.console import Console

from rewrap.demo.errors import DemoError
from rewrap.demo.narrator import Narrator
from rewrap.demo.stage import Result, perform


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 when everything that must be 0 is 0, 1 when not, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    # With --json stdout belongs to the result.
    narrator = Narrator(Console(stderr=options.json, highlight=False))
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    try:
        result = perform(narrator, rows=options.rows, seed=seed, cosmos=options.cosmos)
    except DemoError as exc:
        narrator.failure(exc.message, exc.hint)
        return 1
    except KeyboardInterrupt:
        return 130
    _summarise(narrator, result, seed)
    if options.json:
        sys.stdout.write(json.dumps(result.as_json()) + "\n")
    return 1 if result.reasons else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rewrap demo",
        description="Rotate the key of a live database, kill the run, resume it, prove the result.",
    )
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON")
    parser.add_argument(
        "--rows", type=_positive, default=300_000, metavar="N", help="in total; default 300000"
    )
    parser.add_argument(
        "--cosmos", action="store_true", help="with documents in a Cosmos DB emulator besides"
    )
    parser.add_argument("--seed", type=int, metavar="S", help="of the rows and the writers")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 3:
        raise argparse.ArgumentTypeError("at least 3: one row a table")
    return number


def _summarise(narrator: Narrator, result: Result, seed: int) -> None:
    app, own = "the application's audit", "rewrap verify --deep"
    lines = [
        ("rows", f"{result.rows:,}", app),
        ("values", f"{result.values:,}", own),
        ("lost updates", f"{result.lost:,}", app),
        ("undecryptable values", f"{result.undecryptable:,}", app),
        ("values that rewrap cannot open", f"{result.unopenable:,}", own),
        ("values still under the old key", f"{result.stale:,}", own),
        ("other columns changed", f"{result.other_columns_wrong:,}", app),
        ("errors the application saw", f"{result.application_errors:,}", "its own count"),
        (
            "writes during the rotation",
            f"{result.writes_during_run:,}",
            f"p99 {result.p99_ms_during:.1f} ms; {result.p99_ms_before:.1f} ms before",
        ),
        ("values when it was killed", f"{result.killed_at_values:,}", "under the new key"),
        ("rotation, kill included", f"{result.rotation_s:.1f} s", "run, SIGKILL, resume"),
        ("all of it", f"{result.seconds:.1f} s", f"--seed {seed}"),
    ]
    title = "Not proved" if result.reasons else "Proved"
    narrator.summary(title, lines, good=not result.reasons)
    for reason in result.reasons:
        narrator.failure(reason)


if __name__ == "__main__":
    sys.exit(main())
