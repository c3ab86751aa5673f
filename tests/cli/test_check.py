"""`rewrap check`: every reason at once, each on its own, and nothing left behind."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from tests.support.inprocess import load
from tests.support.values import KEY_V3, aead, box
from tests.support.workbench import ACCOUNTS, NOTES, Result, Workbench

VERSIONS = ("--from", "v1", "--to", "v2")


def checked(bench: Workbench, *arguments: str, **environ: str) -> tuple[Result, list[dict[str, Any]]]:
    """`rewrap check --json`, its findings, and that its last line adds them up."""
    ran = bench.rewrap("check", "--json", *arguments, **environ)
    found = [event for event in ran.events if event["type"] == "finding"]
    end = ran.events[-1]
    assert end["type"] == "checked", ran.err
    for severity in ("error", "warning", "info"):
        assert end[f"{severity}s"] == sum(one["severity"] == severity for one in found)
    assert ran.code == end["exit_code"] == (1 if end["errors"] else 0)
    return ran, found


def codes(found: list[dict[str, Any]], severity: str) -> set[str]:
    return {one["code"] for one in found if one["severity"] == severity}


def of(found: list[dict[str, Any]], code: str) -> dict[str, Any]:
    (one,) = [one for one in found if one["code"] == code]
    return one


def test_good_table_has_nothing_against_it(bench: Workbench) -> None:
    """Keys are proven on stored values, one row is tried, and the next command is named."""
    bench.notes([*(box(f"n{i}") for i in range(300)), box("x", "v2"), None])
    ran, found = checked(bench, *VERSIONS)
    assert ran.code == 0
    assert codes(found, "error") | codes(found, "warning") == set()
    assert {"server", "key-proven", "canary", "index-cost"} <= codes(found, "info")
    shown = bench.rewrap("check", *VERSIONS)
    assert shown.code == 0
    assert shown.out.splitlines()[-2:] == [
        "check of test: no errors, no warnings, 5 notes",
        "next: rewrap plan --from v1 --to v2",
    ]


def test_next_command_names_a_job_file_of_another_name(bench: Workbench) -> None:
    """With versions and without, and quoted where a shell needs it; rewrap.toml is found without."""
    bench.notes([box("one"), box("two", "v2")])
    (bench.folder / "rewrap.toml").rename(bench.folder / "my notes.toml")
    with_versions = bench.rewrap("check", *VERSIONS, "my notes.toml")
    assert with_versions.out.splitlines()[-1] == "next: rewrap plan 'my notes.toml' --from v1 --to v2"
    without = bench.rewrap("check", "my notes.toml").out.splitlines()[-1]
    assert without.endswith(": rewrap check 'my notes.toml' --from … --to …")


def test_what_is_put_aside_is_retried_with_the_job_file_named(bench: Workbench) -> None:
    """Both commands that `quarantine show` proposes can be pasted as they are."""
    bench.notes([box("one"), box("two", "v2"), "v1:AAAA"])
    (bench.folder / "rewrap.toml").rename(bench.folder / "notes.toml")
    assert bench.rewrap("run", *VERSIONS, "notes.toml").code == 3
    shown = bench.rewrap("quarantine", "show", "notes.toml").out
    assert "rewrap quarantine retry notes.toml --table public.notes --row 3 --field body;" in shown
    assert "rewrap quarantine waive notes.toml --table public.notes --row 3 --field body --reason" in shown


def test_canary_leaves_the_row_and_everything_else_as_it_was(bench: Workbench) -> None:
    """The row is the very row it was, no sequence moved, no table or schema was made."""
    bench.sql("CREATE TABLE notes (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text)")
    bench.sql(f"INSERT INTO notes (body) VALUES ('{box('one')}'), ('{box('two', 'v2')}')")
    look = (
        "SELECT (SELECT json_agg(ARRAY[n.xmin::text, n.ctid::text, n.body] ORDER BY id) FROM notes n)::text, "
        "(SELECT last_value FROM notes_id_seq), "
        "(SELECT count(*) FROM pg_class WHERE relkind IN ('r', 'S')), (SELECT count(*) FROM pg_namespace)"
    )
    before = tuple(bench.sql(look)[0])
    _, found = checked(bench, *VERSIONS)
    assert of(found, "canary")["severity"] == "info"
    assert tuple(bench.sql(look)[0]) == before
    assert not bench.ledger.exists()
    assert bench.value("SELECT to_regnamespace('rewrap') IS NULL")


def test_every_table_is_examined_and_every_reason_reported(bench: Workbench) -> None:
    """A view, a missing table, two bad columns, a rule, two triggers: all of it in one go."""
    bench.sql(
        """
        CREATE TABLE fine (id int PRIMARY KEY, body text);
        CREATE VIEW seen AS SELECT * FROM fine;
        CREATE TABLE odd (id int PRIMARY KEY, body text, number int);
        CREATE RULE quiet AS ON UPDATE TO odd DO ALSO NOTIFY updated;
        CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
        CREATE TRIGGER first BEFORE UPDATE ON odd FOR EACH ROW EXECUTE FUNCTION touch();
        CREATE TRIGGER last AFTER UPDATE ON odd FOR EACH ROW EXECUTE FUNCTION touch();
        """
    )
    field = '{{ column = "{}", layout = "libsodium-token" }}'.format
    bench.job(
        "".join(
            f'\n[[targets]]\ntable = "{table}"\nfields = [{", ".join(map(field, columns))}]\n'
            for table, columns in {
                "fine": ["body"], "seen": ["body"], "gone": ["body"], "odd": ["body", "number", "none"],
            }.items()
        )
    )  # fmt: skip
    ran, found = checked(bench)
    assert ran.code == 1
    about = {
        table: {
            one["code"] for one in found if one["subject"] == f"table {table}" and one["severity"] == "error"
        }
        for table in ("fine", "seen", "gone", "odd")
    }
    assert about["fine"] == set()
    assert about["seen"] == {"kind"}
    assert about["gone"] == {"no-table"}
    assert {"update-rule", "before-trigger"} <= about["odd"]
    assert {"after-trigger"} <= codes(found, "info")
    assert all(one["hint"] for one in found if one["severity"] == "error")
    # said once, whoever found it
    assert len({(one["subject"], one["reason"]) for one in found}) == len(found)


def test_bad_columns_are_all_named(bench: Workbench) -> None:
    """Each field is asked on its own: a generated one, one of another type, and one that is not there."""
    bench.sql(
        "CREATE TABLE notes (id int PRIMARY KEY, number int, twice text GENERATED ALWAYS AS ('x') STORED)"
    )
    fields = ", ".join(
        f'{{ column = "{name}", layout = "libsodium-token" }}' for name in ("number", "twice", "none")
    )
    bench.job(f'[[targets]]\ntable = "notes"\nfields = [{fields}]')
    _, found = checked(bench)
    assert {"column-type", "generated", "no-column"} <= codes(found, "error")


def test_hazards_around_a_table(bench: Workbench) -> None:
    """What does not stop a rotation and yet matters: each with its own code."""
    bench.notes([box("one"), box("two", "v2")])
    bench.sql("ALTER TABLE notes ADD CONSTRAINT short CHECK (length(body) < 5000)")
    bench.sql("ALTER TABLE notes ADD size int GENERATED ALWAYS AS (length(body)) STORED")
    bench.sql("CREATE INDEX by_body ON notes (md5(body))")
    bench.sql("CREATE INDEX by_other ON notes (other) WHERE body IS NOT NULL")
    bench.sql("CREATE PUBLICATION feed FOR TABLE notes")
    slot = urlsplit(bench.dsn).path.strip("/")
    bench.sql(f"SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")
    bench.sql("BEGIN; INSERT INTO notes VALUES (99, NULL); PREPARE TRANSACTION 'left open'")
    try:
        ran, found = checked(bench, *VERSIONS)
    finally:
        bench.sql("ROLLBACK PREPARED 'left open'")
        bench.sql(f"SELECT pg_drop_replication_slot('{slot}')")
    assert ran.code == 0
    assert {
        "check-constraint", "generated-from", "indexed-column", "idle-slot", "prepared-transaction"
    } <= codes(found, "warning")  # fmt: skip
    assert "published" in codes(found, "info")
    index = of(found, "indexed-column")["reason"]
    assert all(name in index for name in ('"by_body"', '"by_other"', "3 indexes", "notes_pkey"))
    assert '"left open"' in of(found, "prepared-transaction")["reason"]


def test_updates_that_postgres_would_refuse(bench: Workbench) -> None:
    """A publication without a replica identity is an error, with the statement that mends it."""
    bench.sql("CREATE TABLE notes (id bigint NOT NULL UNIQUE, body text)")
    bench.sql("CREATE PUBLICATION feed FOR TABLE notes")
    _, found = checked(bench)
    assert "REPLICA IDENTITY" in of(found, "no-replica-identity")["hint"]


def test_refused_row_is_found_by_the_canary(bench: Workbench) -> None:
    """A constraint that admits old values only: the canary's row is refused, by the constraint's name."""
    bench.notes([box(f"n{i}") for i in range(20)])
    bench.sql("ALTER TABLE notes ADD CONSTRAINT only_old CHECK (starts_with(body, 'v1:'))")
    ran, found = checked(bench, *VERSIONS)
    assert ran.code == 1
    assert "only_old" in of(found, "canary-refused")["reason"]


def test_trigger_that_changes_the_value_is_found_by_the_canary(bench: Workbench) -> None:
    """An acknowledged trigger that alters what is written is caught before a run."""
    bench.notes([box(f"n{i}") for i in range(20)])
    bench.sql("CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS "
              "'BEGIN NEW.body := upper(NEW.body); RETURN NEW; END'")  # fmt: skip
    bench.sql("CREATE TRIGGER spoil BEFORE UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION spoil()")
    assert codes(checked(bench, *VERSIONS)[1], "error") == {"before-trigger"}
    bench.job(NOTES + 'acknowledge = ["triggers"]')
    assert codes(checked(bench, *VERSIONS)[1], "error") == {"canary-refused"}


def test_keys_are_tried_on_a_table_that_is_refused(bench: Workbench) -> None:
    """A reason against the table is no reason not to look at its keys; nothing is written to it."""
    bench.notes([box("one"), box("two", "v2")])
    bench.sql("CREATE RULE quiet AS ON UPDATE TO notes DO ALSO NOTIFY updated")
    _, found = checked(bench, *VERSIONS)
    assert codes(found, "error") == {"update-rule"}
    assert "key-proven" in codes(found, "info")
    assert not any(one["code"].startswith("canary") for one in found)


def test_column_too_short_for_new_values(bench: Workbench) -> None:
    """A longer marker does not fit: how long the column must be is said."""
    values = [box(f"n{i:04}") for i in range(20)]
    bench.job(more='[keys.versions.v10]\nmaterial = "env:KEY_V3"')
    bench.sql(f"CREATE TABLE notes (id bigint PRIMARY KEY, body varchar({len(values[0])}))")
    bench.insert("notes", ["id", "body"], list(enumerate(values)))
    assert "too-long" not in codes(checked(bench, *VERSIONS)[1], "error")
    _, found = checked(bench, "--from", "v1", "--to", "v10")
    assert f"varchar({len(values[0]) + 1})" in of(found, "too-long")["hint"]


@pytest.mark.parametrize(
    ("environ", "code", "severity"),
    [
        ({"KEY_V1": KEY_V3.hex()}, "key-refused", "error"),
        ({"KEY_V2": KEY_V3.hex()}, "key-refused", "error"),
        ({"KEY_V2": "no key"}, "key-missing", "error"),
    ],
)
def test_wrong_keys_are_found(bench: Workbench, environ: dict[str, str], code: str, severity: str) -> None:
    """A key that opens nothing, or is none, is one finding; the tables are examined all the same."""
    bench.notes([box("one"), box("two", "v2")])
    _, found = checked(bench, *VERSIONS, **environ)
    assert of(found, code)["severity"] == severity
    if code == "key-refused":
        assert '"public"."notes".body' in of(found, code)["reason"]
    assert "index-cost" in codes(found, "info")


def test_unseen_key_is_a_warning_with_its_fingerprint(bench: Workbench) -> None:
    """Before the application is switched nothing proves the new key: the check says what to compare."""
    bench.notes([box("one")])
    ran, found = checked(bench, *VERSIONS)
    fingerprint = load(bench) and ran.events[-1]["fingerprints"]["v2"]
    assert of(found, "key-unseen")["severity"] == "warning"
    assert fingerprint in of(found, "key-unseen")["hint"]


def test_associated_data_declared_wrongly(bench: Workbench) -> None:
    """A column with the wrong aad opens nothing: one table's fault is not the other's."""
    bench.job(NOTES + ACCOUNTS)
    bench.notes([box("one"), box("two", "v2")])
    bench.sql("CREATE TABLE accounts (id int PRIMARY KEY, account_id int, secret text)")
    bench.insert("accounts", ["id", "account_id", "secret"], [(i, i, aead("s", "other")) for i in range(20)])
    _, found = checked(bench, *VERSIONS)
    assert "accounts" in of(found, "key-refused")["reason"]


def test_missing_privileges_are_all_named(bench: Workbench) -> None:
    """A role with nothing hears everything it lacks: columns, the guard's schema, temporary tables."""
    bench.notes([box("one"), box("two", "v2")])
    database = urlsplit(bench.dsn).path.strip("/")
    role = f"lacking_{database}"
    bench.sql(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    bench.sql(f"REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC")
    parts = urlsplit(bench.dsn)
    url = urlunsplit(parts._replace(netloc=f"{role}:x@{parts.hostname}:{parts.port}"))
    try:
        _, found = checked(bench, *VERSIONS, DATABASE_URL=url)
        said = {one["reason"] for one in found if one["code"] == "no-privilege"}
        lacks = 'this role lacks {} on column "{}"'.format
        assert said == {lacks("UPDATE", "body"), *(lacks("SELECT", name) for name in ("id", "body", "xmin"))}
        assert of(found, "guard")["severity"] == "error"
        bench.sql(f"GRANT SELECT (id, body, xmin), UPDATE (body) ON notes TO {role}")
        bench.sql(f"CREATE SCHEMA rewrap AUTHORIZATION {role}")
        _, found = checked(bench, *VERSIONS, DATABASE_URL=url)
        assert codes(found, "error") == set()
        assert of(found, "canary-not-tried")["severity"] == "warning"
        bench.sql("ALTER TABLE notes ENABLE ROW LEVEL SECURITY")
        _, found = checked(bench, *VERSIONS, DATABASE_URL=url)
        assert codes(found, "error") == {"row-level-security"}
    finally:
        bench.sql(f"DROP OWNED BY {role}")
        bench.sql(f"DROP ROLE {role}")


def test_row_that_somebody_holds_is_not_waited_for(bench: Workbench) -> None:
    """A locked row is passed over, and the finding says so."""
    bench.notes([box("one"), box("two", "v2")])

    async def work() -> list[dict[str, Any]]:
        connection = await asyncpg.connect(bench.dsn)
        try:
            async with connection.transaction():
                await connection.execute("SELECT * FROM notes FOR UPDATE")
                return (await asyncio.to_thread(checked, bench, *VERSIONS))[1]
        finally:
            await connection.close()

    assert "locked" in of(asyncio.run(work()), "canary-not-tried")["reason"]


# probes


class Answering(http.server.BaseHTTPRequestHandler):
    """An application that reads one value, and says so; or not."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health?deep=1" else 500)
        self.end_headers()
        self.wfile.write(b"it can read: canary-plaintext")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def application() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


GOOD_PROBES = """
[[probe]]
name = "rows"
kind = "sql"
query = "SELECT count(*) FROM notes"
expect = 2
[[probe]]
name = "health"
kind = "http"
url = "${APPLICATION}/health?deep=1"
contains = "it can read"
[[probe]]
name = "script"
kind = "command"
argv = ["sh", "-c", "echo canary-plaintext; exit 3"]
exit_code = 3
"""

BAD_PROBES = """
[[probe]]
name = "rows"
kind = "sql"
query = "SELECT 'canary-plaintext' FROM notes"
expect = "something else"
[[probe]]
name = "error"
kind = "sql"
query = "SELECT 'canary-plaintext'::int"
expect = 1
[[probe]]
name = "writes"
kind = "sql"
query = "DELETE FROM notes RETURNING 1"
expect = 1
[[probe]]
name = "health"
kind = "http"
url = "${APPLICATION}/"
[[probe]]
name = "text"
kind = "http"
url = "${APPLICATION}/health?deep=1"
contains = "it cannot"
[[probe]]
name = "slow"
kind = "command"
argv = ["sleep", "60"]
timeout_s = 0.2
[[probe]]
name = "absent"
kind = "command"
argv = ["./no-such-program"]
"""


def test_probes_are_asked_and_not_repeated(bench: Workbench, application: str) -> None:
    """Good ones pass; of bad ones it is said what was wrong, and never what they answered."""
    bench.environ["APPLICATION"] = application
    bench.notes([box("one"), box("two", "v2")])
    bench.job(more=GOOD_PROBES)
    ran, found = checked(bench)
    assert [one["severity"] for one in found if one["code"] == "probe"] == ["info"] * 3
    assert "canary-plaintext" not in ran.out + ran.err
    bench.job(more=BAD_PROBES)
    ran, found = checked(bench)
    failed = {one["subject"]: one["reason"] for one in found if one["code"] == "probe-failed"}
    assert failed == {
        'probe "rows"': "the query answers something else",
        'probe "error"': "the query failed [22P02]",
        'probe "writes"': "the query failed [25006]",
        'probe "health"': "status 500, not 200",
        'probe "text"': "the text that must appear does not",
        'probe "slow"': "no answer in 0.2 s",
        'probe "absent"': "cannot be asked: No such file or directory",
    }
    assert "canary-plaintext" not in ran.out + ran.err
    assert bench.value("SELECT count(*) FROM notes") == 2


def test_probe_that_fails_after_a_run_is_exit_3(bench: Workbench, application: str) -> None:
    """A complete rotation whose application cannot read is not a success; with good probes it is."""
    bench.environ["APPLICATION"] = application
    bench.notes([box("one"), box("two", "v2")])
    bench.job(more=GOOD_PROBES)
    digest = load(bench).digest
    assert bench.run().code == 0
    bench.job(more=GOOD_PROBES.replace("exit_code = 3", "exit_code = 4"))
    assert load(bench).digest == digest
    ran = bench.run()
    assert ran.code == 3
    assert ran.event("run_ended")["reasons"] == ['probe "script" fails: exit 3, not 4']
    assert any("script" in event["message"] for event in ran.events if event["type"] == "notice")
    shown = bench.rewrap("run", *VERSIONS)
    assert 'left: probe "script" fails: exit 3, not 4' in shown.out
    assert "canary-plaintext" not in ran.out + ran.err + shown.out + shown.err


def test_versions_go_together(bench: Workbench) -> None:
    """One version without the other is a mistake on the command line."""
    ran = bench.rewrap("check", "--from", "v1", "--json")
    assert ran.code == 2
    assert json.loads(ran.out)["hint"].startswith("name both")


def test_every_key_that_does_not_open_is_reported(bench: Workbench) -> None:
    """Two columns with a wrong layout are two findings, and lines end where their words end."""
    bench.sql("CREATE TABLE one (id int PRIMARY KEY, account_id int, a text, b text)")
    bench.notes([box("one"), box("two", "v2")])
    rows = [(i, i, aead("s", "other"), aead("s", "other")) for i in range(20)]
    bench.insert("one", ["id", "account_id", "a", "b"], rows)
    fields = ", ".join(f'{{ column = "{name}", layout = "aead" }}' for name in "ab")
    bench.job(NOTES + f'[[targets]]\ntable = "one"\nfields = [{fields}]')
    _, found = checked(bench, *VERSIONS)
    refused = {one["reason"] for one in found if one["code"] == "key-refused"}
    assert {name for name in ("one.a", "one.b") if any(name in r.replace('"', "") for r in refused)} == {
        "one.a", "one.b",
    }  # fmt: skip
    assert all("order" in one["hint"] for one in found if one["code"] == "key-refused")
    shown = bench.rewrap("check", *VERSIONS).out.splitlines()
    assert not [line for line in shown if line != line.rstrip()]


def test_closed_schema_does_not_end_the_check(bench: Workbench) -> None:
    """A table that a role may not even name is a finding; the others are examined all the same."""
    bench.notes([box("one"), box("two", "v2")])
    bench.sql("CREATE SCHEMA closed; CREATE TABLE closed.notes (id int PRIMARY KEY, body text)")
    bench.job(NOTES.replace('"notes"', '"closed.notes"') + NOTES)
    role = "shut_" + urlsplit(bench.dsn).path.strip("/")
    bench.sql(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    parts = urlsplit(bench.dsn)
    url = urlunsplit(parts._replace(netloc=f"{role}:x@{parts.hostname}:{parts.port}"))
    try:
        _, found = checked(bench, *VERSIONS, DATABASE_URL=url)
        lacking = {one["subject"] for one in found if one["severity"] == "error"}
        assert {"table closed.notes", "table notes"} <= lacking
    finally:
        bench.sql(f"DROP OWNED BY {role}")
        bench.sql(f"DROP ROLE {role}")


def test_partitions_of_a_table_in_the_job_are_no_news(bench: Workbench) -> None:
    """That a partition is part of the table that the job names is not said of each."""
    bench.sql(
        "CREATE TABLE notes (id int PRIMARY KEY, body text) PARTITION BY RANGE (id);"
        "CREATE TABLE low PARTITION OF notes FOR VALUES FROM (0) TO (5);"
        "CREATE TABLE high PARTITION OF notes FOR VALUES FROM (5) TO (50)"
    )
    bench.insert("notes", ["id", "body"], [(n, box("x", "v1" if n else "v2")) for n in range(9)])
    _, found = checked(bench, *VERSIONS)
    assert "part-of-another" not in codes(found, "info")
    bench.job(NOTES.replace('"notes"', '"low"'))
    assert "part-of-another" in codes(checked(bench)[1], "info")
