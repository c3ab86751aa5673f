"""`rewrap job init|schema`, and the order of the first help screen."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from rewrap.job import Job
from rewrap.jobschema import job_schema
from tests.support.values import KEYS, aead, box
from tests.support.workbench import NOTES, Workbench

ROOT = Path(__file__).parents[2]

BLOCK = re.compile(r"^```toml\n(.*?)^```$", re.S | re.M)


def whole_jobs() -> dict[str, str]:
    """Every complete job file in jobs/ and on the pages, by where it stands."""
    found = {str(path.relative_to(ROOT)): path.read_text() for path in sorted((ROOT / "jobs").glob("*.toml"))}
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for number, block in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")), 1):
            if "[stores." in block and "[[targets]]" in block:
                found[f"{page.relative_to(ROOT)} block {number}"] = block
    return found


def misfits(value: Any, schema: dict[str, Any], root: dict[str, Any], at: str = "$") -> list[str]:
    """Where a value does not fit a schema: as much of JSON Schema as job files need."""
    if "$ref" in schema:
        return misfits(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root, at)
    if "anyOf" in schema:
        tried = [misfits(value, one, root, at) for one in schema["anyOf"]]
        return [] if any(not wrong for wrong in tried) else [f"{at}: none of {len(tried)} fit"]
    wrong = []
    if "oneOf" in schema:
        fitting = [one for one in schema["oneOf"] if not misfits(value, one, root, at)]
        wrong += [] if len(fitting) == 1 else [f"{at}: {len(fitting)} of {len(schema['oneOf'])} fit"]
    kinds: dict[str, Any] = {
        "object": dict, "array": list, "string": str, "integer": int, "number": (int, float),
        "boolean": bool, "null": type(None),
    }  # fmt: skip
    kind = schema.get("type")
    if kind and (not isinstance(value, kinds[kind]) or (kind != "boolean" and isinstance(value, bool))):
        return [f"{at}: not {kind}"]
    if "enum" in schema and value not in schema["enum"]:
        wrong.append(f"{at}: not one of {schema['enum']}")
    if "const" in schema and value != schema["const"]:
        wrong.append(f"{at}: not {schema['const']}")
    if isinstance(value, dict):
        known = schema.get("properties", {})
        wrong += [f"{at}: lacks {name}" for name in schema.get("required", []) if name not in value]
        for name, child in value.items():
            if name in known:
                wrong += misfits(child, known[name], root, f"{at}.{name}")
            elif isinstance(schema.get("additionalProperties"), dict):
                wrong += misfits(child, schema["additionalProperties"], root, f"{at}.{name}")
            elif schema.get("additionalProperties") is False:
                wrong.append(f"{at}: has no {name}")
    elif isinstance(value, list):
        for number, child in enumerate(value):
            wrong += misfits(child, schema.get("items", {}), root, f"{at}[{number}]")
    elif isinstance(value, str):
        if "pattern" in schema and not re.search(schema["pattern"], value):
            wrong.append(f"{at}: does not match")
    elif isinstance(value, int | float) and not (
        schema.get("minimum", value) <= value <= schema.get("maximum", value)
    ):
        wrong.append(f"{at}: out of range")
    return wrong


@pytest.mark.parametrize("name", whole_jobs())
def test_job_files_of_the_project_fit_the_schema(name: str) -> None:
    """Whatever job file is shipped or shown, an editor finds nothing wrong with it."""
    schema = job_schema()
    assert misfits(tomllib.loads(whole_jobs()[name]), schema, schema) == []


@pytest.mark.parametrize(
    "mistake",
    [
        ("[pace]\nbatch_size = 500", "[pace]\nbatch_size = 50000"),
        ("batch_size = 500", "batchsize = 500"),
        ("provider", "providers"),
        ('kind = "postgres"', 'kind = "mysql"'),
        ('table = "notes"', "table = 1"),
    ],
)
def test_schema_finds_what_a_job_refuses(mistake: tuple[str, str]) -> None:
    """What an editor underlines is what the program would refuse."""
    job = (
        'name = "x"\n[stores.main]\nkind = "postgres"\nurl = "postgresql://h/d"\n[keys]\nprovider = "local"\n'
        f'[keys.versions.v1]\nmaterial = "env:K"\n[pace]\nbatch_size = 500\n{NOTES}'
    )
    schema = job_schema()
    assert misfits(tomllib.loads(job), schema, schema) == []
    assert misfits(tomllib.loads(job.replace(*mistake)), schema, schema)


def test_schema_says_something_about_every_field(bench: Workbench) -> None:
    """Each field has a sentence; the document says what it is and which draft it follows."""
    ran = bench.rewrap("job", "schema")
    assert ran.code == 0
    schema = json.loads(ran.out)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"] == "rewrap job file"
    sections = {"Job": schema, **schema["$defs"]}
    silent = [
        f"{section}.{name}"
        for section, one in sections.items()
        for name, field in one.get("properties", {}).items()
        if not field.get("description")
    ]
    assert silent == []


def test_job_init_makes_a_job_that_runs(bench: Workbench) -> None:
    """From a database and nothing else to a rotation, with what the printed steps say."""
    bench.notes([*(box(f"canary-plaintext {n}") for n in range(40)), box("x", "v2")])
    bench.sql("CREATE TABLE people (person int PRIMARY KEY, name text, token text)")
    bench.insert("people", ["person", "name", "token"], [(n, "a name", "tok") for n in range(9)])
    (bench.folder / "rewrap.toml").unlink()
    ran = bench.rewrap("job", "init")
    assert ran.code == 0, ran.err
    assert "next:" in ran.out
    text = (bench.folder / "rewrap.toml").read_text()
    assert 'url = "${DATABASE_URL}"' in text
    assert urlsplit(bench.dsn).password not in text + ran.out
    job = Job.load(bench.folder / "rewrap.toml", bench.environ)
    assert [(t.table, [e.column for e in t.fields]) for t in job.targets] == [("notes", ["body"])]
    assert list(job.keys.versions) == ["v1", "v2"]
    # the cipher cannot be seen, and is said to be a guess: trying the keys tells
    assert "guess" in text
    assert bench.rewrap("check", "--from", "v1", "--to", "v2").code == 1
    tried = bench.rewrap("discover", "rewrap.toml")
    assert "libsodium-token under v1" in tried.out
    cipher, layout = 'cipher = "aes-256-gcm"', 'cipher = "secretbox"'
    (bench.folder / "rewrap.toml").write_text(text.replace(cipher, layout))
    assert bench.rewrap("check", "--from", "v1", "--to", "v2").code == 0
    assert bench.rewrap("run", "--from", "v1", "--to", "v2").code == 0
    assert "canary-plaintext" not in ran.out + text + tried.out


def test_job_init_overwrites_nothing(bench: Workbench) -> None:
    """A job that is there stays as it is; another name is taken."""
    bench.notes([box("one")])
    before = (bench.folder / "rewrap.toml").read_text()
    ran = bench.rewrap("job", "init")
    assert ran.code == 2
    assert "not overwritten" in ran.err
    assert (bench.folder / "rewrap.toml").read_text() == before
    assert bench.rewrap("job", "init", bench.dsn, "--write", "other.toml").code == 0
    assert (bench.folder / "other.toml").exists()


def test_job_init_without_a_database(bench: Workbench) -> None:
    ran = bench.rewrap("job", "init", "--write", "other.toml", DATABASE_URL="")
    assert ran.code == 2
    assert "no database is named" in ran.err


def test_empty_database_is_said_to_be(bench: Workbench) -> None:
    """Nothing found is no job: the file says so and loads not, the command ends well."""
    ran = bench.rewrap("job", "init", "--write", "other.toml")
    assert ran.code == 0
    assert "0 look like ciphertext" in ran.out
    assert "No column could be made a target" in (bench.folder / "other.toml").read_text()


def test_order_of_the_first_help_screen(bench: Workbench) -> None:
    """A rotation's commands in the order of their use, then the others."""
    listed = re.findall(r"^│ ([a-z]+) ", bench.rewrap("--help").out, re.M)
    assert listed == [
        "check", "plan", "run", "status", "verify", "pause", "resume", "tune", "cancel", "quarantine",
        "audit", "keys", "discover", "job",
    ]  # fmt: skip


def test_bound_values_with_unknown_binding_are_left_for_review(bench: Workbench) -> None:
    """A draft names what it does not know where it stands."""
    bench.sql("CREATE TABLE accounts (id int PRIMARY KEY, account_id int, secret text)")
    rows = [(n, n + 7, aead("canary-plaintext", str(n + 7))) for n in range(20)]
    bench.insert("accounts", ["id", "account_id", "secret"], rows)
    (bench.folder / "rewrap.toml").unlink()
    assert bench.rewrap("job", "init").code == 0
    text = (bench.folder / "rewrap.toml").read_text()
    assert "associated data are not known" in text
    assert not any(key.hex() in text for key in KEYS.values())
