"""What cannot be done is refused: one error, one hint, the exit code, and nothing written."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from rewrap.demo.account import Account
from rewrap.demo.postgres import EmbeddedPostgres
from rewrap.ledgers.tables import SCHEMA_NUMBER
from tests.conftest import require
from tests.support.values import KEY_V1, KEY_V3, box, unbox
from tests.support.workbench import TIMEOUT_S, Result, Workbench, wait_for, wait_while

RUN = ("run", "--from", "v1", "--to", "v2", "--allow-unseen-target")
ROLE_PASSWORD = "a-roles-password"


@pytest.fixture(autouse=True)
def quick(bench: Workbench) -> None:
    """A job that gives up at once where it would wait for a server to come back."""
    bench.job(more="[limits]\nreconnect_s = 0\ndrain_s = 0")


def traces(bench: Workbench) -> dict[str, Any]:
    """Everything a command could have written: rows with the transaction that made them, schemas, files."""
    found = asyncio.run(_in_database(bench.dsn))
    for path in sorted(bench.folder.iterdir()):
        if path == bench.ledger:
            found[path.name] = contents(path)
        elif not path.name.endswith(("-wal", "-shm")):
            found[path.name] = path.read_bytes()
    return found


async def _in_database(dsn: str) -> dict[str, Any]:
    connection = await asyncpg.connect(dsn)
    try:
        found: dict[str, Any] = {
            "schemas": sorted(row[0] for row in await connection.fetch("SELECT nspname FROM pg_namespace"))
        }
        for (name,) in await connection.fetch(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables "
            "WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        ):
            rows = await connection.fetch(f"SELECT t::text, xmin::text, ctid::text FROM {name} t ORDER BY 3")
            found[name] = [tuple(row) for row in rows]
        return found
    finally:
        await connection.close()


def contents(ledger: Path) -> Any:
    """A ledger's tables as SQL; the bytes of what is no ledger."""
    connection = sqlite3.connect(ledger)
    try:
        return list(connection.iterdump())
    except sqlite3.DatabaseError:
        return ledger.read_bytes()
    finally:
        connection.close()


def refused(bench: Workbench, *arguments: str, code: int, error: str, hint: str, **environ: str) -> Result:
    """Runs a command that must be refused: two lines, its exit code, and nothing changed anywhere."""
    before = traces(bench)
    ran = bench.rewrap(*arguments, **environ)
    check_lines(ran, error=error, hint=hint)
    assert ran.code == code, ran.err
    assert ran.out == ""
    assert traces(bench) == before
    return ran


def check_lines(ran: Result, *, error: str, hint: str) -> None:
    """One `error:` line and one `hint:` line as the house style has them, and no traceback."""
    assert "Traceback" not in ran.err
    lines = ran.err.splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["error:", "hint:"], ran.err
    assert error in lines[0]
    assert hint in lines[1]
    for line in lines:
        text = line.partition(" ")[2]
        assert not text.endswith("."), line
        assert not text[0].isupper() or text.split()[0].isupper(), line


def edited(bench: Workbench, old: str, new: str) -> None:
    """Replaces a piece of the job file."""
    path = bench.folder / "rewrap.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def at_database(dsn: str, **parts: str) -> str:
    """The URL with another user, password or port."""
    split = urlsplit(dsn)
    user = parts.get("user", split.username or "")
    password = parts.get("password", split.password or "")
    port = parts.get("port", str(split.port))
    return urlunsplit(split._replace(netloc=f"{user}:{password}@{split.hostname}:{port}"))


@contextmanager
def role(bench: Workbench, *grants: str) -> Iterator[dict[str, str]]:
    """A role of the test's own with these grants (`{role}` is its name); yields the environment to use it."""
    name = "r_" + urlsplit(bench.dsn).path.strip("/")
    bench.sql(f"CREATE ROLE {name} LOGIN PASSWORD '{ROLE_PASSWORD}'")
    try:
        for grant in grants:
            bench.sql(grant.format(role=name))
        yield {"DATABASE_URL": at_database(bench.dsn, user=name, password=ROLE_PASSWORD)}
    finally:
        bench.sql(f"DROP OWNED BY {name}")
        bench.sql(f"DROP ROLE {name}")


# the command line


