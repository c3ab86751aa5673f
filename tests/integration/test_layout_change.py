"""A rotation that also changes how values are stored: old and new layout side by side until it is done."""

from __future__ import annotations

import asyncio
import base64
import signal
import threading
import time
from dataclasses import replace
from typing import Any

import asyncpg
import pytest
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap

from rewrap.errors import UsageError
from rewrap.stores.postgres.reader import PostgresReader
from rewrap.stores.postgres.writer import PostgresWriter
from tests.integration.test_safety import disturb
from tests.support.inprocess import run_here
from tests.support.values import KEY_V2, KEYS, aead, box, unaead
from tests.support.workbench import UNYIELDING, Result, Workbench, wait_for, wait_while

LAYOUTS = """
[layouts.gcm]
marker = "gcm:{version}:"
version = "v[0-9]+"
encoding = "base64"
cipher = "aes-256-gcm"
aad = "{account_id}"
[layouts.fernet]
marker = "f:{version}:"
version = "v[0-9]+"
encoding = "base64url-padded"
cipher = "fernet"
[layouts.fernet-bare]
encoding = "base64url-padded"
cipher = "fernet"
[layouts.bare]
encoding = "base64"
cipher = "aes-256-gcm"
aad = "{account_id}"
[layouts.unbound]
encoding = "base64"
cipher = "aes-256-gcm"
"""

SMALL = "[pace]\nbatch_size = 10\nshards = 1\n"


def target(layout: str, to_layout: str) -> str:
    return (
        '[[targets]]\ntable = "notes"\n'
        f'fields = [{{ column = "body", layout = "{layout}", to_layout = "{to_layout}" }}]\n'
    )


TOKEN_TO_GCM = target("libsodium-token", "gcm")


def gcm(plain: str | bytes, account: str, version: str = "v1") -> str:
    return "gcm:" + aead(plain, account, version)


def ungcm(value: str | None, account: str) -> bytes:
    assert value is not None
    assert value.startswith("gcm:v2:")
    return unaead(value.removeprefix("gcm:"), account, {"v2": KEY_V2})


def token(plain: str, version: str, at: int) -> str:
    key = base64.urlsafe_b64encode(KEYS[version])
    return Fernet(key).encrypt_at_time(plain.encode(), at).decode()


def notes(bench: Workbench, values: list[str | None], targets: str = TOKEN_TO_GCM, more: str = "") -> None:
    """Table notes(id, body, account_id): row n belongs to account n."""
    bench.job(targets, LAYOUTS + more)
    bench.sql("CREATE TABLE notes (id bigint PRIMARY KEY, body text, account_id text)")
    rows = [(i, value, f"{i}") for i, value in enumerate(values, 1)]
    bench.insert("notes", ["id", "body", "account_id"], rows)


def outcomes(ran: Result) -> dict[str, int]:
    found: dict[str, int] = ran.event("run_ended")["outcomes"]["notes"]["body"]
    return found


def mixed() -> list[str | None]:
    """100 old values, then one of every other kind."""
    values: list[str | None] = [box(f"note {i}") for i in range(1, 101)]
    return [
        *values,
        box("note 101", "v2"),
        gcm("note 102", "102", "v1"),
        gcm("note 103", "103", "v2"),
        box("note 104", "v3"),
        "gcm:v9:" + "A" * 40,
        box("torn")[:30],
        gcm("strayed", "7", "v1"),
        "just text",
        None,
    ]


