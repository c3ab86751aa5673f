"""Under live traffic: four writers insert, update, move and delete rows while a run works, and is killed."""

from __future__ import annotations

import asyncio
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rewrap.demo.application import Application, TableModel
from tests.support.values import KEYS, box
from tests.support.workbench import UNYIELDING, Workbench

TARGETS = """
[[targets]]
table = "letters"
fields = [{ column = "body", layout = "libsodium-token" }]
[[targets]]
table = "records"
fields = [{ column = "body", layout = "aead" }]
"""

TABLES = [TableModel("letters", key="uuid"), TableModel("records", aad="account_id")]

ROWS = 50_000
"""Rows a table: 100,000 in all."""

KILLS = 10

WATCH = """
CREATE TABLE writes (relation text, id text, old text);
CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF current_setting('application_name') = 'rewrap writer' THEN
    INSERT INTO writes VALUES (TG_TABLE_NAME, OLD.id::text, md5(OLD.body));
  END IF;
  RETURN NULL;
END$$;
"""


class LiveApplication:
    """The application simulator in a thread with a loop of its own, as a process beside the run would be."""

    def __init__(self, dsn: str, seed: int) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        keys = {version: KEYS[version] for version in ("v1", "v2")}
        self.application = Application(dsn, TABLES, keys, "v1", writers=4, seed=seed)

    def call(self, coroutine: object) -> object:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(120)

    def start(self) -> None:
        async def work() -> None:
            self.application.start()

        self.call(work())

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@contextmanager
def live(bench: Workbench, seed: int) -> Iterator[LiveApplication]:
    bench.job(TARGETS, UNYIELDING)
    running = LiveApplication(bench.dsn, seed)
    try:
        running.call(running.application.create())
        running.call(running.application.load(ROWS))
        bench.sql(WATCH)
        for table in TABLES:
            bench.sql(
                f"CREATE TRIGGER watch AFTER UPDATE ON {table.name} FOR EACH ROW EXECUTE FUNCTION watch()"
            )
        running.start()
        yield running
    finally:
        running.call(running.application.stop())
        running.close()


def twice(bench: Workbench) -> int:
    """Values that rewrap committed more than once: the same old bytes of the same row."""
    return int(
        bench.value(
            "SELECT count(*) FROM (SELECT 1 FROM writes GROUP BY relation, id, old HAVING count(*) > 1) AS d"
        )
    )


def audited(bench: Workbench, running: LiveApplication) -> None:
    """Nothing lost, nothing unreadable, nothing stale, no error on the application's side."""
    running.call(running.application.stop())
    audit = running.call(running.application.audit())
    assert running.application.errors == []
    assert (audit.lost, audit.undecryptable, audit.other_columns_wrong) == (0, 0, 0)
    assert set(audit.by_version) == {"v2"}
    deep = bench.rewrap("verify", "--deep", "--json")
    assert deep.code == 0, deep.out
    verdict = deep.event("verdict")
    assert (verdict["stale"], verdict["unopenable"], verdict["values"]) == (0, 0, audit.rows)
    assert twice(bench) == 0


def test_nothing_is_lost_while_four_writers_change_versions(bench: Workbench) -> None:
    """While they write the old version: exit 3, by table. After the switch: exit 0, and every value right."""
    with live(bench, seed=11) as running:
        ran = bench.run()
        assert ran.code == 3
        assert any("still receives values under v1" in reason for reason in ran.event("run_ended")["reasons"])
        running.application.switch("v2")
        time.sleep(0.3)
        ran = bench.run()
        assert ran.code == 0, ran.out
        ended = ran.event("run_ended")
        for table, fields in ended["outcomes"].items():
            assert set(fields["body"]) <= {"resealed", "current", "converged", "gone"}, table
        audited(bench, running)


@pytest.mark.parametrize("seed", [21])
def test_nothing_is_lost_when_the_run_is_killed_ten_times(bench: Workbench, seed: int) -> None:
    """SIGKILL at ten random moments under live writers: every value is what its last writer wrote."""
    moments = random.Random(seed)
    with live(bench, seed=seed) as running:
        running.application.switch("v2")
        command = ["run", "--from", "v1", "--to", "v2", "--allow-unseen-target"]
        for _ in range(KILLS):
            # at least 25 s of work: on no machine it is done before the last kill
            with bench.started(*command, "--batch-size", "50", "--max-rate", "4000", "--json") as process:
                assert process.stdout is not None
                process.stdout.readline()
                time.sleep(moments.uniform(0.02, 0.5))
                process.kill()
            assert process.returncode == -signal.SIGKILL
            command = ["resume"]
        ran = bench.rewrap("resume", "--json")
        assert ran.code == 0, ran.out + ran.err
        audited(bench, running)


def test_a_kill_costs_at_most_the_batches_in_flight(bench: Workbench) -> None:
    """On a quiet table what is read again after ten kills is at most one batch a shard and kill."""
    batch = 100
    bench.notes([box(f"note {i}") for i in range(60_000)])
    bench.sql(WATCH)
    bench.sql("CREATE TRIGGER watch AFTER UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION watch()")
    moments = random.Random(7)
    command = ["run", "--from", "v1", "--to", "v2", "--allow-unseen-target"]
    for _ in range(KILLS):
        # at least 12 s of work
        with bench.started(*command, "--batch-size", str(batch), "--max-rate", "5000", "--json") as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(moments.uniform(0.02, 0.2))
            process.kill()
        assert process.returncode == -signal.SIGKILL
        command = ["resume"]
    ended = bench.rewrap("resume", "--json").event("run_ended")
    assert ended["exit_code"] == 0
    outcomes = ended["outcomes"]["notes"]["body"]
    shards = bench.value("SELECT count(*) FROM rewrap.shard")
    assert sum(outcomes.values()) == 60_000
    assert set(outcomes) <= {"resealed", "current"}
    assert outcomes.get("current", 0) <= KILLS * shards * batch
    assert twice(bench) == 0