@pytest.mark.parametrize(("source", "target"), [("v1,v9", "v2"), ("v1", "v9")])
def test_unknown_version_is_refused_with_the_known_ones(bench: Workbench, source: str, target: str) -> None:
    """A version that the job does not have is a slip of the hand, and is answered with those it has."""
    bench.notes([box("note")])
    refused(
        bench, "run", "--from", source, "--to", target, code=2,
        error='has no key version "v9"', hint="versions in the job are v1, v2, v3",
    )  # fmt: skip


def test_from_and_to_must_differ(bench: Workbench) -> None:
    """A rotation onto the version it leaves would do nothing and say that it is done."""
    bench.notes([box("note")])
    refused(
        bench, "run", "--from", "v1,v2", "--to", "v2", code=2,
        error='both name "v2"', hint="--from is the version that values leave",
    )  # fmt: skip


def test_same_bytes_under_two_names_are_refused(bench: Workbench) -> None:
    """Two versions with one key would relabel every value and change nothing."""
    bench.notes([box("note")])
    refused(
        bench, *RUN, code=2, KEY_V2=KEY_V1.hex(),
        error='"v1" and "v2" hold the same bytes', hint="a rotation needs a new key",
    )  # fmt: skip


@pytest.mark.parametrize("command", ["run --to v2", "run --from v1 --to", "rn"])
def test_command_line_mistake_is_two_lines_too(bench: Workbench, command: str) -> None:
    """A missing option, a missing value or an unknown command reads like every other refusal."""
    refused(bench, *command.split(), code=2, error="", hint="--help")


def test_resume_needs_an_unfinished_run(bench: Workbench) -> None:
    """With nothing to go on with, resume says so and makes no ledger."""
    bench.notes([box("note")])
    refused(bench, "resume", code=2, error="no unfinished run", hint="rewrap run --from")


def test_resume_after_a_finished_run_is_refused(bench: Workbench) -> None:
    """A finished run is not begun again by resume."""
    bench.notes([box("note")])
    assert bench.run().code == 0
    refused(bench, "resume", code=2, error="no unfinished run", hint="rewrap run --from")


def test_verify_needs_a_run_or_a_version(bench: Workbench) -> None:
    """Verify cannot guess the version before the first run."""
    bench.notes([box("note")])
    refused(bench, "verify", code=2, error="no run to verify", hint="--to v2")


# keys


def test_missing_key_variable_is_named(bench: Workbench) -> None:
    """A key that is not there names the variable it should be in."""
    bench.notes([box("note")])
    del bench.environ["KEY_V2"]
    refused(bench, *RUN, code=10, error="environment variable KEY_V2 is not set", hint="set KEY_V2")


@pytest.mark.parametrize(
    ("key", "error", "hint"),
    [
        ("ab" * 31, "has 31 bytes, its layout takes 32", "openssl rand -hex 32"),
        ("not a key at all", "is not hex", "keys.versions.v1.encoding"),
    ],
)
def test_key_that_is_none_is_refused_unshown(bench: Workbench, key: str, error: str, hint: str) -> None:
    """What a variable holds in place of a key is never repeated."""
    bench.notes([box("note")])
    ran = refused(bench, *RUN, code=10, error=error, hint=hint, KEY_V1=key)
    assert key not in ran.err


def test_wrong_old_key_stops_before_any_quarantine(bench: Workbench) -> None:
    """A wrong key is the key's fault: no value is put aside for it."""
    bench.notes([box(f"note {i}") for i in range(40)])
    refused(
        bench, *RUN, code=10, KEY_V1=KEY_V3.hex(),
        error='"v1" opens none of', hint="nothing was written or quarantined",
    )  # fmt: skip


def test_wrong_new_key_is_caught_by_the_values_the_application_wrote(bench: Workbench) -> None:
    """A mistyped new key seals and opens its own values perfectly; the application's betray it."""
    bench.notes([box("old"), box("new", "v2")])
    refused(
        bench, *RUN, code=10, KEY_V2=KEY_V3.hex(),
        error='"v2" does not open 1 of 1 stored values', hint="ompare it with the application's key",
    )  # fmt: skip


