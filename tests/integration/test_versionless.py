"""Values that name no version: only opening them tells which key they are under."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import signal
import threading
from collections import Counter

import asyncpg
import pytest

from tests.integration.test_safety import Holder
from tests.support.values import KEY_V1, KEY_V2, KEY_V3, aead, one_ciphertext_for_two_keys, unaead
from tests.support.workbench import UNYIELDING, Workbench, wait_for, wait_while

BARE = """
[layouts.bare]
marker = ""
encoding = "base64"
cipher = "aes-256-gcm"
[layouts.bound]
marker = ""
encoding = "base64"
cipher = "aes-256-gcm"
aad = "{other}"
[layouts.raw]
marker = ""
encoding = "raw"
cipher = "aes-256-gcm"
"""

TARGET = """
[[targets]]
table = "notes"
fields = [{ column = "body", layout = "bare" }]
"""

SMALL = "[pace]\nbatch_size = 10\nshards = 1\n"


def bare(plain: str | bytes, version: str = "v1", key: bytes | None = None, aad: str = "") -> str:
    """base64(nonce12 ‖ ciphertext ‖ tag16): nothing in it says under which key."""
    return aead(plain, aad, version, key).partition(":")[2]


def unbare(value: str, key: bytes, aad: str = "") -> bytes:
    return unaead(f"key:{value}", aad, {"key": key})


def damaged(value: str) -> str:
    raw = bytearray(base64.b64decode(value))
    raw[-1] ^= 1
    return base64.b64encode(raw).decode()


def notes(bench: Workbench, values: list[str | None], more: str = "") -> None:
    bench.job(TARGET, BARE + more)
    bench.notes(values)


def outcomes(ran: object, table: str = "notes") -> dict[str, int]:
    found: dict[str, int] = ran.event("run_ended")["outcomes"][table]["body"]  # type: ignore[attr-defined]  # a Result
    return found


ODD = {
    "current": bare("already", "v2"),
    "other_version": bare("third", "v3"),
    "damaged": damaged(bare("lost")),
    "ambiguous": one_ciphertext_for_two_keys(KEY_V1, KEY_V2),
    "plaintext": "a note that was never sealed, and is long enough to be taken for one",
    "short": "c2hvcnQ=",
    "null": None,
}


def test_every_kind_of_value_is_told_by_opening_it(bench: Workbench) -> None:
    """Each class with its exact count, by the run and by verify; what cannot be resealed stays as it is."""
    notes(bench, [*(bare(f"note {i}") for i in range(1, 2_501)), *ODD.values()])
    before = bench.rewrap("verify", "--to", "v2", "--json")
    assert before.code == 3
    assert before.event("field_verdict")["classes"] == {
        "stale": 2_502, "current": 1, "other_version": 1, "plaintext": 2, "null": 1,
    }  # fmt: skip
    assert before.event("field_verdict")["versions"] == {"v1": 2_500, "v2": 1, "v3": 1}
    ran = bench.run()
    assert ran.code == 3, ran.err
    assert outcomes(ran) == {
        "resealed": 2_500, "current": 1, "other_version": 1, "quarantined": 2, "plaintext": 2, "null": 1,
    }  # fmt: skip
    after = bench.bodies()
    assert {unbare(after[i] or "", KEY_V2) for i in range(1, 2_501)} == {
        f"note {i}".encode() for i in range(1, 2_501)
    }
    assert [after[i] for i in range(2_501, 2_508)] == list(ODD.values())
    put_aside = {e["row_id"]: e["reason"] for e in bench.rewrap("quarantine", "list", "--json").events}
    assert put_aside == {"2503": "unopenable", "2504": "ambiguous_key"}
    found = bench.rewrap("verify", "--json")
    assert found.code == 3
    assert found.event("field_verdict")["classes"] == {
        "current": 2_501, "stale": 1, "quarantined": 2, "plaintext": 2, "null": 1,
    }  # fmt: skip
    assert found.event("field_verdict")["versions"] == {"v2": 2_501, "v3": 1}


def test_a_second_run_writes_nothing(bench: Workbench) -> None:
    """What is current stays, byte for byte; what was put aside is known, and not put aside again."""
    notes(bench, [*(bare(f"note {i}") for i in range(200)), damaged(bare("lost")), None])
    assert bench.run().code == 3
    first = bench.bodies()
    again = bench.run()
    assert again.code == 3, again.err
    assert outcomes(again) == {"current": 200, "quarantined": 1, "null": 1}
    assert bench.bodies() == first
    assert again.event("run_ended")["sweeps"] == 1


def test_a_clean_table_is_complete(bench: Workbench) -> None:
    """No value left under an old key: exit 0, deep or not, with the old key and without it."""
    notes(bench, [*(bare(f"note {i}") for i in range(200)), None, "some text"])
    ran = bench.run()
    assert ran.code == 0, ran.out
    for environ in ({}, {"KEY_V1": "", "KEY_V3": ""}):
        for options in ((), ("--deep",)):
            found = bench.rewrap("verify", "--json", *options, **environ)
            assert found.code == 0, found.out
            assert found.event("field_verdict")["classes"] == {"current": 200, "null": 1, "plaintext": 1}


def test_a_dry_run_counts_and_writes_nothing(bench: Workbench) -> None:
    """The same classes as a run finds, and no byte, schema or ledger written."""
    notes(bench, [*(bare(f"note {i}") for i in range(200)), *ODD.values()])
    before = bench.bodies()
    dry = bench.run("--dry-run")
    assert dry.code == 3, dry.err
    assert outcomes(dry) == {
        "resealed": 200, "current": 1, "other_version": 1, "quarantined": 2, "plaintext": 2, "null": 1,
    }  # fmt: skip
    assert bench.bodies() == before
    assert not bench.ledger.exists()
    assert bench.value("SELECT to_regnamespace('rewrap') IS NULL")


# wrong keys


@pytest.mark.parametrize("rows", [5, 300])
def test_rule_17_a_wrong_old_key_stops_the_run(bench: Workbench, rows: int) -> None:
    """Exit 10 before the first write, whether few values fail or many; nothing is put aside."""
    notes(bench, [bare(f"note {i}") for i in range(rows)])
    before = bench.bodies()
    ran = bench.run(KEY_V1=os.urandom(32).hex())
    assert ran.code == 10
    assert "look sealed" in ran.err
    assert bench.bodies() == before
    assert bench.rewrap("quarantine", "list").out.strip() == "nothing is put aside"


def test_rule_17_new_values_do_not_vouch_for_the_old_key(bench: Workbench) -> None:
    """Half the table is under the new key already: a wrong old one is refused all the same."""
    notes(bench, [bare(f"note {i}", "v2" if i % 2 else "v1") for i in range(300)])
    before = bench.bodies()
    ran = bench.run(KEY_V1=os.urandom(32).hex())
    assert ran.code == 10
    assert bench.bodies() == before
    assert bench.rewrap("quarantine", "list").out.strip() == "nothing is put aside"


def test_rule_17_a_rare_old_value_is_found_before_a_key_is_refused(bench: Workbench) -> None:
    """One broken value and few old ones in a table that is current: looked for everywhere, then resealed."""
    values: list[str | None] = [damaged(bare("lost"))]
    values += [bare(f"note {i}", "v2") for i in range(3_000)]
    notes(bench, [*values, bare("rare")])
    ran = bench.run()
    assert ran.code == 3, ran.err
    assert outcomes(ran) == {"current": 3_000, "quarantined": 1, "resealed": 1}


def test_rule_17_a_key_that_turns_out_wrong_withdraws_what_it_put_aside(bench: Workbench) -> None:
    """More values than limits.max_quarantine allows open under no key: exit 10, and nothing stays aside."""
    sealed = [bare(f"note {i}", "v1", KEY_V1 if i < 3_000 else bytes(32)) for i in range(3_400)]
    notes(bench, list(sealed), SMALL + "[limits]\nmax_quarantine = 50\n")
    ran = bench.run()
    assert ran.code == 10
    assert "more than the 50" in ran.err
    assert bench.rewrap("quarantine", "list").out.strip() == "nothing is put aside"


def test_rule_17_a_share_of_the_values_may_be_broken(bench: Workbench) -> None:
    """Every value that opens under an old key counts in its favour, as it does where values name theirs."""
    values: list[str | None] = [bare(f"note {i}", "v2") for i in range(10)]
    for i in range(130):
        values += [bare(f"note {i}"), bare("again"), damaged(bare("lost"))]
    notes(bench, values, SMALL + "[limits]\nmax_quarantine = 0\nmax_quarantine_share = 0.45\n")
    ran = bench.run()
    assert ran.code == 3, ran.err
    assert outcomes(ran) == {"current": 10, "resealed": 260, "quarantined": 130}


def test_rule_16_a_wrong_new_key_is_noticed_by_what_is_under_the_right_one(bench: Workbench) -> None:
    """The application writes the new version already: unseen is not taken for an answer."""
    notes(bench, [bare(f"note {i}", "v2" if i % 2 else "v1") for i in range(300)])
    before = bench.bodies()
    wrong = os.urandom(32)
    ran = bench.run(KEY_V2=wrong.hex())
    assert ran.code == 10
    assert "--to-fingerprint" in ran.err
    assert bench.bodies() == before


def test_rule_16_an_unseen_new_key_has_to_be_vouched_for(bench: Workbench) -> None:
    """No value opens under the new key yet: the run asks; one value that does is enough."""
    notes(bench, [bare(f"note {i}") for i in range(40)])
    asked = bench.rewrap("run", "--from", "v1", "--to", "v2")
    assert asked.code == 10
    assert "--to-fingerprint" in asked.err
    bench.sql("UPDATE notes SET body = $1 WHERE id = 3", bare("new", "v2"))
    assert bench.rewrap("run", "--from", "v1", "--to", "v2").code == 0


def test_check_proves_the_keys_of_values_that_name_no_version(bench: Workbench) -> None:
    """A version that no value is under is no finding as long as another opens some; a wrong key is one."""
    notes(bench, [*(bare(f"note {i}") for i in range(30)), damaged(bare("lost"))])
    arguments = ("check", "--from", "v1,v3", "--to", "v2", "--json")
    found = bench.rewrap(*arguments)
    assert [e["code"] for e in found.events if e.get("severity") == "error"] == []
    found = bench.rewrap(*arguments, KEY_V1=os.urandom(32).hex())
    refused = [e for e in found.events if e.get("severity") == "error"]
    # none of the old keys is right, and then the new one is in doubt as well
    assert [e["code"] for e in refused] == ["key-refused", "key-refused"]
    assert any("look sealed" in e["reason"] for e in refused)


# what verify may say


def test_rule_04_without_the_old_key_a_sealed_value_is_no_plaintext(bench: Workbench) -> None:
    """Nothing tells a stale value from a foreign one but its key: verify does not say complete."""
    notes(bench, [bare(f"note {i}") for i in range(50)])
    assert bench.run().code == 0
    bench.sql("UPDATE notes SET body = $1 WHERE id = 9", bare("late"))
    with_key = bench.rewrap("verify", "--json")
    assert with_key.code == 3
    assert with_key.event("field_verdict")["classes"] == {"current": 49, "stale": 1}
    without = bench.rewrap("verify", "--json", KEY_V1="", KEY_V3="")
    assert without.code == 3
    assert without.event("field_verdict")["classes"] == {"current": 49, "other_version": 1}
    verdict = without.event("verdict")
    assert (verdict["complete"], verdict["undecided"]) == (False, 1)
    assert any("the key of v1 is not at hand" in reason for reason in verdict["reasons"])
    assert bench.run().code == 0


def test_a_fence_needs_a_marker(bench: Workbench) -> None:
    """No constraint can tell the versions: refused with the reason, and none was added."""
    notes(bench, [bare("one")])
    assert bench.run().code == 0
    fenced = bench.rewrap("verify", "--fence")
    assert fenced.code == 3
    assert "name no version" in fenced.err
    assert bench.value("SELECT count(*) FROM pg_constraint WHERE conname LIKE 'rewrap%'") == 0


def test_a_fence_of_an_earlier_layout_is_in_the_way(bench: Workbench) -> None:
    """A constraint that admits a marker only would refuse every value without one."""
    notes(bench, [bare("one")])
    bench.sql(
        "ALTER TABLE notes ADD CONSTRAINT rewrap_fence_body CHECK (body IS NULL OR starts_with(body, 'v2:'))"
        " NOT VALID"
    )
    ran = bench.run()
    assert ran.code == 2
    assert "rewrap_fence_body" in ran.err


def test_printed_queries_say_what_sql_cannot_count(bench: Workbench) -> None:
    """The statement counts NULL and not NULL; the comment says that only verify can tell the rest."""
    notes(bench, [bare("one"), None, "text"])
    printed = bench.rewrap("verify", "--to", "v2", "--print-queries")
    says, statement = printed.out.strip().split("\n", 1)
    assert "only rewrap verify can" in says
    rows = {row["class"]: row["n"] for row in bench.sql(statement.rstrip(";"))}
    assert rows == {"null": 1, "bare": 2}


def test_waived_and_healed_values_are_told_apart(bench: Workbench) -> None:
    """A waiver holds for the bytes it was given for; what was repaired since is resolved."""
    notes(bench, [*(bare(f"note {i}") for i in range(30)), damaged(bare("a")), damaged(bare("b"))])
    assert bench.run().code == 3
    assert bench.rewrap("quarantine", "waive", "--all", "--reason", "known").code == 0
    found = bench.rewrap("verify", "--json")
    assert found.code == 0, found.out
    assert found.event("field_verdict")["classes"] == {"current": 30, "waived": 2}
    bench.sql("UPDATE notes SET body = $1 WHERE id = 31", bare("repaired", "v2"))
    found = bench.rewrap("verify", "--json")
    assert found.event("field_verdict")["classes"] == {"current": 31, "waived": 1}
    states = Counter(e["state"] for e in bench.rewrap("quarantine", "list", "--all", "--json").events)
    assert states == {"waived": 1, "resolved": 1}


# sizes, bytes, associated data


def test_a_value_over_the_limit_is_put_aside(bench: Workbench) -> None:
    """Nothing but opening would tell what it is, and it is too large to be opened."""
    large = bare(os.urandom(3_000))
    notes(bench, [bare("one"), large], "[pace]\nmax_value_bytes = 1024\n")
    ran = bench.run()
    assert ran.code == 3
    assert outcomes(ran) == {"resealed": 1, "quarantined": 1}
    assert bench.bodies()[2] == large
    (entry,) = bench.rewrap("quarantine", "list", "--json").events
    assert entry["reason"] == "too_large"
    assert bench.rewrap("verify", "--json").event("field_verdict")["classes"] == {
        "current": 1, "quarantined": 1,
    }  # fmt: skip


def test_bytes_without_a_marker_are_resealed(bench: Workbench) -> None:
    """Raw values, those among them that begin with the byte that stands for a large value too."""
    bench.job(TARGET.replace('"bare"', '"raw"'), BARE)
    bench.sql("CREATE TABLE notes (id bigint PRIMARY KEY, body bytea)")
    values = [base64.b64decode(bare(f"note {i}")) for i in range(1_500)]
    bench.insert("notes", ["id", "body"], [*enumerate(values, 1), (1_501, b"\x00\x01"), (1_502, None)])
    ran = bench.run()
    assert ran.code == 0, ran.err
    assert outcomes(ran) == {"resealed": 1_500, "plaintext": 1, "null": 1}
    rows = {row["id"]: row["body"] for row in bench.sql("SELECT id, body FROM notes WHERE id <= 1500")}
    opened = {i: unbare(base64.b64encode(raw).decode(), KEY_V2) for i, raw in rows.items()}
    assert opened == {i: f"note {i - 1}".encode() for i in range(1, 1_501)}


def test_a_value_is_opened_with_its_own_rows_associated_data(bench: Workbench) -> None:
    """A value that was moved to another row opens under no key: put aside, and its row left alone."""
    bench.job(TARGET.replace('"bare"', '"bound"'), BARE)
    bench.sql("CREATE TABLE notes (id bigint PRIMARY KEY, body text, other text)")
    rows = [(i, bare(f"note {i}", aad=f"acct {i}"), f"acct {i}") for i in range(1, 101)]
    moved = bare("strayed", aad="acct 7")
    bench.insert("notes", ["id", "body", "other"], [*rows, (101, moved, "acct 8")])
    ran = bench.run()
    assert ran.code == 3
    assert outcomes(ran) == {"resealed": 100, "quarantined": 1}
    after = bench.bodies()
    assert after.pop(101) == moved
    assert {i: unbare(body or "", KEY_V2, f"acct {i}") for i, body in after.items()} == {
        i: f"note {i}".encode() for i in range(1, 101)
    }


def test_a_constant_marker_is_a_marker(bench: Workbench) -> None:
    """What lost it opens as unmarked, what is torn behind it is malformed; neither is plaintext."""
    bench.job(TARGET, BARE.replace('[layouts.bare]\nmarker = ""', '[layouts.bare]\nmarker = "enc:"'))
    torn = "enc:" + bare("x")[:20]
    bench.notes([*(f"enc:{bare(f'note {i}')}" for i in range(50)), bare("without"), torn, "text", "x" * 60])
    ran = bench.run()
    assert ran.code == 3
    assert outcomes(ran) == {"resealed": 50, "unmarked": 1, "quarantined": 1, "plaintext": 2}
    assert bench.rewrap("verify", "--json").event("field_verdict")["classes"] == {
        "current": 50, "unmarked": 1, "quarantined": 1, "plaintext": 2,
    }  # fmt: skip
    assert all((bench.bodies()[i] or "").startswith("enc:") for i in range(1, 51))


def test_any_takes_every_other_key_at_hand(bench: Workbench) -> None:
    """--from any: what opens under any of them is resealed."""
    notes(bench, [bare("one"), bare("three", "v3"), bare("two", "v2")])
    ran = bench.rewrap("run", "--from", "any", "--to", "v2", "--json")
    assert ran.code == 0, ran.err
    assert outcomes(ran) == {"resealed": 2, "current": 1}
    assert {unbare(body or "", KEY_V2) for body in bench.bodies().values()} == {b"one", b"three", b"two"}


# under way


def test_a_late_old_value_is_swept(bench: Workbench) -> None:
    """Written after the first sweep has passed: verify opens it, and a further sweep reseals it."""
    notes(bench, [bare(f"note {i}") for i in range(30)], "[limits]\ndrain_s = 20\n")
    first = bench.bodies()

    def swept() -> bool:
        now = bench.bodies()
        return all(now[i] != first[i] for i in first)

    with Holder(bench, f"INSERT INTO notes (id, body) VALUES (99, '{bare('late')}')") as holder:
        release = threading.Thread(target=lambda: (wait_for(swept), holder.release()))
        release.start()
        ran = bench.run()
        release.join()
    assert ran.code == 0, ran.out
    assert unbare(bench.bodies()[99] or "", KEY_V2) == b"late"
    ended = ran.event("run_ended")
    assert (ended["resealed_late"], ended["sweeps"]) == (1, 2)
    assert ended["outcomes"]["notes"]["body"] == {"resealed": 30}
    # it read all values again, and counts only what it settled
    again = ran.event("sweep_done")
    assert (again["rows_done"], again["outcomes"]) == (31, {"body": {"resealed": 1}})


def test_a_late_broken_value_is_put_aside(bench: Workbench) -> None:
    """It opens under no key, so no version names it: a further sweep finds it nevertheless, once."""
    notes(bench, [bare(f"note {i}") for i in range(30)], "[limits]\ndrain_s = 20\n")
    first = bench.bodies()
    late = damaged(bare("late"))

    def swept() -> bool:
        now = bench.bodies()
        return all(now[i] != first[i] for i in first)

    with Holder(bench, f"INSERT INTO notes (id, body) VALUES (99, '{late}')") as holder:
        release = threading.Thread(target=lambda: (wait_for(swept), holder.release()))
        release.start()
        ran = bench.run()
        release.join()
    assert ran.code == 3
    assert ran.event("run_ended")["sweeps"] == 2
    assert ran.event("verdict")["quarantined"] == 1
    (entry,) = bench.rewrap("quarantine", "list", "--json").events
    assert (entry["row_id"], entry["reason"]) == ("99", "unopenable")


def test_a_killed_run_goes_on_where_it_was(bench: Workbench) -> None:
    """kill -9 in the middle: what was written is current, the rest is resealed, and all of it opens."""
    notes(bench, [bare(f"note {i}") for i in range(1, 2_001)], SMALL)
    first = bench.bodies()
    arguments = ("run", "--from", "v1", "--to", "v2", "--allow-unseen-target", "--max-rate", "100")
    with bench.started(*arguments) as running:
        wait_while(running, lambda: bench.swept() > 100)
        running.kill()
    assert running.returncode == -signal.SIGKILL
    now = bench.bodies()
    assert 0 < sum(now[i] == first[i] for i in first) < 2_000
    resumed = bench.rewrap("resume", "--json")
    assert resumed.code == 0, resumed.err
    after = bench.bodies()
    assert {i: unbare(body or "", KEY_V2) for i, body in after.items()} == {
        i: f"note {i}".encode() for i in range(1, 2_001)
    }
    counts = outcomes(resumed)
    assert counts["resealed"] + counts.get("current", 0) == 2_000


def test_a_live_writer_loses_nothing(bench: Workbench) -> None:
    """The application writes under the old key, then under the new one, while the run works."""
    notes(
        bench, [bare(f"note {i}") for i in range(1, 3_001)], SMALL + UNYIELDING + "[limits]\ndrain_s = 20\n"
    )
    written: dict[int, bytes] = {}
    over = threading.Event()

    async def application() -> None:
        connection = await asyncpg.connect(bench.dsn)
        number = 0
        while not over.is_set():
            number += 1
            row, text = number * 37 % 3_000 + 1, f"write {number}".encode()
            version = "v1" if number < 150 else "v2"
            await connection.execute("UPDATE notes SET body = $1 WHERE id = $2", bare(text, version), row)
            written[row] = text
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
    assert {i: unbare(body or "", KEY_V2) for i, body in bench.bodies().items()} == expected


def test_a_third_key_that_opens_a_value_too_makes_it_ambiguous(bench: Workbench) -> None:
    """Any two keys at hand: which of the two plaintexts is meant, nobody can say."""
    double = one_ciphertext_for_two_keys(KEY_V1, KEY_V3)
    notes(bench, [*(bare(f"note {i}") for i in range(30)), double])
    ran = bench.run()
    assert ran.code == 3
    assert outcomes(ran) == {"resealed": 30, "quarantined": 1}
    assert bench.bodies()[31] == double


def test_what_is_sealed_and_written_otherwise_is_no_plaintext(bench: Workbench) -> None:
    """A lenient decoder opens it: it is put aside, and verify says so with the new key alone, too."""
    sealed = [bare(f"note {i}") for i in range(4)]
    odd = [
        sealed[0] + "\n",
        sealed[1].rstrip("=") if sealed[1].endswith("=") else sealed[1] + "=",
        sealed[2].replace("+", "-").replace("/", "_") + "\r\n",
        "\n".join((sealed[3][:40], sealed[3][40:])),
    ]
    words = "words that nobody sealed, and that no decoder takes for anything else"
    notes(bench, [*(bare(f"note {i}") for i in range(200)), *odd, words, sealed[0][:30]])
    ran = bench.run()
    assert ran.code == 3, ran.err
    assert outcomes(ran) == {"resealed": 200, "quarantined": 4, "plaintext": 2}
    put_aside = {e["reason"] for e in bench.rewrap("quarantine", "list", "--json").events}
    assert put_aside == {"malformed"}
    bench.environ.pop("KEY_V1")
    found = bench.rewrap("verify", "--to", "v2", "--deep", "--json")
    assert found.code == 3
    bench.ledger.unlink()
    alone = bench.rewrap("verify", "--to", "v2", "--json")
    assert alone.code == 3, alone.out


def test_a_way_back_to_another_key_is_refused(bench: Workbench) -> None:
    """Nothing stored is under the old key any more: what the ledger knows of it is all there is."""
    notes(bench, [bare(f"note {i}") for i in range(50)])
    assert bench.run().code == 0
    before = bench.bodies()
    bench.environ["KEY_V1"] = bench.environ["KEY_V3"]
    back = ("run", "--from", "v2", "--to", "v1", "--allow-unseen-target")
    refused = bench.rewrap(*back)
    assert refused.code == 10, refused.err
    assert "is not the key that run" in refused.err
    assert bench.bodies() == before
    vouched = re.search(r"--to-fingerprint (sha256:[0-9a-f]{16})", refused.err)
    assert vouched
    assert bench.rewrap(*back, "--to-fingerprint", vouched.group(1)).code == 0
    bench.environ["KEY_V1"] = KEY_V1.hex()
    assert bench.rewrap(*back[:5], "--allow-unseen-target").code == 10


def test_a_table_that_was_begun_is_sampled_to_its_end(bench: Workbench) -> None:
    """Rewritten rows stand behind the others: they speak for the new key all the same."""
    notes(bench, [bare(f"note {i}") for i in range(1_000)])
    begun = bench.rewrap(
        "run", "--from", "v1", "--to", "v2", "--allow-unseen-target", "--sample", "300", "--batch-size", "100"
    )
    assert begun.code == 4, begun.err
    checked = bench.rewrap("check", "--from", "v1", "--to", "v2", "--json")
    codes = {e["code"] for e in checked.events if e.get("subject") == "key v2"}
    assert "key-proven" in codes
