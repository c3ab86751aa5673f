"""The proof that a rotation left payloads alone: fingerprints before the first write and in verify --deep."""

from __future__ import annotations

import hashlib
import json
import signal
import sqlite3
from collections.abc import Sequence
from typing import Any

import pytest

from tests.support.values import aead, box, unaead
from tests.support.workbench import TIMEOUT_S, Result, Workbench, wait_while

DEKS = """
[[targets]]
table = "deks"
fields = [{ column = "wrapped", layout = "aead" }]
untouched = ["label", "doc.payload"]
"""

PAYLOADS = """
[[untouched]]
table = "payloads"
columns = ["body", "raw"]
"""

COUNTS = ("rows_before", "rows", "unchanged", "changed", "inserted", "deleted")


def tables(bench: Workbench, rows: int = 300) -> None:
    """Data keys with a label and a document beside each, and payloads in a table of their own."""
    bench.job(DEKS, PAYLOADS)
    bench.sql(
        "CREATE TABLE deks (id bigint PRIMARY KEY, account_id text, wrapped text, label text, doc jsonb, "
        "seen timestamptz DEFAULT now())"
    )
    bench.sql("CREATE TABLE payloads (id uuid PRIMARY KEY, body text, raw bytea, seen int DEFAULT 0)")
    bench.insert(
        "deks",
        ["id", "account_id", "wrapped", "label", "doc"],
        [
            (i, f"a{i}", aead(f"dek {i}", f"a{i}"), f"label {i}", json.dumps({"payload": [i], "n": 0}))
            for i in range(rows)
        ],
    )
    bench.sql(
        "INSERT INTO payloads SELECT gen_random_uuid(), CASE WHEN i % 7 > 0 THEN md5(i::text) END, "
        f"sha256(i::text::bytea) FROM generate_series(1, {rows}) AS i"
    )


def compared(result: Result) -> dict[str, dict[str, int]]:
    """What a deep verification says of each table."""
    return {e["target"]: {n: e[n] for n in COUNTS} for e in result.events if e["type"] == "untouched"}


def same(rows: int) -> dict[str, int]:
    return dict(zip(COUNTS, (rows, rows, rows, 0, 0, 0), strict=True))


def by_hand(key: Sequence[bytes | None], values: Sequence[bytes | None]) -> bytes:
    """An entry as docs/concepts.md defines it."""
    parts = [b"\0" if v is None else b"\1" + hashlib.sha256(v).digest() for v in (*key, *values)]
    key8 = hashlib.sha256(b"".join(parts[: len(key)])).digest()[:8]
    return key8 + hashlib.sha256(b"".join(parts)).digest()[:24]


def test_what_was_not_touched_is_proved_unchanged(bench: Workbench) -> None:
    """After a whole rotation the wrapped keys are others, and both tables' fingerprints are the same."""
    tables(bench)
    shown = bench.rewrap("run", "--from", "v1", "--to", "v2", "--sample", "9", "--allow-unseen-target")
    assert shown.code == 4
    assert "[payloads] fingerprint " in shown.err
    assert "of 300 rows (body, raw) taken in" in shown.err
    bench.ledger.unlink()
    bench.sql("DROP SCHEMA rewrap CASCADE")
    ran = bench.run()
    assert ran.code == 0, ran.err
    taken = {e["target"]: e for e in ran.events if e["type"] == "fingerprint_taken"}
    assert {name: e["rows"] for name, e in taken.items()} == {"deks": 300, "payloads": 300}
    found = bench.rewrap("verify", "--deep", "--json")
    assert found.code == 0, found.out
    assert compared(found) == {"deks": same(300), "payloads": same(300)}
    for event in (e for e in found.events if e["type"] == "untouched"):
        assert event["fingerprint"] == event["fingerprint_before"] == taken[event["target"]]["fingerprint"]
    assert found.event("verdict")["untouched"] == {**same(600)}
    for row in bench.sql("SELECT account_id, wrapped FROM deks"):
        assert row["wrapped"].startswith("v2:")
        assert unaead(row["wrapped"], row["account_id"])
    shown = bench.rewrap("verify", "--deep").out
    assert "untouched payloads (body, raw): unchanged — 300 rows" in shown