def test_every_form_ends_in_the_new_layout(bench: Workbench) -> None:
    """Old layout under the old key and under the new one, new layout under the old key: each is resealed."""
    notes(bench, mixed())
    before = bench.rewrap("verify", "--to", "v2", "--json")
    assert before.code == 3
    assert before.event("field_verdict")["classes"] == {
        "stale": 105, "current": 1, "other_version": 1, "plaintext": 1, "null": 1,
    }  # fmt: skip
    ran = bench.run()
    assert ran.code == 3, ran.err
    assert outcomes(ran) == {
        "resealed": 102, "current": 1, "other_version": 2, "quarantined": 2, "plaintext": 1, "null": 1,
    }  # fmt: skip
    after = bench.bodies()
    for i in range(1, 104):
        assert ungcm(after[i], str(i)) == f"note {i}".encode()
    put_aside = {e["row_id"]: e["reason"] for e in bench.rewrap("quarantine", "list", "--json").events}
    assert put_aside == {"106": "malformed", "107": "unopenable"}
    found = bench.rewrap("verify", "--deep", "--json")
    assert found.code == 3
    assert found.event("field_verdict")["classes"] == {
        "current": 103, "stale": 1, "other_version": 1, "quarantined": 2, "plaintext": 1, "null": 1,
    }  # fmt: skip
    assert found.event("verdict")["unopenable"] == 0


def test_values_of_the_new_version_in_the_old_layout_are_stale(bench: Workbench) -> None:
    """They are under the right key, and not what the application is to read: counted, and resealed."""
    notes(bench, [box(f"note {i}", "v2") for i in range(1, 21)])
    found = bench.rewrap("verify", "--to", "v2", "--json")
    assert found.code == 3
    assert found.event("field_verdict")["classes"] == {"stale": 20}
    # every one of them vouches for the new key
    ran = bench.rewrap("run", "--from", "v1", "--to", "v2", "--json")
    assert ran.code == 0, ran.err
    assert outcomes(ran) == {"resealed": 20}
    assert ungcm(bench.bodies()[7], "7") == b"note 7"


def test_a_second_run_writes_nothing(bench: Workbench) -> None:
    """What has the new layout and version stays, byte for byte."""
    notes(bench, [box(f"note {i}") for i in range(1, 201)])
    assert bench.run().code == 0
    first = bench.bodies()
    again = bench.run()
    assert again.code == 0, again.err
    assert outcomes(again) == {"current": 200}
    assert bench.bodies() == first


def test_a_dry_run_counts_and_writes_nothing(bench: Workbench) -> None:
    """The classes of a run, and no byte changed."""
    notes(bench, mixed())
    before = bench.bodies()
    dry = bench.run("--dry-run")
    assert dry.code == 3, dry.err
    assert outcomes(dry) == {
        "resealed": 102, "current": 1, "other_version": 2, "quarantined": 2, "plaintext": 1, "null": 1,
    }  # fmt: skip
    assert bench.bodies() == before
    assert not bench.ledger.exists()


