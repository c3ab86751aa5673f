"""The rules that keep the promise, by number: each test fails when its rule is broken."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from rewrap.errors import (
    AccountingError,
    ResealMismatch,
    StoreError,
    StoreUnavailable,
)
from rewrap.interfaces import Page
from rewrap.ledgers.place import NETWORK_FILESYSTEMS, filesystem_of
from rewrap.packed import ABSENT, SEPARATOR, Column, Packed, listed, packed
from rewrap.stores.postgres.connection import address_of, connect, translated
from rewrap.stores.postgres.reader import PostgresReader
from rewrap.stores.postgres.store import PostgresStore
from rewrap.stores.postgres.writer import PostgresWriter
from tests.support.inprocess import load, run_here
from tests.support.values import KEY_V1, KEY_V2, KEY_V3, aead, box, one_ciphertext_for_two_keys, unaead, unbox
from tests.support.workbench import ACCOUNTS, NOTES, TIMEOUT_S, WAIT_S, Workbench, wait_for, wait_while

QUICK = "[limits]\ndrain_s = 0.3\nlease_s = 10\nreconnect_s = 15\n"


def opened(bench: Workbench) -> dict[int, str]:
    """Every note's plaintext, whatever its version."""
    return {i: unbox(body).decode() for i, body in bench.bodies().items() if body is not None}


def disturb(
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    name: str,
    before: Callable[..., Any] | None = None,
    after: Callable[..., Any] | None = None,
) -> None:
    """Wraps an async method: `before` and `after` see its arguments, and may raise or act."""
    real = getattr(owner, name)

    async def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if before is not None:
            await before(self, *args, **kwargs)
        result = await real(self, *args, **kwargs)
        if after is not None:
            changed = await after(self, result, *args, **kwargs)
            result = result if changed is None else changed
        return result

    monkeypatch.setattr(owner, name, wrapped)


class Holder:
    """A transaction of the application's, held open in a thread of its own."""

    def __init__(
        self, bench: Workbench, *statements: str, prepare: str | None = None, name: str = "app"
    ) -> None:
        self._bench, self._statements, self._prepare, self._name = bench, statements, prepare, name
        self._release, self._ready = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._hold()))

    async def _hold(self) -> None:
        connection = await asyncpg.connect(self._bench.dsn, server_settings={"application_name": self._name})
        try:
            await connection.execute("BEGIN")
            for statement in self._statements:
                await connection.execute(statement)
            if self._prepare:
                await connection.execute(f"PREPARE TRANSACTION '{self._prepare}'")
            self._ready.set()
            while not self._release.is_set():
                await asyncio.sleep(0.01)
            if not self._prepare:
                await connection.execute("COMMIT")
        finally:
            self._ready.set()
            await connection.close()

    def __enter__(self) -> Holder:
        self._thread.start()
        assert self._ready.wait(WAIT_S)
        return self

    def release(self) -> None:
        self._release.set()
        self._thread.join(WAIT_S)

    def __exit__(self, *_exc: object) -> None:
        self.release()


# what counts as done


def test_rule_01_an_open_transaction_keeps_a_run_from_being_complete(bench: Workbench) -> None:
    """An old value in an uncommitted transaction is in no snapshot: the run waits, then says who it is."""
    bench.job(more=QUICK)
    bench.notes([box(f"note {i}") for i in range(10)])
    with Holder(bench, f"INSERT INTO notes (id, body) VALUES (99, '{box('late')}')"):
        ran = bench.run()
    assert ran.code == 3
    assert any("app" in reason and "not yet ended" in reason for reason in ran.event("run_ended")["reasons"])
    assert bench.value("SELECT body FROM notes WHERE id = 99").startswith("v1:")
    assert bench.run().code == 0
    assert opened(bench)[99] == "late"


def test_rule_01_a_run_waits_for_a_transaction_that_ends_in_time(bench: Workbench) -> None:
    """A writer that commits an old value within drain_s is swept, and the run is complete."""
    bench.job(more="[limits]\ndrain_s = 20\n")
    bench.notes([box(f"note {i}") for i in range(10)])
    with Holder(bench, f"INSERT INTO notes (id, body) VALUES (99, '{box('late')}')") as holder:
        release = threading.Thread(target=lambda: (wait_for(lambda: swept(bench)), holder.release()))
        release.start()
        ran = bench.run()
        release.join()
    assert ran.code == 0, ran.out
    assert opened(bench)[99] == "late"
    assert ran.event("run_ended")["resealed_late"] == 1


def swept(bench: Workbench) -> bool:
    """Whether the first sweep has passed every row that others can see."""
    return bool(bench.value("SELECT count(*) = 0 FROM notes WHERE starts_with(body, 'v1:')"))


def test_rule_01_a_prepared_transaction_keeps_verify_from_being_complete(bench: Workbench) -> None:
    """A prepared transaction has no session, and may commit an old value next week."""
    bench.job(more=QUICK)
    bench.notes([box("one", "v2")])
    with Holder(bench, f"INSERT INTO notes (id, body) VALUES (9, '{box('late')}')", prepare="pending"):
        found = bench.rewrap("verify", "--to", "v2", "--json")
    assert found.code == 3
    assert "prepared transaction" in found.event("verdict")["reasons"][0]
    bench.sql("COMMIT PREPARED 'pending'")
    found = bench.rewrap("verify", "--to", "v2", "--json")
    assert found.code == 3
    assert found.event("verdict")["stale"] == 1


def test_rule_01_a_fence_refuses_old_values_and_needs_a_complete_table(bench: Workbench) -> None:
    """`verify --fence` is added only at stale 0, validated, and keeps old writers out afterwards."""
    bench.notes([box("one"), None, box("two")])
    early = bench.rewrap("verify", "--to", "v2", "--fence")
    assert early.code == 3
    assert "no fence was added" in early.err
    assert bench.run().code == 0
    assert bench.rewrap("verify", "--fence").code == 0
    assert bench.value("SELECT convalidated FROM pg_constraint WHERE conname = 'rewrap_fence_body'")
    with pytest.raises(asyncpg.CheckViolationError):
        bench.sql(f"INSERT INTO notes (id, body) VALUES (9, '{box('late')}')")
    bench.sql(f"INSERT INTO notes (id, body) VALUES (9, '{box('new', 'v2')}'), (10, NULL)")