def test_fingerprint_is_sha256_over_sorted_entries(bench: Workbench) -> None:
    """Computed anew from the definition alone, it is what the run says; NULL and absent are no text."""
    tables(bench, 50)
    bench.sql("UPDATE deks SET doc = '{\"payload\": null}' WHERE id = 1")
    bench.sql("UPDATE deks SET doc = '{}' WHERE id = 2")
    taken = {e["target"]: e["fingerprint"] for e in bench.run().events if e["type"] == "fingerprint_taken"}
    rows = bench.sql("SELECT id::text, body, raw FROM payloads")
    entries = [by_hand([r["id"].encode()], [r["body"] and r["body"].encode(), r["raw"]]) for r in rows]
    assert taken["payloads"] == hashlib.sha256(b"".join(sorted(entries))).hexdigest()
    rows = bench.sql("SELECT id::text, label, (doc -> 'payload')::text AS payload FROM deks")
    assert {r["payload"] for r in rows if r["id"] in ("1", "2")} == {"null", None}
    entries = [
        by_hand([r["id"].encode()], [r["label"].encode(), r["payload"] and r["payload"].encode()])
        for r in rows
    ]
    assert taken["deks"] == hashlib.sha256(b"".join(sorted(entries))).hexdigest()


def test_changes_behind_the_runs_back_are_counted(bench: Workbench) -> None:
    """What was rewritten, what is new and what is gone are told apart; other columns do not count."""
    tables(bench)
    assert bench.run().code == 0
    bench.sql("UPDATE payloads SET raw = raw || '\\x00' WHERE id IN (SELECT id FROM payloads LIMIT 3)")
    bench.sql("UPDATE payloads SET seen = 1")
    bench.sql("UPDATE deks SET doc = jsonb_set(doc, '{n}', '1')")
    bench.sql("UPDATE deks SET doc = jsonb_set(doc, '{payload}', '\"x\"') WHERE id = 7")
    bench.sql("DELETE FROM deks WHERE id BETWEEN 20 AND 24")
    bench.sql("INSERT INTO payloads SELECT gen_random_uuid() FROM generate_series(1, 11)")
    found = bench.rewrap("verify", "--deep", "--json")
    assert compared(found) == {
        "deks": dict(zip(COUNTS, (300, 295, 294, 1, 0, 5), strict=True)),
        "payloads": dict(zip(COUNTS, (300, 311, 297, 3, 11, 0), strict=True)),
    }
    # who wrote it is not known: told as a warning, unless the job says otherwise
    assert found.code == 0
    warned = [e["message"] for e in found.events if e["type"] == "notice" and e["level"] == "warning"]
    assert [w.partition(":")[0] for w in warned] == ["deks", "payloads"]
    shown = bench.rewrap("verify", "--deep")
    assert "3 differ of 300 rows that were there" in shown.out
    bench.job(DEKS, PAYLOADS + '\n[limits]\nchanged_payloads = "fail"\n')
    failed = bench.rewrap("verify", "--deep", "--json")
    assert failed.code == 3
    assert failed.event("verdict")["complete"] is False
    assert len(failed.event("verdict")["reasons"]) == 2


def test_payload_that_was_put_back_is_unchanged(bench: Workbench) -> None:
    """The proof is of what is stored: written and written back, a row is the same."""
    tables(bench, 20)
    assert bench.run().code == 0
    bench.sql("UPDATE payloads SET body = body || 'x' WHERE body IS NOT NULL")
    assert compared(bench.rewrap("verify", "--deep", "--json"))["payloads"]["changed"] == 18
    bench.sql("UPDATE payloads SET body = left(body, -1) WHERE body IS NOT NULL")
    assert compared(bench.rewrap("verify", "--deep", "--json"))["payloads"] == same(20)


