"""A case: a folder with a schema, a job and what is expected of them. Nothing in it is passed over."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tests.cases.notation import CaseError

FOLDER = Path(__file__).parent
FILES = {"job.toml", "before.sql", "expect.json"}

HEADER = 'name = "case"\n'
STORES = '\n[stores.main]\nkind = "postgres"\nurl = "${DATABASE_URL}"\n'
KEYS = "".join(f'\n[keys.versions.v{n}]\nmaterial = "env:KEY_V{n}"\n' for n in (1, 2, 3))

Counts = dict[str, dict[str, dict[str, int]]]
"""table → field → class → number of values."""

Command = Literal["plan", "dry-run", "run"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Plan(_Part):
    """What `rewrap plan` says."""

    in_scope: int
    notices: list[str] = []


class Ended(_Part):
    """How a run ends: its outcomes, and how many values it sets aside for which reason."""

    exit: int = 0
    outcomes: Counts
    quarantined: dict[str, int] = {}
    notices: list[str] = []
    updates: dict[str, int] | None = None


class Verified(_Part):
    """What `verify --deep` counts; `undecided` and `unopenable` are in no class."""

    exit: int = 0
    classes: Counts
    undecided: int = 0
    unopenable: int = 0


class Refused(_Part):
    """Which commands are refused, and with which words."""

    exit: int
    error: Annotated[str, Field(min_length=5)]
    hint: Annotated[str, Field(min_length=5)]
    commands: Annotated[list[Command], Field(min_length=1)] = ["plan", "dry-run", "run"]


class Answer(_Part):
    """A query after the run, and its rows."""

    sql: str
    rows: list[list[Any]]


class Plaintexts(_Part):
    """A query for stored values, how they are sealed, and what they open to. NULL is null."""

    sql: str
    sealed: str
    texts: Annotated[list[str | None], Field(min_length=1)]


class Expectation(_Part):
    """expect.json."""

    about: Annotated[str, Field(min_length=10)]
    from_versions: Annotated[str, Field(alias="from")] = "v1"
    to: str = "v2"
    options: list[str] = []
    environ: dict[str, str] = {}
    key_bytes: int = 32
    role: str | None = None
    refused: Refused | None = None
    plan: Plan | None = None
    dry_run: Ended | None = None
    run: Ended | None = None
    verify: Verified | None = None
    sql: list[Answer] = []
    plain: list[Plaintexts] = []
    changes: dict[str, list[str]] = {}

    @model_validator(mode="after")
    def _asserts_something(self) -> Expectation:
        if self.refused:
            if self.run or self.dry_run or self.verify or self.plain:
                raise ValueError("what is refused has no run, dry_run, verify or plain")
            return self
        if not self.run or not self.verify:
            raise ValueError("a case says how it is refused, or has both run and verify")
        counts = [n for fields in self.run.outcomes.values() for c in fields.values() for n in c.values()]
        if 0 in counts:
            raise ValueError("a class that is 0 is left out")
        resealed = [len(fields) for fields in self.run.outcomes.values()]
        if any("resealed" in c for fields in self.run.outcomes.values() for c in fields.values()):
            if not self.plain:
                raise ValueError("values are resealed: plain says what they open to")
            if max(resealed) > 1 and self.run.updates is None:
                raise ValueError("a table has several fields: run.updates says how many rows are written")
        elif not self.sql and not counts:
            raise ValueError("nothing is asserted")
        return self


@dataclass(frozen=True)
class Case:
    """One folder, read and checked."""

    name: str
    job: str
    before: str
    expected: Expectation

    @classmethod
    def read(cls, folder: Path) -> Case:
        """Raises CaseError, which names what is wrong."""
        there = {path.name for path in folder.iterdir()}
        if there != FILES:
            raise CaseError(f"case {folder.name} has {sorted(there)}, not {sorted(FILES)}")
        job, before, expect = (
            (folder / name).read_text(encoding="utf-8") for name in ("job.toml", "before.sql", "expect.json")
        )
        try:
            expected = Expectation.model_validate_json(expect)
        except ValidationError as exc:
            said = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors())
            raise CaseError(f"case {folder.name}: expect.json: {said}") from None
        return cls(folder.name, job, before, expected)

    def whole_job(self) -> str:
        """The job file, with what nearly all cases have in common unless it says so itself."""
        declared = tomllib.loads(self.job)
        return (
            ("" if "name" in declared else HEADER)
            + self.job
            + ("" if "stores" in declared else STORES)
            + ("" if "keys" in declared else KEYS)
        )


def folders() -> list[Path]:
    """Every case, by name."""
    return sorted(path for path in FOLDER.iterdir() if path.is_dir() and path.name != "__pycache__")


def shown(value: Any) -> str:
    """For messages of a failed comparison."""
    return json.dumps(value, indent=1, default=str, ensure_ascii=False)
