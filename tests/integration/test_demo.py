"""`scripts/demo --cosmos`: one job over rows and documents, killed and resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import lacking
from tests.support.cosmos import FOLDER, missing_emulator


def demo(*options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rewrap.demo", *options],
        env={**os.environ, "NO_COLOR": "1", **environ},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_demo_proves_a_rotation_over_both_stores() -> None:
    """Nothing is lost, stale or closed in either; the application saw no error meanwhile."""
    if missing := missing_emulator():
        lacking(f"the Cosmos DB emulator is missing: {missing}")
    played = demo("--cosmos", "--json", "--rows", "1500", "--seed", "11", REWRAP_DEMO_EMULATOR=str(FOLDER))
    assert played.returncode == 0, played.stderr
    result = json.loads(played.stdout)
    assert (result["lost"], result["undecryptable"], result["stale"], result["reasons"]) == (0, 0, 0, [])
    assert result["rows"] == result["values"] > 3_000
    assert "deks.wrappedDek" in played.stderr


def test_demo_says_what_is_missing(tmp_path: Path) -> None:
    """Without the emulator or without Node: one line, and what to do."""
    for environ, said in (
        ({}, "the Cosmos DB emulator is not installed"),
        ({"REWRAP_DEMO_EMULATOR": str(tmp_path)}, "the Cosmos DB emulator could not be installed"),
    ):
        played = demo("--cosmos", **{"REWRAP_DEMO_EMULATOR": "", **environ})
        assert played.returncode == 1
        assert f"error: {said}" in played.stdout
        assert "hint: " in played.stdout
    blind = "import rewrap.demo.emulator as e, sys; e.node_program = lambda: None"
    main = "from rewrap.demo.__main__ import main; sys.exit(main(['--cosmos']))"
    played = subprocess.run(
        [sys.executable, "-c", f"{blind}; {main}"],
        env={**os.environ, "REWRAP_DEMO_EMULATOR": str(tmp_path)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert played.returncode == 1
    assert "error: the Cosmos DB emulator needs Node, and there is none" in played.stdout