def test_unseen_new_key_is_not_trusted(bench: Workbench) -> None:
    """With no stored value to prove it, the new key's fingerprint is shown for the operator to compare."""
    bench.notes([box("note")])
    ran = refused(
        bench, "run", "--from", "v1", "--to", "v2", code=10,
        error='no stored value is under "v2" yet', hint="--allow-unseen-target",
    )  # fmt: skip
    (shown,) = {word for word in ran.err.replace(",", " ").split() if word.startswith("sha256:")}
    ran = bench.rewrap("run", "--from", "v1", "--to", "v2", "--to-fingerprint", shown)
    assert ran.code == 0, ran.err


def test_new_key_with_another_fingerprint_is_refused(bench: Workbench) -> None:
    """The operator's word for the new key counts for more than the key at hand."""
    bench.notes([box("old"), box("new", "v2")])
    refused(
        bench, *RUN, "--to-fingerprint", "sha256:0123456789abcdef", code=10,
        error="not sha256:0123456789abcdef", hint="not the one you expected",
    )  # fmt: skip


def test_refused_run_leaves_no_ledger(bench: Workbench) -> None:
    """A run that never began leaves nothing behind, not even an empty ledger."""
    bench.notes([box("note")])
    assert bench.rewrap(*RUN, KEY_V1=KEY_V3.hex()).code == 10
    assert not bench.ledger.exists()


# the database


def test_unreachable_database_is_named_without_its_password(bench: Workbench) -> None:
    """Nobody listens there: the message says where, and not with which password."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = at_database(bench.dsn, port=str(taken.getsockname()[1]), password="canary-password")
        ran = refused(
            bench, *RUN, code=1, DATABASE_URL=url,
            error="cannot be reached: connection refused", hint="check that the server runs",
        )  # fmt: skip
    assert "canary-password" not in ran.err


def test_wrong_password_is_refused_unshown(bench: Workbench) -> None:
    """The server refuses the password, and so does the message."""
    url = at_database(bench.dsn, password="canary-password")
    ran = refused(bench, *RUN, code=1, DATABASE_URL=url, error="28P01", hint="the password was refused")
    assert "canary-password" not in ran.err


def test_database_that_is_not_there_is_said(bench: Workbench) -> None:
    """A wrong database name in the URL has its own hint."""
    url = urlunsplit(urlsplit(bench.dsn)._replace(path="/absent"))
    refused(bench, *RUN, code=1, DATABASE_URL=url, error="3D000", hint="the database does not exist")


@pytest.mark.parametrize("command", [RUN, ("verify", "--to", "v2")])
def test_standby_is_refused(bench: Workbench, standby: EmbeddedPostgres, command: tuple[str, ...]) -> None:
    """A replica cannot be written, and what it counts may be of yesterday."""
    refused(
        bench, *command, code=2, DATABASE_URL=standby.dsn(),
        error="is a standby", hint="at the primary",
    )  # fmt: skip


@pytest.fixture(scope="module")
def standby(postgres: EmbeddedPostgres) -> Iterator[EmbeddedPostgres]:
    """A streaming replica of the tests' server."""
    replica = postgres.standby()
    yield replica
    replica.close()


IGNORED = "application_name,row_security,default_transaction_isolation,statement_timeout,jit"


@pytest.mark.parametrize("ignored", ["", IGNORED])
def test_pooler_is_refused(bench: Workbench, ignored: str) -> None:
    """A transaction pooler is found out, whether it refuses our parameters or swallows them."""
    bench.notes([box("note")])
    with pooler(bench, ignored) as url:
        refused(
            bench, *RUN, code=2, DATABASE_URL=url,
            error="this is a connection pooler", hint="point the store's url at the server itself",
        )  # fmt: skip


@contextmanager
def pooler(bench: Workbench, ignored: str) -> Iterator[str]:
    """A PgBouncer in transaction mode before the test's server; yields the URL through it."""
    require("PgBouncer", "pgbouncer")
    account = Account.of_server()
    folder = account.make_directory("rewrap-pgbouncer-")
    server = urlsplit(bench.dsn)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "users").write_text(f'"{server.username}" "{server.password}"\n')
    (folder / "ini").write_text(
        f"""[databases]
* = host={server.hostname} port={server.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {folder / "users"}
pool_mode = transaction
{f"ignore_startup_parameters = {ignored}" if ignored else ""}
"""
    )
    account.own(folder)
    process = account.start(["pgbouncer", str(folder / "ini")], folder)
    try:
        wait_for(lambda: listens(port))
        yield at_database(bench.dsn, port=str(port))
    finally:
        process.terminate()
        process.wait(TIMEOUT_S)
        subprocess.run(["rm", "-rf", str(folder)], check=False)


