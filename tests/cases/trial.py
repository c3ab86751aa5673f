"""One case at work: its database, its commands, and what is compared."""

from __future__ import annotations

import base64
import contextlib
import decimal
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from tests.cases import look
from tests.cases.case import Case, Ended, Plaintexts, shown
from tests.cases.notation import Notation, Words, stored_format
from tests.cases.sealing import key_of, opened, read
from tests.cases.session import Session
from tests.support.workbench import Result, Workbench

PASSWORD = "canary-password"

LONGEST_S = 300
"""Seconds after which a command is ended: a million rows take 60 on a slow machine."""


class Trial:
    """One case at work in a database of its own."""

    def __init__(self, case: Case, bench: Workbench) -> None:
        self.case, self.bench = case, bench
        self.expected = case.expected
        self.notation = Notation(urlsplit(bench.dsn).path.strip("/"), self.expected.key_bytes)
        self.said: dict[str, Result] = {}
        self.job = tomllib.loads(case.whole_job())

    def prepare(self) -> None:
        """Makes the schema, the job file and the environment of commands."""
        before = self.notation.replaced(self.case.before)
        with contextlib.closing(Session(self.bench.dsn)) as session:
            for role in self.notation.roles:
                session.script(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
            session.script(before)
        (self.bench.folder / "rewrap.toml").write_text(self.case.whole_job(), encoding="utf-8")
        self.bench.environ |= dict(self._keys()) | self.expected.environ
        if self.expected.role:
            parts = urlsplit(self.bench.dsn)
            role = self.notation.role(self.expected.role)
            netloc = f"{role}:{quote(PASSWORD)}@{parts.hostname}:{parts.port}"
            self.bench.environ["DATABASE_URL"] = urlunsplit(parts._replace(netloc=netloc))

    @cached_property
    def session(self) -> Session:
        """Opened after before.sql, which may set the database's search path."""
        return Session(self.bench.dsn)

    def clear(self) -> None:
        self.session.close()
        for role in self.notation.roles:
            with contextlib.suppress(Exception):
                self.bench.sql(f"DROP OWNED BY {role} CASCADE")
            self.bench.sql(f"DROP ROLE IF EXISTS {role}")

    def _keys(self) -> Iterator[tuple[str, str]]:
        """An environment variable for each version of the job."""
        for name, section in self.job["keys"]["versions"].items():
            scheme, _, variable = section["material"].partition(":")
            assert scheme == "env", "a case's keys come from the environment"
            key = key_of(name, self.expected.key_bytes)
            as_base64 = base64.b64encode(key).decode()
            encodings = {"hex": key.hex(), "base64": as_base64, "utf8": key.decode()}
            yield variable, encodings[section.get("encoding", "hex")]

    def rewrap(self, name: str, *arguments: str) -> Result:
        """Runs a command; what it prints is looked through at the end."""
        self.said[name] = self.bench.rewrap(*arguments, "--json", timeout=LONGEST_S)
        assert "Traceback" not in self.said[name].err, self.said[name].err
        return self.said[name]

    @property
    def rotation(self) -> list[str]:
        return ["--from", self.expected.from_versions, "--to", self.expected.to]

    @property
    def run_options(self) -> list[str]:
        return ["--allow-unseen-target", *self.expected.options]

    def spared(self) -> dict[int, dict[str, list[str]]]:
        """What a rotation of this job may write: table → column → paths, by oid; partitions too."""
        found: dict[int, dict[str, list[str]]] = {}
        for target in self.job["targets"]:
            columns: dict[str, list[str]] = {}
            for entry in target["fields"]:
                parts = [entry.get(part, {}) for part in ("version", "nonce", "tag")]
                for place in [entry, *parts, *entry.get("indexes", [])]:
                    column = place.get("column", entry["column"])
                    if place:
                        columns.setdefault(column, []).extend([place["path"]] if "path" in place else [])
            for oid in look.oids_of(self.session, target["table"]):
                found[oid] = columns
        for table, names in self.expected.changes.items():
            for oid in look.oids_of(self.session, table):
                found.setdefault(oid, {}).update({name: [] for name in names})
        return found

    def secrets(self) -> dict[str, bytes]:
        """What no output may hold, in the forms in which it might be printed."""
        found = {"password": PASSWORD.encode()}
        for text in self.notation.plaintexts:
            found |= {f"plaintext {text!r}": text, f"plaintext {text!r} in hex": text.hex().encode()}
            found[f"plaintext {text!r} in base64"] = base64.b64encode(text)[:-4] or text
        for name in self.job["keys"]["versions"]:
            key = key_of(name, self.expected.key_bytes)
            found |= {
                f"key {name}": key,
                f"key {name} in hex": key.hex().encode(),
                f"key {name} in base64": base64.b64encode(key).rstrip(b"="),
            }
        return found | {f"stored value {text[:12]}": text.encode() for text in self.notation.stored}

    def check_silence(self) -> None:
        """No secret is in any output, in the ledger or in the guard's table."""
        places = {f"{name}, stdout": said.out.encode() for name, said in self.said.items()}
        places |= {f"{name}, stderr": said.err.encode() for name, said in self.said.items()}
        places |= {path.name: path.read_bytes() for path in self.bench.folder.glob("*ledger*")}
        places["guard table"] = repr(look.guard_records(self.session)).encode()
        leaks = [f"{what} in {place}" for what, text in self.secrets().items()
                 for place, content in places.items() if text in content]  # fmt: skip
        assert leaks == []


def check(trial: Trial) -> None:
    """Runs the commands; AssertionError when one does other than expect.json says, leaks, or writes more."""
    if trial.expected.refused:
        check_refusal(trial)
    else:
        check_rotation(trial)
    for answer in trial.expected.sql:
        asked = trial.notation.replaced(answer.sql)
        assert rows_of(trial.session, asked) == answer.rows, answer.sql
    for plain in trial.expected.plain:
        check_plaintexts(trial, plain)
    trial.check_silence()


def check_refusal(trial: Trial) -> None:
    """Every command named is refused with these words, the others are not, and nothing is written."""
    refused = trial.expected.refused
    assert refused is not None
    stamps = look.stamps(trial.session)
    commands = {
        "plan": ["plan", *trial.rotation],
        "dry-run": ["run", "--dry-run", *trial.rotation, *trial.run_options],
        "run": ["run", *trial.rotation, *trial.run_options],
    }
    for name, arguments in commands.items():
        said = trial.rewrap(name, *arguments)
        if name not in refused.commands:
            assert said.code in (0, 3), f"{name} is refused: {said.err}"
            continue
        assert said.code == refused.exit, f"{name}: {said.err or said.out}"
        error = said.event("error")
        assert refused.error in error["message"], f"{name}: {error['message']}"
        assert refused.hint in (error["hint"] or ""), f"{name}: {error['hint']}"
        assert said.err.count("error: ") == said.err.count("hint: ") == 1
    assert look.stamps(trial.session) == stamps, "something was written"


def check_rotation(trial: Trial) -> None:
    """The five commands, and what holds whatever the schema is."""
    expected, session = trial.expected, trial.session
    assert expected.run is not None
    assert expected.verify is not None
    stamps, others = look.stamps(session), look.fingerprints(session, trial.spared())
    files = {path.name for path in trial.bench.folder.iterdir()}
    written = {table: look.written_rows(session, table) for table in expected.run.outcomes}

    plan = trial.rewrap("plan", "plan", *trial.rotation)
    assert plan.code == 0, plan.err
    if expected.plan:
        said = plan.event("plan")
        assert said["in_scope"] == expected.plan.in_scope
        check_notices(said["notices"], expected.plan.notices)

    dry = trial.rewrap("dry-run", "run", "--dry-run", *trial.rotation, *trial.run_options)
    check_end(dry, expected.dry_run or expected.run)
    assert look.stamps(session) == stamps, "the dry run has written"
    assert look.guard_records(session) is None, "the dry run has made a table"
    assert {path.name for path in trial.bench.folder.iterdir()} == files, "the dry run has made files"

    ran = trial.rewrap("run", "run", *trial.rotation, *trial.run_options)
    check_end(ran, expected.run)
    reasons = Counter(event["reason"] for event in ran.events if event["type"] == "quarantined")
    assert dict(reasons) == expected.run.quarantined
    check_updates(trial, expected.run, written)
    assert look.fingerprints(session, trial.spared()) == others, "something else than the fields has changed"

    deep = trial.rewrap("verify", "verify", "--deep")
    assert deep.code == expected.verify.exit, deep.err or deep.out
    classes: dict[str, dict[str, dict[str, int]]] = {}
    for event in deep.events:
        if event["type"] == "field_verdict":
            classes.setdefault(event["target"], {})[event["field"]] = event["classes"]
    assert classes == expected.verify.classes, shown(classes)
    verdict = deep.event("verdict")
    found = (verdict["undecided"], verdict["unopenable"])
    assert found == (expected.verify.undecided, expected.verify.unopenable)

    stamps = look.stamps(session)
    again = trial.rewrap("second run", "run", *trial.rotation, *trial.run_options)
    assert again.code == ran.code, again.err or again.out
    ended = again.event("run_ended")
    assert "resealed" not in repr(ended["outcomes"]), shown(ended["outcomes"])
    assert ended["resealed_late"] == 0
    assert look.stamps(session) == stamps, "the second run has written"


def check_end(said: Result, expected: Ended) -> None:
    """Exit code, outcomes and notices of a run or a dry run."""
    assert said.code == expected.exit, f"exit {said.code}: {said.err or said.out}"
    ended = said.event("run_ended")
    assert ended["outcomes"] == expected.outcomes, shown(ended["outcomes"])
    check_notices([e["message"] for e in said.events if e["type"] == "notice"], expected.notices)


def check_notices(said: list[str], expected: list[str]) -> None:
    for words in expected:
        assert any(words in message for message in said), f"nothing says {words!r}: {said}"


def check_updates(trial: Trial, expected: Ended, before: dict[str, int]) -> None:
    """A row is written once, however many of its fields are; one row of a table is rehearsed before."""
    if "rejected" in expected.quarantined:
        # a batch that the database refuses has written rows which the server counts, and takes back
        return
    for table, fields in expected.outcomes.items():
        rows = sum(counts.get("resealed", 0) for counts in fields.values())
        if expected.updates is not None:
            rows = expected.updates.get(table, 0)
        updated = look.written_rows(trial.session, table) - before[table]
        assert updated - rows in ((0, 1) if rows else (0,)), f"{table}: {updated} updates for {rows} rows"


def check_plaintexts(trial: Trial, expected: Plaintexts) -> None:
    """Stored values open, by code that is not rewrap's, with the key of the version named."""
    words = Words.parse(expected.sealed)
    stored = stored_format(words)
    key = key_of(stored.version, trial.expected.key_bytes)
    texts: list[str | None] = []
    for row in trial.session.sql(expected.sql):
        columns = dict(row)
        value, aad = columns.pop("value"), columns.pop("aad", None)
        if value is None:
            texts.append(None)
            continue
        sealed = read(stored, value, columns)
        texts.append(opened(stored, key, sealed, (aad or "").encode()).decode())
    assert texts == expected.texts


def rows_of(session: Session, statement: str) -> list[list[Any]]:
    """The rows of a query, in what JSON has: numbers, texts, true, null; all else as Postgres' text."""
    return [[_plain(value) for value in row] for row in session.sql(statement)]


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    return str(value)
