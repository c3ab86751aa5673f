"""README and docs say what the program does: commands are run, options, fields and links compared."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from pydantic import BaseModel

from rewrap import errors, events
from rewrap.audit.record import Listener
from rewrap.audit.section import AuditSection, RowSection
from rewrap.cli import app
from rewrap.envelopes import DekSection, ReferenceSection
from rewrap.formats import IndexKind, LayoutSection
from rewrap.job import Job
from rewrap.keysections import AwsKms, AwsSecret, FileLabel, KeyFiles, Keys, KeyVersion, Pkcs11, Transit
from rewrap.limits import Limits
from rewrap.pace.section import Pace, SharedSection
from rewrap.pace.thresholds import Health, LoadProbe
from rewrap.probes.section import ProbeSection
from rewrap.storage import CosmosStore, PostgresStore
from rewrap.targets import FieldSection, TargetSection
from rewrap.untouched import UntouchedSection
from tests.support.workbench import Workbench

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted(DOCS.glob("*.md")),
    *sorted((DOCS / "adr").glob("*.md")),
]

LONGEST_LINE = 110
"""Characters."""


def blocks(kind: str, page: Path = README) -> list[str]:
    """The fenced blocks of a page with this info string."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.S | re.M)


def transcripts(page: Path = README) -> Iterator[tuple[str, str]]:
    """(command, what it shows) of every console block, in order."""
    for block in blocks("console", page):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, shown = part.partition("\n")
            yield command, shown


def shape(text: str) -> list[str]:
    """Lines without what differs from run to run: ids, moments, durations, rates, the width of a table."""
    lines = []
    for line in text.splitlines():
        if "(held back by " in line:
            # a slow machine reports its progress
            continue
        line = re.sub(r"\brun [0-9a-f]{8}\b", "run ID", line)
        line = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", "MOMENT", line)
        line = re.sub(r"(\d+ min )?[\d.]+ s\b", "DURATION", line)
        line = re.sub(r"[\d,]+ rows/s", "RATE", line)
        lines.append(re.sub(r" +", " ", line.strip()))
    return [line for line in lines if line]


def shown_as(shown: str, printed: str) -> bool:
    """Whether output is what a page shows; `…` stands for any end of a line, alone for any lines."""
    pattern = ""
    for line in shape(shown):
        pattern += r"(?:.*\n)*" if line == "…" else re.escape(line).replace("…", ".*") + "\n"
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in shape(printed))) is not None


@pytest.fixture
def reader(bench: Workbench) -> Workbench:
    """A bench with the README's own keys and job file."""
    (exports,) = [block for block in blocks("sh") if "KEY_V1" in block]
    bench.environ |= dict(re.findall(r"^export (KEY_\w+)=(\S+)$", exports, re.M))
    (job,) = blocks("toml")
    (bench.folder / "rewrap.toml").write_text(job)
    return bench


def test_readme_prints_what_the_program_prints(reader: Workbench) -> None:
    """Its SQL, job file and commands, as written, print what it shows."""
    (sql,) = blocks("sql")
    code, ran = 0, 0
    for command, shown in transcripts():
        words = shlex.split(command)
        if words[0] == "psql":
            reader.sql(sql)
            continue
        if command == "echo $?":
            assert shown.strip() == str(code)
            continue
        assert words[0] == "rewrap", command
        result = reader.rewrap(*words[1:])
        code, ran = result.code, ran + 1
        assert code in (0, 4), result.err
        printed = result.err + result.out
        assert shown_as(shown, printed), f"README shows for {command}:\n{shown}\nit prints:\n{printed}"
    assert ran >= 7


def test_comparison_would_notice_a_difference() -> None:
    """The comparison passes over what differs from run to run, and over nothing else."""
    shown = "run 0123abcd: complete — 30 rows in 0.3 s (93 rows/s)\nverify: stale 0, …\n…\nend\n"
    assert shown_as(
        shown, "run ffff0000: complete  — 30 rows in 2 min 3 s (1,234 rows/s)\nverify: stale 0, x\nend"
    )
    for other in (
        shown.replace("30 rows", "31 rows"),
        shown.replace("stale 0", "stale 1"),
        shown.replace("complete", "incomplete"),
        shown + "more\n",
    ):
        assert not shown_as(shown, other.replace("…", "and so on"))


def commands(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every command that is no group, by its name in full."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{path}{name} ")
        else:
            yield f"{path}{name}", command


def section(page: Path, heading: str) -> str:
    """What stands under a heading, up to the next one of any level."""
    text = page.read_text(encoding="utf-8")
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", text, re.S | re.M)
    assert found, f"{page.name} has no section {heading}"
    return found.group(1)


