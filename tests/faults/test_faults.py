"""Found by attacking it: locks elsewhere, triggers that raise, lines that break at odd moments."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from rewrap.demo.postgres import EmbeddedPostgres
from rewrap.errors import StoreUnavailable
from rewrap.stores.postgres.guard import PostgresGuard
from rewrap.stores.postgres.store import PostgresStore
from tests.integration.test_safety import Holder, disturb, opened
from tests.support.inprocess import run_here
from tests.support.values import aead, box, unaead, unbox
from tests.support.workbench import ACCOUNTS, NOTES, TIMEOUT_S, Workbench, wait_while

PACED = ("run", "--from", "v1", "--to", "v2", "--allow-unseen-target", "--max-rate", "100")
"""A run whose length the pace sets, and not the machine."""

QUICK = "[limits]\ndrain_s = 0.3\nreconnect_s = 20\n"


def test_a_trigger_that_waits_elsewhere_puts_off_one_row(bench: Workbench) -> None:
    """One row's trigger waits for a row of another table: that row is put off, its batch is written."""
    bench.job(more=QUICK)
    bench.notes([box(f"note {i}") for i in range(1, 201)])
    bench.sql("CREATE TABLE counter (n int); INSERT INTO counter VALUES (0)")
    bench.sql(
        "CREATE FUNCTION count_up() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN UPDATE counter SET n = n + 1; RETURN NULL; END$$"
    )
    bench.sql(
        "CREATE TRIGGER count_up AFTER UPDATE ON notes FOR EACH ROW WHEN (NEW.id = 77) "
        "EXECUTE FUNCTION count_up()"
    )
    with Holder(bench, "UPDATE counter SET n = 5"):
        ran = bench.run()
    assert ran.code == 3
    assert ran.event("run_ended")["outcomes"]["notes"]["body"] == {"resealed": 199, "deferred": 1}
    assert bench.run().code == 0


def test_a_table_closed_to_readers_is_waited_for_and_can_be_left(bench: Workbench) -> None:
    """ACCESS EXCLUSIVE in mid-run: the run waits; told to stop, it stops; resumed, it finishes."""
    bench.job(more="[pace]\nbatch_size = 10\nshards = 1\n")
    bench.notes([box(f"note {i}") for i in range(1, 2_001)])
    waits = (
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name LIKE 'rewrap%' "
        "AND datname = current_database() AND wait_event_type = 'Lock')"
    )
    with bench.started(*PACED) as running:
        wait_while(running, lambda: bench.swept() > 50)
        with Holder(bench, "LOCK TABLE notes IN ACCESS EXCLUSIVE MODE"):
            wait_while(running, lambda: bench.value(waits))
            running.send_signal(signal.SIGINT)
            _, err = running.communicate(timeout=TIMEOUT_S)
        assert running.returncode == 4, err
    assert bench.rewrap("resume").code == 0
    assert opened(bench) == {i: f"note {i}" for i in range(1, 2_001)}


def test_a_run_can_be_left_while_the_server_is_away(bench: Workbench, tmp_path: Path) -> None:
    """The server is stopped in mid-run; told to stop, the run does not wait for it, and is resumable."""
    with EmbeddedPostgres() as server:
        away = Workbench(server.dsn(), tmp_path)
        away.job(more="[pace]\nbatch_size = 10\nshards = 1\n")
        away.notes([box(f"note {i}") for i in range(1, 2_001)])
        with away.started(*PACED) as running:
            wait_while(running, lambda: away.swept() > 50)
            server.stop("immediate")
            # at a hundred rows a second it has asked for the server by then; and if not, it will
            time.sleep(1)
            running.send_signal(signal.SIGINT)
            _, err = running.communicate(timeout=TIMEOUT_S)
        assert running.returncode == 4, err
        server.start()
        assert away.rewrap("resume").code == 0
        assert opened(away) == {i: f"note {i}" for i in range(1, 2_001)}


@pytest.mark.parametrize("state", ["P0002", "38000", "MY001", "23999"])
def test_whatever_a_trigger_raises_for_one_row_sets_that_row_aside(bench: Workbench, state: str) -> None:
    """An error of a trigger's own is a refusal of that row, whatever SQLSTATE it chose."""
    bench.notes([box(f"note {i}") for i in range(1, 101)])
    bench.sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{state}'; END$$"
    )
    bench.sql(
        "CREATE TRIGGER refuse AFTER UPDATE ON notes FOR EACH ROW WHEN (NEW.id = 42) "
        "EXECUTE FUNCTION refuse()"
    )
    ran = bench.run()
    assert ran.code == 3
    assert ran.event("run_ended")["outcomes"]["notes"]["body"] == {"resealed": 99, "quarantined": 1}


