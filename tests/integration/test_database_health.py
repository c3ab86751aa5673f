"""A run heeds the database that it works on: others at work there, replicas, locks, probes of the job."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from rewrap.demo.postgres import EmbeddedPostgres
from tests.support.values import box
from tests.support.workbench import Workbench, wait_for

RUN = ("run", "--from", "v1", "--to", "v2", "--allow-unseen-target", "--json")

MIB = 2**20


class Heard:
    """A run's progress, while it runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                self.events.append(json.loads(line))

    @property
    def reasons(self) -> list[str]:
        return [event["waiting_for"] for event in list(self.events) if event["type"] == "progress"]

    def waits_for(self, reason: str, timeout_s: float = 60.0) -> None:
        wait_for(lambda: any(reason in said for said in self.reasons), timeout_s)

    def ended(self, timeout_s: float = 120.0) -> int:
        code = self.process.wait(timeout_s)
        self._reader.join(10)
        return code


@contextmanager
def heard(bench: Workbench, *options: str) -> Iterator[Heard]:
    with bench.started(*RUN, *options) as process:
        listening = Heard(process)
        yield listening


@contextmanager
def application(bench: Workbench, statement: str = "SELECT 1", sessions: int = 2) -> Iterator[None]:
    """Sessions that are at work until the end of the block, each a hundred times a second at most."""
    stop, begun = threading.Event(), threading.Barrier(sessions + 1)

    async def work() -> None:
        connection = await asyncpg.connect(bench.dsn)
        try:
            await connection.execute(statement)
            await asyncio.to_thread(begun.wait)
            while not stop.is_set():
                await connection.execute(statement)
                await asyncio.sleep(0.01)
        finally:
            await connection.close()

    threads = [threading.Thread(target=lambda: asyncio.run(work())) for _ in range(sessions)]
    for thread in threads:
        thread.start()
    begun.wait(30)
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)


def test_a_run_yields_to_others_and_takes_its_speed_back(bench: Workbench) -> None:
    """Beside an application it says why it is slow, and is not afterwards."""
    bench.notes([box(f"note {n}") for n in range(40_000)])
    bench.job(more="[pace.health]\nyield_to_others = true\n")
    with heard(bench) as run:
        with application(bench):
            run.waits_for("others are at work on the server")
            assert run.process.poll() is None
        assert run.ended() == 0
    done = [event for event in run.events if event["type"] == "progress"]
    assert not done[-1]["waiting_for"].startswith("others")
    assert all(value is not None and value.startswith("v2:") for value in bench.bodies().values())


def test_who_wants_to_need_not_yield(bench: Workbench) -> None:
    """`yield_to_others = false`: others are no reason."""
    bench.notes([box(f"note {n}") for n in range(3_000)])
    bench.job(more="[pace]\nmax_rate = 1500\n[pace.health]\nyield_to_others = false\n")
    with application(bench), heard(bench) as run:
        assert run.ended() == 0
    assert run.reasons
    assert not [reason for reason in run.reasons if "others" in reason]