def test_rule_02_row_security_that_hides_rows_is_refused(bench: Workbench) -> None:
    """A policy that would hide half of the rows stops the run and verify; neither counts what it sees."""
    bench.notes([box(f"note {i}") for i in range(10)])
    bench.sql("DROP ROLE IF EXISTS rule02")
    bench.sql("CREATE ROLE rule02 LOGIN PASSWORD 'rule02'")
    bench.sql(
        "GRANT SELECT, UPDATE ON notes TO rule02; GRANT CREATE ON DATABASE "
        + bench.value("SELECT current_database()")
        + " TO rule02"
    )
    bench.sql("ALTER TABLE notes ENABLE ROW LEVEL SECURITY; CREATE POLICY half ON notes USING (id % 2 = 0)")
    user, _, rest = bench.dsn.partition("@")
    limited = f"{user.partition('://')[0]}://rule02:rule02@{rest}"
    try:
        for command in (["run", "--from", "v1", "--to", "v2"], ["verify", "--to", "v2"]):
            refused = bench.rewrap(*command, DATABASE_URL=limited)
            assert refused.code == 2, refused.err
            assert "row-level security" in refused.err
    finally:
        bench.sql("DROP OWNED BY rule02; DROP ROLE rule02")


def test_rule_03_a_row_that_was_never_classified_fails_the_run(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verify counts for itself: a reader that skips a row, stale or not, cannot end in success."""
    bench.notes([box(f"note {i}", "v2") for i in range(50)])

    async def lose_one(_reader: Any, page: Page, *_args: Any) -> Page:
        return page.part([place for place, key in enumerate(page.keys) if key != 7])

    disturb(monkeypatch, PostgresReader, "fetch", after=lose_one)
    monkeypatch.setattr("rewrap.engine.conductor.STATISTICS_DELAY_S", 0.2)
    with pytest.raises(AccountingError, match="verify counts 50"):
        run_here(bench)


def test_rule_03_a_lost_acknowledgement_is_resealed_not_converged(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that landed while its answer was lost is recognised by its bytes."""
    bench.notes([box(f"note {i}") for i in range(30)])
    lost: list[int] = []

    async def drop_answer(_writer: Any, written: int, *_args: Any, **_kwargs: Any) -> None:
        if not lost and _writer._connection is not None and not _writer._connection.is_in_transaction():
            lost.append(written)
            raise StoreUnavailable("the answer was lost")

    disturb(monkeypatch, PostgresWriter, "swap", after=drop_answer)
    ended = run_here(bench)
    assert lost == [30]
    assert ended.exit_code == 0
    assert ended.outcomes == {"notes": {"body": {"resealed": 30}}}


@pytest.mark.parametrize(
    ("value", "counted"),
    [
        (box("x", "v3"), "stale"),
        ("v9:" + box("x").partition(":")[2], "other_version"),
        (box("x", marker=False), "unmarked"),
        ("v1:AAAA", "quarantined"),
    ],
    ids=["another version of the job", "an unknown version", "no marker", "broken"],
)
def test_rule_04_exit_0_only_when_nothing_remains(bench: Workbench, value: str, counted: str) -> None:
    """Whatever is sealed and not at the target keeps the run at exit 3, by its own class."""
    bench.notes([box(f"note {i}") for i in range(30)] + [value])
    ran = bench.run()
    assert ran.code == 3
    verdict = ran.event("verdict")
    assert {name for name in ("stale", "other_version", "unmarked", "quarantined") if verdict[name]} == {
        counted
    }
    assert bench.bodies()[31] == value


def test_rule_04_old_writers_are_named(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """While somebody still writes the old version, sweeps end after a bound, with the table's name."""
    bench.job(more="[limits]\nmax_sweeps = 2\ndrain_s = 0.3\n")
    bench.notes([box(f"note {i}") for i in range(30)])

    async def write_old(store: PostgresStore, *_args: Any) -> None:
        connection = await asyncpg.connect(bench.dsn)
        await connection.execute("UPDATE notes SET body = $1 WHERE id = 3", box("again"))
        await connection.close()

    disturb(monkeypatch, PostgresStore, "drain", before=write_old)
    ended = run_here(bench)
    assert ended.exit_code == 3
    assert any("table notes still receives values under v1" in reason for reason in ended.reasons)


def test_rule_05_after_a_rollback_both_keys_read_and_a_retry_finishes(bench: Workbench) -> None:
    """A stopped run leaves mixed rows, all readable; rows written old since then are swept by the retry."""
    bench.job(more="[pace]\nbatch_size = 50\n")
    bench.notes([box(f"note {i}") for i in range(1, 301)])
    assert bench.run("--sample", "100").code == 4
    assert len({body[:3] for body in bench.bodies().values() if body}) == 2
    assert opened(bench) == {i: f"note {i}" for i in range(1, 301)}
    bench.sql("UPDATE notes SET body = $1 WHERE id = 5 RETURNING id", box("rolled back"))
    assert bench.run().code == 0
    assert opened(bench)[5] == "rolled back"
    assert all(body.startswith("v2:") for body in bench.bodies().values() if body)


# writing


@pytest.fixture(params=["by stamp", "by values"])
def compared(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How rows are compared: pages carry stamps; without them, and in a second attempt, it is by values."""
    if request.param == "by values":

        async def forget(_reader: Any, page: Page, *_args: Any) -> Page:
            return replace(page, stamps=None)

        disturb(monkeypatch, PostgresReader, "fetch", after=forget)
    return str(request.param)


@pytest.mark.usefixtures("compared")
def test_rule_06_a_row_that_moves_to_another_account_is_not_overwritten(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The swap compares the columns that feed the associated data, not the ciphertext alone."""
    bench.job(ACCOUNTS)
    bench.sql("CREATE TABLE accounts (id int PRIMARY KEY, account_id int, secret text)")
    old = aead("plain", "7")
    bench.sql("INSERT INTO accounts VALUES (1, 7, $1), (2, 7, $2) RETURNING id", old, aead("other", "7"))
    moved: list[bool] = []

    async def move(writer: Any, *_args: Any, **_kwargs: Any) -> None:
        connection = writer._connection
        if not moved and (connection is None or not connection.is_in_transaction()):
            moved.append(True)
            app = await asyncpg.connect(bench.dsn)
            await app.execute("UPDATE accounts SET account_id = 8 WHERE id = 1")
            await app.close()

    disturb(monkeypatch, PostgresWriter, "swap", before=move)
    ended = run_here(bench)
    assert moved
    assert bench.value("SELECT secret FROM accounts WHERE id = 1") == old
    assert ended.outcomes["accounts"]["secret"] == {"resealed": 1, "quarantined": 1}
    assert unaead(bench.value("SELECT secret FROM accounts WHERE id = 2"), "7") == b"other"


@pytest.mark.usefixtures("compared")
def test_rule_06_a_row_the_application_reseals_meanwhile_keeps_its_value(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update between read and swap wins: it is judged again, and its own plaintext is resealed."""
    bench.notes([box(f"note {i}") for i in range(1, 21)])
    done: list[bool] = []

    async def update(writer: Any, *_args: Any, **_kwargs: Any) -> None:
        connection = writer._connection
        if not done and (connection is None or not connection.is_in_transaction()):
            done.append(True)
            app = await asyncpg.connect(bench.dsn)
            await app.execute("UPDATE notes SET body = $1 WHERE id = 1", box("newer"))
            await app.execute("UPDATE notes SET body = $1 WHERE id = 2", box("newest", "v2"))
            await app.execute("DELETE FROM notes WHERE id = 3")
            await app.close()

    disturb(monkeypatch, PostgresWriter, "swap", before=update)
    ended = run_here(bench)
    assert ended.exit_code == 0
    assert ended.outcomes["notes"]["body"] == {"resealed": 18, "converged": 1, "gone": 1}
    after = opened(bench)
    assert (after[1], after[2], 3 in after) == ("newer", "newest", False)


def test_rule_06_an_update_of_another_column_is_neither_lost_nor_in_the_way(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row whose stamp changed is compared by its values: it is resealed, and keeps the other column."""
    bench.notes([box(f"note {i}") for i in range(1, 21)])
    done: list[bool] = []

    async def touch(writer: Any, *_args: Any, **_kwargs: Any) -> None:
        connection = writer._connection
        if not done and (connection is None or not connection.is_in_transaction()):
            done.append(True)
            app = await asyncpg.connect(bench.dsn)
            await app.execute("UPDATE notes SET other = 'touched' WHERE id IN (1, 20)")
            await app.close()

    disturb(monkeypatch, PostgresWriter, "swap", before=touch)
    ended = run_here(bench)
    assert done
    assert ended.exit_code == 0
    assert ended.outcomes["notes"]["body"] == {"resealed": 20}
    assert opened(bench) == {i: f"note {i}" for i in range(1, 21)}
    touched = bench.sql("SELECT id FROM notes WHERE other = 'touched' ORDER BY id")
    assert [row["id"] for row in touched] == [1, 20]


@pytest.mark.usefixtures("compared")
@pytest.mark.parametrize("account", ["", None, "\x1f", "\x01N", "a\x1fb", "7"])
def test_rule_06_associated_data_of_any_content_are_compared(bench: Workbench, account: str | None) -> None:
    """Whatever the columns of associated data hold, a lone row of a quiet table is swapped at once."""
    bench.job(ACCOUNTS)
    bench.sql("CREATE TABLE accounts (id int PRIMARY KEY, account_id text, secret text)")
    bench.insert("accounts", ["id", "account_id", "secret"], [(1, account, aead("plain", account or ""))])
    ended = run_here(bench)
    assert ended.outcomes["accounts"]["secret"] == {"resealed": 1}
    assert unaead(bench.value("SELECT secret FROM accounts"), account or "") == b"plain"


def test_rule_07_joined_texts_come_apart_into_the_same_rows() -> None:
    """A short list, a shifted one or one separator inside a value stops the batch before it is sent."""
    assert packed(["v1:AA", None, "v1:BB"], 3) == f"v1:AA{SEPARATOR}{ABSENT}{SEPARATOR}v1:BB"
    slipped: list[tuple[Column, int]] = [
        (["a", "b"], 3),
        ([f"a{SEPARATOR}b", "c"], 2),
        (["a", "b", "c"], 2),
        ([ABSENT, "b"], 2),
        (Packed("a", 1), 2),
        ([""], 1),
        (Packed("", 1), 1),
    ]
    for values, count in slipped:
        with pytest.raises(ResealMismatch):
            packed(values, count)
    with pytest.raises(ResealMismatch):
        Packed(f"a{SEPARATOR}b", 3).split()


def test_rule_07_no_new_value_never_becomes_null(bench: Workbench) -> None:
    """A swap whose new value is missing leaves the row as it is."""
    bench.notes([box("one"), box("two")])
    before = bench.bodies()

    async def work() -> int:
        store, lease = await _claimed(bench)
        table = (await store.tables())[0]
        writer = store.writer(table)
        from rewrap.interfaces import Checkpoint, SwapBatch

        batch = SwapBatch([1, 2], {"body": [before[1], before[2]]}, {"body": [None, None]})
        try:
            return await writer.swap(lease, batch, Checkpoint(None, 0, {}), skip_locked=False)
        finally:
            await writer.close()
            await store.close()

    assert asyncio.run(work()) == 0
    assert bench.bodies() == before


async def _claimed(bench: Workbench, run_id: str = "one", ttl_s: float = 30.0) -> Any:
    from rewrap.interfaces import Claim
    from rewrap.stores.postgres.guard import PostgresGuard

    store = PostgresStore(load(bench))
    table = (await store.tables())[0]
    guard = PostgresGuard(store.address, "rewrap", await store.identity())
    claim = Claim(
        run_id, f"owner {run_id}", ("v1",), "v2", {table.relation: await store.split(table, 1)}, ttl_s
    )
    try:
        leases = await guard.claim(claim)
    finally:
        await guard.close()
    return store, leases[table.relation][0]


def test_rule_08_a_frozen_worker_cannot_write_after_it_was_replaced(bench: Workbench) -> None:
    """SIGSTOP past the lease, another run finishes, SIGCONT: the first one writes nothing and exits 11."""
    bench.job(more="[limits]\nlease_s = 120\n[pace]\nbatch_size = 10\nshards = 1\n")
    bench.notes([box(f"note {i}") for i in range(1, 4_001)])
    arguments = ["run", "--from", "v1", "--to", "v2", "--allow-unseen-target", "--max-rate", "200"]
    with bench.started(*arguments) as frozen:
        wait_while(frozen, lambda: bench.swept() > 100)
        os.kill(frozen.pid, signal.SIGSTOP)
        held = bench.run()
        assert held.code == 11, held.err
        # as if it had been frozen for so long
        bench.sql("UPDATE rewrap.shard SET lease_until = clock_timestamp()")
        assert bench.run().code == 0
        after = bench.sql("SELECT id, body, xmin::text FROM notes ORDER BY id")
        os.kill(frozen.pid, signal.SIGCONT)
        _, err = frozen.communicate(timeout=TIMEOUT_S)
    assert frozen.returncode == 11, err
    assert "took over" in err
    assert bench.sql("SELECT id, body, xmin::text FROM notes ORDER BY id") == after


def test_rule_08_a_swap_in_flight_waits_for_whoever_raises_the_fence(bench: Workbench) -> None:
    """A swap that arrives after the fence was raised writes no row, and its caller is told why."""
    from rewrap.errors import LeaseLost
    from rewrap.interfaces import Checkpoint, SwapBatch

    bench.notes([box("one")])
    before = bench.bodies()

    async def work() -> None:
        store, stale = await _claimed(bench)
        writer = store.writer((await store.tables())[0])
        await writer.checkpoint(stale, Checkpoint(None, 0, {}))
        clock = await asyncpg.connect(bench.dsn)
        await clock.execute("UPDATE rewrap.shard SET lease_until = clock_timestamp()")
        await clock.close()
        newer_store, newer = await _claimed(bench, "two")
        await newer_store.close()
        assert newer.fence == stale.fence + 1
        batch = SwapBatch([1], {"body": [before[1]]}, {"body": [box("one", "v2")]})
        try:
            with pytest.raises(LeaseLost):
                await writer.swap(stale, batch, Checkpoint(None, 0, {}), skip_locked=False)
            with pytest.raises(LeaseLost):
                await writer.checkpoint(stale, Checkpoint("1", 1, {}))
        finally:
            await writer.close()
            await store.close()

    asyncio.run(work())
    assert bench.bodies() == before


def test_rule_09_two_ledgers_do_not_share_a_table(bench: Workbench, tmp_path: Path) -> None:
    """The lock is in the database: a second machine with a ledger of its own gets exit 11."""
    bench.job(more="[limits]\nlease_s = 120\n[pace]\nbatch_size = 10\nshards = 1\nmax_rate = 100\n")
    bench.notes([box(f"note {i}") for i in range(2_000)])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    second = Workbench(bench.dsn, elsewhere)
    with bench.started("run", "--from", "v1", "--to", "v2", "--allow-unseen-target") as first:
        wait_while(first, lambda: bench.swept() > 50)
        os.kill(first.pid, signal.SIGSTOP)
        ran = second.run()
    assert ran.code == 11, ran.err
    assert "is being worked on by run" in ran.err


def test_rule_09_a_restored_database_voids_the_checkpoint(bench: Workbench) -> None:
    """Another timeline is another history: the run reads from the start, and says so."""
    bench.job(more="[pace]\nbatch_size = 50\nshards = 1\n")
    bench.notes([box(f"note {i}") for i in range(1, 301)])
    assert bench.run("--sample", "100").code == 4
    bench.sql("UPDATE rewrap.shard SET origin = 'another/history'")
    bench.sql("UPDATE notes SET body = $1 WHERE id = 5 RETURNING id", box("restored"))
    ran = bench.run()
    assert ran.code == 0
    assert ran.event("run_ended")["rows"] == 300
    assert ran.event("run_ended")["outcomes"]["notes"]["body"] == {"resealed": 201, "current": 99}
    assert opened(bench)[5] == "restored"


def test_rule_09_no_sqlite_ledger_on_a_network_filesystem(tmp_path: Path) -> None:
    """SQLite's locks do not hold there."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        f"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n23 22 0:5 / {tmp_path}/share rw - nfs4 server:/export rw\n"
    )
    kind = filesystem_of(tmp_path / "share" / "x.sqlite", mounts)
    assert kind in NETWORK_FILESYSTEMS
    assert filesystem_of(tmp_path / "x.sqlite", mounts) == "ext4"


def test_rule_10_one_locked_row_does_not_hold_up_its_batch(bench: Workbench) -> None:
    """Rows around a lock are written; the locked one is put off, durably, and taken by the next run."""
    bench.job(more=QUICK)
    bench.notes([box(f"note {i}") for i in range(1, 201)])
    with Holder(bench, "SELECT 1 FROM notes WHERE id = 77 FOR UPDATE"):
        ran = bench.run()
    assert ran.code == 3
    assert ran.event("run_ended")["outcomes"]["notes"]["body"] == {"resealed": 199, "deferred": 1}
    assert ran.event("verdict")["deferred"] == 1
    assert [i for i, body in bench.bodies().items() if body and body.startswith("v1:")] == [77]
    assert bench.run().code == 0
    assert opened(bench)[77] == "note 77"


def test_rule_10_a_locked_table_is_waited_for_and_can_be_left(bench: Workbench) -> None:
    """While somebody holds the whole table nothing is put off: the run waits, says why, can be stopped."""
    bench.job(more="[limits]\ndrain_s = 0.3\n")
    bench.notes([box(f"note {i}") for i in range(1, 201)])
    command = ["run", "--from", "v1", "--to", "v2", "--allow-unseen-target", "--json"]
    with Holder(bench, "LOCK TABLE notes IN SHARE MODE"), bench.started(*command) as waiting:
        assert waiting.stdout is not None
        too_late = threading.Timer(TIMEOUT_S, waiting.kill)
        too_late.start()
        told = any("a lock on the table" in line for line in waiting.stdout)
        too_late.cancel()
        assert told
        assert waiting.poll() is None
        waiting.send_signal(signal.SIGTERM)
        _, err = waiting.communicate(timeout=TIMEOUT_S)
    assert waiting.returncode == 4, err
    ran = bench.rewrap("resume", "--json")
    assert ran.code == 0
    assert ran.event("run_ended")["outcomes"]["notes"]["body"] == {"resealed": 200}


def test_rule_10_a_table_locked_in_the_middle_of_a_run_is_waited_for(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index build that begins during a run holds up writes; no value is put off for it."""
    bench.job(more="[pace]\nbatch_size = 50\nshards = 1\n")
    bench.notes([box(f"note {i}") for i in range(1, 201)])
    holders: list[Holder] = []

    async def lock_table(writer: Any, *_args: Any, **_kwargs: Any) -> None:
        if not holders and writer._connection is not None and not writer._connection.is_in_transaction():
            holders.append(Holder(bench, "LOCK TABLE notes IN SHARE MODE").__enter__())
            threading.Timer(2.0, holders[0].release).start()

    disturb(monkeypatch, PostgresWriter, "swap", before=lock_table)
    ended = run_here(bench)
    assert holders
    assert ended.exit_code == 0
    assert ended.outcomes["notes"]["body"] == {"resealed": 200}


def test_rule_10_a_row_the_database_refuses_is_found_and_set_aside(bench: Workbench) -> None:
    """One row's constraint fails the whole statement: halving finds it, and the others are written."""
    bench.notes([box(f"note {i}") for i in range(1, 301)])
    bench.sql("ALTER TABLE notes ADD CONSTRAINT odd CHECK (id <> 123 OR body LIKE 'v1:%')")
    bench.sql("CREATE TABLE tight (id int PRIMARY KEY, body varchar(90))")
    bench.sql("INSERT INTO tight VALUES (1, $1), (2, $2) RETURNING id", box("x"), box("y"))
    ran = bench.run()
    assert ran.code == 3
    assert ran.event("run_ended")["outcomes"]["notes"]["body"] == {"resealed": 299, "quarantined": 1}
    assert ran.event("quarantined") == {
        "type": "quarantined",
        "schema": 1,
        "target": "notes",
        "row": "123",
        "field": "body",
        "reason": "rejected",
    }


def test_rule_10_the_application_is_never_a_deadlocks_victim(bench: Workbench) -> None:
    """A transaction that holds row 200 and wants row 1 commits, while a batch holds 1 and wants 200."""
    acknowledged = NOTES.replace('table = "notes"', 'table = "notes"\nacknowledge = ["triggers"]')
    bench.job(acknowledged, more="[pace]\nbatch_size = 200\nshards = 1\n")
    bench.notes([box(f"note {i}") for i in range(1, 201)])
    # the batch holds row 1 for a while before it comes to row 200
    bench.sql(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN IF NEW.body LIKE 'v2:%' THEN "
        # until the application has seen that it is here
        "WHILE NOT pg_try_advisory_xact_lock_shared(1) LOOP PERFORM pg_sleep(0.01); END LOOP; "
        "PERFORM pg_sleep(0.6); END IF; RETURN NEW; END$$"
    )
    bench.sql(
        "CREATE TRIGGER slow BEFORE UPDATE ON notes FOR EACH ROW WHEN (OLD.id = 2) EXECUTE FUNCTION slow()"
    )
    errors: list[BaseException] = []
    met: list[int] = []
    over = threading.Event()

    async def application() -> None:
        connection = await asyncpg.connect(bench.dsn)
        asleep = (
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'rewrap writer' "
            "AND wait_event = 'PgSleep' AND datname = current_database()"
        )
        try:
            await connection.execute("SELECT pg_advisory_lock(1)")
            while not over.is_set():
                async with connection.transaction():
                    await connection.execute("UPDATE notes SET other = 'b' WHERE id = 200")
                    while not met and not over.is_set():
                        await connection.execute("SELECT pg_stat_clear_snapshot()")
                        if await connection.fetchval(asleep):
                            met.append(1)
                            await connection.execute("SELECT pg_advisory_unlock(1)")
                        await asyncio.sleep(0.01)
                    # waits for the batch, which will wait for row 200: this transaction waits longer
                    await connection.execute("UPDATE notes SET other = 'a' WHERE id = 1")
        except asyncpg.PostgresError as exc:
            errors.append(exc)
        finally:
            await connection.close()

    thread = threading.Thread(target=lambda: asyncio.run(application()))
    thread.start()
    ran = bench.run()
    over.set()
    thread.join(20)
    assert errors == []
    assert met
    assert ran.code in (0, 3), ran.err
    assert opened(bench) == {i: f"note {i}" for i in range(1, 201)}


def test_rule_11_settings_are_startup_parameters(bench: Workbench) -> None:
    """No SET is ever sent: behind a pooler it would leak to the application."""

    async def work() -> list[Any]:
        store = PostgresStore(load(bench))
        writer = store.writer((await store.tables())[0])
        connection = await writer.connected()
        rows = await connection.fetch(
            "SELECT name, source FROM pg_settings WHERE name IN ('row_security', 'lock_timeout', "
            "'plan_cache_mode', 'synchronous_commit', 'jit', 'default_transaction_isolation')"
        )
        await writer.close()
        await store.close()
        return list(rows)

    bench.notes([box("x")])
    assert {(row["source"]) for row in asyncio.run(work())} == {"client"}


def test_rule_12_pages_are_bounded_by_bytes(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large values come in pages of at most batch_bytes, whatever the number of rows asked for."""
    bench.job(more="[pace]\nbatch_bytes = 262144\n")
    bench.notes([box("x" * 40_000) for _ in range(60)] + [box("small") for _ in range(60)])
    sizes: list[int] = []

    async def weigh(_reader: Any, page: Page, *_args: Any) -> None:
        sizes.append(sum(len(value or "") for value in listed(page.fields[0])))

    disturb(monkeypatch, PostgresReader, "fetch", after=weigh)
    ended = run_here(bench)
    assert ended.exit_code == 0
    assert ended.outcomes["notes"]["body"] == {"resealed": 120}
    assert max(sizes) <= 262_144


def test_rule_12_a_value_over_the_limit_is_too_large(bench: Workbench) -> None:
    """A value over max_value_bytes is never fetched: it is set aside by its size."""
    bench.job(more="[pace]\nmax_value_bytes = 1024\n")
    bench.notes([box("x" * 2_000), box("small")])
    ran = bench.run()
    assert ran.code == 3
    assert ran.event("quarantined")["reason"] == "too_large"
    assert ran.event("verdict")["quarantined"] == 1


def test_rule_12_a_large_value_without_a_marker_is_told_apart_from_writers(bench: Workbench) -> None:
    """Where unmarked values are resealed, one too large is put aside, and nobody is said to write it."""
    bench.job(NOTES.replace("fields", 'unmarked = "reseal"\nfields'), "[pace]\nmax_value_bytes = 1024\n")
    large = box("b" * 2_000, marker=False)
    bench.notes([box("a"), large, "p" * 3_000, box("c", marker=False)])
    rehearsed, ran = bench.run("--dry-run"), bench.run()
    assert (rehearsed.code, ran.code) == (3, 3)
    assert "still receive" not in ran.out + ran.err
    bodies = bench.bodies()
    assert bodies[2] == large
    assert bodies[3] == "p" * 3_000
    assert [unbox(str(bodies[i]), {"v2": KEY_V2}) for i in (1, 4)] == [b"a", b"c"]


def test_rule_12_a_batch_that_breaks_connections_is_halved(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One value that breaks each connection is found: it is not taken for a bad network for ever."""
    bench.job(more=QUICK)
    bench.notes([box(f"note {i}") for i in range(1, 65)])

    async def poison(writer: Any, _lease: Any, batch: Any, *_args: Any, **_kwargs: Any) -> None:
        if 42 in batch.keys and not writer._connection.is_in_transaction():
            raise StoreUnavailable("the connection was lost")

    async def ready(writer: Any, *args: Any, **kwargs: Any) -> None:
        await writer.connected()
        await poison(writer, *args, **kwargs)

    disturb(monkeypatch, PostgresWriter, "swap", before=ready)
    ended = run_here(bench)
    assert ended.exit_code == 3
    assert ended.outcomes["notes"]["body"] == {"resealed": 63, "quarantined": 1}


def test_rule_13_a_crashed_server_never_has_a_cursor_ahead_of_its_rows(
    bench: Workbench, request: pytest.FixtureRequest
) -> None:
    """Five crashes of the server: rows before the cursor are resealed, and the run goes on through each."""
    if os.environ.get("REWRAP_TEST_DSN"):
        pytest.skip("needs a server of its own to crash; REWRAP_TEST_DSN names somebody's")
    server = request.getfixturevalue("postgres")
    bench.job(more="[pace]\nbatch_size = 10\nshards = 1\nmax_rate = 600\n[limits]\nreconnect_s = 60\n")
    bench.notes([box(f"note {i}") for i in range(1, 6_001)])
    with bench.started("run", "--from", "v1", "--to", "v2", "--allow-unseen-target") as running:
        for crash in range(5):
            wait_for(
                lambda goal=crash: (
                    running.poll() is not None
                    or bench.value("SELECT count(*) FROM notes WHERE starts_with(body, 'v2:')")
                    > 300 * (goal + 1)
                )
            )
            if running.poll() is not None:
                break
            server.kill()
            server.start()
            ahead = bench.value(
                "SELECT count(*) FROM notes, rewrap.shard s WHERE s.sweep = 1 "
                "AND id <= coalesce(s.cursor_key, '0')::bigint AND NOT starts_with(body, 'v2:')"
            )
            assert ahead == 0
        _, err = running.communicate(timeout=TIMEOUT_S)
    assert running.returncode == 0, err
    assert crash >= 2
    assert opened(bench) == {i: f"note {i}" for i in range(1, 6_001)}


def test_rule_13_verify_records_where_the_log_was_and_on_which_history(bench: Workbench) -> None:
    """The verdict names the log position and the timeline that a retirement must check again."""
    bench.notes([box("one")])
    verdict = bench.run().event("verdict")
    assert "/" in verdict["log_position"]
    system, timeline, _database = verdict["origin"].split("/")
    assert system == str(bench.value("SELECT system_identifier FROM pg_control_system()"))
    assert len(timeline) == 8


# keys


def test_rule_16_a_key_must_open_stored_values_before_the_first_write(bench: Workbench) -> None:
    """A mistyped new key round-trips perfectly; only a stored value unmasks it."""
    bench.notes([box(f"note {i}") for i in range(30)] + [box("new", "v2")])
    before = bench.bodies()
    refused = bench.run(KEY_V2="ab" * 32)
    assert refused.code == 10
    assert bench.bodies() == before
    assert bench.value("SELECT to_regclass('rewrap.shard') IS NULL")


def test_rule_16_an_unseen_key_needs_somebodys_word(bench: Workbench) -> None:
    """No stored value under the new version: the fingerprint is shown and must be confirmed."""
    bench.notes([box("one")])
    arguments = ["run", "--from", "v1", "--to", "v2"]
    refused = bench.rewrap(*arguments)
    assert refused.code == 10
    import hashlib

    fingerprint = "sha256:" + hashlib.sha256(KEY_V2).hexdigest()[:16]
    assert fingerprint in refused.err
    assert bench.rewrap(*arguments, "--to-fingerprint", "sha256:" + "0" * 16).code == 10
    assert bench.rewrap(*arguments, "--to-fingerprint", fingerprint).code == 0


def test_rule_16_a_resumed_run_needs_the_key_it_began_with(bench: Workbench) -> None:
    """The ledger keeps a commitment to each key: one name never stands for two keys."""
    bench.job(more="[pace]\nbatch_size = 10\nshards = 1\n")
    bench.notes([box(f"note {i}") for i in range(100)])
    assert bench.run("--sample", "10").code == 4
    # no stored value is left that could unmask the other key
    bench.sql("DELETE FROM notes WHERE starts_with(body, 'v2:')")
    before = bench.bodies()
    refused = bench.rewrap("resume", KEY_V2="cd" * 32)
    assert refused.code == 10
    assert "is not the key that run" in refused.err
    assert bench.bodies() == before
    assert bench.rewrap("resume").code == 0


def test_rule_17_a_wrong_key_quarantines_nothing(bench: Workbench) -> None:
    """With the wrong old key nothing is written, and nothing is put aside."""
    bench.notes([box(f"note {i}") for i in range(300)])
    before = bench.bodies()
    refused = bench.run(KEY_V1="ef" * 32)
    assert refused.code == 10
    assert bench.bodies() == before
    assert bench.rewrap("quarantine", "list").out.strip() == "nothing is put aside"
    assert bench.run().code == 0


def test_rule_17_too_many_failures_withdraw_the_quarantine(bench: Workbench) -> None:
    """Past max_quarantine the key is doubted: what was put aside is withdrawn, and a resume starts over."""
    bench.job(more="[pace]\nbatch_size = 50\nshards = 1\n[limits]\nmax_quarantine = 40\n")
    good = [box(f"note {i}") for i in range(200)]
    bad = [box("x", "v1", bytes([7]) * 32) for _ in range(60)]
    bench.notes([*good, *bad])
    refused = bench.run()
    assert refused.code == 10
    assert "withdrawn" in refused.err
    assert bench.rewrap("quarantine", "list").out.strip() == "nothing is put aside"
    bench.job(more="[pace]\nbatch_size = 50\nshards = 1\n[limits]\nmax_quarantine = 100\n")
    ran = bench.rewrap("resume", "--json")
    assert ran.code == 3
    assert ran.event("run_ended")["outcomes"]["notes"]["body"] == {"current": 200, "quarantined": 60}


def test_rule_19_two_keys_that_both_open_prove_neither(bench: Workbench) -> None:
    """AES-GCM does not commit to its key: an unmarked value that two keys open is resealed with neither."""
    plain = '[layouts.plain]\nmarker = "{version}:"\nversion = "v[0-9]+"\n'
    plain += 'encoding = "base64"\ncipher = "aes-256-gcm"\n'
    target = NOTES.replace('table = "notes"', 'table = "notes"\nunmarked = "reseal"')
    bench.job(target.replace("libsodium-token", "plain"), plain)
    both = one_ciphertext_for_two_keys(KEY_V1, KEY_V3)
    bench.notes([both])
    raw = base64.b64decode(both)
    opened_by = [AESGCM(key).decrypt(raw[:12], raw[12:], None) for key in (KEY_V1, KEY_V3)]
    assert len(set(opened_by)) == 2
    ran = bench.run()
    assert ran.code == 3
    assert ran.event("quarantined")["reason"] == "ambiguous_key"
    assert bench.bodies()[1] == both


def test_rule_19_one_key_under_two_names_is_not_ambiguous(bench: Workbench) -> None:
    """Two versions with the same bytes are one key: what it opens is resealed."""
    bench.job(NOTES.replace('table = "notes"', 'table = "notes"\nunmarked = "reseal"'))
    bench.notes([box("one", marker=False), box("two")])
    assert bench.run(KEY_V3=KEY_V1.hex()).code == 0
    assert opened(bench) == {1: "one", 2: "two"}


def test_rule_19_seals_under_one_key_are_counted_and_bounded(bench: Workbench) -> None:
    """AES-GCM with random nonces: a warning at 2^31 seals of a key, a refusal at 2^32."""
    bench.job(ACCOUNTS)
    bench.sql("CREATE TABLE accounts (id int PRIMARY KEY, account_id int, secret text)")
    bench.insert("accounts", ["id", "account_id", "secret"], [(i, i, aead("x", str(i))) for i in range(50)])
    assert bench.run().code == 0
    import sqlite3

    ledger = sqlite3.connect(bench.ledger)
    assert ledger.execute("SELECT sealed FROM rewrap_seals").fetchall() == [(50,)]
    bench.sql("UPDATE accounts SET secret = $1, account_id = 1 WHERE id = 1 RETURNING id", aead("y", "1"))
    ledger.execute("UPDATE rewrap_seals SET sealed = ?", (2**31,))
    ledger.commit()
    warned = bench.run()
    assert warned.code == 0
    assert any(
        event["level"] == "warning" and "seals" in event["message"]
        for event in warned.events
        if event["type"] == "notice"
    )
    ledger.execute("UPDATE rewrap_seals SET sealed = ?", (2**32 - 10,))
    ledger.commit()
    ledger.close()
    assert bench.run().code == 10


def test_rule_20_a_waiver_dies_with_its_bytes(bench: Workbench) -> None:
    """A waiver holds for the bytes it was given for; when they change it is void, and healing resolves it."""
    bench.notes([box(f"note {i}") for i in range(30)] + ["v1:AAAA", "v1:BBBB"])
    assert bench.run().code == 3
    assert bench.rewrap("quarantine", "waive", "--row", "31", "--reason", "lost for good").code == 0
    assert bench.rewrap("quarantine", "waive", "--row", "32", "--reason", "lost for good").code == 0
    found = bench.rewrap("verify", "--json")
    assert found.code == 0
    assert found.event("verdict")["waived"] == 2
    bench.sql("UPDATE notes SET body = 'v1:CCCC' WHERE id = 31")
    ran = bench.run()
    assert ran.code == 3
    states = {
        event["row_id"]: event["state"] for event in bench.rewrap("quarantine", "list", "--json").events
    }
    assert states == {"31": "open", "32": "waived"}
    bench.sql("UPDATE notes SET body = $1 WHERE id = 31 RETURNING id", box("healed"))
    assert bench.run().code == 0
    states = {
        event["row_id"]: event["state"]
        for event in bench.rewrap("quarantine", "list", "--all", "--json").events
    }
    assert states == {"31": "resolved", "32": "waived"}


def test_rule_20_a_waiver_of_a_large_value_dies_with_its_bytes(bench: Workbench) -> None:
    """Other bytes of the same length are another value, though neither was fetched."""
    bench.job(more="[pace]\nmax_value_bytes = 1024\n")
    bench.notes([box("a"), box("b" * 2_000)])
    assert bench.run().code == 3
    assert bench.rewrap("quarantine", "waive", "--all", "--reason", "lost for good").code == 0
    assert bench.rewrap("verify").code == 0
    bench.sql("UPDATE notes SET body = $1 WHERE id = 2 RETURNING id", box("c" * 2_000))
    assert bench.rewrap("verify").code == 3


def test_rule_20_retry_takes_up_what_was_repaired(bench: Workbench) -> None:
    """`quarantine retry` tries the values again in one sweep, and verifies."""
    bench.notes([box(f"note {i}") for i in range(30)] + ["v1:AAAA"])
    assert bench.run().code == 3
    again = bench.rewrap("quarantine", "retry", "--json")
    assert again.code == 3
    bench.sql("UPDATE notes SET body = $1 WHERE id = 31 RETURNING id", box("repaired"))
    assert bench.rewrap("quarantine", "retry", "--json").code == 0
    assert opened(bench)[31] == "repaired"
    assert bench.rewrap("quarantine", "list").out.strip() == "nothing is put aside"


def test_rule_21_a_compromise_is_not_cured_by_a_rotation(bench: Workbench) -> None:
    """With --reason compromise the report says that authenticity since then is not established."""
    bench.notes([box("one")])
    ran = bench.run("--reason", "compromise")
    assert ran.code == 0
    assert any("authenticity since the compromise" in event.get("message", "") for event in ran.events)
    assert "authenticity" not in bench.run().out


def test_rule_21_a_compromise_with_nothing_in_scope_is_not_said_to_be_resealed(bench: Workbench) -> None:
    """Everything is under the new version already: the warning says that nothing was re-encrypted."""
    bench.notes([box("one", "v2")])
    ran = bench.run("--reason", "compromise")
    assert ran.code == 0
    (said,) = [one["message"] for one in ran.events if "compromise" in one.get("message", "")]
    assert said.startswith("nothing was in scope of v1, and therefore nothing was re-encrypted")


def test_rule_21_a_compromise_whose_values_are_put_aside_is_not_said_to_be_resealed(bench: Workbench) -> None:
    """What was put aside was in scope, and was not re-encrypted either."""
    bench.job(more="[pace]\nmax_value_bytes = 1024\n")
    bench.notes([box("a", "v2"), box("b" * 2_000)])
    ran = bench.run("--reason", "compromise")
    assert ran.code == 3
    (said,) = [one["message"] for one in ran.events if "compromise" in one.get("message", "")]
    assert said.startswith("what was in scope could not be resealed, and therefore nothing")


# around


def test_rule_23_a_trigger_that_changes_our_value_is_caught_before_the_first_write(bench: Workbench) -> None:
    """One stored value is swapped, read back, rolled back: an acknowledged trigger that lies is refused."""
    target = NOTES.replace('table = "notes"', 'table = "notes"\nacknowledge = ["triggers"]')
    bench.job(target)
    bench.notes([box(f"note {i}") for i in range(30)])
    bench.sql(
        "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN NEW.body := upper(NEW.body); RETURN NEW; END$$"
    )
    bench.sql("CREATE TRIGGER spoil BEFORE UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION spoil()")
    before = bench.bodies()
    refused = bench.run()
    assert refused.code == 1
    assert "keeps something else than was written" in refused.err
    assert bench.bodies() == before


def test_rule_24_errors_name_objects_and_never_values(bench: Workbench) -> None:
    """Postgres puts whole rows into DETAIL: only the SQLSTATE and names get through."""
    bench.notes([box("x")])
    bench.sql("ALTER TABLE notes ADD CONSTRAINT no_canary CHECK (body NOT LIKE 'canary%')")

    async def work() -> StoreError:
        connection = await connect(address_of(bench.dsn))
        try:
            with pytest.raises(StoreError) as caught, translated("table notes"):
                await connection.execute("INSERT INTO notes (id, body) VALUES (2, 'canary-value')")
            return caught.value
        finally:
            await connection.close()

    error = asyncio.run(work())
    assert error.sqlstate == "23514"
    assert "no_canary" in str(error)
    assert "canary-value" not in f"{error}{error.hint}{error.__cause__}"
    assert error.__suppress_context__


def test_rule_25_shards_cover_every_key_in_the_servers_order(bench: Workbench) -> None:
    """First and last shard are open, bounds come from the server, and no key falls between two shards."""
    bench.sql("CREATE TABLE notes (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), body text)")
    bench.sql("INSERT INTO notes (body) SELECT 'x' FROM generate_series(1, 90000); ANALYZE notes")

    async def work() -> list[Any]:
        store = PostgresStore(load(bench))
        table = (await store.tables())[0]
        ranges = await store.split(table, 4)
        await store.close()
        return ranges

    ranges = asyncio.run(work())
    assert len(ranges) == 4
    assert ranges[0].lower is None
    assert ranges[-1].upper is None
    assert all(a.upper == b.lower for a, b in pairwise(ranges))
    counts = [
        bench.value(
            "SELECT count(*) FROM notes "
            "WHERE ($1::uuid IS NULL OR id > $1) AND ($2::uuid IS NULL OR id <= $2)",
            entry.lower, entry.upper,
        )
        for entry in ranges
    ]  # fmt: skip
    assert sum(counts) == 90_000
    assert min(counts) > 15_000


def test_rule_25_rows_beyond_the_bounds_seen_at_the_start_are_swept(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows inserted below the lowest and above the highest key after the split are found all the same."""
    bench.notes([box(f"note {i}") for i in range(30)])
    done: list[bool] = []

    async def insert(_reader: Any, *_args: Any) -> None:
        if not done:
            done.append(True)
            app = await asyncpg.connect(bench.dsn)
            await app.execute(
                "INSERT INTO notes (id, body) VALUES (-9223372036854775808, $1), (9223372036854775807, $2)",
                box("lowest"), box("highest"),
            )  # fmt: skip
            await app.close()

    disturb(monkeypatch, PostgresReader, "fetch", before=insert)
    assert run_here(bench).exit_code == 0
    assert opened(bench)[-(2**63)] == "lowest"
    assert opened(bench)[2**63 - 1] == "highest"


def test_rule_26_leases_are_on_the_servers_clock(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose clock is years off takes and respects leases like any other."""
    bench.notes([box("x")])
    monkeypatch.setattr(time, "time", lambda: 4e9)

    async def work() -> None:
        store, _lease = await _claimed(bench)
        await store.close()

    asyncio.run(work())
    left = bench.value("SELECT extract(epoch FROM lease_until - clock_timestamp()) FROM rewrap.shard")
    assert -TIMEOUT_S < left <= 30


def test_rule_27_an_opaque_version_is_no_pattern(bench: Workbench) -> None:
    """Versions with _ and % find their own marker only, in sweeps and in verify."""
    job = (bench.folder / "rewrap.toml").read_text()
    job = job.replace("[keys.versions.v1]", '[keys.versions."v_"]').replace(
        "[keys.versions.v3]", '[keys.versions."v%"]'
    )
    job = job.replace('layout = "libsodium-token"', 'layout = "opaque"')
    job += '[layouts.opaque]\nlike = "libsodium-token"\nversion = "v[0-9_%]+"\n'
    (bench.folder / "rewrap.toml").write_text(job)
    foreign = "v7:" + box("y").partition(":")[2]
    mine = "v_:" + box("x").partition(":")[2]
    bench.notes([mine, foreign])
    ran = bench.rewrap("run", "--from", "v_", "--to", "v2", "--allow-unseen-target", "--json")
    assert ran.code == 3
    assert ran.event("run_ended")["outcomes"]["notes"]["body"] == {"resealed": 1, "other_version": 1}
    assert bench.bodies()[2] == foreign
    assert ran.event("verdict")["stale"] == 0
    assert ran.event("verdict")["other_version"] == 1
