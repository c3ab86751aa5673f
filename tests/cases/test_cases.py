"""Every folder beside this file is a case: a schema, a job and what is expected of them (see README.md)."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.cases.case import Case, folders
from tests.cases.trial import Trial, check
from tests.support.workbench import Workbench


@pytest.fixture(params=folders(), ids=lambda folder: folder.name)
def trial(request: pytest.FixtureRequest, bench: Workbench) -> Iterator[Trial]:
    """A case, its database made."""
    found = Trial(Case.read(request.param), bench)
    try:
        found.prepare()
        yield found
    finally:
        found.clear()


def test_case(trial: Trial) -> None:
    """Plan, dry run, run, verify and a second run do what expect.json says, and what holds for every case."""
    check(trial)


def test_every_case_is_described_by_its_name() -> None:
    """Folder names are words with hyphens, so that -k finds them."""
    names = [folder.name for folder in folders()]
    assert len(names) >= 30
    assert [name for name in names if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)] == []