def test_one_refused_column_does_not_hold_back_another(bench: Workbench) -> None:
    """Two encrypted columns in a row: the refused one is set aside, the other is resealed."""
    bench.job(
        NOTES.replace(
            'fields = [{ column = "body", layout = "libsodium-token" }]',
            'fields = [{ column = "body", layout = "libsodium-token" }, '
            '{ column = "other", layout = "libsodium-token" }]',
        )
    )
    bench.sql("CREATE TABLE notes (id int PRIMARY KEY, body text, other text)")
    bench.insert("notes", ["id", "body", "other"], [(i, box("a"), box("b")) for i in range(1, 51)])
    bench.sql("ALTER TABLE notes ADD CONSTRAINT odd CHECK (id <> 7 OR body LIKE 'v1:%')")
    ran = bench.run()
    assert ran.code == 3
    assert ran.event("run_ended")["outcomes"]["notes"] == {
        "body": {"resealed": 49, "quarantined": 1},
        "other": {"resealed": 50},
    }


def test_a_wrong_aad_quarantines_no_table(bench: Workbench) -> None:
    """The key opens one table; the other's associated data are declared wrongly: exit 10."""
    bench.job(NOTES + ACCOUNTS)
    bench.notes([box(f"note {i}") for i in range(50)])
    bench.sql("CREATE TABLE accounts (id int PRIMARY KEY, account_id int, secret text)")
    bench.insert(
        "accounts", ["id", "account_id", "secret"], [(i, i, aead("x", f"acct:{i}")) for i in range(90)]
    )
    ran = bench.run()
    assert ran.code == 10
    assert "aad" in ran.err
    assert bench.rewrap("quarantine", "list").out.strip() == "nothing is put aside"


def test_a_transaction_that_has_written_elsewhere_is_waited_for(bench: Workbench) -> None:
    """What an open write transaction writes next is not known: no verdict of complete before it ends."""
    bench.job(more=QUICK)
    bench.notes([box(f"note {i}") for i in range(20)])
    bench.sql("CREATE TABLE elsewhere (n int)")
    with Holder(bench, "INSERT INTO elsewhere VALUES (1)"):
        ran = bench.run()
    assert ran.code == 3
    assert any("not yet ended" in reason for reason in ran.event("run_ended")["reasons"])
    assert bench.rewrap("verify").code == 0