def test_run_says_how_to_prove_it(bench: Workbench) -> None:
    """At its end an operator reads what to do next; without anything to prove, nothing of it."""
    tables(bench, 10)
    says = "rewrap verify --deep"
    arguments = ("run", "--from", "v1", "--to", "v2", "--allow-unseen-target")
    assert says not in bench.rewrap(*arguments, "--dry-run").out
    assert says in bench.rewrap(*arguments).out
    bench.job(DEKS.replace("untouched", "# untouched"))
    assert says not in bench.rewrap("run", "--from", "v2", "--to", "v3", "--allow-unseen-target").out


def test_two_payloads_that_change_places_are_two_changes(bench: Workbench) -> None:
    """Values are bound to their rows: what cancels out in a sum does not here."""
    tables(bench, 20)
    assert bench.run().code == 0
    bench.sql("UPDATE deks AS a SET label = b.label FROM deks AS b WHERE (a.id, b.id) IN ((3, 4), (4, 3))")
    assert compared(bench.rewrap("verify", "--deep", "--json"))["deks"]["changed"] == 2


def test_trigger_that_alters_payloads_is_found_out(bench: Workbench) -> None:
    """A trigger was acknowledged as harmless, and rewrites the payload with every key that is rewrapped."""
    tables(bench, 60)
    bench.sql(
        "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN NEW.label := NEW.label || '!'; RETURN NEW; END $$"
    )
    bench.sql("CREATE TRIGGER meddle BEFORE UPDATE ON deks FOR EACH ROW EXECUTE FUNCTION meddle()")
    bench.job(DEKS + 'acknowledge = ["triggers"]\n', PAYLOADS + '\n[limits]\nchanged_payloads = "fail"\n')
    assert bench.run().code == 0
    found = bench.rewrap("verify", "--deep", "--json")
    assert found.code == 3
    assert compared(found) == {
        "deks": dict(zip(COUNTS, (60, 60, 0, 60, 0, 0), strict=True)),
        "payloads": same(60),
    }


def test_killed_run_keeps_its_first_fingerprint(bench: Workbench) -> None:
    """A payload that changed between the kill and the resumption is told: nothing is fingerprinted anew."""
    tables(bench, 4_000)
    bench.job(DEKS, PAYLOADS + "\n[pace]\nbatch_size = 20\nshards = 1\n")
    arguments = ("run", "--from", "v1", "--to", "v2", "--allow-unseen-target", "--json")
    with bench.started(*arguments, "--max-rate", "100") as process:
        wait_while(process, lambda: bench.value("SELECT count(*) FROM deks WHERE wrapped LIKE 'v2:%'") > 100)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert bench.value("SELECT count(*) FROM deks WHERE wrapped LIKE 'v1:%'") > 0
    bench.sql("UPDATE payloads SET body = 'changed' WHERE id = (SELECT id FROM payloads ORDER BY id LIMIT 1)")
    resumed = bench.rewrap("resume", "--json")
    assert resumed.code == 0, resumed.err
    assert not [e for e in resumed.events if e["type"] == "fingerprint_taken"]
    found = compared(bench.rewrap("verify", "--deep", "--json"))
    assert found["deks"] == same(4_000)
    assert (found["payloads"]["changed"], found["payloads"]["unchanged"]) == (1, 3_999)


def test_run_killed_before_its_first_write_goes_on_fingerprinting(bench: Workbench) -> None:
    """What was fingerprinted is kept; what was begun is begun again, and a torn one not taken for whole."""
    tables(bench, 30)
    bench.sql("BEGIN; LOCK TABLE payloads; PREPARE TRANSACTION 'hold'")
    try:
        with bench.started("run", "--from", "v1", "--to", "v2", "--allow-unseen-target") as process:
            wait_while(process, lambda: _kept(bench, "rewrap_fingerprint") == 1)
            process.kill()
    finally:
        bench.sql("ROLLBACK PREPARED 'hold'")
    with sqlite3.connect(bench.ledger) as ledger:
        torn = "SELECT run_id, 2, part, entries FROM rewrap_fingerprint_rows"
        ledger.execute(f"INSERT INTO rewrap_fingerprint_rows {torn}")
    bench.sql("UPDATE deks SET label = 'changed' WHERE id = 3")
    resumed = bench.rewrap("resume", "--json")
    assert resumed.code == 0, resumed.err
    assert [e["target"] for e in resumed.events if e["type"] == "fingerprint_taken"] == ["payloads"]
    found = bench.rewrap("verify", "--deep", "--json")
    assert compared(found) == {
        "deks": dict(zip(COUNTS, (30, 30, 29, 1, 0, 0), strict=True)),
        "payloads": same(30),
    }