def listens(port: int) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0


# the tables

TABLE = "CREATE TABLE notes (id bigint PRIMARY KEY, body text)"
TRIGGER = """
CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS
  'BEGIN NEW.other := upper(NEW.other); RETURN NEW; END';
CREATE TRIGGER shouting BEFORE UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION shout();
"""

HAZARDS = {
    "missing table": ("SELECT 1", "does not exist", "check targets.table"),
    "table in another schema": (
        f"CREATE SCHEMA app; {TABLE.replace('notes', 'app.notes')}",
        'table "notes" does not exist',
        "is written schema.table",
    ),
    "missing column": (TABLE.replace("body", "text"), 'has no column "body"', "columns are id, text"),
    "nullable key": ("CREATE TABLE notes (id bigint UNIQUE, body text)", "may be NULL", "NOT NULL"),
    "no unique index": (
        "CREATE TABLE notes (id bigint NOT NULL, body text); CREATE INDEX ON notes (id)",
        "has no unique index of its own",
        "CREATE UNIQUE INDEX",
    ),
    "partial unique index": (
        "CREATE TABLE notes (id bigint NOT NULL, body text); CREATE UNIQUE INDEX ON notes (id) WHERE id > 9",
        "has no unique index of its own",
        "CREATE UNIQUE INDEX",
    ),
    "key type": (TABLE.replace("bigint", "float8"), 'key column "id" is double', "finds each row again"),
    "view": (f"{TABLE.replace('notes', 'n')}; CREATE VIEW notes AS TABLE n", "is a view", "stores the rows"),
    "inheritance": (f"{TABLE}; CREATE TABLE more () INHERITS (notes)", "has child tables", "child tables"),
    "column type": (TABLE.replace("text", "point"), 'column "body" is point', "column types are bytea"),
    "generated column": (
        "CREATE TABLE notes (id bigint PRIMARY KEY, raw text, "
        "body text GENERATED ALWAYS AS (raw || '') STORED)",
        'column "body" is generated',
        "that it is generated from",
    ),
    "rule": (
        f"{TABLE}; CREATE RULE no AS ON UPDATE TO notes DO INSTEAD NOTHING",
        "has a rule on UPDATE",
        "drop the rule",
    ),
    "publication": (
        "CREATE TABLE notes (id bigint NOT NULL UNIQUE, body text); "
        "CREATE PUBLICATION all_notes FOR TABLE notes",
        "without a replica identity",
        "REPLICA IDENTITY FULL",
    ),
}  # fmt: skip


@pytest.mark.parametrize("hazard", HAZARDS)
def test_table_that_cannot_be_rotated_safely_is_refused(bench: Workbench, hazard: str) -> None:
    """What the table really is decides, before a lock, a ledger or a row is touched."""
    ddl, error, hint = HAZARDS[hazard]
    bench.sql(ddl)
    refused(bench, *RUN, code=2, error=error, hint=hint)


def test_before_trigger_must_be_acknowledged(bench: Workbench) -> None:
    """A trigger may change what is written; whoever has read it may say that it does not."""
    bench.notes([box("note")])
    bench.sql(TRIGGER)
    refused(
        bench, *RUN, code=2,
        error="has a BEFORE UPDATE trigger (shouting)", hint='acknowledge = ["triggers"]',
    )  # fmt: skip
    edited(bench, 'table = "notes"', 'table = "notes"\nacknowledge = ["triggers"]')
    ran = bench.rewrap(*RUN)
    assert ran.code == 0, ran.err
    assert 'trigger "shouting" will fire for every row' in ran.err
    assert unbox(bench.bodies()[1] or "") == b"note"