def test_an_application_that_only_writes_new_values_does_not_hold_up_a_verdict(bench: Workbench) -> None:
    """Short transactions come and go all the time: each is waited for, and the run is complete."""
    bench.notes([box(f"note {i}") for i in range(200)])
    over = threading.Event()

    async def application() -> None:
        connection = await asyncpg.connect(bench.dsn)
        while not over.is_set():
            async with connection.transaction():
                await connection.execute("UPDATE notes SET body = $1 WHERE id = 3", box("new", "v2"))
                await asyncio.sleep(0.05)
        await connection.close()

    threads = [threading.Thread(target=lambda: asyncio.run(application())) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        ran = bench.run()
    finally:
        over.set()
        for thread in threads:
            thread.join(10)
    assert ran.code == 0, ran.out


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (PostgresStore, "drain"),
        (PostgresStore, "flush"),
        (PostgresStore, "activity"),
        (PostgresGuard, "begin_sweep"),
        (PostgresGuard, "beat"),
    ],
)
def test_a_line_that_breaks_once_is_tried_again(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    """Not only reads and swaps: every step of a run survives a lost connection."""
    bench.job(more="[limits]\nreconnect_s = 20\nlease_s = 2\n")
    bench.notes([box(f"note {i}") for i in range(20)])
    broken: list[int] = []

    async def cut(self: Any, *_args: Any, **_kwargs: Any) -> None:
        if not broken:
            broken.append(1)
            if self._connection is not None:
                self._connection.terminate()
            raise StoreUnavailable("the connection was lost")

    disturb(monkeypatch, owner, name, before=cut)
    if name == "beat":

        async def slow(*_args: Any, **_kwargs: Any) -> None:
            await asyncio.sleep(1.5)

        disturb(monkeypatch, PostgresStore, "flush", before=slow)
    if name == "begin_sweep":
        late: list[int] = []

        async def write_late(*_args: Any, **_kwargs: Any) -> None:
            # a second sweep begins only where the first one left something
            if not late:
                late.append(1)
                await asyncio.to_thread(bench.insert, "notes", ["id", "body"], [(99, box("late"))])

        disturb(monkeypatch, PostgresStore, "drain", before=write_late)
    assert run_here(bench).exit_code == 0
    assert broken


def test_a_ledger_session_that_is_ended_does_not_end_the_run(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Postgres ledger whose sessions are cut in mid-run is connected to again."""
    bench.environ["REWRAP_LEDGER_URL"] = bench.dsn + "?sslmode=disable"
    bench.notes([box(f"note {i}") for i in range(200)] + ["v1:AAAA"])
    cuts: list[int] = []

    async def cut(*_args: Any, **_kwargs: Any) -> None:
        admin = await asyncpg.connect(bench.dsn)
        cuts.append(
            await admin.fetchval(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE application_name = 'rewrap ledger' AND datname = current_database()"
            )
        )
        await admin.close()

    disturb(monkeypatch, PostgresStore, "drain", before=cut)
    disturb(monkeypatch, PostgresStore, "flush", before=cut)
    assert run_here(bench).exit_code == 3
    assert sum(cuts) >= 1


def test_looking_before_the_first_run_needs_no_ledger(bench: Workbench) -> None:
    """Plan, status, verify and quarantine list work with a Postgres ledger that does not exist yet."""
    bench.environ["REWRAP_LEDGER_URL"] = bench.dsn
    bench.notes([box("one")])
    assert bench.rewrap("plan", "--from", "v1", "--to", "v2").code == 0
    assert bench.rewrap("status").code == 0
    assert bench.rewrap("quarantine", "list").code == 0
    assert bench.rewrap("verify", "--to", "v2").code == 3
    assert bench.value("SELECT count(*) FROM pg_tables WHERE tablename LIKE 'rewrap%'") == 0


def test_a_fence_is_of_its_column_and_finished_when_it_was_begun(bench: Workbench) -> None:
    """Two long names get two fences; one left unvalidated by a kill is validated."""
    first, second = "x" * 55 + "_one", "x" * 55 + "_two"
    bench.job(
        f'[[targets]]\ntable = "wide"\nfields = [{{ column = "{first}", layout = "libsodium-token" }}, '
        f'{{ column = "{second}", layout = "libsodium-token" }}]\n'
    )
    bench.sql(f"CREATE TABLE wide (id int PRIMARY KEY, {first} text, {second} text)")
    bench.insert("wide", ["id", first, second], [(1, box("a", "v2"), box("b", "v2"))])
    assert bench.rewrap("verify", "--to", "v2", "--fence").code == 0
    for column in (first, second):
        with pytest.raises(asyncpg.CheckViolationError):
            bench.sql(f"UPDATE wide SET {column} = '{box('old')}'")
    name = bench.value("SELECT conname::text FROM pg_constraint WHERE conname LIKE 'rewrap_fence%' LIMIT 1")
    bench.sql(f"UPDATE pg_constraint SET convalidated = false WHERE conname = '{name}'")
    assert bench.rewrap("verify", "--to", "v2", "--fence").code == 0
    assert bench.value(f"SELECT convalidated FROM pg_constraint WHERE conname = '{name}'")


def test_one_table_under_two_names_is_refused(bench: Workbench) -> None:
    """`notes` and `public.notes` are one table: counted twice, its sums would mean nothing."""
    bench.job(NOTES + NOTES.replace('"notes"', '"public.notes"'))
    bench.notes([box("one")])
    ran = bench.run()
    assert ran.code == 2
    assert "the same table" in ran.err


def test_a_large_value_that_needs_nothing_is_not_too_large(bench: Workbench) -> None:
    """Over max_value_bytes and already current, or plaintext: classed by its marker, not set aside."""
    bench.job(more="[pace]\nmax_value_bytes = 1024\n")
    bench.notes([box("x" * 2_000, "v2"), "plain " * 500, box("small")])
    ran = bench.run()
    assert ran.code == 0, ran.out
    assert ran.event("run_ended")["outcomes"]["notes"]["body"] == {
        "current": 1, "plaintext": 1, "resealed": 1,
    }  # fmt: skip


def test_a_worker_that_lost_its_place_leaves_the_record_alone(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that another process finished stays finished."""
    from rewrap.errors import LeaseLost
    from rewrap.stores.postgres.writer import PostgresWriter

    bench.notes([box(f"note {i}") for i in range(20)])

    async def lose(writer: Any, *_args: Any, **_kwargs: Any) -> None:
        if writer._connection is not None and writer._connection.is_in_transaction():
            return
        raise LeaseLost("another run took over")

    disturb(monkeypatch, PostgresWriter, "swap", before=lose)
    with pytest.raises(LeaseLost):
        run_here(bench)
    assert bench.rewrap("status", "--json").event("status")["run"]["state"] == "running"


def test_a_password_that_breaks_its_url_is_not_shown(bench: Workbench) -> None:
    """An unescaped slash makes the rest of a password look like a database's name."""
    bench.notes([box("one")])
    for url in ("postgresql://u:123/SECRETPW@host/db", "postgresql://u:a#SECRETPW@host/db"):
        ran = bench.run(DATABASE_URL=url)
        assert ran.code == 1
        assert "SECRETPW" not in ran.out + ran.err
        assert "hint:" in ran.err


def test_a_template_without_columns_binds_every_row_alike(bench: Workbench) -> None:
    """Associated data may be one constant: it is rendered, bound, and verified."""
    layout = '[layouts.fixed]\nlike = "libsodium-token"\ncipher = "aes-256-gcm"\naad = "customers"\n'
    bench.job(NOTES.replace("libsodium-token", "fixed"), layout)
    bench.notes([aead(f"note {i}", "customers") for i in range(20)])
    assert bench.run().code == 0
    assert bench.rewrap("verify", "--deep").code == 0
    assert {unaead(body or "", "customers") for body in bench.bodies().values()} == {
        f"note {i}".encode() for i in range(20)
    }


def test_the_way_back_needs_no_other_proof(bench: Workbench) -> None:
    """The old key opened these very values: rotating back to it asks nobody's word."""
    bench.notes([box(f"note {i}") for i in range(20)])
    assert bench.run().code == 0
    assert bench.rewrap("run", "--from", "v2", "--to", "v1").code == 0
    assert opened(bench) == {i: f"note {i - 1}" for i in range(1, 21)}


def test_abandon_leaves_a_finished_run_finished(bench: Workbench) -> None:
    """Only an unfinished run can be given up."""
    bench.notes([box("one")])
    assert bench.run().code == 0
    done = bench.rewrap("status", "--json").event("status")["run"]["run_id"]
    assert bench.run("--abandon", done).code == 0
    import sqlite3

    ledger = sqlite3.connect(bench.ledger)
    states = ledger.execute("SELECT state FROM rewrap_run WHERE run_id = ?", (done,)).fetchall()
    ledger.close()
    assert states == [("complete",)]


def test_fewer_connections_mean_fewer_shards_at_once(bench: Workbench) -> None:
    """max_connections bounds what a run opens: two for each shard at work and four more."""
    from tests.support.inprocess import load

    path = bench.job()
    assert load(bench).shards_at_once("main") == 4
    path.write_text(path.read_text().replace('kind = "postgres"', 'kind = "postgres"\nmax_connections = 7'))
    assert load(bench).shards_at_once("main") == 1


def test_large_values_are_fetched_while_the_next_page_is_read(bench: Workbench) -> None:
    """Values fetched alone and pages share a connection, and take turns on it."""
    bench.job(more="[pace]\nbatch_size = 20\nbatch_bytes = 65536\n")
    plains = [f"note {i} " + ("x" * 9_000 if i % 3 == 0 else "") for i in range(400)]
    bench.notes([box(plain) for plain in plains] + ["\x01", "\x01N", "\x01\x1f", ""] * 20)
    ended = run_here(bench)
    assert ended.outcomes["notes"]["body"] == {"resealed": 400, "plaintext": 80}
    bodies = bench.bodies()
    assert [unbox(bodies[i + 1] or "").decode() for i in range(400)] == plains


def test_very_large_associated_data_make_pages_shorter(bench: Workbench) -> None:
    """A page over what the server can put together is asked for again in smaller ones."""
    bench.job(ACCOUNTS)
    bench.sql("CREATE TABLE accounts (id int PRIMARY KEY, account_id text, secret text)")
    wide = "x" * 2_000_000
    rows = [(i, wide, aead(f"secret {i}", wide)) for i in range(4)]
    bench.insert("accounts", ["id", "account_id", "secret"], rows)
    # the same text many times over: TOAST compresses it
    bench.sql(
        "INSERT INTO accounts SELECT 10 + n, account_id, NULL "
        "FROM accounts, generate_series(1, 600) n WHERE id = 1"
    )
    ended = run_here(bench)
    assert ended.outcomes["accounts"]["secret"] == {"resealed": 4, "null": 600}