def test_stop_while_a_fingerprint_is_taken_is_clean(bench: Workbench) -> None:
    """Ctrl-C while a table is waited for: nothing was written, exit 4, and a resumption goes on."""
    tables(bench, 30)
    bench.sql("BEGIN; LOCK TABLE payloads; PREPARE TRANSACTION 'hold'")
    try:
        with bench.started("run", "--from", "v1", "--to", "v2", "--allow-unseen-target") as process:
            wait_while(process, lambda: _kept(bench, "rewrap_fingerprint") == 1)
            process.send_signal(signal.SIGINT)
            assert process.wait(TIMEOUT_S) == 4
    finally:
        bench.sql("ROLLBACK PREPARED 'hold'")
    assert bench.value("SELECT count(*) FROM deks WHERE wrapped LIKE 'v2:%'") == 0
    assert bench.rewrap("resume", "--json").code == 0
    assert compared(bench.rewrap("verify", "--deep", "--json")) == {"deks": same(30), "payloads": same(30)}


def _kept(bench: Workbench, table: str) -> int:
    if not bench.ledger.exists():
        return 0
    with sqlite3.connect(f"file:{bench.ledger}?mode=ro", uri=True) as connection:
        try:
            return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
        except sqlite3.OperationalError:
            return 0


def test_next_run_of_a_rotation_keeps_what_the_first_one_took(bench: Workbench) -> None:
    """A run that left values behind is followed by another: the proof goes back to before the first."""
    tables(bench, 50)
    bench.sql("UPDATE deks SET wrapped = 'v1:AAAA' WHERE id = 9")
    assert bench.run().code == 3
    bench.sql("UPDATE payloads SET body = 'changed' WHERE id = (SELECT id FROM payloads ORDER BY id LIMIT 1)")
    bench.sql("DELETE FROM deks WHERE id = 9")
    again = bench.run()
    assert again.code == 0
    assert not [e for e in again.events if e["type"] == "fingerprint_taken"]
    found = compared(bench.rewrap("verify", "--deep", "--json"))
    assert found["payloads"]["changed"] == 1
    assert found["deks"]["deleted"] == 1
    # a rotation that is complete is over: the next one begins with what is there then
    back = bench.rewrap("run", "--from", "v2", "--to", "v3", "--allow-unseen-target", "--json")
    assert back.code == 0, back.err
    assert len([e for e in back.events if e["type"] == "fingerprint_taken"]) == 2
    assert compared(bench.rewrap("verify", "--deep", "--json"))["payloads"] == same(50)
    assert _kept(bench, "rewrap_fingerprint") == 2


def test_dry_run_takes_nothing_and_a_job_without_it_keeps_nothing(bench: Workbench) -> None:
    """No ledger after a dry run; no fingerprint, and none missed, where the job names nothing."""
    tables(bench, 20)
    dry = bench.run("--dry-run")
    assert dry.code == 0
    assert not bench.ledger.exists()
    assert not [e for e in dry.events if e["type"] == "fingerprint_taken"]
    bench.job(DEKS.replace("untouched", "# untouched"))
    assert bench.run().code == 0
    assert _kept(bench, "rewrap_fingerprint") == 0
    plain = bench.rewrap("verify", "--deep", "--json")
    assert plain.event("verdict")["untouched"] == {}
    assert not [e for e in plain.events if e["type"] in ("untouched", "notice")]
    # named only afterwards, or asked about elsewhere: verify says that there is nothing to compare with
    bench.job(DEKS, PAYLOADS)
    late = bench.rewrap("verify", "--deep", "--json")
    assert late.code == 0
    assert len([e for e in late.events if e["type"] == "notice"]) == 2
    bench.ledger.unlink()
    elsewhere = bench.rewrap("verify", "--deep", "--to", "v2", "--json")
    assert len([e for e in elsewhere.events if e["type"] == "notice"]) == 2