def test_acknowledged_trigger_that_changes_the_value_is_caught(bench: Workbench) -> None:
    """The rehearsal finds a trigger that alters what was written, whatever the job file says of it."""
    bench.notes([box("note")])
    bench.sql(TRIGGER.replace("NEW.other := upper(NEW.other)", "NEW.body := lower(NEW.body)"))
    edited(bench, 'table = "notes"', 'table = "notes"\nacknowledge = ["triggers"]')
    before = bench.bodies()
    ran = bench.rewrap(*RUN)
    assert ran.code == 1
    assert 'error: table "public"."notes" keeps something else than was written' in ran.err
    assert bench.bodies() == before


def test_refusal_of_every_new_value_comes_with_a_hint(bench: Workbench) -> None:
    """A constraint against the new version is named before anything is written, and what to do about it."""
    bench.notes([box("note") for _ in range(10)])
    bench.sql("ALTER TABLE notes ADD CONSTRAINT only_old CHECK (starts_with(body, 'v1:'))")
    before = bench.bodies()
    ran = bench.rewrap(*RUN)
    assert (ran.code, bench.bodies()) == (1, before)
    last_two = Result(ran.code, ran.out, "\n".join(ran.err.splitlines()[-2:]))
    check_lines(last_two, error="constraint only_old", hint="nothing was written")


def test_fence_of_an_earlier_rotation_is_found_first(bench: Workbench) -> None:
    """A fence would refuse every new value; it is named, with the statement that drops it."""
    bench.notes([box("note", "v2")])
    assert bench.rewrap("verify", "--to", "v2", "--fence").code == 0
    refused(
        bench, "run", "--from", "v2", "--to", "v3", "--allow-unseen-target", code=2,
        error="the fence of an earlier rotation",
        hint='ALTER TABLE "public"."notes" DROP CONSTRAINT "rewrap_fence_body"',
    )  # fmt: skip


# privileges

GRANTS = ("GRANT SELECT, UPDATE ON notes TO {role}", "GRANT CREATE ON DATABASE {database} TO {role}")


def grants(bench: Workbench, *texts: str) -> list[str]:
    return [text.replace("{database}", urlsplit(bench.dsn).path.strip("/")) for text in texts]


def test_ordinary_role_with_the_stated_privileges_suffices(bench: Workbench) -> None:
    """SELECT, UPDATE and a schema of its own: a run needs no superuser."""
    bench.notes([box("note")])
    with role(bench, *grants(bench, *GRANTS)) as environ:
        ran = bench.run(**environ)
    assert ran.code == 0, ran.err


@pytest.mark.parametrize("privilege", ["SELECT", "UPDATE"])
def test_missing_privilege_is_named_with_its_grant(bench: Workbench, privilege: str) -> None:
    """A role that may not read or not write is told which GRANT it lacks."""
    bench.notes([box("note")])
    given = [grant.replace(privilege + ",", "").replace(", " + privilege, "") for grant in GRANTS]
    with role(bench, *grants(bench, *given)) as environ:
        refused(
            bench, *RUN, code=1, error=f"lacks {privilege} on column", hint=f"GRANT {privilege}", **environ
        )


def test_role_that_may_not_make_the_guards_schema_is_told_who_can(bench: Workbench) -> None:
    """Without the right to make its schema, the role is given the statement for somebody who has it."""
    bench.notes([box("note")])
    with role(bench, GRANTS[0]) as environ:
        refused(
            bench, *RUN, code=1, error='may not create the schema "rewrap"',
            hint='CREATE SCHEMA "rewrap" AUTHORIZATION', **environ,
        )  # fmt: skip


def test_schema_that_an_owner_made_for_the_role_suffices(bench: Workbench) -> None:
    """What the hint says to do is enough: the role then needs no right on the database."""
    bench.notes([box("note")])
    with role(bench, GRANTS[0]) as environ:
        bench.sql(f"CREATE SCHEMA rewrap AUTHORIZATION {urlsplit(environ['DATABASE_URL']).username}")
        ran = bench.run(**environ)
        assert ran.code == 0, ran.err


@pytest.mark.parametrize("command", [RUN, ("verify", "--to", "v2")])
def test_row_level_security_that_hides_rows_is_refused(bench: Workbench, command: tuple[str, ...]) -> None:
    """A policy on this role would hide rows from the run and from the count alike."""
    bench.notes([box("seen"), box("hidden")])
    bench.sql("ALTER TABLE notes ENABLE ROW LEVEL SECURITY; CREATE POLICY half ON notes USING (id = 1)")
    with role(bench, *grants(bench, *GRANTS)) as environ:
        refused(bench, *command, code=2, error="row-level security", hint="BYPASSRLS", **environ)


