"""One job over several databases: one ledger, one verdict, and a checkpoint in each."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from tests.support.values import KEYS, box, unbox
from tests.support.workbench import TIMEOUT_S, Workbench, wait_while

OTHER = """
[stores.other]
kind = "postgres"
url = "${OTHER_URL}"
"""

TARGETS = """
[[targets]]
store = "main"
table = "notes"
fields = [{ column = "body", layout = "libsodium-token" }]
[[targets]]
store = "other"
table = "letters"
fields = [{ column = "body", layout = "libsodium-token" }]
"""

ROWS = 3_000


@pytest.fixture
def other(bench: Workbench, tmp_path: Path) -> Iterator[Workbench]:
    """A second database, whose URL is in OTHER_URL."""
    name = urlsplit(bench.dsn).path.strip("/") + "_other"
    bench.sql(f"CREATE DATABASE {name}")
    second = Workbench(urlunsplit(urlsplit(bench.dsn)._replace(path=f"/{name}")), tmp_path)
    bench.environ["OTHER_URL"] = second.dsn
    try:
        yield second
    finally:
        bench.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def filled(bench: Workbench, other: Workbench, more: str = "") -> None:
    bench.notes([box(f"note {n}") for n in range(ROWS)])
    other.sql("CREATE TABLE letters (id int PRIMARY KEY, body text)")
    other.insert("letters", ["id", "body"], [(n, box(f"letter {n}")) for n in range(ROWS)])
    bench.job(TARGETS, OTHER + more)


def letters(other: Workbench) -> list[str]:
    return [row["body"] for row in other.sql("SELECT body FROM letters ORDER BY id")]


def test_one_run_rotates_both_databases(bench: Workbench, other: Workbench) -> None:
    """Both are read, written and counted; the verdict speaks of the sum."""
    filled(bench, other)
    done = bench.run()
    assert done.code == 0, done.err
    assert done.event("verdict")["values"] == 2 * ROWS
    assert done.event("verdict")["counted"] == 'in "main" in one snapshot, and in "other" in one snapshot'
    assert set(done.event("run_ended")["outcomes"]) == {"notes", "letters"}
    assert [unbox(value) for value in letters(other)] == [f"letter {n}".encode() for n in range(ROWS)]
    assert all(str(body).startswith("v2:") for body in [*bench.bodies().values(), *letters(other)])


def test_verdict_is_complete_only_when_every_store_is(bench: Workbench, other: Workbench) -> None:
    """A value that the second database still has under the old key keeps the whole from being complete."""
    filled(bench, other)
    assert bench.run().code == 0
    other.sql("UPDATE letters SET body = $1 WHERE id = 7", box("stale"))
    found = bench.rewrap("verify", "--to", "v2", "--json")
    assert found.code == 3
    assert found.event("verdict")["stale"] == 1
    assert any("letters.body" in reason for reason in found.event("verdict")["reasons"])


def test_a_store_that_is_away_ends_the_run_and_a_resume_finishes_both(
    bench: Workbench, other: Workbench
) -> None:
    """What the first store had done stays done; nothing is complete before the second one is."""
    filled(bench, other, "[limits]\nreconnect_s = 1\n")
    stopped = bench.run("--sample", "1000")
    assert stopped.code == 4, stopped.err
    where = bench.environ["OTHER_URL"]
    bench.environ["OTHER_URL"] = where.replace("_other", "_nowhere")
    away = bench.rewrap("resume", "--json")
    assert away.code == 1
    assert "does not exist" in away.err or "cannot" in away.err
    bench.environ["OTHER_URL"] = where
    done = bench.rewrap("resume", "--json")
    assert done.code == 0, done.err
    assert done.event("verdict")["values"] == 2 * ROWS


def test_a_claim_holds_everywhere_or_nowhere(bench: Workbench, other: Workbench) -> None:
    """While another job has the second database's table, the first one's is not kept either."""
    filled(bench, other)
    alone = bench.folder / "alone.toml"
    text = (bench.folder / "rewrap.toml").read_text().replace('name = "test"', 'name = "alone"')
    first, _, rest = text.partition('[[targets]]\nstore = "main"')
    alone.write_text(first + rest[rest.index("[[targets]]") :])
    arguments = ("run", "--from", "v1", "--to", "v2", "--allow-unseen-target", "--json")
    with bench.started("run", str(alone), *arguments[1:], "--max-rate", "20") as holder:
        wait_while(holder, lambda: any(value.startswith("v2:") for value in letters(other)))
        refused = bench.rewrap(*arguments)
        assert refused.code == 11, refused.err
        # the first store's table is free again at once: its own job takes it
        free = bench.folder / "free.toml"
        free.write_text(text.replace('"alone"', '"free"').partition('[[targets]]\nstore = "other"')[0])
        assert bench.rewrap("run", str(free), *arguments[1:]).code == 0
        assert holder.poll() is None
        holder.send_signal(signal.SIGINT)
        holder.wait(TIMEOUT_S)


def test_a_claim_that_failed_is_no_run_to_be_finished(bench: Workbench, other: Workbench) -> None:
    """The first store's part of a claim that the second one refused binds nobody to its version."""
    filled(bench, other)
    other.sql("CREATE SCHEMA rewrap")
    other.sql("CREATE TABLE rewrap.shard (id int)")
    refused = bench.run()
    assert refused.code == 2, refused.err
    bench.ledger.unlink(missing_ok=True)
    other.sql("DROP SCHEMA rewrap CASCADE")
    done = bench.rewrap("run", "--from", "v1", "--to", "v3", "--allow-unseen-target", "--json")
    assert done.code == 0, done.err


def test_killed_at_any_moment_a_resume_finishes_both(bench: Workbench, other: Workbench) -> None:
    """Each store has its own checkpoints; a kill costs neither a value nor a second round of all."""
    filled(bench, other)
    for at in range(4):
        with bench.started("run", "--from", "v1", "--to", "v2", "--allow-unseen-target", "--batch-size", "40",
                           "--max-rate", "100", "--json") as process:  # fmt: skip
            wanted = 100 * (at + 1)
            wait_while(
                process,
                lambda wanted=wanted: (
                    sum(str(value).startswith("v2:") for value in [*bench.bodies().values(), *letters(other)])
                    >= wanted
                ),
            )
            process.kill()
        assert process.returncode == -signal.SIGKILL
    done = bench.rewrap("resume", "--json")
    assert done.code == 0, done.err
    assert sorted(unbox(value, KEYS) for value in letters(other)) == sorted(
        f"letter {n}".encode() for n in range(ROWS)
    )
    assert sorted(unbox(str(value), KEYS) for value in bench.bodies().values()) == sorted(
        f"note {n}".encode() for n in range(ROWS)
    )