def test_fingerprint_that_the_ledger_lost_part_of_proves_nothing(bench: Workbench) -> None:
    """A part that is missing is no table whose rows are gone."""
    tables(bench, 9_000)
    assert bench.run().code == 0
    with sqlite3.connect(bench.ledger) as ledger:
        ledger.execute("DELETE FROM rewrap_fingerprint_rows WHERE number = 2 AND part = 1")
    found = bench.rewrap("verify", "--deep", "--json")
    assert found.code == 3
    assert compared(found) == {"deks": same(9_000)}
    assert "lost part of the fingerprint" in found.event("verdict")["reasons"][0]


def test_ledger_in_postgres_keeps_fingerprints_too(bench: Workbench) -> None:
    """A ledger that several hosts share has the entries as bytes."""
    bench.environ["REWRAP_LEDGER_URL"] = bench.dsn
    tables(bench, 9_000)
    assert bench.run().code == 0
    assert bench.value("SELECT count(*) FROM rewrap_fingerprint_rows") == 4
    bench.sql("DELETE FROM payloads WHERE id = (SELECT id FROM payloads ORDER BY id LIMIT 1)")
    found = compared(bench.rewrap("verify", "--deep", "--json"))
    assert found["deks"] == same(9_000)
    assert (found["payloads"]["unchanged"], found["payloads"]["deleted"]) == (8_999, 1)


@pytest.mark.parametrize(
    ("column", "kind", "value"),
    [
        ("n", "numeric(10, 4)", "1.5000"),
        ("r", "real", "0.1"),
        ("t", "timestamptz", "2020-02-02 02:02:02.123456+03"),
        ("j", "json", '{"b": 1,  "a": 2}'),
        ("a", "text[]", '{"x y",NULL,z}'),
        ("b", "boolean", "t"),
        ("odd name.with dots", "text", "x"),
    ],
)
def test_whole_rows_and_every_type_are_compared(bench: Workbench, column: str, kind: str, value: str) -> None:
    """Without columns it is the whole row, as it was declared when the run began."""
    bench.notes([box(str(i)) for i in range(5)])
    name = '"' + column + '"'
    bench.sql(f"CREATE TABLE things (k1 int, k2 text, {name} {kind}, PRIMARY KEY (k1, k2))")
    bench.sql(f"INSERT INTO things VALUES (1, 'x', '{value}'), (1, 'y', NULL), (2, 'x', '{value}')")
    bench.job(more='[[untouched]]\ntable = "things"\n')
    assert bench.run().code == 0
    assert compared(bench.rewrap("verify", "--deep", "--json"))["things"] == same(3)
    bench.sql("ALTER TABLE things ADD COLUMN later int DEFAULT 7")
    assert compared(bench.rewrap("verify", "--deep", "--json"))["things"] == same(3)
    bench.sql(f"UPDATE things SET {name} = NULL WHERE k1 = 2")
    assert compared(bench.rewrap("verify", "--deep", "--json"))["things"]["changed"] == 1
    bench.sql(f"ALTER TABLE things DROP COLUMN {name}")
    gone = bench.rewrap("verify", "--deep", "--json")
    assert gone.code == 3
    assert "cannot be compared" in gone.event("verdict")["reasons"][0]