def test_who_may_not_see_others_counts_transactions(bench: Workbench) -> None:
    """A role without pg_read_all_stats sees no session's state, and yields all the same."""
    role = f"seen_{bench.dsn.rpartition('/')[2]}"
    bench.notes([box(f"note {n}") for n in range(12_000)])
    bench.sql(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    try:
        bench.sql(f"CREATE SCHEMA rewrap AUTHORIZATION {role}")
        bench.sql(f"GRANT SELECT, UPDATE ON notes TO {role}")
        bench.job(more="[pace]\nmax_rate = 1000\n[pace.health]\nyield_to_others = true\n")
        address = bench.dsn.partition("://")[2].partition("@")[2]
        with application(bench), bench.started(*RUN, DATABASE_URL=f"postgresql://{role}:x@{address}") as it:
            run = Heard(it)
            run.waits_for("others are at work on the server")
            assert bench.value("SELECT count(*) FROM notes WHERE starts_with(body, 'v1:')") > 0
    finally:
        bench.sql(f"DROP OWNED BY {role}")
        bench.sql(f"DROP ROLE {role}")


# replicas


@pytest.fixture
def primary() -> Iterator[EmbeddedPostgres]:
    """A server of the test's own."""
    with EmbeddedPostgres({"max_wal_size": "4GB"}) as server:
        yield server


class Lag:
    """Watches how far a replica is behind, in bytes, with a clock."""

    def __init__(self, primary: Workbench) -> None:
        self._primary = primary
        self._stop = threading.Event()
        self.seen: list[tuple[float, int]] = []
        self._thread = threading.Thread(target=lambda: asyncio.run(self._watch()))

    async def _watch(self) -> None:
        connection = await asyncpg.connect(
            self._primary.dsn, server_settings={"application_name": "rewrap-test"}
        )
        while not self._stop.is_set():
            lag = await connection.fetchval(
                "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn) FROM pg_stat_replication"
            )
            self.seen.append((time.monotonic(), int(lag or 0)))
            await asyncio.sleep(0.05)
        await connection.close()

    def __enter__(self) -> Lag:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    @property
    def most(self) -> int:
        return max(lag for _, lag in self.seen)

    def longest_beyond_s(self, limit: int) -> float:
        """Of the times for which it was beyond a limit, the longest."""
        longest, since = 0.0, None
        for at, lag in self.seen:
            if lag <= limit:
                since = None
                continue
            since = at if since is None else since
            longest = max(longest, at - since)
        return longest


def test_a_replica_never_lags_beyond_the_limit(primary: EmbeddedPostgres, tmp_path: Path) -> None:
    """One that replays nothing for a while holds the run; when it goes on, so does the run."""
    limit = 6 * MIB
    bench = Workbench(primary.dsn(), tmp_path)
    bench.notes([box(f"note {n}") for n in range(30_000)])
    (tmp_path / "replica").mkdir()
    replica = Workbench(primary.standby().dsn(), tmp_path / "replica")
    bench.job(more=f"[pace.health]\nreplica_lag_bytes = {{ slow = {limit / 4}, pause = {float(limit)} }}\n")
    wait_for(
        lambda: bench.value("SELECT count(*) FROM pg_stat_replication WHERE replay_lsn IS NOT NULL") == 1
    )
    replica.sql("SELECT pg_wal_replay_pause()")
    with Lag(bench) as lag, heard(bench) as run:
        run.waits_for("replica walreceiver is")
        wait_for(lambda: run.reasons[-3:] == [run.reasons[-1]] * 3, 60)
        assert run.process.poll() is None
        replica.sql("SELECT pg_wal_replay_resume()")
        assert run.ended() == 0
    assert lag.longest_beyond_s(limit) <= 2.0
    assert lag.most > limit / 4
    assert bench.value("SELECT count(*) FROM notes WHERE NOT starts_with(body, 'v2:')") == 0


def test_a_replica_that_is_late_by_design_is_kept_within_the_limit(
    primary: EmbeddedPostgres, tmp_path: Path
) -> None:
    """recovery_min_apply_delay: the run goes as fast as the limit lets it."""
    limit = 6 * MIB
    bench = Workbench(primary.dsn(), tmp_path)
    bench.notes([box(f"note {n}") for n in range(70_000)])
    limits = f"replica_lag_bytes = {{ slow = {limit / 4}, pause = {float(limit)} }}"
    # the looks at the lag are others at work: the run is not to go slowly for their sake
    bench.job(more=f"[pace.health]\nyield_to_others = false\n{limits}\n")
    primary.standby({"recovery_min_apply_delay": "1s"})
    wait_for(
        lambda: bench.value("SELECT count(*) FROM pg_stat_replication WHERE replay_lsn IS NOT NULL") == 1
    )
    with Lag(bench) as lag, heard(bench) as run:
        assert run.ended() == 0
    assert lag.longest_beyond_s(limit) <= 2.0
    assert any("replica walreceiver is" in reason for reason in run.reasons), run.reasons


# probes of the job


class Answers(BaseHTTPRequestHandler):
    answer = "10"
    status = 200

    def do_GET(self) -> None:
        self.send_response(type(self).status)
        self.end_headers()
        self.wfile.write(type(self).answer.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def metrics() -> Iterator[tuple[str, type[Answers]]]:
    """A URL, and what it answers."""
    handler = type("OwnAnswers", (Answers,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/p99?token=s3cret", handler
        server.shutdown()
        thread.join()


def test_a_url_holds_a_run_and_lets_it_go(bench: Workbench, metrics: tuple[str, type[Answers]]) -> None:
    """Too high a number, no number and no answer all make it wait; none of them shows what was answered."""
    url, handler = metrics
    bench.notes([box(f"note {n}") for n in range(300)])
    bench.job(
        more=f'[[pace.probe]]\nname = "p99"\nkind = "http"\nevery_s = 0.2\npause = 100\nurl = "{url}"\n'
    )
    handler.answer = "250"
    with heard(bench) as run:
        run.waits_for("probe p99 is at 250")
        handler.answer = "sorry, s3cret"
        run.waits_for("probe p99 answers no number")
        handler.status = 503
        run.waits_for("probe p99 answers status 503")
        assert bench.value("SELECT count(*) FROM notes WHERE starts_with(body, 'v2:')") == 0
        handler.answer, handler.status = "12", 200
        assert run.ended() == 0
    assert not [event for event in run.events if "s3cret" in json.dumps(event)]


def test_a_query_holds_a_run_and_lets_it_go(bench: Workbench) -> None:
    """And a query that fails is told by its SQLSTATE."""
    bench.notes([box(f"note {n}") for n in range(300)])
    bench.job(
        more='[[pace.probe]]\nname = "waiting"\nkind = "sql"\nevery_s = 0.2\npause = 5\n'
        'query = "SELECT count(*) FROM jobs"\n'
    )
    with heard(bench) as run:
        run.waits_for("probe waiting: the query failed [42P01]")
        bench.sql("CREATE TABLE jobs AS SELECT generate_series(1, 8) AS id")
        run.waits_for("probe waiting is at 8")
        bench.sql("DELETE FROM jobs")
        assert run.ended() == 0


# other signals


def dead_rows(bench: Workbench) -> None:
    bench.sql("ALTER TABLE notes SET (autovacuum_enabled = false)")
    bench.sql("UPDATE notes SET other = 'twice'")


@pytest.mark.parametrize(
    ("limit", "prepare", "reason"),
    [
        ("dead_share = { pause = 0.2 }", dead_rows, "table notes has 50% dead rows"),
        ("wal_bytes_per_s = { slow = 1000.0 }", None, "the log grows by"),
        ("latency_s = { pause = 0.000001 }", None, "the server takes 0.0 s for a look"),
    ],
    ids=["dead rows", "log", "latency"],
)
def test_a_signal_of_a_server_is_seen_and_named(
    bench: Workbench, limit: str, prepare: Callable[[Workbench], None] | None, reason: str
) -> None:
    """Each is made on a real server."""
    bench.job(more=f"[pace]\nmax_rate = 500\n[pace.health]\n{limit}\n")
    bench.notes([box(f"note {n}") for n in range(3_000)])
    if prepare is not None:
        prepare(bench)
    with heard(bench) as run:
        run.waits_for(reason)
        assert run.process.poll() is None


def test_a_slot_that_nobody_reads_is_seen(bench: Workbench) -> None:
    """Until it is dropped nothing is written."""
    slot = f"kept_{bench.dsn.rpartition('/')[2]}"
    bench.job(more="[pace.health]\nslot_bytes = { pause = 1.0 }\n")
    bench.notes([box(f"note {n}") for n in range(3_000)])
    bench.sql(f"SELECT pg_create_physical_replication_slot('{slot}', true)")
    try:
        bench.sql("UPDATE notes SET other = 'logged'")
        with heard(bench) as run:
            run.waits_for(f"slot {slot} retains")
            assert bench.value("SELECT count(*) FROM notes WHERE starts_with(body, 'v2:')") == 0
            bench.sql(f"SELECT pg_drop_replication_slot('{slot}')")
            assert run.ended() == 0
    finally:
        bench.sql(
            f"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{slot}'"
        )


def test_who_waits_for_the_run_is_seen(bench: Workbench) -> None:
    """A trigger makes each batch hold its locks for long, and a writer wants one of its rows."""
    bench.job(
        more="[pace]\nbatch_size = 100\nshards = 1\n"
        "[pace.health]\nyield_to_others = false\nblocked = { pause = 1.0 }\n"
    )
    bench.notes([box(f"note {n}") for n in range(3_000)])
    bench.sql(
        "CREATE FUNCTION idle() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN PERFORM pg_sleep(1.2); RETURN NULL; END'"
    )
    bench.sql("CREATE TRIGGER slow AFTER UPDATE OF body ON notes FOR EACH STATEMENT EXECUTE FUNCTION idle()")
    with (
        application(bench, "UPDATE notes SET other = 'x' WHERE id % 100 = 50", sessions=1),
        heard(bench) as run,
    ):
        run.waits_for("1 session waits for locks of the run")


def test_a_vacuum_is_made_room_for(bench: Workbench) -> None:
    """Where the job says so."""
    bench.job(more="[pace]\nmax_rate = 500\n[pace.health]\nvacuum = true\n")
    bench.notes([box(f"note {n}") for n in range(6_000)])
    bench.sql("UPDATE notes SET other = 'twice'")
    program = (
        "import asyncio, asyncpg, sys\n"
        "async def work():\n"
        "    slow = {'vacuum_cost_delay': '100', 'vacuum_cost_limit': '1'}\n"
        "    c = await asyncpg.connect(sys.argv[1], server_settings=slow)\n"
        "    await c.execute('VACUUM notes')\n"
        "asyncio.run(work())\n"
    )
    vacuum = subprocess.Popen([sys.executable, "-c", program, bench.dsn])
    try:
        wait_for(
            lambda: bench.value(
                "SELECT count(*) FROM pg_stat_progress_vacuum WHERE relid = 'notes'::regclass"
            )
        )
        with heard(bench) as run:
            run.waits_for("table notes is being vacuumed")
    finally:
        vacuum.kill()
        vacuum.wait()


def test_a_server_that_refuses_a_look_is_told_of(bench: Workbench) -> None:
    """Its health cannot be heeded then: the run says so, and goes on."""
    bench.notes([box(f"note {n}") for n in range(300)])
    # what a hardened server does: nobody sees what it waits for
    bench.sql("REVOKE EXECUTE ON FUNCTION pg_blocking_pids(int) FROM PUBLIC")
    role = f"blind_{bench.dsn.rpartition('/')[2]}"
    bench.sql(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    try:
        bench.sql(f"CREATE SCHEMA rewrap AUTHORIZATION {role}")
        bench.sql(f"GRANT SELECT, UPDATE ON notes TO {role}")
        address = bench.dsn.partition("://")[2].partition("@")[2]
        done = bench.run(DATABASE_URL=f"postgresql://{role}:x@{address}")
        assert done.code == 0
        told = [event["message"] for event in done.events if event["type"] == "notice"]
        assert [text for text in told if "the health of main cannot be looked at" in text]
    finally:
        bench.sql(f"DROP OWNED BY {role}")
        bench.sql(f"DROP ROLE {role}")
