"""Values in documents, in several columns, in domains: read as one value each, written where they are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.inprocess import run_here
from tests.support.values import KEY_V2, aead, box, unaead, unbox
from tests.support.workbench import Workbench, wait_for

PATIENTS = """
[[targets]]
table = "patients"
fields = [
  { column = "doc", path = "person.ssn", layout = "libsodium-token" },
  { column = "doc", path = "notes[1]", layout = "libsodium-token" },
  { column = "doc", path = '"a.b"."[0]"', layout = "aead" },
]
"""

NEW = {"v2": KEY_V2}


def document(number: int, **more: Any) -> dict[str, Any]:
    return {
        "person": {"ssn": box(f"ssn {number}"), "name": "Ann"},
        "notes": ["first", box(f"note {number}"), "third"],
        "a.b": {"[0]": aead(f"odd {number}", "7")},
        "n": 12345678901234567890.5,
        **more,
    }


def patients(bench: Workbench, documents: list[dict[str, Any] | None]) -> None:
    bench.job(PATIENTS)
    bench.sql("CREATE TABLE patients (id bigint PRIMARY KEY, account_id text DEFAULT '7', doc jsonb)")
    rows = [(at, None if doc is None else json.dumps(doc)) for at, doc in enumerate(documents, 1)]
    bench.sql(
        "INSERT INTO patients (id, doc) SELECT * FROM unnest($1::bigint[], $2::jsonb[])",
        [at for at, _ in rows], [doc for _, doc in rows],
    )  # fmt: skip


def documents(bench: Workbench) -> dict[int, Any]:
    found = bench.sql("SELECT id, doc::text AS doc FROM patients")
    return {row["id"]: json.loads(row["doc"]) if row["doc"] else None for row in found}


def test_paths_of_a_document_are_resealed_where_they_are(bench: Workbench) -> None:
    """Three values in one column are written in one UPDATE a row; the rest of the document stays."""
    patients(bench, [document(i) for i in range(1_500)])
    before = bench.value("SELECT string_agg((doc #- '{person,ssn}' #- '{notes,1}' #- '{a.b,[0]}')::text, '')"
                         " FROM patients")  # fmt: skip
    ran = bench.run()
    assert ran.code == 0, ran.err
    after = documents(bench)
    for i in range(1_500):
        assert unbox(after[i + 1]["person"]["ssn"], NEW) == f"ssn {i}".encode()
        assert unbox(after[i + 1]["notes"][1], NEW) == f"note {i}".encode()
        assert unaead(after[i + 1]["a.b"]["[0]"], "7", NEW) == f"odd {i}".encode()
    rest = bench.value("SELECT string_agg((doc #- '{person,ssn}' #- '{notes,1}' #- '{a.b,[0]}')::text, '')"
                       " FROM patients")  # fmt: skip
    assert rest == before
    assert ran.event("run_ended")["outcomes"]["patients"] == {
        'doc."a.b"."[0]"': {"resealed": 1_500},
        "doc.notes[1]": {"resealed": 1_500},
        "doc.person.ssn": {"resealed": 1_500},
    }
    assert bench.rewrap("verify", "--deep").code == 0
    updated = "SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = 'patients'"
    # and one more in the rehearsal, which was rolled back
    wait_for(lambda: bench.value(updated) == 1_501)


def test_documents_without_the_path_have_no_value(bench: Workbench) -> None:
    """A path that is not there, JSON null and SQL NULL are no values; what is no ciphertext is plaintext."""
    patients(
        bench,
        [
            None,
            {},
            {"person": None},
            {"person": {"ssn": None}, "notes": []},
            {"person": {"ssn": 42}, "notes": {"1": "not an array"}},
            {"person": {"ssn": {"deep": 1}}},
            document(7),
        ],
    )
    before = documents(bench)
    ran = bench.run()
    assert ran.code == 0, ran.err
    after = documents(bench)
    assert {i: after[i] for i in range(1, 7)} == {i: before[i] for i in range(1, 7)}
    assert unbox(after[7]["person"]["ssn"], NEW) == b"ssn 7"
    assert ran.event("run_ended")["outcomes"]["patients"]["doc.person.ssn"] == {
        "null": 4, "plaintext": 2, "resealed": 1,
    }  # fmt: skip


def test_a_write_elsewhere_in_the_document_is_not_lost(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between read and write the application changes another key: both changes are there afterwards."""
    from rewrap.stores.postgres.writer import PostgresWriter

    patients(bench, [document(i) for i in range(50)])
    swap = PostgresWriter.swap
    disturbed: list[int] = []

    async def disturbed_swap(self: PostgresWriter, *arguments: Any, **named: Any) -> int:
        connection = await self.connected()
        # not in the rehearsal, which is rolled back
        if not disturbed and not connection.is_in_transaction():
            disturbed.append(1)
            await connection.execute(
                "UPDATE patients SET doc = jsonb_set(doc, '{person,name}', '\"Bea\"') WHERE id <= 10"
            )
        return await swap(self, *arguments, **named)

    monkeypatch.setattr(PostgresWriter, "swap", disturbed_swap)
    ended = run_here(bench)
    assert ended.exit_code == 0
    after = documents(bench)
    assert [after[i]["person"]["name"] for i in range(1, 12)] == ["Bea"] * 10 + ["Ann"]
    assert all(unbox(after[i]["person"]["ssn"], NEW) for i in range(1, 51))