def test_partitions_of_a_table_are_one(bench: Workbench) -> None:
    """A row that moved to another partition is still there and the same."""
    bench.notes([box(str(i)) for i in range(5)])
    bench.sql("CREATE TABLE parts (id int, at int, body text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at)")
    for n in range(3):
        bench.sql(f"CREATE TABLE parts{n} PARTITION OF parts FOR VALUES FROM ({n * 10}) TO ({n * 10 + 10})")
    bench.sql("INSERT INTO parts SELECT i, i % 30, md5(i::text) FROM generate_series(1, 90) AS i")
    bench.job(more='[[untouched]]\ntable = "parts"\nkey = "id"\ncolumns = ["body"]\n')
    assert bench.run().code == 0
    bench.sql("UPDATE parts SET at = (at + 10) % 30")
    assert compared(bench.rewrap("verify", "--deep", "--json"))["parts"] == same(90)


def test_everything_beside_the_fields_is_one_word(bench: Workbench) -> None:
    """`*` is every column in which no field is stored, and no other."""
    tables(bench, 30)
    bench.job(DEKS.replace('["label", "doc.payload"]', '["*"]'))
    assert bench.run().code == 0
    assert compared(bench.rewrap("verify", "--deep", "--json")) == {"deks": same(30)}
    bench.sql("UPDATE deks SET seen = seen + interval '1 second' WHERE id < 4")
    assert compared(bench.rewrap("verify", "--deep", "--json"))["deks"]["changed"] == 4


@pytest.mark.parametrize(
    ("targets", "more", "said"),
    [
        (DEKS.replace('"label"', '"wrapped"'), "", 'targets[0].untouched[0]: "wrapped" is, or holds'),
        (DEKS, '[[untouched]]\ntable = "deks"', 'untouched[0].table: table "deks" is a target already'),
        (DEKS, '[[untouched]]\ntable = "a"\n[[untouched]]\ntable = "a"', "untouched[1].table"),
        (DEKS, '[[untouched]]\ntable = "a"\nstore = "b"', 'untouched[0].store: there is no store "b"'),
        (DEKS, '[[untouched]]\ntable = "a"\ncolumns = ["a..b"]', "untouched[0].columns[0]"),
    ],
)
def test_what_cannot_stay_as_it_is_is_refused(bench: Workbench, targets: str, more: str, said: str) -> None:
    """A field's own column, a target as a table apart, a table twice."""
    bench.job(targets, more)
    refused = bench.run()
    assert refused.code == 2
    assert said in refused.err


@pytest.mark.parametrize(
    ("section", "code", "said"),
    [
        ('table = "absent"', 2, "does not exist"),
        ('table = "keyless"', 2, "no primary key"),
        ('table = "payloads"\ncolumns = ["bodies"]', 2, 'has no column "bodies"'),
        ('table = "payloads"\ncolumns = ["body.x"]', 2, "has no paths in it"),
        ('table = "seen"', 2, "is not a table"),
    ],
)
def test_what_cannot_be_read_ends_the_run_before_it_writes(
    bench: Workbench, section: str, code: int, said: str
) -> None:
    """The first write comes after the last fingerprint."""
    tables(bench, 10)
    bench.sql("CREATE TABLE keyless (body text)")
    bench.sql("CREATE VIEW seen AS SELECT * FROM payloads")
    bench.job(DEKS, f"[[untouched]]\n{section}\n")
    found = bench.rewrap("check", "--json")
    assert [said in e["reason"] for e in found.events if e.get("code") == "untouched"] == [True]
    for refused in (bench.run("--dry-run"), bench.run()):
        assert refused.code == code
        assert said in refused.err
    assert bench.value("SELECT count(*) FROM deks WHERE wrapped LIKE 'v2:%'") == 0


def test_values_do_not_leave_the_database(bench: Workbench) -> None:
    """Neither the ledger nor what is printed holds anything that was fingerprinted."""
    tables(bench, 20)
    bench.sql("UPDATE payloads SET body = 'canary-in-a-payload'")
    bench.sql("UPDATE deks SET label = 'canary-in-a-label'")
    said: list[Any] = [
        bench.run(),
        bench.rewrap("verify", "--deep"),
        bench.rewrap("verify", "--deep", "--json"),
    ]
    assert bench.ledger.read_bytes().count(b"canary") == 0
    assert not [result for result in said if "canary" in result.out + result.err]