# other runs


def test_second_run_at_the_same_time_is_refused(bench: Workbench) -> None:
    """One run a table: the second one is told who has it, from whatever folder it starts."""
    bench.notes([box(f"note {i}") for i in range(200)])
    (bench.folder / "elsewhere").mkdir()
    elsewhere = Workbench(bench.dsn, bench.folder / "elsewhere")
    with bench.started(*RUN, "--max-rate", "4") as first:
        wait_while(first, lambda: bench.bodies()[2].startswith("v2:"))
        second = elsewhere.rewrap(*RUN)
        assert second.code == 11, second.err
        last_two = Result(second.code, second.out, "\n".join(second.err.splitlines()[-2:]))
        check_lines(last_two, error="is being worked on by run", hint="its lease ends")
        assert first.poll() is None
        first.send_signal(signal.SIGINT)
        assert first.wait(TIMEOUT_S) == 4
    assert bench.rewrap("resume").code == 0


def test_ledger_of_a_newer_rewrap_is_left_alone(bench: Workbench) -> None:
    """A ledger with a higher schema number is not guessed at."""
    bench.notes([box("note")])
    make_ledger(bench, schema=str(SCHEMA_NUMBER + 1), job="test")
    refused(bench, *RUN, code=2, error="written by a newer rewrap", hint="use that version")


def test_ledger_of_another_job_is_left_alone(bench: Workbench) -> None:
    """A ledger that was copied or renamed does not vouch for this job."""
    bench.notes([box("note")])
    make_ledger(bench, schema="1", job="other")
    refused(bench, *RUN, code=2, error='belongs to job "other"', hint="beside it")


def test_file_that_is_no_ledger_is_left_alone(bench: Workbench) -> None:
    """Something else under the ledger's name is neither read as one nor overwritten."""
    bench.notes([box("note")])
    bench.ledger.write_bytes(b"these are not the bytes of a database, and there are enough of them")
    ran = bench.rewrap(*RUN)
    assert ran.code == 2
    check_lines(ran, error="cannot be used", hint="check that it is a rewrap ledger")
    assert bench.ledger.read_bytes().startswith(b"these are not")


def make_ledger(bench: Workbench, *, schema: str, job: str) -> None:
    connection = sqlite3.connect(bench.ledger)
    connection.execute("CREATE TABLE rewrap_meta (name text PRIMARY KEY, value text NOT NULL)")
    connection.executemany("INSERT INTO rewrap_meta VALUES (?, ?)", [("schema", schema), ("job", job)])
    connection.commit()
    connection.close()


def test_changed_job_is_not_resumed(bench: Workbench) -> None:
    """Cursors belong to the tables and layouts they were made for; pace may change."""
    bench.notes([box(f"note {i}") for i in range(20)])
    assert bench.run("--sample", "5").code == 4
    edited(bench, 'table = "notes"', 'table = "notes"\nunmarked = "reseal"')
    refused(bench, "resume", code=2, error="the job file has changed", hint="--abandon")
    edited(bench, '\nunmarked = "reseal"', "")
    assert bench.rewrap("resume", "--batch-size", "3").code == 0


def test_another_version_over_an_unfinished_run_is_refused_until_it_is_abandoned(bench: Workbench) -> None:
    """Half v2 and half v3 is nobody's wish; --abandon is the way out, and the values stay readable."""
    bench.notes([box(f"note {i}") for i in range(20)])
    assert bench.run("--sample", "5").code == 4
    other = ("run", "--from", "v1,v2", "--to", "v3", "--allow-unseen-target")
    ran = refused(bench, *other, code=2, error="has an unfinished run", hint="--abandon")
    unfinished = ran.err.split("--abandon ")[1].split(";")[0]
    refused(bench, *other, "--abandon", "00000000", code=2, error="has an unfinished run", hint="--abandon")
    ran = bench.rewrap(*other, "--abandon", unfinished)
    assert ran.code == 0, ran.err
    assert {unbox(body or "").decode() for body in bench.bodies().values()} == {
        f"note {i}" for i in range(20)
    }
    assert all(body and body.startswith("v3:") for body in bench.bodies().values())


