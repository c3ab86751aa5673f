"""Verify: what it says without the old key, on a copy, and to somebody with few rights."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

from tests.support.values import KEY_V2, box, unbox
from tests.support.workbench import NOTES, Workbench


def test_without_the_old_key_a_sealed_looking_value_is_not_called_plaintext(bench: Workbench) -> None:
    """An unmarked value can only be told from plaintext with its key: without it, verify is not complete."""
    bench.notes([box("one", "v2"), box("left behind", marker=False)])
    without = {"KEY_V1": "", "KEY_V3": ""}
    for environ in (without, {**without, "KEY_V1": KEY_V2.hex()}):
        found = bench.rewrap("verify", "--to", "v2", "--json", **environ)
        assert found.code == 3
        verdict = found.event("verdict")
        assert (verdict["complete"], verdict["undecided"]) == (False, 1)
        assert "v1" in verdict["reasons"][0]
    assert bench.rewrap("verify", "--to", "v2", "--json").event("verdict")["unmarked"] == 1


def test_without_the_old_key_a_finished_table_is_complete(bench: Workbench) -> None:
    """After retirement the new key alone proves every value; text that is no payload is plaintext."""
    bench.notes([box("one"), box("two"), None, "just text", "c2hvcnQ="])
    assert bench.run().code == 0
    found = bench.rewrap("verify", "--deep", "--json", KEY_V1="", KEY_V3="")
    assert found.code == 0, found.out
    assert found.event("field_verdict")["classes"] == {"current": 2, "null": 1, "plaintext": 2}


def test_classes_do_not_depend_on_which_keys_are_at_hand(bench: Workbench) -> None:
    """A quarantined value leaves the class that it was counted in."""
    bench.notes([box("one"), "v1:AAAA", "v9:" + box("x").partition(":")[2]])
    assert bench.run().code == 3
    with_key = bench.rewrap("verify", "--json").event("field_verdict")["classes"]
    without = bench.rewrap("verify", "--json", KEY_V1="").event("field_verdict")["classes"]
    assert with_key == without == {"current": 1, "quarantined": 1, "other_version": 1}


def test_verify_of_a_copy_resolves_nothing(bench: Workbench) -> None:
    """A restored copy without the broken value says nothing about the database the ledger speaks of."""
    bench.notes([box("one"), "v1:AAAA"])
    assert bench.run().code == 3
    name = bench.value("SELECT current_database()")
    parts = urlsplit(bench.dsn)
    admin = Workbench(urlunsplit(parts._replace(path="/postgres")), bench.folder)
    admin.sql(f"CREATE DATABASE {name}_copy TEMPLATE {name}")
    copy = urlunsplit(parts._replace(path=f"/{name}_copy"))
    try:
        Workbench(copy, bench.folder).sql("DELETE FROM notes WHERE id = 2")
        assert bench.rewrap("verify", "--to", "v2", DATABASE_URL=copy).code == 0
    finally:
        admin.sql(f"DROP DATABASE {name}_copy WITH (FORCE)")
    assert [entry["state"] for entry in bench.rewrap("quarantine", "list", "--json").events] == ["open"]


def test_deep_finds_a_current_value_that_does_not_open(bench: Workbench) -> None:
    """Counting sees the marker; only opening sees that the value is damaged."""
    good = box("one", "v2")
    bench.notes([good, good[:-8] + "AAAAAAA="])
    assert bench.rewrap("verify", "--to", "v2").code == 0
    deep = bench.rewrap("verify", "--to", "v2", "--deep", "--json")
    assert deep.code == 3
    assert deep.event("verdict")["unopenable"] == 1


def test_printed_queries_count_what_verify_counts(bench: Workbench) -> None:
    """The SQL for psql, run as printed, gives the same numbers; the version defaults to the last run's."""
    bench.notes([box("one"), box("two"), None, "text", "v9:AAAA"])
    assert bench.run().code == 3
    printed = bench.rewrap("verify", "--print-queries")
    assert printed.code == 0
    says, statement = printed.out.strip().split("\n", 1)
    assert says.startswith("-- notes.body")
    rows = {(row["class"], row["version"]): row["n"] for row in bench.sql(statement.rstrip(";"))}
    assert rows == {("null", None): 1, ("bare", None): 1, ("marked", "v2"): 2, ("marked", "v9"): 1}


def test_an_owner_can_make_the_guards_schema_beforehand(bench: Workbench) -> None:
    """A role that may create nothing in the database works in a schema that was made for it."""
    bench.notes([box("one")])
    database = bench.value("SELECT current_database()")
    bench.sql("DROP ROLE IF EXISTS limited")
    bench.sql("CREATE ROLE limited LOGIN PASSWORD 'limited'")
    bench.sql("GRANT SELECT, UPDATE ON notes TO limited")
    bench.sql(f"REVOKE CREATE ON DATABASE {database} FROM PUBLIC")
    _, _, host = bench.dsn.partition("@")
    limited = f"postgresql://limited:limited@{host}"
    try:
        refused = bench.run(DATABASE_URL=limited)
        assert refused.code == 1
        assert "CREATE SCHEMA" in refused.err
        bench.sql("CREATE SCHEMA rewrap AUTHORIZATION limited")
        assert bench.run(DATABASE_URL=limited).code == 0
        fenced = bench.rewrap("verify", "--fence", DATABASE_URL=limited)
        assert fenced.code == 3
        owner = fenced.err.partition("have the owner run: ")[2].strip()
        bench.sql(owner)
        assert bench.rewrap("verify", "--fence", DATABASE_URL=limited).code == 0
    finally:
        bench.sql("DROP OWNED BY limited; DROP ROLE limited")


def test_any_is_every_version_at_hand(bench: Workbench) -> None:
    """--from any needs no key that is not set; what it would have opened is left, and said."""
    bench.notes([box("one"), box("two", "v3")])
    ran = bench.rewrap("run", "--from", "any", "--to", "v2", "--allow-unseen-target", "--json", KEY_V3="")
    assert ran.code == 3
    assert ran.event("run_started")["from_versions"] == ["v1"]
    ran = bench.rewrap("run", "--from", "any", "--to", "v2", "--json")
    assert ran.code == 0
    assert {unbox(body or "", {"v2": KEY_V2}) for body in bench.bodies().values()} == {b"one", b"two"}


def test_an_abandoned_run_stays_unfinished_when_its_successor_is_refused(bench: Workbench) -> None:
    """--abandon takes effect with the new run, not before it."""
    bench.job(NOTES, "[pace]\nbatch_size = 1\nshards = 1\n")
    bench.notes([box("one"), box("two")])
    assert bench.run("--sample", "1").code == 4
    status = bench.rewrap("status", "--json").event("status")["run"]
    refused = bench.rewrap("run", "--from", "v1,v2", "--to", "v3", "--abandon", status["run_id"])
    assert refused.code == 10
    assert bench.rewrap("status", "--json").event("status")["run"]["state"] == "interrupted"
    assert bench.rewrap("resume").code == 0