def rows(text: str) -> dict[str, list[str]]:
    """The rows of the tables in a text, by what stands in backquotes in their first cell."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| `"):
            for name in re.findall(r"`([^`]+)`", cells[0]):
                found[name] = cells
    return found


COMMON = {"--json", "--debug", "--help"}


def test_cli_page_has_every_option_and_no_other() -> None:
    """Each command's options stand in its section of docs/cli.md."""
    page = DOCS / "cli.md"
    for name, command in commands(typer.main.get_command(app)):
        options = {option for param in command.params for option in param.opts}
        there = {option for option in rows(section(page, f"rewrap {name}")) if option.startswith("--")}
        assert there == {option for option in options if option.startswith("--")} - COMMON, name
    for code in (*codes(), 0, 4, 130):
        for text in (page.read_text(encoding="utf-8"), section(README, "Exit codes")):
            assert re.search(rf"^\| {code}\b", text, re.M), code


def codes() -> set[int]:
    """The exit codes that errors carry."""
    return {
        error.exit_code
        for _, error in inspect.getmembers(errors, inspect.isclass)
        if issubclass(error, errors.RewrapError)
    }


SECTIONS: dict[str, list[type[BaseModel]]] = {
    "Top level": [Job],
    "`[stores.NAME]`": [PostgresStore],
    "`[stores.NAME]` in Cosmos DB": [CosmosStore],
    "`[keys]` and `[keys.versions.NAME]`": [Keys, KeyVersion],
    "`[keys.aws-secrets-manager]`": [AwsSecret],
    "`[keys.aws-kms]`": [AwsKms],
    "`[keys.files]`": [KeyFiles],
    "`[keys.files.labels.NAME]`": [FileLabel],
    "`[keys.pkcs11]`": [Pkcs11],
    "`[keys.vault-transit]`": [Transit],
    "`[layouts.NAME]`": [LayoutSection],
    "`[indexes.NAME]`": [IndexKind],
    "`[[targets]]`": [TargetSection, FieldSection],
    "`[[untouched]]`": [UntouchedSection],
    "`[deks.NAME]`": [DekSection, ReferenceSection],
    "`[pace]`": [Pace],
    "`[pace.health]`": [Health],
    "`[[pace.probe]]`": [LoadProbe],
    "`[pace.shared.NAME]`": [SharedSection],
    "`[limits]`": [Limits],
    "`[[probe]]`": [ProbeSection],
    "`[audit]`": [AuditSection],
    "`[[audit.rows]]`": [RowSection],
}


@pytest.mark.parametrize("heading", SECTIONS)
def test_job_page_has_every_field_with_its_default(heading: str) -> None:
    """Each field of a section of the job file stands on docs/job-file.md, with the default of the code."""
    documented = rows(section(DOCS / "job-file.md", heading))
    fields: dict[str, Any] = {}
    for model in SECTIONS[heading]:
        fields |= {entry.alias or name: entry for name, entry in model.model_fields.items()}
    assert set(documented) == set(fields)
    for name, field in fields.items():
        default = documented[name][2].strip("`")
        if default == "required" and heading.startswith("`[keys."):
            # required of the provider in use alone, and checked when that is known
            assert field.is_required() or field.default in ("", None), name
        elif field.is_required() or heading == "`[layouts.NAME]`":
            assert default in ("required", "none"), name
        elif default not in ("none", "see below"):
            assert ast.literal_eval(default) == field.default, name


def all_events() -> list[type[events.Event]]:
    return [
        found
        for _, found in inspect.getmembers(events, inspect.isclass)
        if issubclass(found, events.Event) and found is not events.Event
    ]


@pytest.mark.parametrize("event", all_events(), ids=lambda event: event.type)
def test_json_page_has_every_field_of_an_event(event: type[events.Event]) -> None:
    """Each event has a section on docs/json.md with its fields, in the order in which they are printed."""
    documented = rows(section(DOCS / "json.md", f"`{event.type}`"))
    assert list(documented) == [field.name for field in dataclasses.fields(event)]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the common hosts make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.M)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_is_well_formed(page: Path) -> None:
    """Links lead to files and headings that are there, and no line is too long to read."""
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
    assert [number for number, line in enumerate(text.splitlines(), 1) if len(line) > LONGEST_LINE] == []


def test_audit_page_has_every_field_of_a_record() -> None:
    """The fields of a record stand on docs/audit.md, and no others."""
    listener = Listener("shop", "", [], "v2", compromised=False, sink=print)
    record = listener.failed(RuntimeError())
    documented = rows(section(DOCS / "audit.md", "What it says"))
    assert set(documented) == set(record)
