"""docs/systems/notelett.md: its commands, in their order, print what it shows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.test_readme import anchors, blocks, transcripts
from tests.support.cosmos import CosmosDatabase
from tests.support.notelett import ROOT, NoteLett, Told, merged
from tests.support.pages import shown_as
from tests.support.vault import VaultEmulator

PAGE = ROOT / "docs" / "systems" / "notelett.md"

COUNTS = {
    "dek_store": 300, "notes": 200, "artifacts": 20, "prompts": 20, "agent_actions": 20, "memories": 20,
}  # fmt: skip

BROKEN = ("malformed", "unopenable", "other_version")


class Reader:
    """Somebody who follows the page. What it says in words between two commands is done before the second."""

    def __init__(self, notelett: NoteLett, vault: VaultEmulator, made: Told) -> None:
        self.notelett, self.vault, self.made = notelett, vault, made
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environ = {
            **notelett.bench.environ, "PATH": path, "OLD_MEK": notelett.old, "VAULT": "notelett",
        }  # fmt: skip
        self.canaries = 0
        self.runs = 0

    def az(self, words: list[str]) -> None:
        """What the Azure CLI would do, done to the tests' vault."""
        name = words[words.index("--name") + 1]
        if words[1:4] == ["keyvault", "key", "set-attributes"]:
            assert words[-2:] == ["--enabled", "false"]
            self.vault.disable(name, os.path.expandvars(self.environ["OLD_MEK"]))
            return
        assert words[1:4] == ["keyvault", "key", "create"]
        if name.endswith("canary"):
            self.canaries += 1
            self.environ[f"CANARY_{self.canaries}"] = self.vault.create_version(name)
            return
        assert name == self.notelett.name
        self.environ["NEXT_MEK" if "NEW_MEK" in self.environ else "NEW_MEK"] = self.notelett.mint()

    def before(self, command: str) -> None:
        """What the page says in words."""
        if command.endswith("--dry-run") and "deks" in command:
            self.notelett.node("save", "notes", "first", "under the new version", version=self.notelett.new)
        if re.fullmatch(r'rewrap run \S+ --from "\$OLD_MEK" --to "\$NEW_MEK"', command):
            self.runs += 1
            steps: dict[int, Callable[[], None]] = {1: self.reseal_unmarked, 2: self.repair}
            steps.get(self.runs, lambda: None)()

    def reseal_unmarked(self) -> None:
        job = self.notelett.folder / "notelett-deks.toml"
        target = '[[targets]]\ncontainer = "dek_store"\n'
        assert job.read_text().count(target) == 1
        job.write_text(job.read_text().replace(target, target + 'unmarked = "reseal"\n'))

    def repair(self) -> None:
        cosmos = self.notelett.cosmos
        for container, kinds in (("dek_store", BROKEN), ("notes", ("orphan",))):
            for name, each in self.made[container].items():
                if each["kind"] in kinds:
                    cosmos.delete(container, cosmos.document(container, name))

    def types(self, command: str) -> str:
        """What a command prints, all of it."""
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.notelett.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode in (0, 3, 4, 10), done.stderr
        return done.stderr + done.stdout


def test_page_prints_what_the_program_prints(
    cosmos: CosmosDatabase, vault_emulator: VaultEmulator, tmp_path: Path
) -> None:
    """From pre-flight to the version that is disabled: every command as it stands there."""
    notelett = NoteLett(cosmos, tmp_path, vault_emulator, name="notelett-mek")
    made = merged(notelett.node("make", json.dumps(COUNTS)), notelett.node("odd"))
    reader = Reader(notelett, vault_emulator, made)
    ran = 0
    for command, shown in transcripts(PAGE):
        if command.startswith("az "):
            reader.az(command.split())
            continue
        reader.before(command)
        printed = reader.types(command).replace(cosmos.name, "notelett")
        assert shown_as(shown, printed), f"the page shows for {command}:\n{shown}\nit prints:\n{printed}"
        ran += 1
    assert ran >= 18
    for vault_key in ("notelett-mek", "notelett-mek-canary"):
        vault_emulator.delete(vault_key)


@pytest.mark.parametrize(
    ("version", "published", "ours"),
    [
        ("NEW_MEK", 0, 0),
        ("OLD_MEK", 1, 1),
        (None, 0, 1),
        ("null", 1, 1),
        (1, 1, 1),
        ("no DEK", 1, 0),
    ],
)
def test_queries_count_what_the_page_says(
    cosmos: CosmosDatabase, version: str | int | None, published: int, ours: int
) -> None:
    """The runbook's query and the page's own, over one record of a kind, in the emulator."""
    cosmos.container("dek_store")
    wrapped = None if version == "no DEK" else "AAAA"
    record = {"id": "one", "wrappedDek": wrapped, "mekVersion": None if version == "null" else version}
    if version is None:
        del record["mekVersion"]
    cosmos.upsert("dek_store", record)
    headers = {
        "x-ms-documentdb-isquery": "True",
        "x-ms-documentdb-query-enablecrosspartition": "True",
        "Content-Type": "application/query+json",
    }
    counted = []
    for query in blocks("sql", PAGE):
        body = {"query": query.strip(), "parameters": []}
        path = f"dbs/{cosmos.name}/colls/dek_store/docs"
        counted += cosmos.account.request("POST", path, body, headers=headers)[0]["Documents"]
    assert counted == [published, ours]


def test_links_of_the_page_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)]+)\)", PAGE.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = (PAGE.parent / path).resolve() if path else PAGE
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