def test_a_fence_on_a_path_refuses_old_values(bench: Workbench) -> None:
    """`verify --fence` holds a path in a document to the new version, and each path has its own."""
    patients(bench, [document(i) for i in range(5)])
    assert bench.run().code == 0
    fenced = bench.rewrap("verify", "--fence", "--json")
    assert fenced.code == 0, fenced.err
    assert bench.value("SELECT count(*) FROM pg_constraint WHERE starts_with(conname, 'rewrap_fence')") == 3
    with pytest.raises(Exception, match="rewrap_fence"):
        bench.sql(
            f"UPDATE patients SET doc = jsonb_set(doc, '{{person,ssn}}', '\"{box('old')}\"') WHERE id = 1"
        )
    again = bench.rewrap("verify", "--fence", "--json")
    assert "was there already" in again.out
    refused = bench.rewrap("run", "--from", "v2", "--to", "v3", "--allow-unseen-target")
    assert refused.code == 2
    assert "fence of an earlier rotation" in refused.err


def test_domains_and_generated_columns(bench: Workbench) -> None:
    """A domain over text is resealed under its CHECK; what is generated from a value follows it."""
    bench.job("""
[[targets]]
table = "people"
fields = [{ column = "ssn", layout = "libsodium-token" }]
""")
    bench.sql("""
        CREATE DOMAIN sealed AS text CHECK (VALUE ~ '^v[0-9]+:');
        CREATE DOMAIN sealed_short AS sealed CHECK (length(VALUE) < 500);
        CREATE TABLE people (id int PRIMARY KEY, ssn sealed_short NOT NULL,
            version text GENERATED ALWAYS AS (split_part(ssn, ':', 1)) STORED);
    """)
    bench.insert("people", ["id", "ssn"], [(i, box(f"p{i}")) for i in range(100)])
    assert bench.run().code == 0
    found = bench.sql("SELECT id, ssn, version FROM people")
    assert {row["version"] for row in found} == {"v2"}
    assert {row["id"]: unbox(row["ssn"], NEW).decode() for row in found} == {i: f"p{i}" for i in range(100)}


@pytest.mark.parametrize(
    ("table", "field", "message", "hint"),
    [
        ("doc jsonb", '{ column = "doc", layout = "libsodium-token" }',
         'column "doc" is jsonb, and the job names no path in it', "a path leads into a column of jsonb"),
        ("doc text", '{ column = "doc", path = "a", layout = "libsodium-token" }',
         'column "doc" is text, and the job names a path in it', "only columns of jsonb have paths"),
        ("doc json", '{ column = "doc", path = "a", layout = "libsodium-token" }',
         'column "doc" is json, which cannot be changed path by path', "TYPE jsonb"),
        ("doc int", '{ column = "doc", layout = "libsodium-token" }',
         'column "doc" is integer, which this version does not rewrite', "column types are bytea, jsonb"),
        ("doc text GENERATED ALWAYS AS ('v1:x') STORED", '{ column = "doc", layout = "libsodium-token" }',
         'column "doc" is generated', "name the column that it is generated from"),
    ],
)  # fmt: skip
def test_columns_that_cannot_be_resealed_are_refused(
    bench: Workbench, table: str, field: str, message: str, hint: str
) -> None:
    """The reason and the way out are named, and nothing is written."""
    bench.job(f'[[targets]]\ntable = "odd"\nfields = [{field}]')
    bench.sql(f"CREATE TABLE odd (id int PRIMARY KEY, {table})")
    refused = bench.run()
    assert refused.code in (1, 2)
    assert message in refused.err
    assert hint in refused.err


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ('{ column = "d", path = "a..b", layout = "libsodium-token" }', '"a..b" is not a path'),
        ('{ column = "d", path = "a[*].b[*]", layout = "libsodium-token" }', "more than one [*]"),
        ('{ column = "d", path = "a", layout = "libsodium-token" },'
         '{ column = "d", path = "a.b", layout = "libsodium-token" }', "a place in a column is named twice"),
        ('{ column = "d", path = "a[*]", layout = "libsodium-token" },'
         '{ column = "d", path = "a[3]", layout = "libsodium-token" }', "a place in a column is named twice"),
        ('{ column = "d", layout = "libsodium-token" }, { column = "d", layout = "libsodium-token" }',
         "a column is named twice"),
    ],
)  # fmt: skip
def test_paths_that_cannot_be_are_refused(bench: Workbench, fields: str, message: str) -> None:
    """A job that would write one place twice, or names none, is no job."""
    bench.job(f'[[targets]]\ntable = "notes"\nfields = [{fields}]')
    refused = bench.run()
    assert refused.code == 2
    assert message in refused.err