def test_fewest_privileges_are_enough(bench: Workbench) -> None:
    """SELECT on the key and the columns named; less is told before anything is written, rows hidden too."""
    tables(bench, 12)
    database = bench.value("SELECT current_database()")
    role = f"reader_{database}"
    bench.sql(f"CREATE ROLE {role} LOGIN PASSWORD 'limited'")
    bench.sql(f"CREATE SCHEMA rewrap AUTHORIZATION {role}")
    bench.sql(f"GRANT SELECT (xmin, id, account_id, wrapped, label, doc), UPDATE (wrapped) ON deks TO {role}")
    bench.sql(f"GRANT SELECT (id, body) ON payloads TO {role}")
    limited = {"DATABASE_URL": f"postgresql://{role}:limited@{bench.dsn.partition('@')[2]}"}
    try:
        refused = bench.run(**limited)
        assert refused.code == 2
        assert 'lacks SELECT on column "raw"' in refused.err
        bench.sql(f"GRANT SELECT (raw) ON payloads TO {role}")
        bench.sql("ALTER TABLE payloads ENABLE ROW LEVEL SECURITY")
        hidden = bench.run(**limited)
        assert hidden.code == 2
        assert "row-level security" in hidden.err
        assert bench.value("SELECT count(*) FROM deks WHERE wrapped LIKE 'v2:%'") == 0
        bench.sql("ALTER TABLE payloads DISABLE ROW LEVEL SECURITY")
        assert bench.run(**limited).code == 0
        found = bench.rewrap("verify", "--deep", "--json", **limited)
        assert compared(found) == {"deks": same(12), "payloads": same(12)}
    finally:
        bench.sql(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_paths_tell_absent_null_and_empty_apart(bench: Workbench) -> None:
    """Elements one by one, json as jsonb, and whatever stands in the way of a path."""
    documents: list[Any] = [
        {"parts": [{"ct": "a", "n": 1}, {"x": 1}], "body": {"ct": "b"}, "seen": 0} for _ in range(12)
    ]

    def store() -> None:
        bench.sql(
            "INSERT INTO things SELECT i, d, d FROM unnest($1::jsonb[]) WITH ORDINALITY AS x(d, i) "
            "ON CONFLICT (id) DO UPDATE SET doc = excluded.doc, plain = excluded.plain",
            [json.dumps(one) for one in documents],
        )

    bench.notes([box("x")])
    bench.sql("CREATE TABLE things (id int PRIMARY KEY, doc jsonb, plain json)")
    store()
    columns = 'columns = ["doc.parts[*].ct", "doc.parts[0].n", "doc.body.ct", "plain.body"]'
    bench.job(more=f'[[untouched]]\ntable = "things"\n{columns}\n')
    assert bench.run().code == 0
    for at in range(12):
        documents[at] = {**documents[at], "seen": 1, "parts": [{"ct": "a", "n": 1}, {"x": 2}]}
    store()
    assert compared(bench.rewrap("verify", "--deep", "--json"))["things"] == same(12)
    for at, changed in enumerate(
        [
            {"parts": [{"ct": "b", "n": 1}, {"x": 1}]},
            {"parts": [{"ct": "a", "n": 1}, {"ct": None}]},
            {"parts": [{"ct": "a", "n": 1}]},
            {"parts": [{"ct": "a", "n": 2}, {}]},
            {"parts": None},
            {"parts": []},
            {"parts": {"ct": "a"}},
            {"body": {"ct": None}},
            {"body": {"ct": "b", "new": 1}},
            {"body": {}},
        ]
    ):
        documents[at] = {**documents[at], **changed}
    store()
    found = compared(bench.rewrap("verify", "--deep", "--json"))["things"]
    assert found == dict(zip(COUNTS, (12, 12, 2, 10, 0, 0), strict=True))