# the job file

MISTAKES = {
    "bad TOML": ('name = "test"', 'name = "test', "job file rewrap.toml: ", "not valid TOML"),
    "unknown field": (
        'kind = "postgres"',
        'kind = "postgres"\ncolour = "red"',
        "job file rewrap.toml: stores.main.colour: is not a field here",
        "fields here are kind, url, password",
    ),
    "misspelt field": (
        'table = "notes"',
        'tabel = "notes"',
        "job file rewrap.toml: targets[0].tabel: is not a field here",
        "fields here are table, container, key, fields",
    ),
    "unset variable": (
        "${DATABASE_URL}",
        "${ABSENT_URL}",
        "job file rewrap.toml: stores.main.url: environment variable ABSENT_URL is not set",
        "set ABSENT_URL",
    ),
    "unknown layout": (
        "libsodium-token",
        "sodium",
        'job file rewrap.toml: targets[0].fields[0].layout: there is no layout "sodium"',
        "known: aead, and the built-in ones of docs/layouts.md",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_in_the_job_file_is_named_by_its_place(bench: Workbench, mistake: str) -> None:
    """The message gives the file, the place in it, and what could stand there."""
    old, new, error, hint = MISTAKES[mistake]
    bench.notes([box("note")])
    edited(bench, old, new)
    refused(bench, *RUN, code=2, error=error, hint=hint)


def test_key_in_the_job_file_is_refused_and_never_echoed(bench: Workbench) -> None:
    """A key that stands in a file which is committed and mailed around is not shown on top of that."""
    bench.notes([box("note")])
    edited(bench, '"env:KEY_V1"', f'"{KEY_V1.hex()}"')
    ran = refused(bench, *RUN, code=2, error="keys.versions.v1.material", hint="docs/job-file.md")
    assert 'write "env:NAME" or "file:PATH"' in ran.err
    assert KEY_V1.hex() not in ran.err


def test_password_in_the_job_file_is_refused_and_never_echoed(bench: Workbench) -> None:
    """A URL with its password belongs into a variable; the file's is not repeated."""
    bench.notes([box("note")])
    edited(bench, "${DATABASE_URL}", "postgresql://app:canary-password@127.0.0.1/app")
    ran = refused(
        bench, *RUN, code=2, error="stores.main.url: a password is written in the URL",
        hint='password = "env:PGPASSWORD"',
    )  # fmt: skip
    assert "canary-password" not in ran.err


@pytest.mark.parametrize(("targets", "error"), [("", "is missing"), ("targets = []", "is empty")])
def test_job_over_no_table_is_refused(bench: Workbench, targets: str, error: str) -> None:
    """A rotation of nothing is not a success."""
    job = bench.job("")
    job.write_text(targets + job.read_text())
    refused(bench, *RUN, code=2, error=f"targets: {error}", hint="docs/job-file.md")


def test_missing_job_file_is_named(bench: Workbench) -> None:
    """Without a job file the message says which one was looked for."""
    (bench.folder / "rewrap.toml").unlink()
    refused(bench, *RUN, code=2, error="job file rewrap.toml: No such file", hint="rewrap COMMAND JOB.toml")


def test_place_that_is_taken_is_said_before_anything_is_done(bench: Workbench) -> None:
    """A ledger that cannot be made ends the run before the first row is touched."""
    bench.notes([box("note")])
    (bench.ledger / "something").mkdir(parents=True)
    before = asyncio.run(_in_database(bench.dsn))
    ran = bench.rewrap(*RUN)
    assert ran.code == 2
    check_lines(ran, error=f"ledger {bench.ledger.name} cannot be", hint="ledger")
    assert asyncio.run(_in_database(bench.dsn)) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into any folder")
def test_folder_that_cannot_be_written_is_said_before_anything_is_done(bench: Workbench) -> None:
    """The ledger's place is tried before the first row is."""
    bench.notes([box("note")])
    bench.folder.chmod(0o500)
    try:
        refused(bench, *RUN, code=2, error="cannot be written", hint="REWRAP_LEDGER_URL")
    finally:
        bench.folder.chmod(0o700)