def test_rule_06_a_row_that_moves_meanwhile_is_bound_to_its_new_account(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Secretbox binds nothing, the new layout the account: it is the one at the moment of the write."""
    notes(bench, [box(f"note {i}") for i in range(1, 31)])
    moved: list[int] = []

    async def move(_writer: Any, _lease: Any, batch: Any, *_args: Any, **_kwargs: Any) -> None:
        if not moved and len(batch) > 1:
            moved.append(7)
            connection = await asyncpg.connect(bench.dsn)
            await connection.execute("UPDATE notes SET account_id = 'elsewhere' WHERE id = 7")
            await connection.close()

    disturb(monkeypatch, PostgresWriter, "swap", before=move)
    ended = run_here(bench)
    assert (moved, ended.exit_code) == ([7], 0)
    assert ended.outcomes["notes"]["body"] == {"resealed": 30}
    after = bench.bodies()
    assert ungcm(after[7], "elsewhere") == b"note 7"
    assert ungcm(after[8], "8") == b"note 8"


def test_rule_06_without_stamps_the_account_is_compared_too(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row read again has no stamp: the column that only the new layout binds is a token all the same."""
    notes(bench, [box(f"note {i}") for i in range(1, 31)])
    moved: list[int] = []

    async def stampless(_reader: Any, page: Any, *_args: Any) -> Any:
        return replace(page, stamps=None)

    async def move(_writer: Any, _lease: Any, batch: Any, *_args: Any, **_kwargs: Any) -> None:
        assert batch.stamps is None
        if not moved and len(batch) > 1:
            moved.append(7)
            connection = await asyncpg.connect(bench.dsn)
            await connection.execute("UPDATE notes SET account_id = 'elsewhere' WHERE id = 7")
            await connection.close()

    disturb(monkeypatch, PostgresReader, "fetch", after=stampless)
    disturb(monkeypatch, PostgresWriter, "swap", before=move)
    ended = run_here(bench)
    assert (moved, ended.exit_code) == ([7], 0)
    assert ungcm(bench.bodies()[7], "elsewhere") == b"note 7"


def test_a_wrong_old_key_stops_the_run(bench: Workbench) -> None:
    """Exit 10, nothing put aside, nothing written."""
    notes(bench, [box(f"note {i}") for i in range(1, 101)])
    before = bench.bodies()
    ran = bench.run(KEY_V1="77" * 32)
    assert ran.code == 10
    assert bench.bodies() == before
    assert bench.rewrap("quarantine", "list").out.strip() == "nothing is put aside"


def test_a_killed_run_goes_on_where_it_was(bench: Workbench) -> None:
    """kill -9 in the middle, then resume: every row in the new layout, none twice."""
    notes(bench, [box(f"note {i}") for i in range(1, 2_001)], more=SMALL)
    arguments = ("run", "--from", "v1", "--to", "v2", "--allow-unseen-target", "--max-rate", "100")
    with bench.started(*arguments) as running:
        wait_while(running, lambda: bench.swept() > 100)
        running.kill()
    assert running.returncode == -signal.SIGKILL
    assert bench.value("SELECT count(*) FROM notes WHERE starts_with(body, 'gcm:')") > 0
    assert bench.value("SELECT count(*) FROM notes WHERE starts_with(body, 'v1:')") > 0
    resumed = bench.rewrap("resume", "--json")
    assert resumed.code == 0, resumed.err
    assert {i: ungcm(body, str(i)) for i, body in bench.bodies().items()} == {
        i: f"note {i}".encode() for i in range(1, 2_001)
    }
    counts = outcomes(resumed)
    assert counts["resealed"] + counts.get("current", 0) == 2_000


def test_a_live_writer_of_every_form_loses_nothing(bench: Workbench) -> None:
    """The application writes old values, then the new key in the old layout, then the new layout."""
    notes(
        bench,
        [box(f"note {i}") for i in range(1, 3_001)],
        more=SMALL + UNYIELDING + "[limits]\ndrain_s = 20\n",
    )
    written: dict[int, bytes] = {}
    over = threading.Event()

    async def application() -> None:
        connection = await asyncpg.connect(bench.dsn)
        number = 0
        while not over.is_set():
            number += 1
            row, text = number * 37 % 3_000 + 1, f"write {number}"
            stored = box(text) if number < 80 else box(text, "v2")
            if number >= 160:
                stored = gcm(text, str(row), "v2")
            await connection.execute("UPDATE notes SET body = $1 WHERE id = $2", stored, row)
            written[row] = text.encode()
            await asyncio.sleep(0.002)
        await connection.close()

    thread = threading.Thread(target=lambda: asyncio.run(application()))
    thread.start()
    try:
        ran = bench.run()
        wait_for(lambda: len(written) > 200)
    finally:
        over.set()
        thread.join()
    again = bench.run()
    assert ran.code in (0, 3), ran.err
    assert again.code == 0, again.out
    expected = {i: f"note {i}".encode() for i in range(1, 3_001)} | written
    assert {i: ungcm(body, str(i)) for i, body in bench.bodies().items()} == expected


def test_a_fence_admits_the_new_layout_only(bench: Workbench) -> None:
    """The new version in the old layout is refused from then on, like any old value."""
    notes(bench, [box(f"note {i}") for i in range(1, 21)])
    assert bench.run().code == 0
    assert bench.rewrap("verify", "--fence").code == 0
    with pytest.raises(asyncpg.CheckViolationError):
        bench.sql("UPDATE notes SET body = $1 WHERE id = 1", box("late", "v2"))
    bench.sql("UPDATE notes SET body = $1 WHERE id = 1", gcm("fine", "1", "v2"))


def test_printed_queries_tell_the_layouts_apart(bench: Workbench) -> None:
    """The SQL for psql, run as printed, counts the old layout as such, whatever the version."""
    notes(bench, mixed())
    printed = bench.rewrap("verify", "--to", "v2", "--print-queries")
    says, statement = printed.out.strip().split("\n", 1)
    assert 'class "old"' in says
    rows = {(row["class"], row["version"]): row["n"] for row in bench.sql(statement.rstrip(";"))}
    assert rows == {
        ("old", "v1"): 101, ("old", "v2"): 1, ("old", "v3"): 1, ("marked", "v1"): 2, ("marked", "v2"): 1,
        ("marked", "v9"): 1, ("bare", None): 1, ("null", None): 1,
    }  # fmt: skip


def test_values_that_lost_the_old_marker_are_unmarked(bench: Workbench) -> None:
    """A payload without its marker opens in either layout: counted, or resealed into the new one."""
    notes(bench, [box("one"), box("two", marker=False), gcm("three", "3").partition(":v1:")[2]])
    ran = bench.run()
    assert ran.code == 3
    assert outcomes(ran) == {"resealed": 1, "unmarked": 2}
    assert bench.rewrap("verify", "--json").event("field_verdict")["classes"] == {"current": 1, "unmarked": 2}
    bench.job(TOKEN_TO_GCM + 'unmarked = "reseal"\n', LAYOUTS)
    ran = bench.run()
    assert ran.code == 0, ran.err
    assert [ungcm(bench.bodies()[i], str(i)) for i in (1, 2, 3)] == [b"one", b"two", b"three"]


# what a plaintext carries


def test_a_token_without_a_time_gets_one(bench: Workbench) -> None:
    """Into Fernet: the time of the rotation, and the plaintext as it was."""
    notes(bench, [box(f"note {i}") for i in range(1, 31)], target("libsodium-token", "fernet"))
    began = int(time.time())
    ran = bench.run()
    assert ran.code == 0, ran.err
    opener = Fernet(base64.urlsafe_b64encode(KEY_V2))
    for i, body in bench.bodies().items():
        stored = (body or "").removeprefix("f:v2:")
        assert opener.decrypt(stored) == f"note {i}".encode()
        assert began <= opener.extract_timestamp(stored) <= time.time()


def test_a_token_leaves_its_time_behind(bench: Workbench) -> None:
    """Out of Fernet: the plaintext alone is sealed."""
    values: list[str | None] = [f"f:v1:{token(f'note {i}', 'v1', 1_000)}" for i in range(1, 31)]
    notes(bench, values, target("fernet", "gcm"))
    assert bench.run().code == 0
    assert {i: ungcm(body, str(i)) for i, body in bench.bodies().items()} == {
        i: f"note {i}".encode() for i in range(1, 31)
    }


def test_rule_22_a_token_keeps_its_time_in_another_layout(bench: Workbench) -> None:
    """From Fernet without a marker to Fernet with one: an expired token stays expired."""
    values: list[str | None] = [token(f"note {i}", "v1", 1_000 + i) for i in range(1, 31)]
    notes(bench, values, target("fernet-bare", "fernet"))
    ran = bench.run()
    assert ran.code == 0, ran.err
    opener = Fernet(base64.urlsafe_b64encode(KEY_V2))
    for i, body in bench.bodies().items():
        stored = (body or "").removeprefix("f:v2:")
        assert opener.decrypt(stored) == f"note {i}".encode()
        assert opener.extract_timestamp(stored) == 1_000 + i


# with a layout that names no version on one side, or on both


def test_a_layout_without_a_marker_gets_one(bench: Workbench) -> None:
    """Old values are found by opening them, new ones by their marker; a fence is possible afterwards."""
    values: list[str | None] = [aead(f"note {i}", f"{i}").partition(":")[2] for i in range(1, 101)]
    values += [gcm("note 101", "101", "v2"), gcm("note 102", "102", "v1"), None, "plain text"]
    values += [aead("note 105", "105", "v2").partition(":")[2]]
    notes(bench, values, target("bare", "gcm"))
    before = bench.rewrap("verify", "--to", "v2", "--json").event("field_verdict")
    assert before["classes"] == {"stale": 102, "current": 1, "plaintext": 1, "null": 1}
    assert before["versions"] == {"v1": 101, "v2": 2}
    ran = bench.run()
    assert ran.code == 0, ran.err
    assert outcomes(ran) == {"resealed": 102, "current": 1, "null": 1, "plaintext": 1}
    after = bench.bodies()
    for i in (*range(1, 103), 105):
        assert ungcm(after[i], str(i)) == f"note {i}".encode()
    assert bench.rewrap("verify", "--deep", "--json").code == 0
    bench.sql("UPDATE notes SET body = NULL WHERE id = 104")
    assert bench.rewrap("verify", "--fence").code == 0
    assert outcomes(bench.run()) == {"current": 103, "null": 2}


def test_a_layout_with_a_marker_may_lose_it(bench: Workbench) -> None:
    """Old values are found by their marker, new ones by opening them."""
    values: list[str | None] = [box(f"note {i}") for i in range(1, 101)]
    values += [aead("note 101", "101", "v2").partition(":")[2], box("note 102", "v2")]
    notes(bench, values, target("libsodium-token", "bare"))
    before = bench.rewrap("verify", "--to", "v2", "--json").event("field_verdict")
    assert before["classes"] == {"stale": 101, "current": 1}
    ran = bench.run()
    assert ran.code == 0, ran.err
    assert outcomes(ran) == {"resealed": 101, "current": 1}
    for i, body in bench.bodies().items():
        assert unaead(f"v2:{body}", str(i), {"v2": KEY_V2}) == f"note {i}".encode()
    assert outcomes(bench.run()) == {"current": 102}


def test_associated_data_are_added_where_nothing_shows_it(bench: Workbench) -> None:
    """Neither layout has a marker, and only the binding differs: opening tells which one a value is in."""
    values: list[str | None] = [aead(f"note {i}", "").partition(":")[2] for i in range(1, 101)]
    values += [aead("note 101", "", "v2").partition(":")[2], aead("note 102", "102", "v2").partition(":")[2]]
    notes(bench, values, target("unbound", "bare"))
    # a row of no account: bound to nothing, in both layouts alike
    bench.sql("INSERT INTO notes VALUES (103, $1, NULL)", aead("note 103", "", "v2").partition(":")[2])
    before = bench.rewrap("verify", "--to", "v2", "--json").event("field_verdict")
    assert before["classes"] == {"stale": 101, "current": 2}
    ran = bench.run()
    assert ran.code == 0, ran.err
    assert outcomes(ran) == {"resealed": 101, "current": 2}
    for i, body in bench.bodies().items():
        account = "" if i == 103 else str(i)
        assert unaead(f"v2:{body}", account, {"v2": KEY_V2}) == f"note {i}".encode()
    assert outcomes(bench.run()) == {"current": 103}


KEY_WRAP = """
[layouts.wrapped]
marker = "kw:{version}:"
version = "v[0-9]+"
encoding = "base64"
cipher = "aes-key-wrap"
"""


def test_a_value_that_the_new_layout_cannot_hold_stops_the_run(bench: Workbench) -> None:
    """AES Key Wrap takes whole blocks: exit 2, with what it takes, and nothing of the value."""
    data_keys = [bytes([65 + at]) * 16 for at in range(4)]
    bench.job(target("libsodium-token", "wrapped"), KEY_WRAP)
    bench.notes([box(one) for one in data_keys])
    bench.sql("UPDATE notes SET body = $1 WHERE id = 3", box(b"canary of 20 bytes.."))
    with pytest.raises(UsageError, match="wraps 16 bytes or more, in whole blocks of 8") as caught:
        run_here(bench)
    assert caught.value.exit_code == 2
    assert "canary" not in f"{caught.value!r} {caught.value.hint}"
    assert all((body or "").startswith("v1:") for body in bench.bodies().values())
    bench.sql("UPDATE notes SET body = $1 WHERE id = 3", box(data_keys[2]))
    assert run_here(bench).exit_code == 0
    news = [(body or "").removeprefix("kw:v2:") for _, body in sorted(bench.bodies().items())]
    assert [aes_key_unwrap(KEY_V2, base64.b64decode(one)) for one in news] == data_keys
