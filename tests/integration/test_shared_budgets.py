"""Several processes that share one budget, over a ledger in Postgres."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from rewrap.pace.shared import PIECE_S
from tests.support.budgets import busiest_second, jain
from tests.support.relay import Relay
from tests.support.values import box
from tests.support.workbench import NOTES, Workbench, wait_for

ROOT = Path(__file__).parents[2]

RATE = 1_200.0
PIECE = RATE * PIECE_S

SLOW_RATE = 400.0
"""Rows a second of four whole runs: a machine that has much else to do has the time for it."""

WAIT_S = 90.0
"""Seconds to wait for what takes three on an idle machine."""

JOB = """
[pace.shared.orders-db]
rate = {rate}
"""

LOG = """
CREATE TABLE used (at double precision, name text, rows int);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO used SELECT extract(epoch FROM clock_timestamp()), TG_TABLE_NAME, count(*) FROM written;
    RETURN NULL;
END $$;
"""
"""When how many rows were written, as the server saw it."""


class Sharer:
    """A process that uses up the budget, and what it said of it so far."""

    def __init__(self, bench: Workbench, number: int, cost: float) -> None:
        self._said = bench.folder / f"sharer-{number}.txt"
        with self._said.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.sharer", "orders-db", str(RATE), str(cost)],
                cwd=ROOT,
                env={**bench.environ, "REWRAP_LEDGER_URL": bench.dsn},
                stdout=out,
            )

    @property
    def lines(self) -> list[str]:
        text = self._said.read_text()
        # the last line may be on its way
        return text[: text.rfind("\n") + 1].splitlines()

    def said(self, text: str) -> list[str]:
        return [line for line in self.lines if line.startswith("#") and text in line]

    @property
    def uses(self) -> list[tuple[float, float]]:
        pairs = (line.split() for line in self.lines if not line.startswith("#"))
        return [(float(at), float(units)) for at, units in pairs]

    def used(self, since: float, until: float = 1e18) -> float:
        return sum(units for at, units in self.uses if since <= at < until)


@contextlib.contextmanager
def sharers(bench: Workbench, costs: list[float]) -> Iterator[list[Sharer]]:
    started: list[Sharer] = []
    try:
        for number, cost in enumerate(costs):
            started.append(Sharer(bench, number, cost))
        yield started
    finally:
        for one in started:
            one.process.send_signal(signal.SIGCONT)
            one.process.kill()
            one.process.wait(30)


def seconds_together(group: list[Sharer], since: float) -> float:
    """For how long all of them have used the budget since then, as far as each has said."""
    return min((one.uses[-1][0] if one.uses else 0.0) for one in group) - since


def test_processes_keep_to_one_budget_in_equal_parts(bench: Workbench) -> None:
    """In any second at most the rate and one piece each; one that is killed leaves its part to the others."""
    with sharers(bench, [PIECE, 100.0, 25.0, 10.0]) as group:
        wait_for(lambda: all(one.uses for one in group), WAIT_S)
        began = max(one.uses[0][0] for one in group) + 1.0
        wait_for(lambda: seconds_together(group, began) >= 4.0, WAIT_S)
        ended = min(one.uses[-1][0] for one in group)
        parts = [one.used(began, ended) for one in group]
        group[0].process.kill()
        killed = max(one.uses[-1][0] for one in group[1:]) + 1.0
        wait_for(lambda: seconds_together(group[1:], killed) >= 2.5, WAIT_S)
        over = min(one.uses[-1][0] for one in group[1:])
        after = sum(one.used(killed, over) for one in group[1:])
        everything = [use for one in group for use in one.uses]
    assert busiest_second(everything) <= RATE + 4 * PIECE
    assert sum(parts) <= RATE * (ended - began) + 4 * PIECE
    assert jain(parts) >= 0.95, parts
    # three of four parts would be what is left for them, if the dead one's were kept
    assert after >= 0.85 * RATE * (over - killed)


def test_one_that_was_stopped_does_not_come_back_with_what_it_had(bench: Workbench) -> None:
    """Its pieces are over when it goes on: in no second more than the budget and one piece each."""
    with sharers(bench, [50.0, 50.0]) as group:
        wait_for(lambda: all(one.uses for one in group), WAIT_S)
        group[0].process.send_signal(signal.SIGSTOP)
        stopped = group[1].uses[-1][0]
        wait_for(lambda: group[1].uses[-1][0] >= stopped + 2.0, WAIT_S)
        group[0].process.send_signal(signal.SIGCONT)
        woken = group[1].uses[-1][0]
        wait_for(lambda: seconds_together(group, woken) >= 1.5, WAIT_S)
        everything = [use for one in group for use in one.uses]
    assert busiest_second(everything) <= RATE + 2 * PIECE


def test_without_the_ledger_they_go_on_at_their_last_share(bench: Workbench) -> None:
    """Each says so, and all together never pass the budget; when it is back, so are they."""
    server = urlsplit(bench.dsn)
    assert server.hostname
    assert server.port
    with Relay(server.hostname, server.port) as relay:
        by_relay = f"{server.username}:{server.password}@" if server.password else f"{server.username}@"
        bench.dsn = urlunsplit(server._replace(netloc=f"{by_relay}127.0.0.1:{relay.port}"))
        with sharers(bench, [50.0, 50.0]) as group:
            wait_for(lambda: all(one.uses for one in group), WAIT_S)
            began = max(one.uses[0][0] for one in group)
            wait_for(lambda: seconds_together(group, began) >= 3.0, WAIT_S)
            relay.cut()
            wait_for(lambda: all(one.said("the ledger is away") for one in group), WAIT_S)
            away = max(one.uses[-1][0] for one in group)
            wait_for(lambda: seconds_together(group, away) >= 2.0, WAIT_S)
            relay.mend()
            wait_for(lambda: all(one.said("the ledger is back") for one in group), WAIT_S)
            everything = [use for one in group for use in one.uses]
            said = [line for one in group for line in one.said("the ledger is away")]
        bench.dsn = server.geturl()
    assert len(said) == 2
    assert all("goes on with its last share, " in line for line in said)
    assert busiest_second(everything) <= RATE + 2 * PIECE


def test_runs_of_four_jobs_share_one_budget(bench: Workbench, tmp_path: Path) -> None:
    """Each on its table of one server: together they keep to it, and each gets its part."""
    bench.sql(LOG)
    value = box("note")
    jobs, piece = [], SLOW_RATE * PIECE_S
    for number in range(4):
        table = f"notes{number}"
        bench.sql(f"CREATE TABLE {table} (id bigint PRIMARY KEY, body text)")
        bench.insert(table, ["id", "body"], [(row, value) for row in range(20_000)])
        bench.sql(
            f"CREATE TRIGGER noted AFTER UPDATE ON {table} REFERENCING NEW TABLE AS written "
            "FOR EACH STATEMENT EXECUTE FUNCTION note()"
        )
        folder = tmp_path / table
        folder.mkdir()
        job = Workbench(bench.dsn, folder, {})
        job.environ["REWRAP_LEDGER_URL"] = bench.dsn
        path = job.job(NOTES.replace("notes", table), JOB.format(rate=SLOW_RATE))
        path.write_text(path.read_text().replace('name = "test"', f'name = "{table}"'))
        jobs.append(job)

    def written() -> dict[str, float]:
        firsts = [row["at"] for row in bench.sql("SELECT min(at) AS at FROM used GROUP BY name")]
        began = max(firsts) if len(firsts) == 4 else 1e18
        rows = bench.sql(
            "SELECT name, sum(rows) AS rows FROM used WHERE at > $1 GROUP BY name", began or 1e18
        )
        return {row["name"]: float(row["rows"]) for row in rows}

    run = ["run", "--from", "v1", "--to", "v2", "--allow-unseen-target", "--json"]
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(job.started(*run)) for job in jobs]
        wait_for(lambda: len(found := written()) == 4 and min(found.values()) >= 6 * piece, WAIT_S, 0.2)
        parts = written()
        for one in started:
            one.send_signal(signal.SIGINT)
        said = [one.communicate(timeout=WAIT_S)[0] for one in started]
        assert [one.returncode for one in started] == [4] * 4
    uses = [(row["at"], float(row["rows"])) for row in bench.sql("SELECT at, rows FROM used")]
    assert busiest_second(uses) <= SLOW_RATE + 4 * piece
    assert jain(list(parts.values())) >= 0.95, parts
    assert any("shared budget orders-db, 400 rows/s for all" in one for one in said)


def test_a_budget_in_a_file_is_refused(bench: Workbench) -> None:
    """Nothing is written, and the hint says what to set."""
    bench.job(more=JOB.format(rate=RATE))
    bench.notes([box("note")])
    checked = bench.rewrap("check", "--json")
    assert checked.code == 1
    assert [event["code"] for event in checked.events if event.get("severity") == "error"] == ["not-shared"]
    result = bench.run()
    assert result.code == 2
    assert "no other process shares a budget in it" in result.err
    assert "set REWRAP_LEDGER_URL to a Postgres URL" in result.err
    assert not bench.ledger.exists()


def test_a_budget_of_another_unit_is_refused(bench: Workbench) -> None:
    """Rows are not request units."""
    bench.environ["REWRAP_LEDGER_URL"] = bench.dsn
    bench.job(more=JOB.format(rate=RATE))
    bench.notes([box("note")])
    assert bench.run().code == 0
    bench.sql("UPDATE rewrap_bucket SET unit = 'RU'")
    result = bench.run()
    assert result.code == 2
    assert 'shared budget "orders-db" is counted in RU, and main in rows' in result.err


def test_the_last_job_started_sets_the_rate(bench: Workbench) -> None:
    """And says so, where it was another one."""
    bench.environ["REWRAP_LEDGER_URL"] = bench.dsn
    bench.notes([box("note")])
    for rate, known in ((RATE, False), (2 * RATE, True)):
        bench.job(more=JOB.format(rate=rate))
        checked = bench.rewrap("check", "--json")
        said = [event["reason"] for event in checked.events if event.get("code") == "shared-budget"]
        assert said == (
            ["it is 1,200 rows/s now, and 2,400 for all as soon as this job runs"] if known else []
        )
        result = bench.run()
        assert result.code == 0
    assert "2,400 rows/s for all from now on, as this job says; it was 1,200" in result.out
    assert bench.value("SELECT rate FROM rewrap_bucket") == 2 * RATE


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('rate = 10\nstore = "other"', 'pace.shared.orders-db.store: there is no store "other"'),
        ("rate = 10\nkeys = true", "pace.shared.orders-db.keys: the job's keys are local"),
        ('rate = 1\nkeys = true\nstore = "main"', "pace.shared.orders-db: names a store and the keys"),
        ("rate = 0", "pace.shared.orders-db.rate: "),
        ('store = "main"', "pace.shared.orders-db.rate: is missing"),
        ("rate = 10\nspeed = 1", "pace.shared.orders-db.speed: is not a field here"),
        (
            "rate = 10\n[pace.shared.again]\nrate = 10",
            'pace.shared.again: store "main" has a shared budget already',
        ),
    ],
)
def test_a_budget_of_nothing_is_refused(bench: Workbench, more: str, said: str) -> None:
    """The job file names the place."""
    bench.job(more=f"[pace.shared.orders-db]\n{more}\n")
    result = bench.rewrap("plan", "--from", "v1", "--to", "v2")
    assert result.code == 2
    assert said in result.err
