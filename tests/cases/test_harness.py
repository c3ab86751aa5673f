"""The harness itself: what it must not let pass, it does not let pass."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cases import look
from tests.cases.case import FOLDER, Case
from tests.cases.notation import CaseError, Notation
from tests.cases.sealing import key_of
from tests.cases.session import Session
from tests.cases.trial import Trial, check, check_plaintexts
from tests.support.values import aead, box, unbox
from tests.support.workbench import Result, Workbench

JOB = (FOLDER / "one-row" / "job.toml").read_text()
SQL = (FOLDER / "one-row" / "before.sql").read_text()
EXPECT: dict[str, Any] = json.loads((FOLDER / "one-row" / "expect.json").read_text())


def written(folder: Path, expect: dict[str, Any], before: str = SQL) -> Path:
    """A case in a folder of its own."""
    case = folder / "a-case"
    case.mkdir()
    for name, text in {
        "job.toml": JOB,
        "before.sql": before,
        "expect.json": json.dumps(expect),
    }.items():
        (case / name).write_text(text)
    return case


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"outcome": {}}, "outcome: Extra inputs"),
        ({"run": {"outcomes": {}, "exits": 0}}, "run.exits: Extra inputs"),
        ({"run": {"outcomes": {"notes": {"body": {"resealed": "1"}}}}}, "valid integer"),
        ({"verify": None}, "both run and verify"),
        ({"run": None, "verify": None}, "both run and verify"),
        ({"plain": []}, "plain says what they open to"),
        ({"run": {"outcomes": {"notes": {"body": {}}}}, "plain": []}, "nothing is asserted"),
        ({"refused": {"exit": 2, "error": "is a view", "hint": "name the"}}, "what is refused has no run"),
        ({"about": ""}, "about"),
    ],
)
def test_expectations_are_read_strictly(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    """An unknown field, another type, and a case that asserts nothing are errors."""
    with pytest.raises(CaseError, match=says):
        Case.read(written(tmp_path, EXPECT | change))


def test_a_case_is_three_files(tmp_path: Path) -> None:
    """A file that is missing or one too many is an error."""
    folder = written(tmp_path, EXPECT)
    (folder / "after.sql").touch()
    with pytest.raises(CaseError, match=r"after\.sql"):
        Case.read(folder)


@pytest.mark.parametrize(
    ("placeholder", "says"),
    [
        ('{{bax v1 "plain text"}}', "there is no bax"),
        ('{{box "plain text"}}', "one version"),
        ("{{box v1}}", "no plaintext"),
        ('{{box v1 "short"}}', "six|6"),
        ('{{box v1 salt=1 "plain text"}}', "no option salt"),
        ('{{box v1 as=base32 "plain text"}}', "as=base32"),
        ('{{box v1 damage=some "plain text"}}', "damage=some"),
        ('{{box v1 of="nonce salt" "plain text"}}', "pieces are"),
        ('{{box v1 "one text" "two texts"}}', "two plaintexts"),
    ],
)
def test_placeholders_are_read_strictly(placeholder: str, says: str) -> None:
    """What is not understood is an error, and never text in a table."""
    with pytest.raises(CaseError, match=says):
        Notation("d").replaced(placeholder)


def test_placeholders_make_what_other_code_opens() -> None:
    """Values are those of tests/support; pieces of one value fit together; arrays of SQL are left alone."""
    notation = Notation("d")
    keys = {"v1": key_of("v1")}
    assert unbox(notation.replaced('{{box v1 "plain text"}}'), keys) == b"plain text"
    assert len(notation.replaced('{{aead v1 aad="7" "plain text"}}')) == len(aead("plain text", "7"))
    assert len(notation.replaced('{{box v1 x"c3a9c3a9c3a9"}}')) == len(box("ééé"))
    whole = notation.replaced('{{aead v1 as=hex marker="" "plain text"}}')
    pieces = [
        notation.replaced(f'{{{{aead v1 as=hex of={p} "plain text"}}}}')
        for p in ("nonce", "ciphertext", "tag")
    ]
    assert whole == "".join(pieces)
    assert notation.replaced('{{aead v1 as=bytea "plain text"}}').startswith("\\x76313a")
    assert notation.replaced("'{{1,2},{3,4}}' {{}} {{role app}}") == "'{{1,2},{3,4}}' {{}} app_d"
    assert notation.replaced('{{box v1 marker="it\'s {version}:" "plain text"}}').startswith("it''s v1:")


@pytest.fixture
def session(bench: Workbench) -> Iterator[Session]:
    """A database with one table."""
    with contextlib.closing(Session(bench.dsn)) as found:
        found.script(
            "CREATE TABLE notes (id int PRIMARY KEY, body text DEFAULT 'body', other text DEFAULT 'other', "
            """doc jsonb DEFAULT '{"a": {"b": 1}, "c": 2}');"""
            "INSERT INTO notes SELECT i FROM generate_series(1, 9) i"
        )
        yield found


def test_stamps_notice_a_write_of_the_same(session: Session) -> None:
    """A row that is written as it was has another stamp."""
    before = look.stamps(session)
    assert look.stamps(session) == before
    session.script("UPDATE notes SET body = body WHERE id = 5")
    assert look.stamps(session) != before


@pytest.mark.parametrize(
    ("change", "noticed"),
    [
        ("UPDATE notes SET body = 'x'", False),
        ("UPDATE notes SET doc = jsonb_set(doc, '{a,b}', '\"x\"')", False),
        ("UPDATE notes SET doc = jsonb_set(doc, '{c}', '3') WHERE id = 1", True),
        ("UPDATE notes SET other = NULL WHERE id = 1", True),
        ("UPDATE notes SET id = 10 WHERE id = 1", True),
        ("DELETE FROM notes WHERE id = 1", True),
        ("CREATE TABLE more ()", True),
    ],
)
def test_fingerprints_spare_only_what_they_are_told(session: Session, change: str, noticed: bool) -> None:
    """Columns and paths that a rotation writes may change, nothing else may."""
    (oid,) = look.oids_of(session, "notes")
    spared: dict[int, dict[str, list[str]]] = {oid: {"body": [], "doc": ["a.b"]}}
    before = look.fingerprints(session, spared)
    session.script(change)
    assert (look.fingerprints(session, spared) != before) is noticed


@pytest.mark.parametrize(
    "change",
    [
        {"run": {"outcomes": {"notes": {"body": {"resealed": 2}}}}},
        {"run": {"exit": 3, "outcomes": {"notes": {"body": {"resealed": 1}}}}},
        {"verify": {"classes": {"notes": {"body": {"stale": 1}}}}},
        {"plan": {"in_scope": 2}},
        {"plain": [EXPECT["plain"][0] | {"texts": ["the other one"]}]},
        {"sql": [{"sql": "SELECT count(*) FROM notes", "rows": [[2]]}]},
        {"run": None, "verify": None, "plan": None, "plain": [],
         "refused": {"exit": 2, "error": "is a view", "hint": "name the"}},
    ],
    ids=["outcomes", "exit", "verify", "plan", "plain", "sql", "refused"],
)  # fmt: skip
def test_a_wrong_expectation_fails(tmp_path: Path, bench: Workbench, change: dict[str, Any]) -> None:
    """Each part of expect.json is compared: the same case with one of them wrong fails."""
    (tmp_path / "cases").mkdir()
    trial = Trial(Case.read(written(tmp_path / "cases", EXPECT | change)), bench)
    trial.prepare()
    with contextlib.closing(trial.session), pytest.raises(AssertionError):
        check(trial)


def test_leaks_and_other_keys_are_found(tmp_path: Path, bench: Workbench) -> None:
    """Each secret is found when it is in an output; a value under another key does not open."""
    (tmp_path / "cases").mkdir()
    trial = Trial(Case.read(written(tmp_path / "cases", EXPECT)), bench)
    trial.prepare()
    with contextlib.closing(trial.session):
        trial.check_silence()
        assert len(trial.secrets()) > 10
        for secret in trial.secrets().values():
            trial.said = {"run": Result(0, f"… {secret.decode()} …", "")}
            with pytest.raises(AssertionError, match="run, stdout"):
                trial.check_silence()
        trial.session.script("UPDATE notes SET body = 'v2:' || substr(body, 4)")
        with pytest.raises(Exception, match=r"failed|Decryption"):
            check_plaintexts(trial, trial.expected.plain[0])
